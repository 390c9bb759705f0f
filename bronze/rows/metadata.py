"""The metadata columns of Bronze rows: origin, times, status, quality score and hashes.

``row_hash`` and ``checksum`` are computed from the encoding in `bronze.rows.encoding`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

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

_HASH_DIGITS = 32
_CHECKSUM_DIGITS = 16
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
# Four hexadecimal digits for each of the 65,536 values of two bytes.
_HEX = _DIGITS[np.arange(1 << 16)[:, None] >> [12, 8, 4, 0] & 0xF].view(np.uint32).ravel()


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
    """
    loaded_at = pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC"))
    values = {
        "load_timestamp": loaded_at,
        "update_timestamp": loaded_at,
        "source_system": _constant(stamp.source_system),
        "record_status": _status(scores, threshold),
        "data_quality_score": pl.lit(BEST_SCORE if scores is None else scores).cast(pl.Int32),
        "batch_id": _constant(stamp.batch_id),
        "ingestion_method": _constant(stamp.method),
        "data_lineage": _constant(stamp.lineage),
        "checksum": pl.lit(checksums),
        "row_hash": pl.lit(hashes),
    }
    # In a frame of their own, because an expression over the rows would copy their values.
    metadata = pl.DataFrame(height=rows.height)
    metadata = metadata.with_columns(values[name].alias(name) for name, _ in METADATA_COLUMNS)
    return portion.with_columns(rows, metadata.get_columns())


def _status(scores: pl.Series | None, threshold: int) -> pl.Expr:
    # The same enum for all rows, so that those of several splits can be concatenated.
    status = pl.Enum([ACTIVE, QUARANTINED])
    if scores is None:
        return pl.lit(ACTIVE, status)
    low = pl.lit(scores < threshold)
    return pl.when(low).then(pl.lit(QUARANTINED, status)).otherwise(pl.lit(ACTIVE, status))


def _constant(text: str) -> pl.Expr:
    # An enum of one value takes one byte a row, and is written to Parquet as a string.
    return pl.lit(text, dtype=pl.Enum([text]))


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
    encoding = encoding_pieces(rows.get_columns(), rows.height, base)
    return row_hashes_of_pieces(encoding, rejected), _hexadecimal(
        hashing.xxh3(encoding, rows.height)
    )


def row_hashes_of(rows: pl.DataFrame, rejected: pl.Series, base: int) -> pl.Series:
    """``row_hash`` of each row; arguments as of `digests`."""
    if not rows.height:
        return pl.Series(dtype=pl.String)
    return row_hashes_of_pieces(encoding_pieces(rows.get_columns(), rows.height, base), rejected)


def checksums_of(rows: pl.DataFrame, base: int) -> pl.Series:
    """``checksum`` of each row; arguments as of `digests`."""
    if not rows.height:
        return pl.Series(dtype=pl.String)
    encoding = encoding_pieces(rows.get_columns(), rows.height, base)
    return _hexadecimal(hashing.xxh3(encoding, rows.height))


def row_hashes_of_pieces(encoding: hashing.Pieces, rejected: pl.Series) -> pl.Series:
    """``row_hash`` of each row, from the pieces of its encoding."""
    hashes = hashing.sha256(encoding, len(rejected), rejected)
    # Arrow slices the texts where they are in memory.
    text = hashes.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(pc.utf8_slice_codeunits(text, 0, _HASH_DIGITS))


def _hexadecimal(numbers: npt.NDArray[np.uint64]) -> pl.Series:
    """The numbers as strings of sixteen hexadecimal digits."""
    pairs = numbers.astype(">u8").view(">u2").astype(np.uint16)
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * _CHECKSUM_DIGITS
    text = pa.LargeStringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets), pa.py_buffer(_HEX[pairs])
    )
    return pl.Series(text)
