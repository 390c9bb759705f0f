"""The metadata columns of Bronze rows: origin, times, status, quality score and hashes.

``row_hash`` and ``checksum`` are computed from the encoding in `bronze.rows.encoding`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import portion
from bronze.model.columns import DeltaType
from bronze.model.quality import BEST_SCORE
from bronze.model.stamp import RowStamp
from bronze.model.units import ACTIVE, QUARANTINED
from bronze.rows import hashing
from bronze.rows.encoding import encoding_pieces

METADATA_COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("load_timestamp", DeltaType("timestamp")),
    ("update_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("record_status", DeltaType("string")),
    ("data_quality_score", DeltaType("int")),
    ("batch_id", DeltaType("string")),
    ("ingestion_method", DeltaType("string")),
    ("data_lineage", DeltaType("string")),
    ("checksum", DeltaType("string")),
    ("row_hash", DeltaType("string")),
)
"""The columns that every Bronze table has after those of the source, in their order."""

COMMIT_TIMESTAMP = "source_commit_timestamp"
"""A column of streamed tables: when the transaction that wrote the row was committed; NULL for rows
that were loaded by a query."""

_CHECKSUM_DIGITS = 16


def with_metadata(
    rows: pl.DataFrame,
    hashes: pl.Series,
    checksums: pl.Series,
    stamp: RowStamp,
    scores: pl.Series | None = None,
    threshold: int = 0,
) -> pl.DataFrame:
    """Bronze rows: the columns of the source followed by `METADATA_COLUMNS`.

    Args:
        rows: the columns of the source as they are stored, under their target names.
        hashes: ``row_hash`` of each row.
        checksums: ``checksum`` of each row.
        stamp: the metadata of the run.
        scores: the quality score of each row; None if all rows have the best score.
        threshold: the score below which a row is quarantined.

    Raises:
        ValueError: there is not one hash, checksum or score for each row.
    """
    same = dict(_stamp_values(stamp))
    values = {"checksum": checksums, "row_hash": hashes}
    if scores is None:
        same |= {"record_status": _STATUSES[:1], "data_quality_score": _BEST}
    else:
        values |= {
            "record_status": _STATUSES.gather((scores < threshold).cast(pl.Int8)),
            "data_quality_score": scores.cast(pl.Int32),
        }
    if lengths := {name: len(v) for name, v in values.items() if len(v) != rows.height}:
        raise ValueError(f"{rows.height} rows have columns of other lengths: {lengths}")
    values |= {name: value.new_from_index(0, rows.height) for name, value in same.items()}
    columns = [values[name].alias(name) for name, _ in METADATA_COLUMNS]
    return portion.with_columns(rows, columns)


@lru_cache(maxsize=16)
def _stamp_values(stamp: RowStamp) -> dict[str, pl.Series]:
    """The value that each column of the stamp has in all rows."""
    loaded_at = pl.Series([stamp.loaded_at], dtype=pl.Datetime("us", "UTC"))
    return {
        "load_timestamp": loaded_at,
        "update_timestamp": loaded_at,
        "source_system": _enum(stamp.source_system),
        "batch_id": _enum(stamp.batch_id),
        "ingestion_method": _enum(stamp.method),
        "data_lineage": _enum(stamp.lineage),
    }


def _enum(text: str) -> pl.Series:
    # An enum of one value takes one byte a row, and is written to Parquet as a string.
    return pl.Series([text], dtype=pl.Enum([text]))


# The same enum for all rows, so that those of several splits can be concatenated.
_STATUSES = pl.Series([ACTIVE, QUARANTINED], dtype=pl.Enum([ACTIVE, QUARANTINED]))
_BEST = pl.Series([BEST_SCORE], dtype=pl.Int32)


def digests(
    rows: pl.DataFrame, rejected: pl.Series, base: int | None = None
) -> tuple[pl.Series, pl.Series]:
    """``row_hash`` and ``checksum`` of each row, as strings of hexadecimal digits.

    Args:
        rows: the columns of the source, typed, under their target names.
        rejected: the rejected values of each row as text, NULL if it has none.
        base: how many of the columns the table was created with; None is all.
    """
    if not rows.height:
        return pl.Series(dtype=pl.String), pl.Series(dtype=pl.String)
    encoding = hashing.joined(encoding_pieces(rows.get_columns(), rows.height, base))
    checksums = _hexadecimal(hashing.xxh3(encoding, rows.height))
    return hashing.sha256(encoding, rows.height, rejected), checksums


def row_hashes_of(rows: pl.DataFrame, rejected: pl.Series, base: int) -> pl.Series:
    """``row_hash`` of each row; arguments as of `digests`."""
    if not rows.height:
        return pl.Series(dtype=pl.String)
    encoding = encoding_pieces(rows.get_columns(), rows.height, base)
    return hashing.sha256(encoding, rows.height, rejected)


def checksums_of(rows: pl.DataFrame, base: int) -> pl.Series:
    """``checksum`` of each row; arguments as of `digests`."""
    if not rows.height:
        return pl.Series(dtype=pl.String)
    encoding = encoding_pieces(rows.get_columns(), rows.height, base)
    return _hexadecimal(hashing.xxh3(encoding, rows.height))


def _hexadecimal(numbers: npt.NDArray[np.uint64]) -> pl.Series:
    """The numbers as strings of sixteen hexadecimal digits."""
    return hashing.texts(numbers.astype(">u8").tobytes().hex().encode(), _CHECKSUM_DIGITS)
