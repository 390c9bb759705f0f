"""Errors and notes of one cause are printed once."""

from __future__ import annotations

import pytest

from bronze.cli.screens import failure_groups
from bronze.cli.screens.failure_groups import groups_of
from bronze.model.results import Failure


def denied(schema: str, name: str) -> Failure:
    """The failure of a table that may not be read."""
    return Failure(
        "TableRefused",
        f"Table {schema}.{name} cannot be read: permission denied.",
        f'GRANT USAGE ON SCHEMA "{schema}" TO role; GRANT SELECT ON "{schema}"."{name}" TO role;',
    )


def test_one_cause_is_one_message_with_one_grant(capsys: pytest.CaptureFixture[str]) -> None:
    """The GRANT names all tables, also those that are too many to be listed; others are apart."""
    names = [f"t{number}" for number in range(14)]
    errors: dict[str, Failure | None] = {f"s.{name}": denied("s", name) for name in names}
    errors |= {"s.x": Failure("LakeError", "The disk is full.", ""), "s.y": None}
    failure_groups.print_failures(errors)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "14 tables failed: Table … cannot be read: permission denied."
    assert lines[1].startswith("  tables: s.t0, s.t1, ")
    assert lines[1].endswith("s.t9 and 4 more")
    listed = ", ".join(f'"s"."{name}"' for name in names)
    assert lines[2] == (f'  GRANT USAGE ON SCHEMA "s" TO role; GRANT SELECT ON {listed} TO role;')
    explained = "  bronze explain table_refused; bronze explain lake_error"
    assert lines[3:] == ["s.x: The disk is full.", explained]


def test_a_single_failure_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """It names its table once, and has its own hint."""
    failure_groups.print_failures({"s.orders": denied("s", "orders")})
    message, hint, explain = capsys.readouterr().err.splitlines()
    assert message == "Table s.orders cannot be read: permission denied."
    assert explain == "  bronze explain table_refused"
    assert 'GRANT SELECT ON "s"."orders" TO role;' in hint


def test_different_causes_are_not_joined() -> None:
    """Only the table's own name may differ; a name within a longer word is not its name."""
    messages = [
        ("s.t1", "t1 is a view", ""),
        ("s.t2", "t2 is a view", ""),
        ("s.t", "t3 is a view", ""),
    ]
    found = [(group.message, group.tables) for group in groups_of(messages)]
    assert found == [("… is a view", ("s.t1", "s.t2")), ("t3 is a view", ("s.t",))]


def test_stopped_tables_have_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However many they are."""
    stopped = Failure("Stopped", "It was stopped.", "")
    failure_groups.print_failures({f"s.t{number}": stopped for number in range(12)})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("s.t9 and 2 more.")
