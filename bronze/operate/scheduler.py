"""What runs now: a pure function of the tables' clocks, the time and the free capacity.

A table is due when its schedule has had a due time since the one that it last began for. However
many times were missed, it runs once. One that never ran is due since the service knows it: due
times before were not its own. Tables of one source that are due at the same second are one
run, of one snapshot. A table that runs is not begun again until it has ended; if it has become due
meanwhile, it is begun once more then.

Of what is due, the highest priority comes first, then the least slack. A priority rises by one for
each full period that its table has waited, so that no table waits for ever behind urgent ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from bronze.model.schedule import Schedule

Reason = Literal["schedule", "retry", "command"]

_URGENT = 1


@dataclass(frozen=True)
class TableClock:
    """What decides when a table runs.

    ``begun_for`` is the due time that its last run began for, None if it never ran; ``known`` is
    since when the service knows it; ``running`` says that the run goes on, ``retry_at`` when a
    failed one is tried again. ``waits_since`` is since when it has only waited for its turn, None
    if it does not. ``requested`` is when an operator asked for a run. ``blocked`` is a sentence why
    it may not run (paused, resting, quarantined); after ``blocked_until`` this is looked at again.
    ``sla`` and ``expected``, the time that a run takes, are in seconds.
    """

    table: str
    source: str
    schedule: Schedule
    priority: int = 2
    sla: float | None = None
    expected: float = 0.0
    begun_for: datetime | None = None
    known: datetime | None = None
    running: bool = False
    retry_at: datetime | None = None
    waits_since: datetime | None = None
    requested: datetime | None = None
    blocked: str = ""
    blocked_until: datetime | None = None


@dataclass(frozen=True)
class Capacity:
    """What may begin: so many ``free`` runs; ``full`` says why there are no more. With
    ``pressure``, a sentence, only urgent tables begin.
    """

    free: int
    full: str = "all runs at once are taken ([serve] runs)"
    pressure: str = ""


@dataclass(frozen=True)
class Start:
    """A run to begin now, of ``tables`` of one source, that was ``due`` at a time."""

    source: str
    due: datetime
    reason: Reason
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The runs to begin, in order; for each other table that is due a sentence why it waits; and
    when something changes by the time alone, None if never. ``queued`` are the tables of those
    that wait for their turn alone.
    """

    start: tuple[Start, ...]
    waiting: Mapping[str, str]
    wake: datetime | None
    queued: frozenset[str] = frozenset()


@dataclass
class DueTimes:
    """The due times around now of each schedule, found once for all tables that share it."""

    _known: dict[Schedule, tuple[datetime, datetime]] = field(default_factory=dict)

    def around(self, schedule: Schedule, now: datetime) -> tuple[datetime, datetime]:
        """The last due time up to now, and the next one."""
        last, following = self._known.get(schedule, (now, now))
        if not last <= now < following:
            last = schedule.before(now)
            following = schedule.after(last)
            self._known[schedule] = last, following
        return last, following


@dataclass(frozen=True)
class _Due:
    """A table that is due, how urgent it is, and the key of the run that it belongs to."""

    clock: TableClock
    due: datetime
    reason: Reason
    urgency: int
    slack: timedelta

    @property
    def run(self) -> tuple[str, datetime, Reason]:
        return self.clock.source, self.due, self.reason


def decide(
    clocks: Sequence[TableClock], now: datetime, capacity: Capacity, times: DueTimes
) -> Decision:
    """What begins now, and why each other due table does not.

    Args:
        clocks: all tables that are not streamed.
        now: an aware time.
        capacity: how much may begin.
        times: kept from call to call, as it remembers due times.
    """
    waiting: dict[str, str] = {}
    queued: set[str] = set()
    ready: dict[tuple[str, datetime, Reason], list[_Due]] = {}
    for table in _due_tables(clocks, now, times):
        if table.clock.running:
            waiting[table.clock.table] = "its run before this one still goes on"
        elif table.clock.blocked:
            waiting[table.clock.table] = table.clock.blocked
        elif capacity.pressure and table.urgency > _URGENT:
            waiting[table.clock.table] = capacity.pressure
            queued.add(table.clock.table)
        else:
            ready.setdefault(table.run, []).append(table)
    runs = sorted(ready.values(), key=_rank)
    for run in runs[capacity.free :]:
        waiting.update({table.clock.table: capacity.full for table in run})
        queued.update(table.clock.table for table in run)
    start = tuple(_start(run) for run in runs[: capacity.free])
    return Decision(start, waiting, _wake(clocks, now, times), frozenset(queued))


def _due_tables(clocks: Iterable[TableClock], now: datetime, times: DueTimes) -> Iterator[_Due]:
    for clock in clocks:
        last, following = times.around(clock.schedule, now)
        due, reason = last, "schedule"
        if clock.requested is not None:
            due, reason = clock.requested, "command"
        elif clock.begun_for is None:
            due = max(last, clock.known or last)
        elif last > clock.begun_for:
            pass
        elif clock.retry_at is not None and now >= clock.retry_at and not clock.running:
            due, reason = clock.begun_for, "retry"
        else:
            continue
        period = following - last
        # A due time that comes while it waits for its turn does not begin its wait again.
        since = min(due, clock.waits_since or due)
        deadline = since + (period if clock.sla is None else timedelta(seconds=clock.sla))
        slack = deadline - now - timedelta(seconds=clock.expected)
        urgency = max(_URGENT, clock.priority - (now - since) // period)
        yield _Due(clock, due, reason, urgency, slack)  # type: ignore[arg-type]


def _rank(run: Sequence[_Due]) -> tuple[int, timedelta, datetime, str]:
    """The order of runs: by their most urgent table."""
    urgency, slack = min((table.urgency, table.slack) for table in run)
    return urgency, slack, run[0].due, run[0].clock.source


def _start(run: Sequence[_Due]) -> Start:
    source, due, reason = run[0].run
    ordered = sorted(run, key=lambda table: (table.urgency, table.slack, table.clock.table))
    return Start(source, due, reason, tuple(table.clock.table for table in ordered))


def _wake(clocks: Iterable[TableClock], now: datetime, times: DueTimes) -> datetime | None:
    moments = [times.around(clock.schedule, now)[1] for clock in clocks]
    moments += [m for c in clocks for m in (c.retry_at, c.blocked_until) if m and m > now]
    return min(moments, default=None)
