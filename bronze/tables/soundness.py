"""Soundness: whether stored rows are as bronze wrote them, by their own hashes and forms.

``checksum`` is computed from the values as they are stored, ``row_hash`` from those in the source:
both are of the same values unless some were rejected, which are stored as NULL, or are protected by
a secret key. The other metadata columns have values that no run writes if they were altered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.delta.partition import source_of
from bronze.delta.write.history import KIND
from bronze.model.columns import DeltaType
from bronze.model.files import RowFormat
from bronze.model.quality import BEST_SCORE
from bronze.model.stamp import IngestionMethod
from bronze.model.units import ACTIVE, DELETED, QUARANTINED
from bronze.postgres.copy.rows_reader import dtype
from bronze.rows import fingerprint, hashing
from bronze.rows.encoding import cast_exactly, encoding_pieces
from bronze.rows.metadata import COMMIT_TIMESTAMP

Mask = npt.NDArray[np.bool_]

_DIGITS = 16
_DAY = 86_400_000
# A UUIDv7 (RFC 9562), whose first 48 bits are its time in milliseconds.
_UUID7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_VERSIONS = ("insert", "update", "delete")


@dataclass(frozen=True)
class RowCheck:
    """The result for some rows: ``altered`` are those whose hashes are not those of their values,
    ``unfit`` those in which a metadata column has a value that no run writes, by column. ``hashes``
    are the row hashes of the values as they are stored.
    """

    altered: Mask
    unfit: dict[str, Mask]
    hashes: pl.Series

    @property
    def wrong(self) -> Mask:
        """The rows that are not as bronze wrote them."""
        wrong = self.altered.copy()
        for mask in self.unfit.values():
            wrong |= mask
        return wrong


def check_rows(rows: pl.DataFrame, form: RowFormat) -> RowCheck:
    """Checks rows, which have all columns of their table."""
    sound, hashes = _match_hashes(rows, form)
    for types in form.earlier:
        rest = np.flatnonzero(~sound)
        if not len(rest):
            break
        sound[rest] = _match_earlier_hashes(rows[rest], form, types)
    unfit = {name: mask.to_numpy() for name, mask in _unfit(rows, form).items()}
    return RowCheck(~sound, {name: mask for name, mask in unfit.items() if mask.any()}, hashes)


def _match_earlier_hashes(
    rows: pl.DataFrame, form: RowFormat, types: Sequence[tuple[str, DeltaType]]
) -> Mask:
    """Which rows have the hashes of their values in the types that columns had before."""
    exact = np.ones(rows.height, np.bool_)
    for name, kind in types:
        values, is_exact = cast_exactly(rows[name], dtype(kind))
        rows = rows.with_columns(values)
        exact &= is_exact.to_numpy()
    sound, _ = _match_hashes(rows, form)
    return sound & exact


def _match_hashes(rows: pl.DataFrame, form: RowFormat) -> tuple[Mask, pl.Series]:
    """Which rows have the hashes of their values, and these hashes."""
    if not rows.height:
        return np.ones(0, np.bool_), pl.Series(dtype=pl.String)
    values = rows.select(form.values)
    made = hashing.joined(encoding_pieces(values.get_columns(), rows.height, form.base))
    sound = _match_checksums(rows["checksum"], hashing.xxh3(made, rows.height))
    none = pl.Series([None], dtype=pl.String).new_from_index(0, rows.height)
    if not form.hashed:
        return sound, none
    hashes = hashing.sha256(made, rows.height, none)
    other = hashes.ne_missing(rows["row_hash"]).to_numpy()
    if other.any():
        # NULL may stand for a rejected value, which is part of the hash but not of the table.
        rest = np.flatnonzero(other)
        whole = values[rest].select(pl.all_horizontal(pl.all().is_not_null())).to_series()
        formed = fingerprint.is_well_formed(rows["row_hash"][rest])
        sound[rest] &= ~whole.to_numpy() & formed.to_numpy()
    return sound, hashes


def _match_checksums(checksums: pl.Series, sums: npt.NDArray[np.uint64]) -> Mask:
    plain, formed = fingerprint.with_zeros(checksums, _DIGITS)
    mask: Mask = fingerprint.of_checksums(plain) == sums
    mask &= formed.to_numpy()
    return mask


def _unfit(rows: pl.DataFrame, form: RowFormat) -> dict[str, pl.Series]:
    """The rows in which a metadata column has a value that no run writes, by column."""
    update, batch = pl.col("update_timestamp"), pl.col("\0batch")
    live = pl.col("record_status").ne_missing(DELETED)
    near = (update.dt.epoch("ms") - batch).abs() <= _DAY
    checks = {
        "record_status": _status(form.thresholds),
        "data_quality_score": pl.col("data_quality_score").is_between(0, BEST_SCORE),
        "source_system": pl.col("source_system").is_not_null(),
        "batch_id": batch.is_not_null(),
        "update_timestamp": near | batch.is_null(),
        "load_timestamp": pl.col("load_timestamp").dt.epoch("ms") <= update.dt.epoch("ms") + _DAY,
        "ingestion_method": pl.col("ingestion_method").is_in(get_args(IngestionMethod)),
        "data_lineage": pl.col("\0lineage").is_not_null(),
    }
    if form.history:
        gone = pl.col(KIND) == "delete"
        checks[KIND] = pl.col(KIND).is_in(_VERSIONS) & (gone == ~live)
    if COMMIT_TIMESTAMP in rows.columns:
        late = pl.col(COMMIT_TIMESTAMP).dt.epoch("ms") > update.dt.epoch("ms") + _DAY
        checks[COMMIT_TIMESTAMP] = ~late | pl.col(COMMIT_TIMESTAMP).is_null()
    if form.partition:
        dates = pl.col(source_of(form.partition)).cast(pl.Date)
        checks[form.partition] = pl.col(form.partition).eq_missing(dates)
    times = {"batch_id": "\0batch", "data_lineage": "\0lineage"}
    known = rows.with_columns(_times(rows[name]).alias(new) for name, new in times.items())
    wrong = [(~check.fill_null(False)).alias(name) for name, check in checks.items()]
    return {column.name: column for column in known.select(wrong).get_columns()}


def _status(thresholds: tuple[int, ...]) -> pl.Expr:
    status, score = pl.col("record_status"), pl.col("data_quality_score")
    if thresholds:
        low, high = score < max(thresholds), score >= min(thresholds)
    else:
        low, high = score < BEST_SCORE, pl.lit(True)
    return (
        pl.when(status == ACTIVE)
        .then(high)
        .when(status == QUARANTINED)
        .then(low)
        .otherwise(status == DELETED)
    )


def _times(ids: pl.Series) -> pl.Series:
    """The times of UUIDv7s, in milliseconds; NULL for anything else."""
    # Most files are of one run: comparing all ids with the first one is faster than hashing them.
    is_one = len(ids) > 0 and (ids == ids[:1]).all(ignore_nulls=False)
    unique: list[str | None] = (ids[:1] if is_one else ids.unique()).to_list()
    times = {
        text: int(text.replace("-", "")[:12], 16)
        for text in unique
        if text is not None and _UUID7.fullmatch(text)
    }
    if len(unique) == 1 or not times:
        time = times.get(unique[0] or "") if unique else None
        return pl.Series([time], dtype=pl.Int64).new_from_index(0, len(ids))
    return ids.replace_strict(times, default=None, return_dtype=pl.Int64)
