"""What the service knows of each table between two runs, and what the scheduler makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import uniform

from bronze.config.settings import Settings
from bronze.model.results import Failure
from bronze.operate import freshness
from bronze.operate.facts.table_history import TableHistory
from bronze.operate.scheduler import TableClock
from bronze.operate.tables import guards
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.tables.guards import LAKE, Guards, source_subject, table_subject
from bronze.operate.tables.requests import TableRequests
from bronze.printable import count

CHORE_PRIORITY = 9
_LATELY = timedelta(minutes=10)
_USUAL = freshness.USUAL_RUNS


@dataclass
class TableState:
    """A table: ``begun_for`` is the due time that its last run began for, ``attempt`` which attempt
    that was, ``known`` since when the service knows it, ``retry_at`` when it is tried again.
    ``waits_since`` is since when it has only waited for its turn. ``durations`` are the seconds of
    its last runs. ``died`` is in how many runs in a row the process has died.
    """

    begun_for: datetime | None = None
    known: datetime | None = None
    running: bool = False
    attempt: int = 0
    retry_at: datetime | None = None
    waits_since: datetime | None = None
    failure: Failure | None = None
    durations: list[float] = field(default_factory=list)
    died: int = 0

    def add_duration(self, seconds: float) -> None:
        """Adds that of a run that has landed."""
        self.durations = [*self.durations, seconds][-_USUAL:]

    def shift(self, jump: timedelta) -> None:
        """Moves what it waits for, after the clock has jumped."""
        self.known = self.known + jump if self.known else None
        self.retry_at = self.retry_at + jump if self.retry_at else None
        self.waits_since = self.waits_since + jump if self.waits_since else None


def state_of(known: TableHistory, reset: datetime | None, died: int, now: datetime) -> TableState:
    """What the history of a table tells when the service begins.

    A run that was stopped, whose process died or whose error passes is tried again at once, and so
    is a table whose breaker was closed by a request since.

    Args:
        known: the history.
        reset: when an operator has last closed the table's breaker.
        died: in how many of its last runs in a row the process has died.
        now: the time.
    """
    last = known.open[-1] if known.open else known.last
    if last is None:
        return TableState()
    state = TableState(known.begun_for, attempt=last.attempt, died=died)
    state.durations = list(known.durations)
    has_died = last.status == "began" and guards.is_of_service(last)
    can_pass = last.status == "failed" and guards.can_pass(last.error_kind)
    was_stopped = last.status == "stopped" and guards.is_of_service(last)
    was_reset = reset is not None and last.began <= reset
    if has_died or can_pass or was_stopped or was_reset:
        state.retry_at = now
    return state


def retry_pause(attempt: int, delay: float, longest: float) -> timedelta:
    """How long a failed table waits for its next attempt: up to twice as long each time, at random
    (full jitter), so that many that failed together do not come back together.
    """
    most = min(longest, max(delay, 1.0) * 2.0 ** min(attempt, 16))
    return timedelta(seconds=uniform(0, most))  # noqa: S311 - no secret depends on it


@dataclass(frozen=True)
class Outlook:
    """What decides about all tables at one moment.

    ``requests`` are by key. ``room`` says why a source has no connection for a further run, "" if
    it has. ``unread`` is why nothing can run yet, ``ending`` whether nothing begins any more.
    """

    now: datetime
    guards: Guards
    requests: Mapping[str, TableRequests]
    room: Mapping[str, str]
    unread: str = ""


def clocks_of(
    settings: Settings,
    tables: Iterable[ServedTable],
    states: Mapping[str, TableState],
    outlook: Outlook,
) -> list[TableClock]:
    """The clocks of all tables that are not streamed, for the scheduler.

    What runs alone (a table whose breaker is half-open, or in whose run the process has died) has
    a ``source`` of its own there, so that no other table is in its run.
    """
    clocks = []
    suspect = _first_suspect(states)
    for table in tables:
        if table.is_streamed:
            continue
        state = states.get(table.key, TableState())
        asked = outlook.requests.get(table.key, TableRequests())
        blocked, until = _blocked(table, state, asked, outlook)
        if not blocked and state.died and suspect not in (None, table.key):
            blocked = f"{suspect} runs alone first, because the process ended in its run"
        is_new = asked.now and _is_new(asked.now, state.begun_for, outlook.now)
        alone = state.died or outlook.guards.of(table_subject(table.key)).until is not None
        clocks.append(
            TableClock(
                table=table.key,
                source=table.key if alone else table.source,
                schedule=settings.schedule_of(table.settings),
                priority=table.settings.priority,
                sla=table.settings.sla,
                expected=freshness.expected_seconds(state.durations) or 0.0,
                begun_for=state.begun_for,
                known=state.known,
                running=state.running,
                retry_at=state.retry_at,
                waits_since=state.waits_since,
                requested=asked.now if is_new else None,
                blocked=blocked,
                blocked_until=until,
            )
        )
    return clocks


def _is_new(requested: datetime, begun_for: datetime | None, now: datetime) -> bool:
    """Whether a table has not run since it was requested."""
    if begun_for is None or requested > begun_for:
        return True
    # The clock was ahead when it last ran, and that time comes later.
    return begun_for > now and requested != begun_for and requested > now - _LATELY


def _first_suspect(states: Mapping[str, TableState]) -> str | None:
    """The table that runs now of those in whose runs the process died, if one does."""
    return next((key for key, state in states.items() if state.died and state.running), None)


def _blocked(
    table: ServedTable, state: TableState, asked: TableRequests, outlook: Outlook
) -> tuple[str, datetime | None]:
    """Why a table may not run now, "" if it may; and when this is looked at again."""
    now, known = outlook.now, outlook.guards
    if outlook.unread:
        return outlook.unread, None
    if asked.pause:
        by = f"it is paused by {asked.pause.actor}"
        return f"{by}: {asked.pause.reason}" if asked.pause.reason else by, asked.pause.until
    lake, source = known.of(LAKE), known.of(source_subject(table.source))
    if lake.until:
        return "the lake cannot be reached", None
    if source.until:
        return f"source {table.source} cannot be reached", None
    own = known.of(table_subject(table.key))
    if not own.may_begin(now) and not state.running:
        return _rest(own.failures, state, own.until), own.until
    return outlook.room.get(table.source, ""), None


def _rest(failures: int, state: TableState, until: datetime | None) -> str:
    tried = f"; it is tried alone at {until:%H:%M:%S} UTC" if until else ""
    if state.died >= guards.POISON:
        return f"it is quarantined: the process ended in {state.died} of its runs{tried}"
    return f"it is quarantined after {count(failures, 'failure')} in a row{tried}"


def chore_clock(
    settings: Settings, name: str, source: str, text: str, state: TableState, blocked: str
) -> TableClock:
    """The clock of a verification of a source, or of the maintenance of the lake."""
    return TableClock(
        table=name,
        source=source,
        schedule=settings.serve.schedule_of(text),
        priority=CHORE_PRIORITY,
        begun_for=state.begun_for,
        running=state.running,
        retry_at=state.retry_at,
        blocked=blocked,
    )


def chore_state(begun_for: datetime | None, first: datetime | None, now: datetime) -> TableState:
    """When a chore was last begun for.

    Args:
        begun_for: the latest due time that one began for.
        first: when the first run of the lake began: before, there was nothing to do.
        now: the time.
    """
    return TableState(begun_for or first or now)


def ended(state: TableState, failure: Failure | None, seconds: float) -> TableState:
    """The state after a run has ended; what failed is tried again by the caller's decision."""
    state = replace(state, running=False, retry_at=None, failure=failure, died=0)
    if failure is None:
        state.add_duration(seconds)
    return state
