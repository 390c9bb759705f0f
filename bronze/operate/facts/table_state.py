"""The state of a table, and the sentence that says why it is in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bronze.governance.tables.runs import RunRecord
from bronze.operate.breaker import Breaker
from bronze.operate.facts.table_history import TableHistory
from bronze.operate.facts.wording import clause, duration, moment
from bronze.operate.freshness import Late
from bronze.operate.view import LakeSlow, Pause, Running, TableLike, TableState
from bronze.printable import count


@dataclass(frozen=True)
class Times:
    """The times of a table now, as of `bronze.operate.view.TableView`; ``due`` is the first due
    time that it has not landed since.
    """

    as_of: datetime | None = None
    due: datetime | None = None
    age: float | None = None
    deadline: datetime | None = None
    late: Late | None = None
    will_be_late: bool = False
    next_due: datetime | None = None
    expected_end: datetime | None = None
    is_quiet: bool = False
    is_stream_known: bool = False


@dataclass(frozen=True)
class Facts:
    """What the state of a table follows from. ``source_error`` is what its source does, such as
    "refuses connections"; ``zone`` is that of the times in sentences.
    """

    table: TableLike
    times: Times
    running: Running | None
    known: TableHistory | None
    waiting: str
    pause: Pause | None
    breaker: Breaker | None
    source_error: str
    lake_slow: LakeSlow | None
    has_history: bool
    is_alive: bool
    now: datetime
    zone: str

    @property
    def is_streamed(self) -> bool:
        """Whether a stream keeps the table."""
        return self.table.settings.pattern == "streaming"

    @property
    def is_quarantined(self) -> bool:
        """Whether its breaker keeps it from running."""
        return self.breaker is not None and self.breaker.state(self.now) != "closed"

    @property
    def has_failed(self) -> bool:
        """Whether its last run failed, or its stream does not follow it."""
        if self.is_streamed:
            return bool(self.waiting)
        last = self.known.last if self.known else None
        return last is not None and last.status == "failed"

    @property
    def died(self) -> RunRecord | None:
        """Its last run, if that never ended and is not going on any more."""
        begun = self.known.open if self.known else ()
        return begun[-1] if begun and self.running is None else None

    def time(self, when: datetime) -> str:
        """A time in words."""
        return moment(when, self.now, self.zone)


def state_of(facts: Facts) -> TableState:
    """The worst state that applies."""
    times = facts.times
    if not facts.has_history and times.as_of is None:
        return "unknown"
    if times.late:
        return "late"
    if facts.is_quarantined:
        return "quarantined"
    if facts.has_failed or facts.died:
        return "failed"
    if times.as_of is None:
        return "unknown" if facts.is_streamed and times.is_stream_known else "never landed"
    if times.will_be_late:
        return "will be late"
    if facts.pause:
        return "paused"
    if facts.running:
        return "running"
    if facts.waiting:
        return "waiting"
    return "quiet" if times.is_quiet else "fresh"


def reason_of(state: TableState, facts: Facts) -> str:
    """Why a table is in a state; "" where the state says all."""
    if state in ("fresh", "quiet"):
        return ""
    if state == "unknown":
        return _unknown(facts)
    if state == "running" and facts.running:
        return f"since {facts.time(facts.running.began)}"
    if state == "waiting":
        return clause(facts.waiting)
    if state == "will be late" and facts.times.expected_end and facts.times.deadline:
        end, deadline = facts.times.expected_end, facts.times.deadline
        return f"ends at about {facts.time(end)}, and is late from {facts.time(deadline)} on"
    if state == "never landed":
        return cause_of(facts) or "it has never run"
    return cause_of(facts)


def cause_of(facts: Facts) -> str:
    """What keeps a table from being fresh, as far as it is known: a clause after "because"."""
    if facts.source_error:
        return f"{facts.table.source} {facts.source_error}"
    if facts.pause:
        return _pause(facts.pause, facts)
    if facts.is_quarantined and facts.breaker:
        failures = facts.breaker.failures
        return f"it failed {count(failures, 'time')} in a row and rests{_last_error(facts)}"
    if facts.has_failed:
        has_run = f"its last run failed{_last_error(facts)}"
        return clause(facts.waiting) if facts.is_streamed else has_run
    if died := facts.died:
        return f"its run of {facts.time(died.began)} on {died.host} has never ended"
    if facts.lake_slow:
        return facts.lake_slow.text
    if facts.running:
        return f"its run since {facts.time(facts.running.began)} still goes on"
    if facts.waiting:
        return clause(facts.waiting)
    if not facts.is_alive:
        return "no service runs"
    if facts.is_streamed and facts.times.as_of:
        age = (facts.now - facts.times.as_of).total_seconds()
        return f"its stream is {duration(age)} behind"
    return ""


def _unknown(facts: Facts) -> str:
    if not facts.has_history:
        return "the governance tables cannot be read"
    return cause_of(facts) or "its stream has not reported it yet"


def _pause(pause: Pause, facts: Facts) -> str:
    until = f" until {facts.time(pause.until)}" if pause.until else ""
    reason = f": {clause(pause.reason)}" if pause.reason else ""
    return f"{pause.by} paused it at {facts.time(pause.since)}{until}{reason}"


def _last_error(facts: Facts) -> str:
    last = facts.known.last if facts.known else None
    return f": {clause(last.error_message)}" if last and last.error_message else ""
