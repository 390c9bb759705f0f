"""Packed values that do not fit together are never decoded."""

from __future__ import annotations

import struct

import pytest

from bronze.model.columns import DeltaType
from bronze.postgres.copy.packed_columns import UnfitValue, unpack
from bronze.postgres.copy.packed_query import Field, Packing

NO_FLAGS = struct.pack(">3i", 0, 0, 0)
LENGTHS = struct.pack(">3i", 1, 2, 0)


def field(name: str, form: str, nullable: bool = True, raw: bool = False) -> Field:
    """A field of some form."""
    element = DeltaType("int") if name == "array" else None
    return Field("c0", form, DeltaType(name, element=element), nullable, raw)  # type: ignore[arg-type]


# The values of three rows, that fit, and those that do not.
CASES: dict[str, tuple[Field, bool, list[bytes | None], list[object] | None]] = {
    "short": (field("short", "fixed", False), True, [b"\0\1\0\2\0\3"], [1, 2, 3]),
    "short by one": (field("short", "fixed", False), True, [b"\0\1\0\2"], None),
    "no flags": (field("short", "fixed"), True, [None, b"\0\1\0\2\0\3"], None),
    "fewer than flags": (field("short", "fixed"), True, [NO_FLAGS, b"\0\1\0\2"], None),
    "NULL": (
        field("short", "fixed"),
        True,
        [struct.pack(">3i", 0, 1, 0), b"\0\1\0\2"],
        [1, None, 2],
    ),
    "date": (
        field("date", "fixed", False, True),
        True,
        [struct.pack(">3i", 0, 1, 2**31 - 1)],
        None,
    ),
    "texts": (field("string", "text"), True, [NO_FLAGS, b"a\1\xc3\xa4\1"], ["a", "ä", ""]),
    "a separator too many": (field("string", "text"), True, [NO_FLAGS, b"a\1b\1c\1"], None),
    "a separator too few": (field("string", "text"), True, [NO_FLAGS, b"a\1b"], None),
    "no UTF-8": (field("string", "text"), True, [NO_FLAGS, b"a\1\xc3\1\xa4"], None),
    "NaN": (field("string", "text", raw=True), True, [NO_FLAGS, b"1\1NaN\1-2.5"], None),
    "lengths": (field("string", "text"), False, [NO_FLAGS, b"abc", LENGTHS], ["a", "bc", ""]),
    "other lengths": (field("string", "text"), False, [NO_FLAGS, b"abcd", LENGTHS], None),
    "bytes": (
        field("binary", "bytes"),
        True,
        [NO_FLAGS, b"\1\xff\0", LENGTHS],
        [b"\1", b"\xff\0", b""],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_fit_or_are_refused(case: str) -> None:
    """Whether their number, lengths, separators and ranges agree."""
    packed, quick, values, expected = CASES[case]
    way = Packing("", (packed,), quick, rejects=False)
    if expected is None:
        with pytest.raises(UnfitValue):
            unpack(way, 3, values)
        return
    table = unpack(way, 3, values)
    assert table.column(0).to_pylist() == expected
    assert table.column(1).to_pylist() == [None] * 3


def test_no_rows_are_columns_without_values() -> None:
    """PostgreSQL's aggregates of no rows are NULL."""
    fields = (field("short", "fixed"), field("string", "text"), field("array", "array"))
    for quick in (True, False):
        way = Packing("", fields, quick, rejects=False)
        table = unpack(way, 0, [None] * len(way.texts))
        assert table.num_rows == 0
        assert table.num_columns == 4
