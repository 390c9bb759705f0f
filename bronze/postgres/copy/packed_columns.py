"""Turns packed columns (see `bronze.postgres.copy.packed_query`) into columns of an Arrow table.

The table has the types in which connectorx returns the same columns, so that both readers decode
them alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bronze.postgres.copy.packed_query import FLAGS_PER_WORD, SEPARATOR, Field, Packing

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

# PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01.
_EPOCH_DAYS = 10_957
_DAY = 86_400_000_000
_FIRST_DAY, _END_DAY = -730_119, 2_921_940
"""0001-01-01 and 10000-01-01, as days since 2000-01-01."""


@dataclass(frozen=True)
class _Fixed:
    """A fixed-length type: how it is sent, and Arrow's; values must be in ``low`` <= v < ``high``.

    ``shift`` is added to a value as it is sent.
    """

    sent: str
    arrow: pa.DataType
    shift: int = 0
    low: int | None = None
    high: int | None = None


_FIXED = {
    "short": _Fixed(">i2", pa.int16()),
    "int": _Fixed(">i4", pa.int32()),
    "long": _Fixed(">i8", pa.int64()),
    "float": _Fixed(">f4", pa.float32()),
    "double": _Fixed(">f8", pa.float64()),
    "boolean": _Fixed("u1", pa.bool_()),
    "date": _Fixed(">i4", pa.date32(), _EPOCH_DAYS, _FIRST_DAY, _END_DAY),
    "timestamp_ntz": _Fixed(
        ">i8", pa.timestamp("us"), _EPOCH_DAYS * _DAY, _FIRST_DAY * _DAY, _END_DAY * _DAY
    ),
    "timestamp": _Fixed(
        ">i8", pa.timestamp("us", "UTC"), _EPOCH_DAYS * _DAY, _FIRST_DAY * _DAY, _END_DAY * _DAY
    ),
}


class UnfitValue(Exception):
    """The packed values have no unique meaning, or a value of theirs is rejected.

    The split has to be read again, in another way.
    """


class NotPackable(Exception):
    """A split is better read as rows, by connectorx."""


def unpack(packing: Packing, rows: int, values: list[bytes | None]) -> pa.Table:
    """The columns of the query that was packed, with the rejected values as the last one.

    Args:
        packing: how the rows were packed.
        rows: their number.
        values: the other values of the result; the list is emptied, to free memory early.

    Raises:
        UnfitValue, NotPackable
    """
    if packing.in_arrays:
        values[:] = _from_arrays(packing, values)
    values.reverse()
    nulls = _null_masks(packing, rows, values)
    columns = [
        _column(field, rows, nulls.get(field.name), values, packing.quick)
        for field in packing.fields
    ]
    if not packing.rejects:
        columns.append(pa.nulls(rows, pa.string()))
    return pa.table(columns, names=[str(i) for i in range(len(columns))])


def _from_arrays(packing: Packing, values: Sequence[bytes | None]) -> list[bytes | None]:
    """The values that came in an array of bytes and in one of texts, in their order."""
    octets, texts = (_elements_of(value or b"") for value in values)
    return [next(texts if is_text else octets) for is_text in packing.texts]


def _elements_of(data: bytes) -> Iterator[bytes | None]:
    """The elements of an array as PostgreSQL sends it."""
    position = _ARRAY_HEADER + _DIMENSION
    while position < len(data):
        (length,) = struct.unpack_from(">i", data, position)
        position += 4
        yield None if length < 0 else data[position : position + length]
        position += max(length, 0)


def _null_masks(packing: Packing, rows: int, values: list[bytes | None]) -> dict[str, Mask]:
    """By the name of a field, which of its values are NULL; only of fields that have some."""
    masks: dict[str, Mask] = {}
    fields = packing.nullable
    for start in range(0, len(fields), FLAGS_PER_WORD):
        words = _numbers(values.pop(), ">i4", rows)
        present = int(np.bitwise_or.reduce(words)) if rows else 0
        for i, field in enumerate(fields[start : start + FLAGS_PER_WORD]):
            if present >> i & 1:
                masks[field.name] = (words & (1 << i)) != 0
    return masks


def _numbers(data: bytes | None, sent: str, count: int) -> npt.NDArray[Any]:
    numbers = np.frombuffer(data or b"", sent)
    if len(numbers) != count:
        raise UnfitValue
    return numbers


def _column(
    field: Field, rows: int, nulls: Mask | None, values: list[bytes | None], quick: bool
) -> pa.Array:
    data = values.pop()
    count = rows if nulls is None else rows - int(np.count_nonzero(nulls))
    validity = _validity(nulls)
    if field.form == "fixed":
        return _fixed(_FIXED[field.kind.name], data, rows, count, nulls)
    if field.form == "text" and quick:
        return _separated_texts(field, data or b"", rows, validity, rows - count)
    lengths = _numbers(values.pop(), ">i4", count).astype(np.int64)
    data = data or b""
    if int(lengths.sum()) != len(data):
        raise UnfitValue
    offsets = _offsets(_scatter(lengths, nulls))
    if field.form == "array":
        return _arrays(field, data, offsets, validity, nulls)
    kind = pa.string() if field.form == "text" else pa.binary()
    return _variable(kind, data, offsets, validity, rows - count)


def _scatter(values: npt.NDArray[Any], nulls: Mask | None) -> npt.NDArray[Any]:
    """The values of all rows from those of the rows that have one; 0 in the others."""
    if nulls is None:
        return values
    spread = np.zeros(len(nulls), values.dtype)
    spread[~nulls] = values
    return spread


def _validity(nulls: Mask | None) -> pa.Buffer | None:
    return None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))


def _offsets(lengths: Numbers) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets.astype(np.int32)


def _fixed(kind: _Fixed, data: bytes | None, rows: int, count: int, nulls: Mask | None) -> pa.Array:
    sent = _numbers(data, kind.sent, count)
    values = sent.astype(sent.dtype.newbyteorder("="))
    if kind.low is not None and kind.high is not None and count:
        if int(values.min()) < kind.low or int(values.max()) >= kind.high:
            raise UnfitValue
        values += kind.shift
    values = _scatter(values, nulls)
    if pa.types.is_boolean(kind.arrow):
        values = np.packbits(values, bitorder="little")
    buffers = [_validity(nulls), pa.py_buffer(values)]
    return pa.Array.from_buffers(kind.arrow, rows, buffers, null_count=rows - count)


def _variable(
    kind: pa.DataType,
    data: bytes,
    offsets: npt.NDArray[np.int32],
    validity: pa.Buffer | None,
    null_count: int,
) -> pa.Array:
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    array = pa.Array.from_buffers(kind, len(offsets) - 1, buffers, null_count=null_count)
    if pa.types.is_string(kind) and not data.isascii():
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            raise UnfitValue from None
    return array


def _separated_texts(
    field: Field, data: bytes, rows: int, validity: pa.Buffer | None, null_count: int
) -> pa.Array:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == SEPARATOR[0])
    if len(ends) != max(rows - 1, 0):
        raise UnfitValue
    if field.raw and b"N" in data:
        # The text of a number has no letter, except NaN.
        raise UnfitValue
    offsets = np.zeros(rows + 1, np.int32)
    offsets[1:rows] = ends - np.arange(len(ends))
    offsets[rows:] = len(data) - len(ends)
    return _variable(pa.string(), data.replace(SEPARATOR, b""), offsets, validity, null_count)


_ARRAY_HEADER = 12
_DIMENSION = 8
# Fewer arrays than this are walked one by one, and arrays of fixed-length elements that are longer.
_FEW = 32
# More elements than this are not walked one by one: connectorx is faster.
_MOST_WALKED = 100_000
# How many values are picked at once, because their indexes take eight times their memory.
_BLOCK = 2**16


def _arrays(
    field: Field,
    data: bytes,
    offsets: npt.NDArray[np.int32],
    validity: pa.Buffer | None,
    nulls: Mask | None,
) -> pa.Array:
    """Lists from arrays as `array_send` writes them: a header, then lengths and elements."""
    octets = np.frombuffer(data, np.uint8)
    starts = offsets[:-1].astype(np.int64)
    present = starts if nulls is None else starts[~nulls]
    dimensions = _int4(octets, present)
    one = present[dimensions == 1]
    if dimensions.max(initial=0) > 1 or np.any(_int4(octets, one + _ARRAY_HEADER + 4) != 1):
        raise UnfitValue
    counts = np.zeros(len(present), np.int64)
    counts[dimensions == 1] = _int4(octets, one + _ARRAY_HEADER)
    first = present + _ARRAY_HEADER + _DIMENSION
    if field.kind.of.name == "string":
        values = _text_elements(data, octets, first, counts)
    else:
        # The second word of the header says whether there are NULL elements.
        whole = (_int4(octets, present + 4) == 0) & (counts >= _FEW)
        values = _fixed_elements(_FIXED[field.kind.of.name], data, first, counts, whole)
    list_offsets = _offsets(_scatter(counts, nulls))
    return pa.Array.from_buffers(
        pa.list_(values.type),
        len(starts),
        [validity, pa.py_buffer(list_offsets)],
        null_count=len(starts) - len(present),
        children=[values],
    )


def _text_elements(data: bytes, octets: Bytes, first: Numbers, counts: Numbers) -> pa.Array:
    positions, lengths = _elements(data, octets, first, counts)
    missing = lengths < 0
    lengths = np.maximum(lengths, 0)
    texts = _bytes_at(octets, positions, lengths)
    null_count = int(np.count_nonzero(missing))
    validity = _validity(missing if null_count else None)
    return _variable(pa.string(), texts, _offsets(lengths), validity, null_count)


def _fixed_elements(
    kind: _Fixed, data: bytes, first: Numbers, counts: Numbers, whole: Mask
) -> pa.Array:
    """The elements of arrays; those that are ``whole`` have no NULL, and are not walked."""
    sent = np.dtype(kind.sent)
    octets = np.frombuffer(data, np.uint8)
    slots = np.cumsum(counts) - counts
    total = int(counts.sum())
    values, missing = np.zeros(total, sent.newbyteorder("=")), np.zeros(total, np.bool_)
    element = np.dtype([("length", ">i4"), ("value", sent)])
    places = (part[whole].tolist() for part in (first, slots, counts))
    for position, slot, count in zip(*places, strict=True):
        elements = np.frombuffer(data, element, count, position)
        if np.any(elements["length"] != sent.itemsize):
            raise UnfitValue
        values[slot : slot + count] = elements["value"]
    walked = counts[~whole]
    positions, lengths = _elements(data, octets, first[~whole], walked)
    # Where the elements of these arrays are among all elements.
    places_of = np.repeat(slots[~whole] - (np.cumsum(walked) - walked), walked)
    places_of += np.arange(len(places_of))
    present = lengths >= 0
    values[places_of[present]] = _picked(octets, positions[present], sent)
    missing[places_of[~present]] = True
    nulls = missing if missing.any() else None
    if pa.types.is_boolean(kind.arrow):
        values = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(kind.arrow, total, [_validity(nulls), pa.py_buffer(values)])


def _int4(octets: Bytes, positions: Numbers) -> Numbers:
    """The integers of four bytes at some positions."""
    return _picked(octets, positions, np.dtype(">i4")).astype(np.int64, copy=False)


def _picked(octets: Bytes, positions: Numbers, sent: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values at some positions, in the byte order of this machine."""
    picked = np.empty(len(positions), sent.newbyteorder("="))
    octet = np.arange(sent.itemsize)
    for start in range(0, len(positions), _BLOCK):
        block = octets[positions[start : start + _BLOCK, None] + octet]
        picked[start : start + _BLOCK] = np.ascontiguousarray(block).reshape(-1).view(sent)
    return picked


