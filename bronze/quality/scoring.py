"""Rows are held against the rules of their table, in clear, before anything is done to them."""

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
"""The column in which expressions find the moment that freshness is measured from."""


def score_rows(
    rows: pl.DataFrame, rejected: pl.Series, stamp: RowStamp, wanted: QualityRules
) -> tuple[pl.Series | None, QualityTotals]:
    """The score of each row, None where all are the best, and how the rows fared.

    Args:
        rows: the source's columns, typed, under their target names, in clear.
        rejected: each row's rejected values as text, NULL where it has none.
        stamp: says from when freshness is measured.
        wanted: the rules.

    Raises:
        TableRefused: an expression fails on these rows.
    """
    masks = _masks(rows, rejected, stamp, wanted)
    failed = tuple(0 if mask is None else int(mask.sum()) for mask in masks)
    found = QualityTotals(
        rows=rows.height,
        total=BEST_SCORE * rows.height,
        refused=len(rejected) - rejected.null_count(),
        failed=failed,
        examples=tuple(
            _examples(rows, mask, wanted.key) if mask is not None and count else ()
            for mask, count in zip(masks, failed, strict=True)
        ),
        nulls=tuple(rows[target].null_count() for _, target in wanted.names),
    )
    if not any(failed):
        return None, found
    lost = np.zeros(rows.height, np.int32)
    for criterion, mask in zip(wanted.criteria, masks, strict=True):
        if mask is not None:
            lost += mask.to_numpy() * np.int32(POINTS[criterion.severity])
    scores = pl.Series(np.maximum(BEST_SCORE - lost, 0))
    return scores, replace(
        found,
        total=int(scores.sum()),
        flawed=int((scores < BEST_SCORE).sum()),
        quarantined=int((scores < wanted.threshold).sum()),
    )


def told_apart(found: QualityTotals, hashes: pl.Series, wanted: QualityRules) -> QualityTotals:
    """What was found, with the fingerprints by which whole rows are told apart, where asked for."""
    if not wanted.distinct or not len(hashes):
        return found
    prints = fingerprint.of_hashes(hashes, 0)
    kept = prints[prints % np.uint64(wanted.distinct) == 0]
    return replace(found, prints=(kept.tobytes(),))


def _masks(
    rows: pl.DataFrame, rejected: pl.Series, stamp: RowStamp, wanted: QualityRules
) -> list[pl.Series | None]:
    """For each criterion which rows break it; None where it is not evaluated here."""
    masks: list[pl.Series | None] = [None] * len(wanted.criteria)
    evaluated = [i for i, criterion in enumerate(wanted.criteria) if criterion.holds]
    if evaluated and rows.height:
        named = rows.select(pl.col(t).alias(s) for s, t in wanted.names) if wanted.renamed else rows
        named = named.with_columns(pl.lit(stamp.loaded_at).alias(MOMENT))
        broken = [_broken(wanted.criteria[i]).alias(str(i)) for i in evaluated]
        try:
            found = named.select(broken)
        except pl.exceptions.PolarsError:
            raise _unfit(named, [wanted.criteria[i] for i in evaluated]) from None
        for i in evaluated:
            masks[i] = found[str(i)]
    if rejected.null_count() < len(rejected):
        for i, criterion in enumerate(wanted.criteria):
            if criterion.rejects:
                masks[i] = _rejected(rejected, criterion.rejects)
    return masks


def _broken(criterion: ResolvedRule) -> pl.Expr:
    # What is unknown keeps the rule, as in SQL.
    return expression(criterion.holds).not_().fill_null(False)


@lru_cache(maxsize=1024)
def expression(serialised: bytes) -> pl.Expr:
    """An expression that was serialised."""
    return pl.Expr.deserialize(io.BytesIO(serialised))


def _unfit(rows: pl.DataFrame, criteria: Sequence[ResolvedRule]) -> TableRefused:
    """The error for the expression that failed; polars' own text would quote values."""
    for criterion in criteria:
        try:
            rows.select(_broken(criterion))
        except pl.exceptions.PolarsError as error:
            return TableRefused(
                f"The rule {criterion.name!r} fails on rows of the table: {type(error).__name__}.",
                hint="Write it so that it has an answer for every value, for example with TRY_CAST"
                " instead of CAST.",
            )
    return TableRefused("A rule fails on rows of the table.", hint="Look at its expression.")


def _rejected(lines: pl.Series, column: str) -> pl.Series:
    """Which rows have a rejected value of a column; see `bronze.postgres.statement`."""
    begins = pl.escape_regex(json.dumps(column, ensure_ascii=False))
    return lines.fill_null("").str.contains(rf"(?m)^\[{begins}, ")


def _examples(rows: pl.DataFrame, mask: pl.Series, key: Sequence[str]) -> tuple[str, ...]:
    """The keys of a few of the rows, as JSON objects."""
    if not key:
        return ()
    few = rows.select(key)[mask.arg_true().head(MAX_EXAMPLES)]
    return tuple(json.dumps(row, default=str, ensure_ascii=False) for row in few.to_dicts())
