"""Buckets: how many rows fall into each by the first bits of their hashes, and their sums.

Two sides that hold the same rows have the same buckets, however they are divided and ordered; a row
that differs shows in the bucket of its hash on each side. Ranges of a key would need an order that
PostgreSQL and we agree on, which texts with collations have not, and tables without a key lack.

Digests are rows of two 64-bit numbers: the halves of a row hash, as in `bronze.rows.fingerprint`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from bronze.rows import fingerprint

COUNT = 4096
"""How many buckets there are."""

Digests = npt.NDArray[np.uint64]
Sums = npt.NDArray[np.uint64]
"""For each bucket: the number of its rows, and the sums of both halves modulo 2^64."""

SIZE = 16
_HALF = 16


def unpacked(data: bytes) -> Digests:
    """Digests that lie one after another, 16 bytes each."""
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def sums_of_hashes(hashes: pl.Series) -> Digests:
    """The digests of ``row_hash``; what has not its form has the digest 0, which no row has."""
    text, _ = fingerprint.plain(hashes)
    halves = [fingerprint.of_hashes(text, offset) for offset in (0, _HALF)]
    return np.stack(halves, axis=1)


def written(digests: Digests) -> pl.Series:
    """Digests as ``row_hash`` has them."""
    return _binaries(np.ascontiguousarray(digests).tobytes()).bin.encode("hex")


def bucket_of(digests: Digests) -> npt.NDArray[np.uint64]:
    """The number of each digest's bucket; `condition` says the same in SQL."""
    return digests[:, 0] & np.uint64(COUNT - 1)


def condition(chosen: npt.NDArray[np.bool_]) -> str:
    """The condition in SQL for the digests ``d`` (bytea) of chosen buckets."""
    numbers = ",".join(map(str, np.flatnonzero(chosen)))
    bucket = f"get_byte(d, 0) + 256 * (get_byte(d, 1) & {COUNT // 256 - 1})"
    return f"{bucket} = ANY('{{{numbers}}}')"


def nothing() -> Sums:
    """The sums of no rows."""
    return np.zeros((COUNT, 3), np.uint64)


def add(sums: Sums, digests: Digests) -> None:
    """Adds rows to their buckets."""
    bucket = bucket_of(digests)
    sums[:, 0] += np.bincount(bucket.astype(np.int64), minlength=COUNT).astype(np.uint64)
    for half in (0, 1):
        np.add.at(sums[:, half + 1], bucket, digests[:, half])


def _binaries(data: bytes) -> pl.Series:
    offsets = np.arange(len(data) // SIZE + 1, dtype=np.int64) * SIZE
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    return pl.Series(array)
