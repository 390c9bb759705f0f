"""What commands print."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest
from rich.console import Console

from bronze.api.check import CheckReport, ColumnReport, TableReport
from bronze.cli import output
from bronze.cli.screens import checks, results, revealed
from bronze.model.results import RunResult, TableResult


def test_figures_are_never_truncated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are complete on a narrow terminal; empty columns are left out."""
    monkeypatch.setattr(output, "_out", Console(highlight=False, width=40))
    done = [
        TableResult("public.a", "bronze.bz_a", "landed", 3_000_000, 2_999_999, version=1),
        TableResult("public.数据", "bronze.bz_数据", "landed", 12, version=12),
    ]
    results.run_result(RunResult("id", 1, 1.0, tuple(done)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Bronze table  status       read   inserted    s   v",
        "bz_a          landed  3,000,000  2,999,999  0.0   1",
        "bz_数据       landed         12          0  0.0  12",
    ]


def test_names_with_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """In tables of values and of columns."""
    rows = pl.DataFrame({"price[eur]": [1.0], "a[/b]": [math.inf]})
    revealed.print_rows(rows)
    assert "price[eur]" in (shown := capsys.readouterr().out)
    assert "a[/b]" in shown
    columns = (ColumnReport("a[/b]", "text", "price[eur]", "string", ""),)
    report = CheckReport((TableReport("t", "bz_t", "table", 1, 1, (), columns),), ())
    checks.check(report, detailed=True)
    assert "a[/b] → price[eur]" in capsys.readouterr().out
    revealed.print_document(rows, "json")
    assert json.loads(capsys.readouterr().out) == [{"price[eur]": 1.0, "a[/b]": "inf"}]


def test_words_between_colons_are_not_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    """A key or a name with a word between colons is shown as it is, on stdout and on stderr."""
    given = "Rows differ: id=:x:, at=fe80:a:b:c, in [a]:boom:"
    output.print_line(given)
    output.print_error(given, f"{given} again")
    revealed.print_rows(pl.DataFrame({":x:": ["fe80:a:b:c"]}), total=1)
    shown = capsys.readouterr()
    assert given in shown.out
    assert "fe80:a:b:c" in shown.out.splitlines()[-2]
    assert ":x:" in shown.out.splitlines()[1]
    assert shown.err.splitlines() == [given, f"  {given} again"]
