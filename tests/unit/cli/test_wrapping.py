"""Long lines on a terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from bronze.cli.wrapping import wrapped

LINE = "note: public.orders: the anomaly model was trained (there was none): version 287f3055db9f"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_line_is_broken_between_words(width: int) -> None:
    """No word is cut, and no column is passed; further lines are indented."""
    lines = wrapped(LINE, width).split("\n")
    assert " ".join(line.strip() for line in lines) == LINE
    assert all(cell_len(line) <= width for line in lines)
    assert [line for line in lines[1:] if not line.startswith("  ")] == []


def test_a_command_is_not_broken() -> None:
    """What is between backticks is copied as one."""
    text = "  Run `bronze check orders customers` again"
    assert wrapped(text, 30).split("\n") == [
        "  Run",
        "    `bronze check orders customers`",
        "    again",
    ]
    assert wrapped("an odd ` stays as it is", 10).count("`") == 1


def test_a_short_line_and_a_long_word_stay() -> None:
    """A word longer than the terminal is broken by it alone; wide characters count twice."""
    assert wrapped("a  b", 10) == "a  b"
    assert wrapped(f"see {'x' * 30} there", 10).split("\n") == ["see", "  " + "x" * 30, "  there"]
    assert wrapped("数据 数据 数据", 10) == "数据 数据\n  数据"
