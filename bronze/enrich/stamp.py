"""Rows of the source become Bronze rows: the columns of identity, time and proof are added.

``row_hash`` and ``checksum`` are computed over the encoding in `bronze.enrich.encoding`.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa

from bronze.enrich.encoding import encode
from bronze.model import ACTIVE, QUARANTINED, Kind, Stamp
from bronze.rule import BEST

METADATA: tuple[tuple[str, Kind], ...] = (
    ("load_timestamp", Kind("timestamp")),
    ("update_timestamp", Kind("timestamp")),
    ("source_system", Kind("string")),
    ("record_status", Kind("string")),
    ("data_quality_score", Kind("int")),
    ("batch_id", Kind("string")),
    ("ingestion_method", Kind("string")),
    ("data_lineage", Kind("string")),
    ("checksum", Kind("string")),
    ("row_hash", Kind("string")),
)
"""The columns that every Bronze table has after the source's own, in their order."""

COMMITTED = "source_commit_timestamp"
"""In a table that is streamed: when the transaction committed that wrote the row; NULL for rows
that came otherwise."""

_HASH_DIGITS = 32
_CHECKSUM_DIGITS = 16
# Four hexadecimal digits for each of the 65,536 values of two bytes.
_HEX = np.array([f"{i:04x}".encode() for i in range(1 << 16)]).view(np.uint32)


def stamped(
    rows: pl.DataFrame,
    hashes: pl.Series,
    checksums: pl.Series,
    stamp: Stamp,
    scores: pl.Series | None = None,
    threshold: int = 0,
) -> pl.DataFrame:
    """Bronze rows: the source's columns followed by `METADATA`.

    Args:
        rows: the source's columns as they are stored, under their target names.
        hashes: ``row_hash`` of each row.
        checksums: ``checksum`` of each row.
        stamp: what the run writes beside every row.
        scores: each row's score; None where all are the best.
        threshold: the score below which a row is quarantined.
    """
    moment = pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC"))
    added = {
        "load_timestamp": moment,
        "update_timestamp": moment,
        "source_system": _constant(stamp.source_system),
        "record_status": _status(scores, threshold),
        "data_quality_score": pl.lit(BEST if scores is None else scores).cast(pl.Int32),
        "batch_id": _constant(stamp.batch_id),
        "ingestion_method": _constant(stamp.method),
        "data_lineage": _constant(stamp.lineage),
        "checksum": pl.lit(checksums),
        "row_hash": pl.lit(hashes),
    }
    return rows.with_columns(added[name].alias(name) for name, _ in METADATA)


def _status(scores: pl.Series | None, threshold: int) -> pl.Expr:
    # The same enum for all rows, so that those of several slices can be put together.
    status = pl.Enum([ACTIVE, QUARANTINED])
    if scores is None:
        return pl.lit(ACTIVE, status)
    low = pl.lit(scores < threshold)
    return pl.when(low).then(pl.lit(QUARANTINED, status)).otherwise(pl.lit(ACTIVE, status))


def _constant(text: str) -> pl.Expr:
    # An enum of one value takes one byte a row, and is a string again in Parquet.
    return pl.lit(text, dtype=pl.Enum([text]))


def digests(
    rows: pl.DataFrame, rejected: pl.Series, base: int | None = None
) -> tuple[pl.Series, pl.Series]:
    """``row_hash`` and ``checksum`` of each row, as strings of hexadecimal digits.

    Args:
        rows: the source's columns, typed, under their target names.
        rejected: each row's rejected values as text, NULL where it has none.
        base: how many of the columns the table began with; None is all.
    """
    encoded = _encoded(rows, base)
    return _row_hash(encoded, rejected), _checksum(encoded)


def row_hash(rows: pl.DataFrame, rejected: pl.Series, base: int) -> pl.Series:
    """The first of `digests` alone."""
    return _row_hash(_encoded(rows, base), rejected)


def checksum(rows: pl.DataFrame, base: int) -> pl.Series:
    """The second of `digests` alone."""
    return _checksum(_encoded(rows, base))


def _encoded(rows: pl.DataFrame, base: int | None) -> pl.DataFrame:
    if not rows.height:
        return pl.DataFrame(schema={"bytes": pl.Binary})
    return pl.DataFrame({"bytes": pl.Series(encode(rows.get_columns(), rows.height, base))})


def _row_hash(encoded: pl.DataFrame, rejected: pl.Series) -> pl.Series:
    if rejected.null_count() < len(rejected):
        encoded = encoded.with_columns(_with_rejected(encoded["bytes"], rejected))
    hashes = plh.col("bytes").chash.sha2_256().str.slice(0, _HASH_DIGITS)
    found: pl.Series = encoded.select(hashes).to_series()
    return found


def _checksum(encoded: pl.DataFrame) -> pl.Series:
    return _hexadecimal(encoded.select(plh.col("bytes").nchash.xxh3_64()).to_series())


def _with_rejected(encoded: pl.Series, rejected: pl.Series) -> pl.Series:
    pairs = zip(encoded, rejected, strict=True)
    joined = [row if text is None else row + text.encode() for row, text in pairs]
    return pl.Series("bytes", joined, dtype=pl.Binary)


def _hexadecimal(numbers: pl.Series) -> pl.Series:
    pairs = numbers.to_numpy().astype(">u8").view(">u2").astype(np.uint16)
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * _CHECKSUM_DIGITS
    text = pa.LargeStringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets), pa.py_buffer(_HEX[pairs])
    )
    return pl.Series(text)
