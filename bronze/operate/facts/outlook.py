"""The lateness of a table, past and to come, from its schedule and its landings.

What does not change with the time alone is computed once, when the table's history has changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bronze.config.settings import Settings
from bronze.model.schedule import Schedule
from bronze.operate.facts.half_hours import half_hour, worst_values
from bronze.operate.facts.table_history import TableHistory
from bronze.operate.freshness import Landing, Late, expected_seconds, late_times
from bronze.operate.scheduler import DueTimes
from bronze.operate.view import TableLike

_MOMENT = timedelta(microseconds=1)
# How far back a lateness is looked for that has not ended yet.
_BACK = timedelta(hours=26)
_MOST_TIMES = 20_000
# A table that is seen later than this for the first time is new.
_AT_THE_START = timedelta(minutes=1)


@dataclass(frozen=True)
class Outlook:
    """A table's lateness.

    ``limit`` is how long after a due time it may land, or how old a streamed table's state may be.
    ``due`` is the first due time that it has not landed since; it may be in the future. If nothing
    lands, ``late`` begins at ``deadline``, or began before it, where an earlier lateness has not
    ended yet. ``lates`` are those of the last day that have ended. ``ages`` are the times of the
    last day's landings, each with the seconds that the table's state was overdue then. All are None
    or empty for a table that is not known at all.
    """

    schedule: Schedule
    limit: timedelta
    as_of: datetime | None = None
    due: datetime | None = None
    deadline: datetime | None = None
    late: Late | None = None
    expected: float | None = None
    lates: tuple[Late, ...] = ()
    ages: tuple[tuple[datetime, float], ...] = ()


@dataclass
class _Dues:
    """The due times of a schedule, in order: each is found once for all tables that share it."""

    schedule: Schedule
    times: list[datetime] = field(default_factory=list)

    def start(self, moment: datetime) -> None:
        """Has the due times after a moment remembered; those of long ago are dropped."""
        # From midnight on, so that tables that ended at different times share them.
        day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        first = self.schedule.after(day)
        if not self.times or first < self.times[0]:
            self.times = [first]
        if len(self.times) > _MOST_TIMES:
            self.times = self.times[-_MOST_TIMES // 2 :]

    def after(self, moment: datetime) -> datetime:
        """The first due time after a moment."""
        position = bisect_right(self.times, moment)
        if position == 0:
            return self.schedule.after(moment)
        while position >= len(self.times):
            self.times.append(self.schedule.after(self.times[-1]))
            position = bisect_right(self.times, moment)
        return self.times[position]


@dataclass(frozen=True)
class _Entry:
    table: TableLike
    history: TableHistory | None
    began: datetime | None
    outlook: Outlook


@dataclass
class Outlooks:
    """Outlooks from call to call: those of tables whose history has not changed are kept."""

    times: DueTimes = field(default_factory=DueTimes)
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _dues: dict[Schedule, _Dues] = field(default_factory=dict)
    _settings: Settings | None = None
    _started: datetime | None = None
    _seen: dict[str, datetime] = field(default_factory=dict)
    _made: int = 0
    _ages: tuple[tuple[datetime, float], ...] = ()
    _ages_made: tuple[datetime, int] | None = None

    def use(self, settings: Settings) -> None:
        """Forgets everything if the config is another one than before."""
        if settings is not self._settings:
            self._settings = settings
            self._entries, self._dues, self.times = {}, {}, DueTimes()

    def of(
        self,
        settings: Settings,
        table: TableLike,
        history: TableHistory | None,
        began: datetime | None,
        now: datetime,
    ) -> Outlook:
        """The outlook of a table.

        Args:
            settings: the config.
            table: the table.
            history: what is known of its runs.
            began: when the service began: a table that has never landed is due from then on, or
                from when it was first seen.
            now: the time.
        """
        self._started = self._started or now
        seen = self._seen.setdefault(table.key, now)
        if began is not None and seen - self._started > _AT_THE_START:
            began = max(began, seen)
        entry = self._entries.get(table.key)
        if entry and entry.history is history and entry.table is table and entry.began == began:
            return entry.outlook
        schedule = settings.schedule_of(table.settings)
        limit = timedelta(seconds=table.settings.sla or settings.alerts.freshness.more_than)
        outlook = self._outlook(schedule, limit, history, began)
        self._made += 1
        self._entries[table.key] = _Entry(table, history, began, outlook)
        return outlook

    def ages_by_half_hour(self, now: datetime) -> tuple[tuple[datetime, float], ...]:
        """The worst of the ages of all tables in the half hours of the last day."""
        made = (half_hour(now), self._made)
        if made != self._ages_made:
            ages = (age for entry in self._entries.values() for age in entry.outlook.ages)
            self._ages, self._ages_made = worst_values(ages, now), made
        return self._ages

    def _outlook(
        self,
        schedule: Schedule,
        limit: timedelta,
        history: TableHistory | None,
        began: datetime | None,
    ) -> Outlook:
        if schedule.is_continuous:
            return Outlook(schedule, limit)
        expected = expected_seconds(history.durations) if history else None
        landings = history.landings if history else ()
        if not landings:
            starts = [start for start in (history and history.first, began) if start]
            if not starts:
                return Outlook(schedule, limit, expected=expected)
            due = schedule.after(min(starts) - _MOMENT)
            deadline = due + limit
            pending = Late(deadline, None, due)
            return Outlook(schedule, limit, None, due, deadline, pending, expected)
        as_of = max(landing.as_of for landing in landings)
        dues = self._dues.setdefault(schedule, _Dues(schedule))
        dues.start(max(landings[0].as_of, as_of - _BACK))
        due = dues.after(as_of)
        lates, ages = _lates(dues, landings, due, limit), _ages(dues, landings)
        return Outlook(
            schedule, limit, as_of, due, due + limit, lates[-1], expected, lates[:-1], ages
        )


def _lates(
    dues: _Dues, landings: Sequence[Landing], due: datetime, limit: timedelta
) -> tuple[Late, ...]:
    """The latenesses of the last day; the last one begins, or goes on, when the deadline passes."""
    times = []
    earlier = dues.after(max(landings[0].as_of, due - _BACK) - _MOMENT)
    while earlier < due:
        times.append(earlier)
        earlier = dues.after(earlier)
    end = max(due + limit, landings[-1].ended) + _MOMENT
    return late_times([*times, due], landings, limit, end)


def _ages(dues: _Dues, landings: Sequence[Landing]) -> tuple[tuple[datetime, float], ...]:
    ages = []
    as_of = landings[0].as_of
    for landing in landings[1:]:
        overdue = (landing.ended - dues.after(as_of)).total_seconds()
        ages.append((landing.ended, max(0.0, overdue)))
        as_of = max(as_of, landing.as_of)
    return tuple(ages)
