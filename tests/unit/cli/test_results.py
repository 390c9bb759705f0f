"""What `bronze run`, `stream`, `maintain` and `forget` print."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from bronze.cli import output
from bronze.cli.screens import erasures, results
from bronze.model.results import (
    Failure,
    MaintainedTable,
    MaintainResult,
    RunResult,
    StreamResult,
    TableResult,
)
from bronze.protection.erasure_result import ErasureResult, Evidence


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 columns with colours."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, color_system="standard", width=80, highlight=False
    )
    monkeypatch.setattr(output, "_out", console)
    return file


def test_a_terminal_shows_the_tables_with_most_changes(terminal: io.StringIO) -> None:
    """Of hundreds; the others are counted by status, and the sum is of all."""
    tables = [TableResult(f"s.t{n}", f"b.bz_t{n}", "unchanged", 5) for n in range(300)]
    tables += [TableResult(f"s.c{n}", f"b.bz_c{n}", "landed", 9, n) for n in range(1, 21)]
    tables += [TableResult("s.x", "b.bz_x", "failed", error=Failure("LakeError", "No.", ""))]
    results.run_result(RunResult("batch", 1, 2.0, tuple(tables)))
    lines = terminal.getvalue().splitlines()
    assert len(lines) <= 20
    assert lines[1].startswith("bz_c20")
    assert "\x1b[32mlanded\x1b[0m" in lines[1]
    assert "and 306 more: 300 unchanged, 5 landed, 1 failed" in lines[16]
    total = Text.from_ansi(lines[17])
    assert "321 tables: 300 unchanged, 20 landed, 1 failed. 1,680 rows read in 2.0 s" in total.plain
    assert "\x1b[1;31m1 failed\x1b[0m" in lines[17]


def test_quiet_results_are_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run and of a stream."""
    failure = Failure("LakeError", "The disk is full.", "Free it.")
    tables = (
        TableResult("s.a", "b.a", "landed", 5, notes=("a note",)),
        TableResult("s.b", "b.b", "failed", error=failure),
    )
    for result in (
        RunResult("i", 1, 1.0, tables, notes=("n",)),
        StreamResult("s", 1, 1.0, 0, 0, 0, tables, notes=("n",)),
    ):
        if isinstance(result, RunResult):
            results.run_result(result, quiet=True)
        else:
            results.stream_result(result, quiet=True)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.splitlines() == [
            "s.b: The disk is full.",
            "  Free it.",
            "  bronze explain lake_error",
        ]


def test_maintain_says_only_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables without anything to do are counted."""
    tables = (
        MaintainedTable("b.a"),
        MaintainedTable("b.b", version=3, files_before=11, files_after=1, rewritten=5700),
        MaintainedTable("b.c", expired_files=2, expired_bytes=1000),
        MaintainedTable("b.d", error=Failure("LakeError", "No.", "")),
    )
    results.maintain_result(MaintainResult(1.0, tables))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Bronze", "b", "c", "4"]
    assert lines[-1] == "4 tables in 1.0 s: 2 maintained, 1 had nothing to do"
    assert "0 B" not in lines[1] + lines[2]


def test_a_dry_run_of_forget_says_what_would_be_erased(capsys: pytest.CaptureFixture[str]) -> None:
    """And not that it was."""
    before = Evidence(files=2, rows=100, records=7, found=3, told=1)
    done = ErasureResult("b.bz_t", 5, before=before)
    erasures.erasure_result(done, dry_run=True)
    out = capsys.readouterr().out
    assert "would erase 3 rows and 1 record" in out
    assert "can be read now" not in out


def test_a_narrow_terminal_has_the_figures_that_matter(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version and files go first; of many tables with quarantined rows those with most."""
    monkeypatch.setattr(output._out, "_width", 60)
    tables = tuple(
        TableResult(
            f"s.t{n}", f"b.bz_t{n}", "landed", 29_700, 297, 5, version=4, files=2, bytes=1_500_000,
            seconds=0.1, score=99.0, quarantined=n,
        )
        for n in range(30)
    )  # fmt: skip
    results.run_result(RunResult("batch", 1, 2.0, tables))
    lines = [Text.from_ansi(line).plain for line in terminal.getvalue().splitlines()]
    assert lines[0].split() == [
        "Bronze",
        "table",
        "status",
        "read",
        "inserted",
        "updated",
        "size",
        "s",
    ]
    assert all(len(line) <= 60 for line in lines)
    assert "quarantined: 29 of s.t29, 28 of s.t28" in " ".join(map(str.strip, lines))
    assert any("and 19 more" in line for line in lines)
