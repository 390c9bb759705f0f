"""Tokens that keep the format of a text: other digits or letters, by FF1, and all else as it was.

`bronze.protection.protect` says which texts keep their format.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from bronze.protection.methods import ff1

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

# The characters of an alphabet, of which upper and lower case count alike, and the fewest of them
# with which a text keeps its format.
_ALPHABETS = ((b"0123456789", 6), (b"abcdefghijklmnopqrstuvwxyz", 5))
_NEITHER, _NOT_ASCII = len(_ALPHABETS), len(_ALPHABETS) + 1
# The bytes of texts that are looked at in one go: numpy takes some twenty times as many.
_PART = 2**20


def _tables() -> tuple[Bytes, Bytes]:
    """The number of its alphabet, and the numeral in it, for each byte of UTF-8."""
    alphabets, numerals = np.full(256, _NEITHER, np.uint8), np.zeros(256, np.uint8)
    alphabets[128:] = _NOT_ASCII
    for number, (alphabet, _) in enumerate(_ALPHABETS):
        for characters in (alphabet, alphabet.upper()):
            places = np.frombuffer(characters, np.uint8)
            alphabets[places], numerals[places] = number, np.arange(len(places))
    return alphabets, numerals


_ALPHABET_OF, _NUMERAL_OF = _tables()


def tokens_with_format(texts: pl.Series, key: bytes) -> pl.Series:
    """The tokens of texts; NULL where the format is not kept.

    Args:
        texts: strings, which may be NULL.
        key: the key of AES.
    """
    arrow = texts.fill_null("").to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offset_buffer, data_buffer = arrow.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[arrow.offset :][: len(texts) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8).copy()
    keeps = np.zeros(len(texts), bool)
    for first, end in _parts(offsets):
        part = data[offsets[first] : offsets[end]]
        keeps[first:end] = _replace(part, offsets[first : end + 1] - offsets[first], key)
    tokens = pa.LargeStringArray.from_buffers(
        len(texts), pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)
    )
    return pl.Series(texts.name, tokens).set(~pl.Series(keeps), None)


def _parts(offsets: Positions) -> Iterator[tuple[int, int]]:
    """Slices of texts, each with about `_PART` bytes."""
    first, last = 0, len(offsets) - 1
    while first < last:
        end = int(np.searchsorted(offsets, offsets[first] + _PART, "right")) - 1
        end = min(max(end, first + 1), last)
        yield first, end
        first = end


def _replace(data: Bytes, offsets: Positions, key: bytes) -> npt.NDArray[np.bool_]:
    """Replaces the digits or letters of the texts whose format can be kept, and says which these
    are. Text ``n`` is from ``offsets[n]`` to ``offsets[n + 1]``.
    """
    alphabets = _ALPHABET_OF[data]
    counts = [_counts(alphabets == number, offsets) for number in range(len(_ALPHABETS))]
    total = sum(counts) + _counts(alphabets == _NOT_ASCII, offsets)
    keeps = np.zeros(len(offsets) - 1, bool)
    for number, (alphabet, least) in enumerate(_ALPHABETS):
        count = counts[number]
        fits = (count >= least) & (count == total)
        if fits.any():
            keeps |= fits
            characters = np.flatnonzero(alphabets == number)
            starts = np.cumsum(count) - count
            for length in np.unique(count[fits]):
                rows = starts[fits & (count == length)]
                places = characters[rows[:, np.newaxis] + np.arange(length)]
                numerals = _NUMERAL_OF[data[places]]
                data[places] += ff1.encrypt(key, len(alphabet), numerals) - numerals
    return keeps


def _counts(matches: npt.NDArray[np.bool_], offsets: Positions) -> Positions:
    """How many bytes of each text match."""
    if len(offsets) == 2:
        # A large text is alone in its part; the sums below would take eight times its size.
        return np.array([np.count_nonzero(matches)])
    # An empty text would count the byte after it, and there is none after the last.
    padded = np.append(matches, False)
    counts = np.add.reduceat(padded, offsets[:-1], dtype=np.int64)
    return np.where(offsets[1:] > offsets[:-1], counts, 0)
