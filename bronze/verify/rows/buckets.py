"""Bucket sums: the count and the sums of row digests, for each of 4096 buckets of digests.

Two sides with the same rows have the same bucket sums, whatever the order of the rows and however
they are split. A row that differs changes the bucket of its digest on each side. Key ranges would
need an order that PostgreSQL and Python agree on: collations prevent that for texts, and tables
without a key have none.

A digest is a pair of 64-bit numbers, the two halves of a row hash; see `bronze.rows.fingerprint`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from bronze.rows import fingerprint

COUNT = 4096
"""The number of buckets."""

Digests = npt.NDArray[np.uint64]
"""Digests of rows, of shape (rows, 2)."""

Sums = npt.NDArray[np.uint64]
"""Of shape (`COUNT`, 3): each bucket's number of rows, and the sums of both halves modulo 2^64."""

SIZE = 16
"""The bytes of a digest."""


def unpack_digests(data: bytes) -> Digests:
    """Digests from bytes, 16 for each digest."""
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def digests_of_hashes(hashes: pl.Series) -> Digests:
    """The digests of ``row_hash`` values. A value that is not a row hash has the digest 0, which
    no row has.
    """
    text, _ = fingerprint.with_zeros(hashes)
    return fingerprint.halves_of(text)


def hashes_of_digests(digests: Digests) -> pl.Series:
    """Digests in the format of ``row_hash``: 32 hexadecimal digits."""
    return _binary_series(np.ascontiguousarray(digests).tobytes()).bin.encode("hex")


def bucket_numbers(digests: Digests) -> npt.NDArray[np.uint64]:
    """The bucket of each digest; `bucket_condition` computes the same in SQL."""
    return digests[:, 0] & np.uint64(COUNT - 1)


def bucket_condition(selected: npt.NDArray[np.bool_]) -> str:
    """The SQL condition for the digests ``d`` (bytea) in selected buckets."""
    numbers = ",".join(map(str, np.flatnonzero(selected)))
    bucket = f"get_byte(d, 0) + 256 * (get_byte(d, 1) & {COUNT // 256 - 1})"
    return f"{bucket} = ANY('{{{numbers}}}')"


def empty_sums() -> Sums:
    """The bucket sums of no rows."""
    return np.zeros((COUNT, 3), np.uint64)


def add_to_sums(sums: Sums, digests: Digests) -> None:
    """Adds digests to the sums of their buckets."""
    bucket = bucket_numbers(digests)
    sums[:, 0] += np.bincount(bucket.astype(np.int64), minlength=COUNT).astype(np.uint64)
    for half in (0, 1):
        np.add.at(sums[:, half + 1], bucket, digests[:, half])


def _binary_series(data: bytes) -> pl.Series:
    offsets = np.arange(len(data) // SIZE + 1, dtype=np.int64) * SIZE
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    return pl.Series(array)
