"""The properties that tell later runs how the columns of a table have changed."""

from __future__ import annotations

from bronze.delta.properties import TableProperties
from bronze.model.columns import Column, DeltaType, ProtectionRule
from bronze.tables import evolution, row_format

ARRAY, INT, LONG = DeltaType("array", element=DeltaType("int")), DeltaType("int"), DeltaType("long")


def column(name: str, kind: DeltaType, protect: ProtectionRule | None = None) -> Column:
    """A column of the contract."""
    return Column(name, name, "", kind, "same", name, name, "", name, protect=protect)


def test_types_before_each_widening_can_be_read_again() -> None:
    """They are read from the last widening back. An array that is protected from now on was not
    widened, and cannot be recorded.
    """
    columns = (
        column("a", LONG),
        column("b", LONG),
        column("c", ARRAY, ProtectionRule("encrypt")),
        column("d", INT),
    )
    first = evolution.widened_property(columns, [("a", INT), ("b", LONG), ("c", ARRAY)], {})
    second = evolution.widened_property(columns, [("a", LONG), ("b", INT)], first)
    assert TableProperties.read(second).types_before_widening == ({"a": INT}, {"b": INT})
    assert row_format.earlier_types(second) == ((("b", INT),), (("b", INT), ("a", INT)))
    assert evolution.widened_property(columns, [("c", ARRAY)], {}) == {}


def test_columns_with_swapped_names_keep_separate_former_names() -> None:
    """The former names of a column lead to its values, those that are in use again do not."""
    properties = {
        "bronze.columns": '{"a": 1, "b": 2}',
        "bronze.former": '{"a": ["x", "b"], "b": ["y"]}',
    }
    assert evolution.former_names(properties, "a") == ("a", "x")
    assert evolution.former_names(properties, "y") == ("b", "y")
    assert evolution.reused_names(properties, "x") == ("b",)
