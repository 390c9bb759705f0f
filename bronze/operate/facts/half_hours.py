"""The worst figures of runs in each half hour of the last day, for the charts of the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bronze.governance.tables.runs import RunRecord

HALF_HOUR = timedelta(minutes=30)
_DAY = timedelta(hours=24)
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
LEAST_ROWS = 100
"""How many rows a run has to read for its share of failed records to count."""


@dataclass(frozen=True)
class Figures:
    """The longest time in seconds from due to landed, the lowest score, and the highest share of
    failed records of the runs that ended in a half hour; None where none had one.
    """

    processing: float | None = None
    score: float | None = None
    failed: float | None = None


class HalfHours:
    """Collects the figures of the last day."""

    def __init__(self) -> None:
        """Without figures."""
        self._figures: dict[datetime, Figures] = {}

    @property
    def figures(self) -> Mapping[datetime, Figures]:
        """The figures by the beginnings of the half hours."""
        return self._figures

    def add(self, records: Iterable[RunRecord]) -> None:
        """Adds runs that have ended; only those of the day before the last one stay."""
        figures = dict(self._figures)
        for record in records:
            beginning = half_hour(record.ended or record.began)
            before = figures.get(beginning, Figures())
            figures[beginning] = Figures(
                _worst(max, before.processing, processing_seconds(record)),
                _worst(min, before.score, record.score),
                _worst(max, before.failed, failed_share(record)),
            )
        first = max(figures, default=_NEVER) - _DAY
        self._figures = {time: known for time, known in figures.items() if time >= first}


def half_hour(moment: datetime) -> datetime:
    """The beginning of the half hour that a moment is in."""
    utc = moment.astimezone(UTC)
    return utc.replace(minute=utc.minute // 30 * 30, second=0, microsecond=0)


def processing_seconds(record: RunRecord) -> float | None:
    """The time from due to landed; None for a run that has not landed."""
    if record.status not in ("landed", "unchanged") or record.ended is None:
        return None
    return (record.ended - (record.scheduled or record.began)).total_seconds()


def failed_share(record: RunRecord) -> float | None:
    """The share of the rows that were read which were quarantined or had a rejected value, each
    row at most once; None below `LEAST_ROWS` rows.
    """
    if record.rows_read < LEAST_ROWS:
        return None
    return min(1.0, (record.quarantined + record.rejected) / record.rows_read)


def _worst(which: object, *values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return which(known) if known else None  # type: ignore[operator]


def worst_values(
    values: Iterable[tuple[datetime, float]], now: datetime
) -> tuple[tuple[datetime, float], ...]:
    """The largest of the values of the last day in each half hour, by its beginning."""
    first, worst = half_hour(now - _DAY), dict[datetime, float]()
    for time, value in values:
        beginning = half_hour(time)
        if first <= beginning <= now:
            worst[beginning] = max(value, worst.get(beginning, value))
    return tuple(sorted(worst.items()))
