"""Hashes over the encoding of rows (see `bronze.rows.encoding`).

Small rows are joined and hashed all at once; of large ones, which no copy is made of, each piece is
hashed where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh
import pyarrow as pa
import xxhash

from bronze.rows.encoding import joined

_LARGE = 24 * 2**20

Pieces = Sequence[pa.LargeBinaryArray]


def sha256(pieces: Pieces, rows: int, rejected: pl.Series) -> pl.Series:
    """SHA-256 of each row and, behind it, its rejected values: 64 hexadecimal digits.

    Args:
        pieces: of the rows' encoding.
        rows: how many there are.
        rejected: each row's rejected values as text, NULL where it has none.
    """
    more = [rejected.cast(pl.Binary).to_arrow(compat_level=pl.CompatLevel.oldest())]
    whole = [*pieces, *(more if rejected.null_count() < len(rejected) else ())]
    if _large(whole):
        hashes = [_fed(hashlib.sha256(), row).hexdigest() for row in _rows(whole, rows)]
        return pl.Series(hashes, dtype=pl.String)
    found: pl.Series = _frame(whole).select(plh.col("bytes").chash.sha2_256()).to_series()
    return found


def xxh3(pieces: Pieces, rows: int) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each row."""
    if _large(pieces):
        sums = [_fed(xxhash.xxh3_64(), row).intdigest() for row in _rows(pieces, rows)]
        return np.array(sums, np.uint64)
    numbers = _frame(pieces).select(plh.col("bytes").nchash.xxh3_64()).to_series()
    return np.asarray(numbers.to_numpy(), np.uint64)


def _large(pieces: Pieces) -> bool:
    return sum(int(piece.nbytes) for piece in pieces) > _LARGE


def _frame(pieces: Pieces) -> pl.DataFrame:
    return pl.DataFrame({"bytes": pl.Series(joined(pieces))})


def _fed(state: Any, row: Sequence[memoryview]) -> Any:
    for piece in row:
        state.update(piece)
    return state


def _rows(pieces: Pieces, rows: int) -> Iterator[list[memoryview]]:
    """The pieces of each row."""
    bounds = [_offsets(piece) for piece in pieces]
    data = [memoryview(piece.buffers()[2] or b"") for piece in pieces]
    there = [piece.is_valid().to_pylist() if piece.null_count else None for piece in pieces]
    for row in range(rows):
        yield [
            data[i][offsets[row] : offsets[row + 1]]
            for i, offsets in enumerate(bounds)
            if (valid := there[i]) is None or valid[row]
        ]


def _offsets(piece: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    return np.frombuffer(piece.buffers()[1], np.int64)[piece.offset :][: len(piece) + 1]
