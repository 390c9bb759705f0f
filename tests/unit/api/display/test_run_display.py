"""The progress of a run on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bronze.api.display.run_display import MOST_BARS, RunDisplay
from bronze.model.events import RunPlanned, TableFailed, TableLanded, TableProgress
from bronze.model.results import Failure, TableResult


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the display sees."""
    now = [100.0]
    monkeypatch.setattr("bronze.api.display.run_display.time.monotonic", lambda: now[0])
    return now


def lines(display: RunDisplay, width: int = 80) -> list[str]:
    """What the terminal shows."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(display)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_screen_is_never_empty(clock: list[float]) -> None:
    """Before the tables are known it says what it does, and for how long."""
    display = RunDisplay("Connecting and planning", began=clock[0])
    clock[0] += 7
    assert lines(display) == ["Connecting and planning … 0:07"]
    display.plan(RunPlanned("b", ("s.a", "s.b"), 10))
    assert lines(display) == ["Loading tables: 0 of 2 done  0 rows  0/s  0:07"]


def test_only_tables_that_move_have_bars(clock: list[float]) -> None:
    """With hundreds of tables there are few lines; the ended ones are counted by status."""
    display = RunDisplay("Planning", began=clock[0])
    names = [f"s.table_{number}" for number in range(400)]
    display.plan(RunPlanned("b", tuple(names), 4000))
    for name in names:
        display.notify(TableProgress(name, 50, 0.5))
    for name in names[:300]:
        display.notify(TableLanded(TableResult(name, "b.t", "landed", rows_read=100)))
    display.notify(TableFailed(names[300], Failure("LakeError", "No.", "")))
    display.notify(TableFailed(names[301], Failure("Stopped", "No.", "")))
    clock[0] += 10
    shown = lines(display, 100)
    assert shown[0] == (
        "Loading tables: 302 of 400 done, 300 landed, 1 failed, 1 stopped"
        "  35,000 rows  3,500/s  0:10"
    )
    assert len(shown) == MOST_BARS + 2 <= 15
    assert shown[1].split()[0] == "s.table_302"
    assert shown[1].split()[-5:] == ["50%", "50", "rows", "5/s", "0:10"]
    assert shown[-1] == f"  and {98 - MOST_BARS} more"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_long_name_is_cut(clock: list[float], width: int) -> None:
    """So that its bar has its place, and no line is longer than the terminal is wide."""
    display = RunDisplay("Planning", began=clock[0])
    display.notify(TableProgress("s." + "x" * 200, 1, 1.0))
    assert max(map(len, lines(display, width))) <= width


def test_a_stream_shows_only_what_it_copies(clock: list[float]) -> None:
    """Once it has begun, there is no line while no table moves."""
    display = RunDisplay("Connecting", began=clock[0])
    display.begin()
    assert lines(display) == []
    display.notify(TableProgress("s.a", 5, 0.5))
    assert len(lines(display)) == 2


def test_a_verified_table_has_ended_when_it_is_read(clock: list[float]) -> None:
    """No other event says so."""
    display = RunDisplay("Connecting", verifying=True, began=clock[0])
    display.notify(TableProgress("s.a", 5, 1.0))
    display.notify(TableProgress("s.b", 5, 0.5))
    clock[0] += 10
    headline, bar = lines(display)
    assert headline == "Verifying tables: 1 done, 1 read  10 rows  1/s  0:10"
    assert bar.split()[0] == "s.b"
