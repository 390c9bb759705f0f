"""Names in the lake."""

from __future__ import annotations

import pytest

from bronze.rows.metadata import METADATA_COLUMNS
from bronze.tables.naming import name_faults, table_name

ADDED = [name for name, _ in METADATA_COLUMNS]


@pytest.mark.parametrize(
    ("source", "bronze"),
    [
        ("orders", "bz_orders"),
        ("Order Details", "bz_order_details"),
        ("a.b/c\\d", "bz_a_b_c_d"),
        ("..", "bz___"),
        ("übergrößen", "bz_übergrößen"),
        ("u\u0308ber", "bz_über"),
        ("日本", "bz_日本"),
        ("_delta_log", "bz__delta_log"),
        ("x" * 63, "bz_" + "x" * 63),
    ],
)
def test_a_table_has_a_name_that_any_store_can_hold(source: str, bronze: str) -> None:
    """Letters and digits are kept in lower case, everything else becomes an underscore."""
    assert table_name(source) == bronze


@pytest.mark.parametrize("name", ["id", "a.b", 'quo"te', "back`tick", "ünï", "100%", "a:b", "-"])
def test_most_names_of_columns_are_fine(name: str) -> None:
    """Dots, quotes and letters of any script are no fault."""
    assert name_faults([name], ADDED) == {}


@pytest.mark.parametrize("bad", list(" ,;{}()\n\t="))
def test_characters_that_delta_forbids(bad: str) -> None:
    """Each character that Delta does not allow is named."""
    assert repr(bad) in name_faults([f"a{bad}b", "c"], ADDED)[f"a{bad}b"]


def test_all_forbidden_characters_are_in_one_message() -> None:
    """The reason lists every bad character of a name."""
    reason = name_faults(["a b(c)"], ADDED)["a b(c)"]
    assert all(repr(character) in reason for character in " ()")


@pytest.mark.parametrize("name", ["row_hash", "ROW_HASH", "Load_Timestamp"])
def test_names_of_bronze_columns_are_reserved(name: str) -> None:
    """A source's column cannot have the name of one that bronze adds, in any case."""
    assert name_faults([name], ADDED) == {name: "bronze adds a column of that name"}


def test_names_that_differ_only_in_case() -> None:
    """Delta treats them as equal: the error is about the later one, and names the first."""
    found = name_faults(["Id", "x", "id", "ID"], ADDED)
    assert found.keys() == {"id", "ID"}
    assert "'Id'" in found["id"]
    assert "'Id'" in found["ID"]


def test_every_altered_row_is_detected() -> None:
    """One bad column does not hide another."""
    assert name_faults(["a b", "batch_id", "ok", "OK"], ADDED).keys() == {"a b", "batch_id", "OK"}
