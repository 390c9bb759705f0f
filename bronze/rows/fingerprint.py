"""Fingerprints: 64 bits of the hash of a row or of its key, by which large tables are compared.

Two rows may have the same fingerprint (among 20 million rows once in 100,000 tables): after a
comparison by fingerprints the count of rows is checked.
"""

from __future__ import annotations

import binascii
from binascii import hexlify, unhexlify
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh
import pyarrow as pa

from bronze.rows.encoding import encode

Fingerprints = npt.NDArray[np.uint64]

_DIGITS = 16
# How many hashes are read at once.
_ROWS = 1 << 16


def is_well_formed(hashes: pl.Series, digits: int = 2 * _DIGITS) -> pl.Series:
    """Which hashes are well-formed: ``digits`` hexadecimal digits. Other writers may have written
    anything there.
    """
    if _are_well_formed(hashes, digits):
        return pl.Series([True]).new_from_index(0, len(hashes))
    return hashes.str.contains(f"^[0-9a-f]{{{digits}}}$").fill_null(False)


def _are_well_formed(hashes: pl.Series, digits: int) -> bool:
    """Whether all hashes are well-formed, which takes less time than looking at each of them."""
    return all(_are_hexadecimal(part, digits) for part in _slices(hashes))


def _are_hexadecimal(hashes: pa.LargeStringArray, digits: int) -> bool:
    offsets = np.frombuffer(hashes.buffers()[1], np.int64)[hashes.offset :][: len(hashes) + 1]
    if hashes.null_count or np.any(np.diff(offsets) != digits):
        return False
    text = _characters(hashes, digits)
    try:
        # Both cases are digits to unhexlify; upper case does not come back.
        again = np.frombuffer(hexlify(unhexlify(text.data)), np.uint8)
    except binascii.Error:
        return False
    return bool((again == text.ravel()).all())


def _slices(hashes: pl.Series) -> Iterator[pa.LargeStringArray]:
    """The hashes in slices, so that what is made of a slice is small, and stays in the cache."""
    for start in range(0, len(hashes), _ROWS):
        yield hashes[start : start + _ROWS].to_arrow(compat_level=pl.CompatLevel.oldest())


def _characters(hashes: pa.LargeStringArray, digits: int) -> npt.NDArray[np.uint8]:
    """The ASCII characters of hashes of so many ``digits``, a line for each hash."""
    _, offsets, data = hashes.buffers()
    first = np.frombuffer(offsets, np.int64)[hashes.offset]
    return np.frombuffer(data, np.uint8)[first:][: len(hashes) * digits].reshape(-1, digits)


def with_zeros(hashes: pl.Series, digits: int = 2 * _DIGITS) -> tuple[pl.Series, pl.Series]:
    """Hashes with zeros, which no row has, for malformed ones; and which are `is_well_formed`."""
    known = is_well_formed(hashes, digits)
    if known.all():
        return hashes, known
    made = pl.when(known).then(hashes).otherwise(pl.lit("0" * digits)).alias(hashes.name)
    return pl.select(made).to_series(), known


def of_hashes(hashes: pl.Series, offset: int) -> Fingerprints:
    """The 16 digits of each ``row_hash`` from ``offset`` (0 to 16) on; all must be well-formed."""
    return _numbers(hashes, 2 * _DIGITS, slice(offset, offset + _DIGITS), "<u8")[:, 0]


def halves_of(hashes: pl.Series) -> Fingerprints:
    """The two halves of each ``row_hash``, in an array of two columns; all must be well-formed."""
    return _numbers(hashes, 2 * _DIGITS, slice(0, 2 * _DIGITS), "<u8")


def of_checksums(checksums: pl.Series) -> Fingerprints:
    """The number of each ``checksum``; all must be well-formed."""
    return _numbers(checksums, _DIGITS, slice(0, _DIGITS), ">u8")[:, 0]


def _numbers(hashes: pl.Series, digits: int, chosen: slice, kind: str) -> Fingerprints:
    """The numbers, of this kind, that the chosen digits of each hash are: a line for each hash."""
    numbers = np.empty((len(hashes), (chosen.stop - chosen.start) // _DIGITS), np.uint64)
    start = 0
    for part in _slices(hashes):
        text = np.ascontiguousarray(_characters(part, digits)[:, chosen])
        of_part = numbers[start : start + len(part)]
        of_part[:] = np.frombuffer(unhexlify(text.data), kind).reshape(of_part.shape)
        start += len(part)
    return numbers


def of_keys(columns: Sequence[pl.Series]) -> Fingerprints:
    """The fingerprints of keys with these columns; a single integer is its own fingerprint."""
    first = columns[0]
    if len(columns) == 1 and first.dtype.is_integer() and not first.null_count():
        return first.cast(pl.Int64).to_numpy().view(np.uint64)
    if not len(first):
        return np.empty(0, np.uint64)
    encoded = pl.DataFrame({"bytes": pl.Series(encode(columns, len(first)))})
    hashed = encoded.select(plh.col("bytes").nchash.xxh3_64()).to_series()
    return np.asarray(hashed.to_numpy(), np.uint64)


def total(hashes: pl.Series) -> int:
    """The sums of both halves of the row hashes, each modulo 2^64, as one number of 128 bits.

    It does not depend on the order of rows; totals of parts are added by `sum_of_totals`.
    """
    high, low = halves_of(hashes).sum(axis=0, dtype=np.uint64).tolist()
    return int(high) << 64 | int(low)


def sum_of_totals(one: int, other: int) -> int:
    """The total of all rows, from the totals of two parts."""
    mask = (1 << 64) - 1
    return ((one >> 64) + (other >> 64) & mask) << 64 | ((one & mask) + (other & mask) & mask)
