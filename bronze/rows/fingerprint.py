"""Fingerprints: 64 bits of the hash of a row or of its key, by which large tables are compared.

Two rows may have the same fingerprint (among 20 million rows once in 100,000 tables): after a
comparison by fingerprints the count of rows is checked.
"""

from __future__ import annotations

import binascii
from binascii import hexlify, unhexlify
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh

from bronze.rows.encoding import encode

Fingerprints = npt.NDArray[np.uint64]

_DIGITS = 16


def is_well_formed(hashes: pl.Series, digits: int = 2 * _DIGITS) -> pl.Series:
    """Which hashes are well-formed: ``digits`` hexadecimal digits. Other writers may have written
    anything there.
    """
    if _are_well_formed(hashes, digits):
        return pl.Series([True]).new_from_index(0, len(hashes))
    return hashes.str.contains(f"^[0-9a-f]{{{digits}}}$").fill_null(False)


def _are_well_formed(hashes: pl.Series, digits: int) -> bool:
    """Whether all hashes are well-formed, which takes less time than looking at each of them."""
    array = hashes.to_arrow(compat_level=pl.CompatLevel.oldest())
    offsets = np.frombuffer(array.buffers()[1] or b"", np.int64)[array.offset :][: len(array) + 1]
    if array.null_count or np.any(np.diff(offsets) != digits):
        return False
    text = _characters(hashes, digits).tobytes()
    try:
        # Both cases are digits to unhexlify; upper case does not come back.
        return hexlify(unhexlify(text)) == text
    except binascii.Error:
        return False


def _characters(hashes: pl.Series, digits: int) -> npt.NDArray[np.uint8]:
    """The ASCII characters of hashes of so many ``digits``, a line for each hash."""
    array = hashes.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    first = np.frombuffer(offsets, np.int64)[array.offset] if len(array) else 0
    text = np.frombuffer(data or b"", np.uint8)
    return text[first:][: len(array) * digits].reshape(-1, digits)


def with_zeros(hashes: pl.Series, digits: int = 2 * _DIGITS) -> tuple[pl.Series, pl.Series]:
    """Hashes with zeros, which no row has, for malformed ones; and which are `is_well_formed`."""
    known = is_well_formed(hashes, digits)
    if known.all():
        return hashes, known
    made = pl.when(known).then(hashes).otherwise(pl.lit("0" * digits)).alias(hashes.name)
    return pl.select(made).to_series(), known


def of_hashes(hashes: pl.Series, offset: int) -> Fingerprints:
    """The 16 digits of each ``row_hash`` from ``offset`` (0 to 16) on; all must be well-formed."""
    text = _characters(hashes, 2 * _DIGITS)[:, offset : offset + _DIGITS]
    return np.frombuffer(unhexlify(text.tobytes()), np.uint64)


def of_checksums(checksums: pl.Series) -> Fingerprints:
    """The number of each ``checksum``; all must be well-formed."""
    numbers = np.frombuffer(unhexlify(_characters(checksums, _DIGITS).tobytes()), ">u8")
    return numbers.astype(np.uint64)


def halves_of(hashes: pl.Series) -> Fingerprints:
    """The two halves of each ``row_hash``, in an array of two columns; all must be well-formed."""
    digests = unhexlify(_characters(hashes, 2 * _DIGITS).tobytes())
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


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
