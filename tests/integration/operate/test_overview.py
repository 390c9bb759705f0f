"""What the service reads from the lake when it begins, and while it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from bronze.config.settings import GOVERNANCE, Settings
from bronze.governance import writer
from bronze.governance.tables import streams
from bronze.governance.tables.quality import Figure
from bronze.governance.tables.streams import Checkpoint
from bronze.operate import beat
from bronze.operate.facts.half_hours import half_hour
from bronze.operate.history import History
from bronze.operate.service.board import Board
from bronze.operate.service.overview import Overview
from bronze.operate.service.timing import Clock
from bronze.operate.tables.guards import Guards
from bronze.quality import latest
from tests.support.operators import config
from tests.support.quality_figures import NOON, figures, record


def begun(settings: Settings) -> Board:
    """The board of a service that has read what ran before."""
    clock = Clock()
    board = Board(settings, clock, False, clock.now())
    board.guards, board.lake_seen = Guards(settings.breaker), True
    Overview(board)._look()
    assert not board.unread
    return board


def test_the_chart_of_resources_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The next service knows the shares of the half hours before it; not those of a service that
    goes on elsewhere.
    """
    settings = config(lake={"root": str(tmp_path)})
    first = begun(settings)
    now = first.now
    earlier = half_hour(now - timedelta(hours=3))
    first.note_usage([(earlier, 0.7), (now, 0.2), (now, 0.5), (now, 0.3)])
    assert first.usage == ((earlier, 0.7), (half_hour(now), 0.5))
    first.is_stopping = True
    beat.write(settings, first.live())
    second = begun(settings)
    assert second.usage == first.usage
    second.note_usage([(now, 0.9)])
    assert second.live().usage == ((earlier, 0.7), (half_hour(now), 0.9))
    # Another process of this machine, which lives.
    beat.write(settings, replace(second.live(), service="other", pid=1))
    assert begun(settings).usage == ()


def test_streamed_tables_have_the_scores_of_their_last_rows(tmp_path: Path) -> None:
    """Of the last batches that had any, whichever file they are in; no other tables."""
    settings = config(lake={"root": str(tmp_path)})
    kept_up = History(settings)
    versions = json.dumps({"bronze.a": 1, "bronze.b": 1, "bronze.c": 1})
    point = Checkpoint("s", "shop", 1, None, "b", 0, 0, 0, 0.0, versions, "series", 1)
    place = settings.place(GOVERNANCE, streams.NAME)
    record(settings, figures("bronze.a", 1, 10, 90.0), figures("bronze.loaded", 1, 5, 50.0))
    writer.append_rows(place, streams.COLUMNS, streams.frame(point), "")
    kept_up.refresh()
    record(settings, figures("bronze.a", 3, 7, 80.0), figures("bronze.b", 2, 1, 70.0))
    record(settings, figures("bronze.a", 4, 0, 100.0))
    fresh = History(settings)
    for history in (kept_up, fresh):
        history.refresh()
        scores = {name: (one.rows, one.score) for name, one in history.scores.items()}
        assert scores == {"bronze.a": (7, 80), "bronze.b": (1, 70)}


def test_the_latest_figures_of_a_table_say_which_rules_rows_fail(tmp_path: Path) -> None:
    """The most failures first, also those that are allowed; nothing of earlier batches."""
    settings = config(lake={"root": str(tmp_path)})
    assert latest.figures_of(settings, "bronze.a") is None
    few = Figure("price", "range", "price", "error", "config", "rows", 100, 1, 0.01, 0.02, True)
    many = replace(few, rule="name", failed=5, measured=0.05, passed=False, examples=('{"id": 1}',))
    none = replace(few, rule="code", failed=0, measured=0.0)
    nulls = Figure("null_share", "check", checked=9, failed=9, measured=1.0, passed=False)
    record(settings, figures("bronze.a", 2, 100, 99.0, few, none, many, nulls))
    record(settings, figures("bronze.a", 1, 50, 10.0, replace(none, failed=50)))
    record(settings, figures("bronze.b", 9, 50, 10.0, replace(none, failed=50)))
    found = latest.figures_of(settings, "bronze.a")
    assert found is not None
    assert found.evaluated == NOON + timedelta(minutes=2)
    assert [figure.rule for figure in found.failing] == ["null_share", "name", "price"]
    assert found.failing[1].examples == ('{"id": 1}',)
