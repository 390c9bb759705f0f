"""Hashes of the encoding of rows (see `bronze.rows.encoding`).

Small rows are joined and hashed all at once; rows that are hashed twice are joined once, by
`joined`. Large rows are not copied: their pieces are hashed one after another. A few rows are
hashed without polars, whose expressions take longer than the hashes.
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

from bronze.rows.encoding import join_pieces

_LARGE = 24 * 2**20
_DIGITS = 32
_DIGEST_DIGITS = 64
_FEW = 256

Pieces = Sequence[pa.LargeBinaryArray]


def joined(pieces: Pieces) -> Pieces:
    """The pieces of each row joined into one, unless they are large."""
    return pieces if _is_large(pieces) else [join_pieces(pieces)]


def sha256(pieces: Pieces, rows: int, rejected: pl.Series) -> pl.Series:
    """The first 128 bits of SHA-256 of each row followed by its rejected values, as 32 hexadecimal
    digits.

    Args:
        pieces: the pieces of the encoding of the rows.
        rows: the number of rows.
        rejected: the rejected values of each row as text, NULL if it has none.
    """
    if rejected.null_count() < len(rejected):
        values = rejected.cast(pl.Binary).to_arrow(compat_level=pl.CompatLevel.oldest())
        pieces = [*pieces, values]
    if _is_large(pieces):
        hashes = [_update(hashlib.sha256(), row).hexdigest() for row in _rows(pieces, rows)]
        return pl.Series([digits[:_DIGITS] for digits in hashes], dtype=pl.String)
    if rows <= _FEW:
        few = [hashlib.sha256(row).hexdigest()[:_DIGITS] for row in join_pieces(pieces).to_pylist()]
        return pl.Series(few, dtype=pl.String)
    digests = _frame(pieces).select(plh.col("bytes").chash.sha2_256()).to_series()
    array = digests.to_arrow(compat_level=pl.CompatLevel.oldest())
    digits = np.frombuffer(array.buffers()[2], f"V{_DIGITS}")
    # Every other item is the first half of a digest.
    halves = np.ascontiguousarray(digits[array.offset * 2 : (array.offset + rows) * 2 : 2])
    return texts(halves, _DIGITS)


def texts(data: Any, length: int) -> pl.Series:
    """Texts of the same ``length`` from a buffer of their ASCII characters."""
    characters = pa.py_buffer(data)
    offsets = np.arange(0, characters.size + 1, length, dtype=np.int64)
    buffers = pa.py_buffer(offsets), characters
    return pl.Series(pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers))


def xxh3(pieces: Pieces, rows: int) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each row."""
    if _is_large(pieces):
        sums = [_update(xxhash.xxh3_64(), row).intdigest() for row in _rows(pieces, rows)]
        return np.array(sums, np.uint64)
    if rows <= _FEW:
        few = [xxhash.xxh3_64_intdigest(row) for row in join_pieces(pieces).to_pylist()]
        return np.array(few, np.uint64)
    numbers = _frame(pieces).select(plh.col("bytes").nchash.xxh3_64()).to_series()
    return np.asarray(numbers.to_numpy(), np.uint64)


def _is_large(pieces: Pieces) -> bool:
    return sum(int(piece.nbytes) for piece in pieces) > _LARGE


def _frame(pieces: Pieces) -> pl.DataFrame:
    return pl.DataFrame({"bytes": pl.Series(join_pieces(pieces))})


def _update(state: Any, row: Sequence[memoryview]) -> Any:
    """The hash state, updated with the pieces of a row."""
    for piece in row:
        state.update(piece)
    return state


def _rows(pieces: Pieces, rows: int) -> Iterator[list[memoryview]]:
    """The pieces of each row."""
    bounds = [_offsets(piece) for piece in pieces]
    data = [memoryview(piece.buffers()[2] or b"") for piece in pieces]
    validity = [piece.is_valid().to_pylist() if piece.null_count else None for piece in pieces]
    for row in range(rows):
        yield [
            data[i][offsets[row] : offsets[row + 1]]
            for i, offsets in enumerate(bounds)
            if (valid := validity[i]) is None or valid[row]
        ]


def _offsets(piece: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    return np.frombuffer(piece.buffers()[1], np.int64)[piece.offset :][: len(piece) + 1]
