"""What `bronze reveal` prints for people."""

from __future__ import annotations

import io

import polars as pl
import pytest
from rich.console import Console

from bronze.cli import output
from bronze.cli.screens import revealed


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 40 columns without colours."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=40, emoji=False)
    monkeypatch.setattr(output, "_out", console)
    return file


def test_protected_columns_are_first_and_added_ones_are_hidden(terminal: io.StringIO) -> None:
    """A line says how many of all rows these are."""
    rows = pl.DataFrame({"id": [1], "mail": ["a@b"], "row_hash": ["x"]})
    revealed.print_rows(rows, ("mail",), ("row_hash",), 7)
    lines = [line.split() for line in terminal.getvalue().splitlines()]
    assert lines[:2] == [["mail", "id"], ["a@b", "1"]]
    assert " ".join(lines[2]) == "the first of 7 rows; --limit 0 shows all"


def test_wide_rows_are_records(terminal: io.StringIO) -> None:
    """One below the other, each value whole."""
    long = "x" * 90
    rows = pl.DataFrame({"id": [1, 2], "text": [long, None], "数据": ["a", "b"]})
    revealed.print_rows(rows, ("text",), (), 2)
    lines = terminal.getvalue().splitlines()
    assert lines == [
        "row 1",
        f"  text  {long}",
        "  id    1",
        "  数据  a",
        "row 2",
        "  text",
        "  id    2",
        "  数据  b",
        "2 rows",
    ]


def test_an_unknown_total_is_not_claimed(terminal: io.StringIO) -> None:
    """The limit may have cut rows."""
    revealed.print_rows(pl.DataFrame({"id": [1, 2]}), total=None)
    assert terminal.getvalue().splitlines()[-1] == "the first 2 rows; --limit 0 shows all"
