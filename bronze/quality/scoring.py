"""Scores rows by the rules of their table, in clear text, before columns are protected."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import polars as pl

from bronze.errors import TableRefused
from bronze.model.quality import (
    BEST_SCORE,
    MAX_EXAMPLES,
    POINTS,
    QualityRules,
    QualityTotals,
    ResolvedRule,
)
from bronze.model.stamp import RowStamp
from bronze.rows import fingerprint

MOMENT = "\0moment"
"""The column with the moment from which expressions measure freshness."""


def score_rows(
    rows: pl.DataFrame, rejected: pl.Series, stamp: RowStamp, quality: QualityRules
) -> tuple[pl.Series | None, QualityTotals]:
    """The score of each row, None if all have the best score, and the counts by rule.

    Args:
        rows: the source's columns, typed, under their target names, in clear text.
        rejected: the rejected values of each row as text, NULL if it has none.
        stamp: has the moment from which freshness is measured.
        quality: the rules.

    Raises:
        TableRefused: an expression fails on these rows.
    """
    masks = _masks(rows, rejected, stamp, quality)
    failed = tuple(0 if mask is None else int(mask.sum()) for mask in masks)
    totals = QualityTotals(
        rows=rows.height,
        total=BEST_SCORE * rows.height,
        refused=len(rejected) - rejected.null_count(),
        failed=failed,
        examples=tuple(
            _examples(rows, mask, quality.key) if mask is not None and count else ()
            for mask, count in zip(masks, failed, strict=True)
        ),
        nulls=tuple(rows[target].null_count() for _, target in quality.names),
    )
    if not any(failed):
        return None, totals
    lost = np.zeros(rows.height, np.int32)
    for criterion, mask in zip(quality.criteria, masks, strict=True):
        if mask is not None:
            lost += mask.to_numpy() * np.int32(POINTS[criterion.severity])
    scores = pl.Series(np.maximum(BEST_SCORE - lost, 0))
    return scores, replace(
        totals,
        total=int(scores.sum()),
        flawed=int((scores < BEST_SCORE).sum()),
        quarantined=int((scores < quality.threshold).sum()),
    )


def with_fingerprints(
    totals: QualityTotals, hashes: pl.Series, quality: QualityRules
) -> QualityTotals:
    """The totals with the fingerprints of rows without a key, by which duplicates are counted."""
    if not quality.distinct or not len(hashes):
        return totals
    prints = fingerprint.of_hashes(hashes, 0)
    kept = prints[prints % np.uint64(quality.distinct) == 0]
    return replace(totals, prints=(kept.tobytes(),))


def _masks(
    rows: pl.DataFrame, rejected: pl.Series, stamp: RowStamp, quality: QualityRules
) -> list[pl.Series | None]:
    """For each rule the rows that break it; None if it is not evaluated here."""
    masks: list[pl.Series | None] = [None] * len(quality.criteria)
    evaluated = [i for i, criterion in enumerate(quality.criteria) if criterion.holds]
    if evaluated and rows.height:
        named = (
            rows.select(pl.col(t).alias(s) for s, t in quality.names)
            if quality.has_renames
            else rows
        )
        named = named.with_columns(pl.lit(stamp.loaded_at).alias(MOMENT))
        broken = [_violation(quality.criteria[i]).alias(str(i)) for i in evaluated]
        try:
            results = named.select(broken)
        except pl.exceptions.PolarsError:
            raise _failing_rule(named, [quality.criteria[i] for i in evaluated]) from None
        for i in evaluated:
            masks[i] = results[str(i)]
    if rejected.null_count() < len(rejected):
        for i, criterion in enumerate(quality.criteria):
            if criterion.rejects:
                masks[i] = _has_rejected_value(rejected, criterion.rejects)
    return masks


def _violation(criterion: ResolvedRule) -> pl.Expr:
    # NULL meets the rule, as in a CHECK constraint.
    return expression(criterion.holds).not_().fill_null(False)


@lru_cache(maxsize=1024)
def expression(serialised: bytes) -> pl.Expr:
    """The expression of its serialised form."""
    return pl.Expr.deserialize(io.BytesIO(serialised))


def _failing_rule(rows: pl.DataFrame, criteria: Sequence[ResolvedRule]) -> TableRefused:
    """The error for the expression that failed, without polars' message, which quotes values."""
    for criterion in criteria:
        try:
            rows.select(_violation(criterion))
        except pl.exceptions.PolarsError as error:
            return TableRefused(
                f"The rule {criterion.name!r} fails on rows of the table: {type(error).__name__}.",
                hint="Write it so that it has a result for every value, for example with TRY_CAST"
                " instead of CAST.",
            )
    return TableRefused(
        "A rule fails on rows of the table.", hint="Check the expressions of its rules."
    )


def _has_rejected_value(lines: pl.Series, column: str) -> pl.Series:
    """Which rows have a rejected value in a column; see `bronze.postgres.statement`."""
    name = pl.escape_regex(json.dumps(column, ensure_ascii=False))
    return lines.fill_null("").str.contains(rf"(?m)^\[{name}, ")


def _examples(rows: pl.DataFrame, mask: pl.Series, key: Sequence[str]) -> tuple[str, ...]:
    """The keys of some of the rows as JSON objects."""
    if not key:
        return ()
    few = rows.select(key)[mask.arg_true().head(MAX_EXAMPLES)]
    return tuple(json.dumps(row, default=str, ensure_ascii=False) for row in few.to_dicts())
