"""Lines of the log."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from bronze.api.display import progress
from bronze.api.display.log_lines import LOG
from bronze.cli import output
from bronze.cli.screens import failure_groups
from bronze.model.events import (
    BatchApplied,
    CheckpointMade,
    Heard,
    RunPlanned,
    TableFailed,
    TableLanded,
    TableProgress,
)
from bronze.model.results import Failure, TableResult

DONE = TableResult("s.t", "b.bz_t", "landed", 3, version=1, files=2, bytes=9, seconds=0.25)


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    LOG.format, LOG.level, LOG.run = "text", "info", ""


def test_a_line_has_a_fixed_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Time with its zone, level, event, table, facts, and the run's id last."""
    with progress.progress(False) as shown:
        shown.planned(RunPlanned("run-1", ("s.t",), 3))
        shown.notify(TableLanded(DONE))
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info planned tables=1 rows_estimated=3 run=run-1",
        first,
    )
    assert second.endswith(
        "Z info landed table=s.t rows=3 seconds=0.25 version=1 files=2 bytes=9 run=run-1"
    )


def test_a_line_may_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts in the same order, one object a line; nothing in it is executed."""
    LOG.format, LOG.run = "json", "r"
    LOG.error("it failed", rows=5, table="s.\x1b[2Jt")
    line = capsys.readouterr().err
    assert "\x1b" not in line
    document = json.loads(line)
    assert list(document) == ["ts", "level", "event", "table", "rows", "run"]
    assert document["event"] == "it failed"
    assert document["table"] == "s.\x1b[2Jt"


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("warning", ["warning"]),
        ("info", ["info", "warning"]),
        ("debug", ["debug", *["info", "warning"]]),
    ],
)
def test_a_level_hides_what_is_below_it(
    level: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Quiet shows warnings and errors, verbose also the progress of tables."""
    LOG.level = level  # type: ignore[assignment]
    progress.log_event(TableProgress("s.t", 5, 0.5))
    progress.log_event(TableLanded(DONE))
    LOG.warning("careful")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == expected


def test_a_stream_says_what_it_follows_and_that_it_lives(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it begins, its tables, then a line a minute while nothing is committed."""
    now = [0.0]
    monkeypatch.setattr("bronze.api.display.progress.time.monotonic", lambda: now[0])
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    heard = Heard(at, at, ("s.a", "s.b"))
    log = progress.stream_log(False, "slot_1")
    log(CheckpointMade(0x126E3A90, 0))
    for _ in range(125):
        log(heard)
        now[0] += 1
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "info streaming stream=slot_1 since=0/126E3A90",
        "info following count=2 tables=s.a,s.b",
        *["info 'nothing new' count=2 position=0/126E3A90 as_of=2026-01-02T03:04:05Z"] * 2,
    ]
    log(BatchApplied(0x126E3A99, 1, 2, 0, 0.5, ("s.a",), at))
    now[0] += 59
    log(heard)
    (line,) = capsys.readouterr().err.splitlines()
    assert "info landed transactions=1 changes=2 tables=s.a" in line


def test_an_error_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A run's line names the table that failed; its sentence is printed at the end. The service,
    which prints no result, has both in the line.
    """
    failed = TableFailed("s.t", Failure("LakeError", "The disk is full.", ""))
    with progress.progress(False) as shown:
        shown.notify(failed)
    assert capsys.readouterr().err.endswith("Z error failed table=s.t kind=LakeError\n")
    progress.log_event(failed)
    assert "error='The disk is full.'" in capsys.readouterr().err


def test_a_reader_that_has_gone_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `bronze run 2>&1 | head`."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    LOG.info("landed")


def test_errors_are_json_where_the_log_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of stderr is an object."""
    LOG.format = "json"
    output.print_error("It failed.", "Try again.")
    failure_groups.print_failures({"s.t": Failure("LakeError", "Full.", "Free it.")})
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["event"], first["hint"]) == ("error", "It failed.", "Try again.")
    assert (second["table"], second["event"], second["hint"]) == ("s.t", "Full.", "Free it.")