def _elements(
    data: bytes, octets: Bytes, first: Numbers, counts: Numbers
) -> tuple[Numbers, Numbers]:
    """Where each element of each array begins, and its length, -1 for NULL.

    The position of an element follows from the length of the one before it. So the first elements
    of all arrays are found together, then the second ones, and so on.
    """
    ends = np.cumsum(counts)
    total = int(counts.sum())
    positions, lengths = np.zeros(total, np.int64), np.zeros(total, np.int64)
    open_arrays = np.flatnonzero(counts)
    cursors, slots = first[open_arrays], (ends - counts)[open_arrays]
    remaining = counts[open_arrays]
    while len(cursors) >= _FEW:
        sizes = _int4(octets, cursors)
        positions[slots], lengths[slots] = cursors + 4, sizes
        cursors = cursors + 4 + np.maximum(sizes, 0)
        slots, remaining = slots + 1, remaining - 1
        if remaining.min() == 0:
            more = remaining > 0
            cursors, slots, remaining = cursors[more], slots[more], remaining[more]
    if int(remaining.sum()) > _MOST_WALKED:
        raise NotPackable
    for cursor, slot, count in zip(
        cursors.tolist(), slots.tolist(), remaining.tolist(), strict=True
    ):
        position = cursor
        for i in range(slot, slot + count):
            (size,) = struct.unpack_from(">i", data, position)
            positions[i], lengths[i] = position + 4, size
            position += 4 + max(size, 0)
    return positions, lengths


def _bytes_at(octets: Bytes, positions: Numbers, lengths: Numbers) -> bytes:
    """The bytes at these positions, which do not overlap, one after the other."""
    edges = np.zeros(len(octets) + 1, np.int8)
    some = lengths > 0
    edges[positions[some]] = 1
    edges[(positions + lengths)[some]] -= 1
    return octets[np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)].tobytes()
