"""Frames of records have the values of the records."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from bronze.governance.frames import frame_of, schema_of
from bronze.model.columns import DeltaType

COLUMNS = (
    ("text", DeltaType("string")),
    ("at", DeltaType("timestamp")),
    ("count", DeltaType("long")),
    ("share", DeltaType("double")),
    ("flag", DeltaType("boolean")),
)
NOW = dt.datetime(2024, 2, 29, 23, 59, 59, 999999, dt.UTC)


def test_a_frame_has_the_records() -> None:
    """With all their values, also where the first of many are NULL, and of no records."""
    record = ("1", NOW, 2**62, 0.5, True)
    for records in ([], [record], [(None,) * 5] * 150 + [record], [record, (None,) * 5]):
        frame = frame_of(COLUMNS, records)
        assert frame.rows() == records
        assert frame.schema == schema_of(COLUMNS)
    here = NOW.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert frame_of(COLUMNS, [("x", here, 1, 1, False)]).rows() == [("x", NOW, 1, 1.0, False)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1),
        ("text", True),
        ("at", "2024-01-01"),
        ("at", 5),
        ("count", 1.5),
        ("count", 1.0),
        ("count", True),
        ("count", "1"),
        ("share", "1"),
        ("share", False),
        ("flag", 1),
        ("flag", "true"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    """It is not converted, in the first record or in a later one."""
    record = [value if column == name else None for column, _ in COLUMNS]
    for records in ([record], [[None] * 5] * 150 + [record]):
        with pytest.raises(TypeError, match=f"Column {name} is of type"):
            frame_of(COLUMNS, records)


def test_a_record_needs_a_value_for_each_column() -> None:
    """A shorter or longer one is refused."""
    for width in (4, 6):
        with pytest.raises(ValueError, match="argument 2 is"):
            frame_of(COLUMNS, [[None] * width])


def test_many_records_become_a_frame_some_at_a_time() -> None:
    """Polars lets no other thread work while it reads the rows of one call."""
    columns = (("name", DeltaType("string")), ("rows", DeltaType("long")))
    records = [(f"t{number}", number if number % 3 else None) for number in range(1_234)]
    frame = frame_of(columns, records)
    assert frame.rows() == records
    assert max(part.len() for part in frame["rows"].get_chunks()) <= 500
