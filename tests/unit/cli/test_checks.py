"""What `bronze check` prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bronze.api.check import REJECTED, CheckReport, ColumnReport, TableReport
from bronze.api.load_pattern import LoadPattern
from bronze.cli.screens import checks, documents
from bronze.model.results import Failure

COLUMNS = (ColumnReport("id", "integer", "id", "int", ""),)


def table(name: str, *notes: str, problem: Failure | None = None) -> TableReport:
    """The report of a table with one column."""
    return TableReport(
        f"s.{name}", f"bronze.bz_{name}", "table", 5, 8192, ("id",), COLUMNS, notes, problem
    )


def test_the_verdict_is_first_then_problems_then_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Columns are shown on request only."""
    refused = Failure("TableRefused", "Table s.b cannot be read.", "GRANT it;")
    report = CheckReport((table("a", "it has no key"), table("b", problem=refused)), ())
    checks.check(report, detailed=False)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "2 tables, 1 problem, 1 warning"
    assert lines[1] == "warning: s.a: it has no key"
    assert shown.err.splitlines() == [
        "Table s.b cannot be read.",
        "  GRANT it;",
        "  bronze explain table_refused",
    ]
    assert "PostgreSQL" not in shown.out
    assert "Tables of s, in bronze as bz_NAME:" in lines
    (state_a,) = [line for line in lines if line.startswith("a ")]
    (state_b,) = [line for line in lines if line.startswith("b ")]
    assert (state_a.split()[-1], state_b.split()[-1]) == ("ok", "problem")
    checks.check(report, detailed=True)
    assert "PostgreSQL" in capsys.readouterr().out


def test_many_tables_fit_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """1,330 tables with equal notes are counted; the same note is printed once."""
    many = tuple(table(f"t{number}", f"t{number} has no index") for number in range(1330))
    checks.check(CheckReport(many, ()), detailed=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 12
    assert lines[0] == "1,330 tables, 0 problems, 1,330 warnings"
    assert "warning on 1,330 tables: … has no index" in lines
    assert "1,330 tables: about 6,650 rows in 10.9 MB; 0 without a key" in lines


def test_a_table_has_its_load_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    """Pattern, cursor and why, key, deletes, when it is due; in the list the pattern alone."""
    load = LoadPattern(
        "micro_batch", "rows that may have changed", "updated_at", "of the config", "removed",
        "unique in PostgreSQL", "hourly", 1800, 1, "",
    )  # fmt: skip
    report = CheckReport((replace(table("a"), load=load),), ())
    checks.check(report, detailed=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:9] == [
        "s.a → bronze.bz_a",
        "  source     table, about 5 rows, 8.2 kB",
        "  pattern    micro_batch: rows that may have changed",
        "  cursor     updated_at: of the config",
        "  key        id: unique in PostgreSQL",
        "  deletes    removed",
        "  due        hourly, SLA 30 min, priority 1, by `bronze serve`",
    ]
    checks.check(report, detailed=False)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a ")]
    assert row.split() == ["a", "micro_batch", "~5", "8.2", "kB", "id"]
    document = documents.check(report)["tables"][0]["load"]
    assert (document["cursor"], document["sla"]) == ("updated_at", 1800)


def test_what_is_rejected_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the columns that may have such values."""
    columns = tuple(ColumnReport(name, "date", name, "date", REJECTED) for name in "xy")
    checks.check(CheckReport((replace(table("a"), columns=columns),), ()), detailed=True)
    assert capsys.readouterr().out.count("governance.rejected_values") == 1


def test_statements_to_copy_are_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Longer than a terminal is wide."""
    statement = f"CREATE INDEX CONCURRENTLY {'x' * 300} ON t (a);"
    checks.check(CheckReport((table("a", statement),), ()), detailed=False)
    assert f"warning: s.a: {statement}" in capsys.readouterr().out.splitlines()


def test_the_document_has_a_verdict() -> None:
    """Beside what it had."""
    refused = Failure("TableRefused", "No.", "")
    document = documents.check(CheckReport((table("a", "n", problem=refused),), (), ("m",)))
    assert document["verdict"] == {"ok": False, "tables": 1, "problems": 1, "warnings": 2}
    assert set(document) == {"verdict", "tables", "missing", "notes"}


def test_the_list_names_bronze_tables_that_are_called_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that are not bz_ and the table's name say what they become."""
    renamed = replace(table("b"), target="bronze.bz_other")
    checks.check(CheckReport((table("a"), renamed), ()), detailed=False)
    lines = capsys.readouterr().out.splitlines()
    assert "Tables of s, and what they become in bronze:" in lines
    assert [line.split()[1] for line in lines if line.startswith(("a ", "b "))] == [
        "bz_a",
        "bz_other",
    ]
