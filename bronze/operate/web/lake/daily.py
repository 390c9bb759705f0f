"""The last 90 days of a table, from ``governance.runs``: read when somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import files, log
from bronze.governance import run_log
from bronze.governance.tables import runs as runs_table
from bronze.operate.freshness import Landing, Late, late_times
from bronze.operate.view import Day, TableView

LENGTH = timedelta(days=90)
_MOST_DUES = 20_000
_NAMES = (
    "run_id",
    "command",
    "source_system",
    "source_table",
    "target_table",
    "began_timestamp",
    "ended_timestamp",
    "as_of_timestamp",
    "seconds",
    "inserted",
    "updated",
    "deleted",
    "score",
    "status",
    "recorded_timestamp",
)
_COLUMNS = tuple((name, kind) for name, kind in runs_table.COLUMNS if name in _NAMES)
_FINISHED = ("landed", "unchanged", "failed")


@dataclass(frozen=True)
class Ended:
    """A run of a table that has ended: ``rows`` are those that it changed."""

    ended: datetime
    failed: bool
    as_of: datetime | None
    seconds: float | None
    rows: int
    score: float | None


def days_of(settings: Settings, table: TableView, now: datetime) -> list[Day]:
    """The days of a table on which anything happened.

    Raises:
        LakeError, LakeUnreachable: the records cannot be read.
    """
    ended = _read(settings, table.target, now - LENGTH)
    zone = ZoneInfo(settings.serve.timezone)
    return with_lateness(days_from(ended, zone), _late(settings, table, ended, now), zone, now)


def _read(settings: Settings, target: str, begin: datetime) -> list[Ended]:
    """The runs of a Bronze table that ended since a time, in order."""
    place = run_log.place(settings)
    state = log.read(place)
    wanted = (pl.col("target_table") == target) & (pl.col("command") == "run")
    # Part by part: the records of all tables of 90 days may be millions.
    parts = [
        pl.DataFrame(part).filter(wanted, pl.col("began_timestamp") >= begin)
        for file in (state.files if state else ())
        for _, part in files.parts(files.open_parquet(place, file), _COLUMNS)
    ]
    if not parts:
        return []
    rows = runs_table.latest(pl.concat(parts).lazy()).sort("ended_timestamp").collect()
    return [
        Ended(
            row["ended_timestamp"],
            row["status"] == "failed",
            row["as_of_timestamp"],
            row["seconds"],
            sum(row[name] or 0 for name in ("inserted", "updated", "deleted")),
            row["score"],
        )
        for row in rows.iter_rows(named=True)
        if row["status"] in _FINISHED and row["ended_timestamp"]
    ]


def days_from(ended: Iterable[Ended], zone: ZoneInfo) -> dict[date, Day]:
    """Days of a zone from runs."""
    days: dict[date, Day] = {}
    for run in ended:
        key = run.ended.astimezone(zone).date()
        day = days.get(key, Day(key))
        scores = [score for score in (day.score, run.score) if score is not None]
        seconds = [took for took in (day.seconds, run.seconds) if took is not None]
        days[key] = replace(
            day,
            runs=day.runs + 1,
            failed=day.failed + run.failed,
            seconds=max(seconds, default=None),
            rows=day.rows + run.rows,
            score=min(scores, default=None),
        )
    return days


def _late(
    settings: Settings, table: TableView, ended: Sequence[Ended], now: datetime
) -> tuple[Late, ...]:
    """When a scheduled table was late since its first run of this time."""
    landings = [Landing(run.as_of, run.ended) for run in ended if run.as_of and not run.failed]
    schedule = settings.serve.schedule_of(table.schedule)
    if table.sla is None or schedule.is_continuous or not landings:
        return ()
    interval = schedule.shortest_interval(now)
    begin = max(landings[0].as_of, now - _MOST_DUES * interval)
    dues = islice(schedule.between(begin, now), _MOST_DUES)
    return late_times(dues, landings, timedelta(seconds=table.sla), now)


def with_lateness(
    days: dict[date, Day], lates: Iterable[Late], zone: ZoneInfo, now: datetime
) -> list[Day]:
    """The days with the time that the table was late on each."""
    for late in lates:
        for day, seconds in _by_day(late.begin, late.end or now, zone):
            known = days.get(day, Day(day))
            days[day] = replace(known, late=known.late + seconds)
    return [days[day] for day in sorted(days)]


def _by_day(begin: datetime, end: datetime, zone: ZoneInfo) -> Iterator[tuple[date, float]]:
    """The seconds of a time on each day of a zone."""
    while begin < end:
        day = begin.astimezone(zone).date()
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(days=1)
        until = min(midnight.astimezone(begin.tzinfo), end)
        yield day, (until - begin).total_seconds()
        begin = until
