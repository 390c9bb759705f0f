"""The canonical encoding of rows, which ``row_hash`` and ``checksum`` are computed over.

It is defined here, once, and depends on no library's version. `bronze.postgres.copy.row_hash`
computes the same bytes in PostgreSQL. All numbers are big-endian; a row is the concatenation of

1. *flags*: for each fifteen columns, in order, a 2-byte integer, whose bit ``i`` (1 << i) is set
   where the i-th of these columns is NULL;
2. *fixed parts*, one a column, in order:

   ====================  =====  ==================================================
   short, int, long      2 4 8  the number; 0 for NULL
   float, double         4 8    IEEE 754; every NaN, and NULL, as 7fc00000 and
                                7ff8000000000000
   boolean               1      1 or 0; 0 for NULL
   date                  4      days since 2000-01-01; 0 for NULL
   timestamp (both)      8      microseconds since 2000-01-01 00:00 (UTC); 0 for NULL
   decimal(p <= 18, s)   8      value x 10^s as an integer; 0 for NULL
   string, binary,       4      the length of the variable part in bytes; 0 for NULL
   decimal(p > 18)
   array                 4      the number of elements; 0 for NULL
   ====================  =====  ==================================================

3. *variable parts*, one for each column that has one, in order: a string's UTF-8 bytes, a
   binary's bytes, a decimal's text with all ``s`` digits after the point; for an array its
   elements one after another, each encoded as a row of one column.

Columns that were added to a table later are left out of these three. Each of them that is not
NULL follows behind: its number in the row, counted from 0, as 2 bytes, and its value encoded as a
row of one column. So a column that is added, and NULL, changes no row's encoding.

No two different rows of the same columns have the same encoding: the flags and fixed parts have
a known size, and say the size of all that follows.

``row_hash`` is the first 128 bits of SHA-256 over the encoding of the source's columns followed by
the row's rejected values, if it has any, as UTF-8 text (see `bronze.postgres.statement`; rejected
values are NULL in the encoding). ``checksum`` is XXH3-64 over the encoding of the values as
stored. Both are written as hexadecimal digits in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

_FLAGS_PER_WORD = 15
_EPOCH_DAYS = 10_957
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000

_FIXED: dict[type[pl.DataType], str] = {
    pl.Int8: "i1",
    pl.Int16: "i2",
    pl.Int32: "i4",
    pl.Int64: "i8",
    pl.UInt8: "u1",
    pl.UInt16: "u2",
    pl.UInt32: "u4",
    pl.UInt64: "u8",
    pl.Float32: "f4",
    pl.Float64: "f8",
    pl.Boolean: "u1",
    pl.Date: "i4",
    pl.Datetime: "i8",
}
# What is 0 in the encoding, and stands there for NULL.
_ZERO: dict[type[pl.DataType], int] = {pl.Date: _EPOCH_DAYS, pl.Datetime: _EPOCH_MICROSECONDS}
_SHORT_DECIMAL = 18

Bytes = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


class _Part(NamedTuple):
    """What one column adds: its fixed and its variable parts, and where it is NULL (None where
    it never is).
    """

    fixed: Bytes
    variable: pa.LargeBinaryArray | None
    missing: Flags | None


def narrowed(values: pl.Series, to: Any) -> tuple[pl.Series, pl.Series]:
    """Values as another type has them, and which of them it has exactly; what it has not is NULL,
    or rounded.
    """
    if values.dtype == to:
        return values, pl.repeat(True, len(values), eager=True)
    try:
        made = values.cast(to, strict=False)
        return made, made.cast(values.dtype, strict=False).eq_missing(values)
    except pl.exceptions.PolarsError:
        # Other writers may have put there what is nothing like it.
        return pl.Series(values.name, [None], to).new_from_index(0, len(values)), values.is_null()


def encode(columns: Sequence[pl.Series], rows: int, base: int | None = None) -> pa.LargeBinaryArray:
    """The encoding of each of the ``rows`` > 0 rows of ``columns``, as so many binaries.

    Strings must be UTF-8 as polars keeps them; Datetimes in microseconds. The columns from number
    ``base`` on are those that were added later; None is no column.
    """
    return joined(pieces(columns, rows, base))


def pieces(
    columns: Sequence[pl.Series], rows: int, base: int | None = None
) -> list[pa.LargeBinaryArray]:
    """What `encode` joins, row by row; NULL is nothing. Large values are not copied for it."""
    if base is not None and base < len(columns):
        later = (_later(number, columns[number]) for number in range(base, len(columns)))
        return [*pieces(columns[:base], rows), *chain.from_iterable(later)]
    if not columns:
        return [_sliced(pa.py_buffer(b""), np.zeros(rows + 1, np.int64))]
    # Tables have up to 1,600 columns: each of them is taken from its Arrow buffers, as an
    # expression of polars costs more than hundreds of its values.
    made = [_part(series) for series in columns]
    words = -(-len(columns) // _FLAGS_PER_WORD)
    layout: list[tuple[str, Any]] = [(f"n{i}", ">i2") for i in range(words)]
    layout += [(f"v{i}", part.fixed.dtype.newbyteorder(">")) for i, part in enumerate(made)]
    packed = np.empty(rows, np.dtype(layout))
    for word in range(words):
        packed[f"n{word}"] = _flags(made[word * _FLAGS_PER_WORD :][:_FLAGS_PER_WORD], rows)
    for i, part in enumerate(made):
        packed[f"v{i}"] = part.fixed
    parts = [_sliced(pa.py_buffer(packed), np.arange(rows + 1) * packed.dtype.itemsize)]
    parts += [part.variable for part in made if part.variable is not None]
    return parts


def _later(number: int, series: pl.Series) -> list[pa.LargeBinaryArray]:
    """The parts of a column that was added later; NULL, and so nothing, where its value is."""
    rows = len(series)
    prefix = pa.repeat(pa.scalar(number.to_bytes(2, "big"), pa.large_binary()), rows)
    fixed, *variable = pieces([series], rows)
    if not series.null_count():
        return [prefix, fixed, *variable]
    there = pa.array(series.is_not_null().to_numpy())
    nothing = pa.scalar(None, pa.large_binary())
    # What varies has nothing where there is no value.
    return [*(pc.if_else(there, part, nothing) for part in (prefix, fixed)), *variable]


def joined(parts: Sequence[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    """Pieces, joined row by row."""
    if len(parts) == 1:
        return parts[0]
    nothing = pa.scalar(b"", pa.large_binary())
    return pc.binary_join_element_wise(
        *parts, nothing, null_handling="replace", null_replacement=""
    )


def _flags(parts: Sequence[_Part], rows: int) -> npt.NDArray[np.int16]:
    flags = np.zeros(rows, np.int16)
    for i, part in enumerate(parts):
        if part.missing is not None:
            flags |= part.missing.astype(np.int16) << i
    return flags


def _part(series: pl.Series) -> _Part:
    kind = series.dtype
    if isinstance(kind, pl.Decimal) and kind.precision > _SHORT_DECIMAL:
        series = series.cast(pl.String)
    elif kind == pl.String:
        series = series.cast(pl.Binary)
    elif isinstance(kind, pl.List):
        return _list(series)
    array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
    missing = _missing(array)
    if isinstance(array, pa.LargeBinaryArray):
        return _Part(_without(_lengths(array), missing, 0), array, missing)
    if isinstance(array, pa.LargeStringArray):
        binary = array.view(pa.large_binary())
        return _Part(_without(_lengths(array), missing, 0), binary, missing)
    if isinstance(kind, pl.Decimal):
        return _Part(_unscaled(array, missing), None, missing)
    return _Part(_number(array, type(kind), missing), None, missing)


def _number(array: pa.Array, kind: type[pl.DataType], missing: Flags | None) -> Bytes:
    if kind is pl.Boolean:
        return _without(_bits(array, 1).view(np.uint8), missing, 0)
    values = _numbers(array, _FIXED[kind])
    if kind in (pl.Float32, pl.Float64):
        # There are many NaN, and one of them stands for all, and for NULL.
        odd = np.isnan(values)
        odd |= False if missing is None else missing
        return _without(values, odd if odd.any() else None, np.nan)
    values = _without(values, missing, _ZERO.get(kind, 0))
    return values - values.dtype.type(_ZERO[kind]) if kind in _ZERO else values


def _numbers(array: pa.Array, dtype: str) -> Bytes:
    """The numbers in an array's buffer, whatever they are where it is NULL."""
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _bits(array: pa.Array, buffer: int) -> Flags:
    """The bits of a buffer, one for each value."""
    data = np.frombuffer(array.buffers()[buffer], np.uint8)[array.offset // 8 :]
    start = array.offset % 8
    bits = np.unpackbits(data, bitorder="little", count=start + len(array))
    return bits[start:].view(np.bool_)


def _missing(array: pa.Array) -> Flags | None:
    return ~_bits(array, 0) if array.null_count else None


def _without(values: Bytes, missing: Flags | None, instead: Any) -> Bytes:
    if missing is None:
        return values
    values = values.copy()
    values[missing] = instead
    return values


def _lengths(array: pa.Array) -> npt.NDArray[np.int32]:
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1]
    return np.diff(offsets).astype(np.int32)


def _unscaled(array: pa.Array, missing: Flags | None) -> npt.NDArray[np.int64]:
    """The integers ``value * 10**scale`` of decimals of at most 18 digits; 0 for NULL."""
    # Decimals are 128-bit little-endian integers; 18 digits fit in the lower half.
    halves = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)
    values = halves[array.offset : array.offset + len(array), 0]
    return _without(values, missing, 0)


def _list(series: pl.Series) -> _Part:
    array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
    missing = _missing(array)
    lengths = _without(_lengths(array), missing, 0)
    return _Part(lengths, _elements(series, lengths), missing)


def _elements(series: pl.Series, lengths: npt.NDArray[np.int32]) -> pa.LargeBinaryArray:
    flat = series.drop_nulls().list.explode(empty_as_null=False)
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if not len(flat):
        return _sliced(pa.py_buffer(b""), np.zeros(len(series) + 1, np.int64))
    encoded = encode([flat], len(flat))
    offsets = np.frombuffer(encoded.buffers()[1], np.int64)[encoded.offset :][: len(flat) + 1]
    # The elements lie one after another, so a row's elements are one slice of the same bytes.
    return _sliced(encoded.buffers()[2], offsets[bounds])


def _sliced(data: pa.Buffer, offsets: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets), data]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
