"""Fingerprints: 64 bits of the hash of a row or of its key, by which large tables are compared.

Two rows may have the same fingerprint (among 20 million rows once in 100,000 tables): after a
comparison by fingerprints the count of rows is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh

from bronze.rows.encoding import encode

Fingerprints = npt.NDArray[np.uint64]

_DIGITS = 16
# The value of each hexadecimal digit in ASCII.
_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_IS_DIGIT = np.zeros(256, np.bool_)
_IS_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = True


def is_well_formed(hashes: pl.Series, digits: int = 2 * _DIGITS) -> pl.Series:
    """Which hashes are well-formed: ``digits`` hexadecimal digits. Other writers may have written
    anything there.
    """
    return hashes.str.contains(f"^[0-9a-f]{{{digits}}}$").fill_null(False)


def with_zeros(hashes: pl.Series, digits: int = 2 * _DIGITS) -> tuple[pl.Series, pl.Series]:
    """Hashes with zeros, which no row has, for malformed ones; and which are `is_well_formed`."""
    text = _text(hashes, digits)
    if text is not None and _IS_DIGIT[text].all():
        # Nearly always; and an expression would take longer than all else of a small table.
        return hashes, pl.Series(np.ones(len(hashes), np.bool_))
    known = is_well_formed(hashes, digits)
    made = pl.when(known).then(hashes).otherwise(pl.lit("0" * digits)).alias(hashes.name)
    return pl.select(made).to_series(), known


def _text(hashes: pl.Series, digits: int) -> npt.NDArray[np.uint8] | None:
    """The bytes of hashes, a row for each; None if one is NULL or has not ``digits`` bytes."""
    if hashes.dtype != pl.String or hashes.null_count():
        return None
    packed = hashes.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = packed.buffers()
    ends = np.frombuffer(offsets, np.int64)[packed.offset :][: len(packed) + 1]
    if (np.diff(ends) != digits).any():
        return None
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data else np.empty(0, np.uint8)
    return text.reshape(-1, digits)


def of_hashes(hashes: pl.Series, offset: int) -> Fingerprints:
    """The 16 digits of each ``row_hash`` from ``offset`` (0 to 16) on; none may be NULL."""
    if not len(hashes):
        return np.empty(0, np.uint64)
    text = _text(hashes, 2 * _DIGITS)
    if text is None:
        text = _text(hashes.str.slice(offset, _DIGITS), _DIGITS)
        offset = 0
    if text is None:
        raise ValueError("a hash is NULL or too short")
    nibbles = _NIBBLES[text[:, offset : offset + _DIGITS]].reshape(-1, 2)
    return ((nibbles[:, 0] << 4) | nibbles[:, 1]).view(np.uint64)


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
    high, low = (int(of_hashes(hashes, offset).sum(dtype=np.uint64)) for offset in (0, _DIGITS))
    return high << 64 | low


def sum_of_totals(one: int, other: int) -> int:
    """The total of all rows, from the totals of two parts."""
    mask = (1 << 64) - 1
    return ((one >> 64) + (other >> 64) & mask) << 64 | ((one & mask) + (other & mask) & mask)
