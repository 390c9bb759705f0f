"""Reading ``governance.runs``: the last runs of each table, and what came since."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta.layout import optimize
from bronze.delta.layout.optimize import TableLayout
from bronze.governance import run_log, writer
from bronze.governance.frames import schema_of
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A config with an empty lake; its source is never asked."""
    return loading.parse(
        {
            "source": {"name": "s", "dsn": "postgresql://x@localhost/x"},
            "lake": {"root": str(tmp_path / "lake")},
        }
    )


def append(settings: Settings, *records: tuple[RunRecord, datetime]) -> None:
    """One commit of records that were written at these times."""
    frame = runs.frame([record for record, _ in records])
    times = pl.Series([time for _, time in records], dtype=pl.Datetime("us", "UTC"))
    frame = frame.with_columns(recorded_timestamp=times)
    stats = ("recorded_timestamp",)
    writer.append_rows(run_log.place(settings), runs.COLUMNS, frame, "", stats)


def history(count: int) -> list[tuple[RunRecord, datetime]]:
    """Runs of three tables, each with a record when it began and one when it ended, as written."""
    dice, written = random.Random(7), []  # noqa: S311 - figures, no secret
    for number in range(count):
        table = dice.choice(["often", "often", "often", "often", "seldom", "never"])
        began = NOON + timedelta(minutes=number)
        run = RunRecord(f"run {number}", "run", began, source_table=table, target_table=table)
        written.append((run, began))
        if number % 7:
            seconds = timedelta(seconds=dice.randrange(1, 600))
            ended = RunRecord(
                f"run {number}", "run", began, "landed", source_table=table, target_table=table
            )
            written.append((ended, began + seconds))
    return sorted(written, key=lambda pair: pair[1])


def expected(settings: Settings, per_table: int) -> list[tuple[str, str]]:
    """The same from all records at once."""
    rows = runs.latest(pl.scan_delta(run_log.place(settings).url)).collect()
    last = rows.sort("began_timestamp", descending=True).filter(
        pl.int_range(pl.len()).over("source_table") < per_table
    )
    return last.select("run_id", "status").rows()


@pytest.mark.parametrize("joined", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_the_last_runs_of_each_table_are_read(settings: Settings, joined: bool) -> None:
    """The latest record of each, also of tables with few runs, whether files are joined or not."""
    written = history(120)
    for start in range(0, len(written), 10):
        append(settings, *written[start : start + 10])
    if joined:
        layout = TableLayout()
        optimize.optimize_table(
            run_log.place(settings), layout, batch_id="0" * 32, memory=10**9, each=map
        )
    for per_table in (1, 5, 1000):
        recent = run_log.read_recent(settings, per_table)
        assert recent
        assert recent.rows.select("run_id", pl.col("status").cast(str)).rows() == expected(
            settings, per_table
        )
    since = NOON + timedelta(minutes=100)
    recent = run_log.read_recent(settings, 1000, since)
    assert recent
    assert min(recent.rows["recorded_timestamp"]) >= since
    assert recent.rows.height >= 20


def test_only_records_that_came_since_are_read(settings: Settings) -> None:
    """Not those of a compaction; and combined with the former ones they are as if read at once."""
    written = history(60)
    assert run_log.read_recent(settings) is None
    assert run_log.read_since(settings, None) is None
    append(settings, *written[:40])
    recent = run_log.read_recent(settings, 5)
    assert recent
    rows, version = recent.rows, recent.version
    for start in (40, 50, 70):
        for record in written[start : min(start + 20, 90)]:
            append(settings, record)
        optimize.optimize_table(
            run_log.place(settings), TableLayout(), batch_id="0" * 32, memory=10**9, each=map
        )
        news = run_log.read_since(settings, version)
        assert news
        assert news.rows.height == min(start + 20, 90) - start
        rows, version = run_log.latest_runs(pl.concat([rows, news.rows]), 5), news.version
        assert rows.select("run_id", pl.col("status").cast(str)).rows() == expected(settings, 5)
    news = run_log.read_since(settings, version)
    assert news
    assert (news.rows.height, news.version) == (0, version)
    assert news.rows.columns == [name for name, _ in run_log.RECENT]
    assert schema_of(run_log.RECENT).keys() == set(news.rows.columns)


def test_records_are_read_again_if_the_log_was_cut(settings: Settings) -> None:
    """The entry of the version that was read last is gone: nothing is left out."""
    append(settings, *history(10))
    recent = run_log.read_recent(settings)
    assert recent
    news = run_log.read_since(settings, recent.version + 30)
    assert news
    assert run_log.latest_runs(news.rows, 100).height == 10
