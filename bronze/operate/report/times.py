"""How the time of a report is cut into the columns of its charts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import polars as pl

FEWEST = 2
"""A chart of fewer columns says nothing."""
MOST = 92
_MOST_BATCHES = 24
_STEPS = (
    *((60, "1m", "minute"), (300, "5m", "5 minutes"), (900, "15m", "15 minutes")),
    *((3600, "1h", "hour"), (10_800, "3h", "3 hours")),
    *((86_400, "1d", "day"), (604_800, "1w", "week")),
)
_DAY = 86_400


@dataclass(frozen=True)
class Cut:
    """A time in columns: their beginnings and ``labels``, and what ``each`` of them is."""

    begins: pl.Series
    labels: tuple[str, ...]
    each: str
    every: str = ""
    zone: str = "UTC"

    def number(self, times: pl.Expr) -> pl.Expr:
        """The numbers of the columns of times."""
        local = times.dt.convert_time_zone(self.zone)
        begun = local.dt.truncate(self.every) if self.every else local
        begins = self.begins.to_list()
        return begun.replace_strict(begins, list(range(len(begins))), return_dtype=pl.Int64)


def cut(times: pl.Series, zone: ZoneInfo) -> Cut | None:
    """The columns for the times of batches: each batch has its own where they are few, else they
    are as many minutes, hours or days as are seen side by side. None for what is no chart.
    """
    local = times.drop_nulls().dt.convert_time_zone(zone.key).unique().sort()
    if len(local) < FEWEST:
        return None
    if len(local) <= _MOST_BATCHES:
        return Cut(local, _labels(local), "each column a batch", zone=zone.key)
    first, last = local[0], local[-1]
    span = (last - first).total_seconds()
    _, every, name = next((s for s in _STEPS if span / s[0] < MOST - 1), _STEPS[-1])
    begins = pl.datetime_range(
        first, last, every, time_unit="us", time_zone=zone.key, eager=True
    ).dt.truncate(every)
    ends = pl.Series([last]).dt.convert_time_zone(zone.key).dt.truncate(every)
    whole = pl.concat([begins, ends.dt.cast_time_unit("us")]).unique().sort()
    return Cut(whole, _labels(whole), f"per {name}", every, zone.key)


def _labels(begins: pl.Series) -> tuple[str, ...]:
    """Times as short as they can be told apart."""
    moments: list[datetime] = begins.to_list()
    gap = min((b - a).total_seconds() for a, b in pairwise(moments))
    is_one_day = moments[0].date() == moments[-1].date()
    if gap >= _DAY * 0.9:
        return tuple(f"{moment.day} {moment:%b}" for moment in moments)
    clock = "%H:%M:%S" if gap < 60 else "%H:%M"
    return tuple(
        f"{moment:{clock}}" if is_one_day else f"{moment.day} {moment:%b} {moment:{clock}}"
        for moment in moments
    )
