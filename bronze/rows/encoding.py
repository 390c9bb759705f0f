"""The canonical encoding of rows, from which ``row_hash`` and ``checksum`` are computed.

It is defined here only, and depends on no library's version. `bronze.postgres.copy.row_hash`
computes the same bytes in PostgreSQL. All numbers are big-endian. A row is the concatenation of

1. *flags*: for every fifteen columns, in order, a 2-byte integer, whose bit ``i`` (1 << i) is set
   if the i-th of these columns is NULL;
2. *fixed parts*, one for each column, in order:

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

Columns that were added to a table later are not in these three. Each of them that is not NULL is
appended: its number in the row, counted from 0, as 2 bytes, and its value encoded as a row of one
column. So adding a column does not change the encoding of rows in which it is NULL.

No two different rows of the same columns have the same encoding: the flags and fixed parts have
a known size, and determine the size of everything after them.

``row_hash`` is the first 128 bits of SHA-256 over the encoding of the source's columns followed by
the row's rejected values, if it has any, as UTF-8 text (see `bronze.postgres.statement`; rejected
values are NULL in the encoding). ``checksum`` is XXH3-64 over the encoding of the values as
stored. Both are written as lower-case hexadecimal digits.
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
# The value that is encoded as 0, as NULL is.
_ZERO: dict[type[pl.DataType], int] = {pl.Date: _EPOCH_DAYS, pl.Datetime: _EPOCH_MICROSECONDS}
_SHORT_DECIMAL = 18

Bytes = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


class _Part(NamedTuple):
    """The fixed and the variable parts of one column, and where it is NULL (None if nowhere)."""

    fixed: Bytes
    variable: pa.LargeBinaryArray | None
    missing: Flags | None


def cast_exactly(values: pl.Series, to: Any) -> tuple[pl.Series, pl.Series]:
    """Values cast to another type, and which of them are exact; the others are NULL or rounded."""
    if values.dtype == to:
        return values, pl.repeat(True, len(values), eager=True)
    try:
        narrow = values.cast(to, strict=False)
        return narrow, narrow.cast(values.dtype, strict=False).eq_missing(values)
    except pl.exceptions.PolarsError:
        # Other writers may have written values of another kind.
        return pl.Series(values.name, [None], to).new_from_index(0, len(values)), values.is_null()


def encode(columns: Sequence[pl.Series], rows: int, base: int | None = None) -> pa.LargeBinaryArray:
    """The encoding of each of the ``rows`` > 0 rows of ``columns``, as one binary value each.

    Strings must be UTF-8, as in polars; Datetimes in microseconds. The columns from number ``base``
    on were added later; None if none was.
    """
    return join_pieces(encoding_pieces(columns, rows, base))


def encoding_pieces(
    columns: Sequence[pl.Series], rows: int, base: int | None = None
) -> list[pa.LargeBinaryArray]:
    """The pieces that `encode` joins row by row; NULL is an empty piece. Large values are not
    copied.
    """
    if base is not None and base < len(columns):
        added = (_added_column(number, columns[number]) for number in range(base, len(columns)))
        return [*encoding_pieces(columns[:base], rows), *chain.from_iterable(added)]
    if not columns:
        return [_binary_array(pa.py_buffer(b""), np.zeros(rows + 1, np.int64))]
    # Tables have up to 1,600 columns: each of them is read from its Arrow buffers, because one
    # polars expression costs more than hundreds of its values.
    parts = [_part(series) for series in columns]
    arrays = [_pack(parts, rows)]
    arrays += [part.variable for part in parts if part.variable is not None]
    return arrays


def _pack(parts: Sequence[_Part], rows: int) -> pa.LargeBinaryArray:
    """The flags and fixed parts of all rows."""
    words = -(-len(parts) // _FLAGS_PER_WORD)
    layout: list[tuple[str, Any]] = [(f"n{i}", ">i2") for i in range(words)]
    layout += [(f"v{i}", part.fixed.dtype.newbyteorder(">")) for i, part in enumerate(parts)]
    packed = np.empty(rows, np.dtype(layout))
    for word in range(words):
        packed[f"n{word}"] = _flags(parts[word * _FLAGS_PER_WORD :][:_FLAGS_PER_WORD], rows)
    for i, part in enumerate(parts):
        packed[f"v{i}"] = part.fixed
    return _binary_array(pa.py_buffer(packed), np.arange(rows + 1) * packed.dtype.itemsize)


def _added_column(number: int, series: pl.Series) -> list[pa.LargeBinaryArray]:
    """The pieces of a column that was added later; all are empty if its value is NULL."""
    rows = len(series)
    prefix = pa.repeat(_scalar(number.to_bytes(2, "big")), rows)
    fixed, *variable = encoding_pieces([series], rows)
    if not series.null_count():
        return [prefix, fixed, *variable]
    not_null = series.is_not_null().to_arrow()
    empty = _scalar(None)
    # Variable parts of NULL are empty already.
    return [*(pc.if_else(not_null, part, empty) for part in (prefix, fixed)), *variable]


def join_pieces(arrays: Sequence[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    """The pieces of each row, joined."""
    if len(arrays) == 1:
        return arrays[0]
    return pc.binary_join_element_wise(
        *arrays, _scalar(b""), null_handling="replace", null_replacement=""
    )


def _scalar(value: bytes | None) -> pa.LargeBinaryScalar:
    # pa.scalar and pa.array import pandas where it is installed, which takes 0.3 s.
    oldest = pl.CompatLevel.oldest()
    return pl.Series([value], dtype=pl.Binary).to_arrow(compat_level=oldest)[0]


def _flags(parts: Sequence[_Part], rows: int) -> npt.NDArray[np.int16]:
    """One word of flags for each row, of at most fifteen columns."""
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
        return _Part(_fill_null(_lengths(array), missing, 0), array, missing)
    if isinstance(array, pa.LargeStringArray):
        binary = array.view(pa.large_binary())
        return _Part(_fill_null(_lengths(array), missing, 0), binary, missing)
    if isinstance(kind, pl.Decimal):
        return _Part(_unscaled(array, missing), None, missing)
    return _Part(_fixed_values(array, type(kind), missing), None, missing)


def _fixed_values(array: pa.Array, kind: type[pl.DataType], missing: Flags | None) -> Bytes:
    if kind is pl.Boolean:
        return _fill_null(_bits(array, 1).view(np.uint8), missing, 0)
    values = _buffer_values(array, _FIXED[kind])
    if kind in (pl.Float32, pl.Float64):
        # There are many bit patterns of NaN: one of them encodes all, and NULL.
        nan = np.isnan(values)
        nan |= False if missing is None else missing
        return _fill_null(values, nan if nan.any() else None, np.nan)
    values = _fill_null(values, missing, _ZERO.get(kind, 0))
    return values - values.dtype.type(_ZERO[kind]) if kind in _ZERO else values


def _buffer_values(array: pa.Array, dtype: str) -> Bytes:
    """The numbers in the buffer of an array; arbitrary ones for NULL."""
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _bits(array: pa.Array, buffer: int) -> Flags:
    """The bits of a buffer of an array, one for each value."""
    data = np.frombuffer(array.buffers()[buffer], np.uint8)[array.offset // 8 :]
    start = array.offset % 8
    bits = np.unpackbits(data, bitorder="little", count=start + len(array))
    return bits[start:].view(np.bool_)


def _missing(array: pa.Array) -> Flags | None:
    """Which values are NULL; None if none is."""
    return ~_bits(array, 0) if array.null_count else None


def _fill_null(values: Bytes, missing: Flags | None, fill: Any) -> Bytes:
    if missing is None:
        return values
    values = values.copy()
    values[missing] = fill
    return values


def _lengths(array: pa.Array) -> npt.NDArray[np.int32]:
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1]
    return np.diff(offsets).astype(np.int32)


def _unscaled(array: pa.Array, missing: Flags | None) -> npt.NDArray[np.int64]:
    """The integers ``value * 10**scale`` of decimals of at most 18 digits; 0 for NULL."""
    # Decimals are 128-bit little-endian integers; 18 digits fit into the lower half.
    halves = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)
    values = halves[array.offset : array.offset + len(array), 0]
    return _fill_null(values, missing, 0)


def _list(series: pl.Series) -> _Part:
    array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
    missing = _missing(array)
    lengths = _fill_null(_lengths(array), missing, 0)
    return _Part(lengths, _elements(series, lengths), missing)


def _elements(series: pl.Series, lengths: npt.NDArray[np.int32]) -> pa.LargeBinaryArray:
    """The encoded elements of each array."""
    flat = series.drop_nulls().list.explode(empty_as_null=False)
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if not len(flat):
        return _binary_array(pa.py_buffer(b""), np.zeros(len(series) + 1, np.int64))
    encoded = encode([flat], len(flat))
    offsets = np.frombuffer(encoded.buffers()[1], np.int64)[encoded.offset :][: len(flat) + 1]
    # The elements are contiguous, so those of a row are one slice of the same bytes.
    return _binary_array(encoded.buffers()[2], offsets[bounds])


def _binary_array(data: pa.Buffer, offsets: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets), data]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
