"""The circuit breakers of the service: of each source, of the lake, and of each table.

A failure that may be the source's or the lake's is one of theirs only if a probe at once fails as
well; otherwise it counts for its table. A source or lake that rests is probed after each rest, and
its rests do not get longer: a probe costs nothing but a connection or an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from bronze.config.sections.serve import BreakerSettings
from bronze.governance.tables.runs import RunRecord
from bronze.operate import breaker
from bronze.operate.breaker import Breaker, Limits, Outcome

LAKE = "lake"
Blame = Literal["source", "lake", "table"]

_SOURCE_KINDS = {"SourceUnreachable", "SourceBusy", "SourceRefused", "SnapshotLost"}
_LOCK_NOT_AVAILABLE = "55P03"
LAKE_KINDS = {"LakeUnreachable"}
"""The classes of errors that may be of the lake."""
_PASSING_KINDS = {
    *_SOURCE_KINDS,
    *LAKE_KINDS,
    "SourceRewound",
    "CommitConflict",
    "Overtaken",
}
POISON = 2
"""In how many crashes in a row a table is in flight before it is quarantined."""


def source_subject(source: str) -> str:
    """The subject of a source's breaker."""
    return f"source:{source}"


def table_subject(table: str) -> str:
    """The subject of a table's breaker."""
    return f"table:{table}"


def suspect(kind: str, sqlstate: str) -> Blame:
    """What an error may be of, by its class and PostgreSQL's code: a probe tells whether it is."""
    if kind in LAKE_KINDS:
        return "lake"
    return "source" if kind in _SOURCE_KINDS and sqlstate != _LOCK_NOT_AVAILABLE else "table"


def can_pass(kind: str) -> bool:
    """Whether it helps to try again before the next due time."""
    return kind in _PASSING_KINDS


@dataclass
class Guards:
    """All breakers by their subjects; none ever opens if they are switched off."""

    settings: BreakerSettings
    breakers: dict[str, Breaker] = field(default_factory=dict)

    def of(self, subject: str) -> Breaker:
        """A breaker, closed if nothing is known."""
        return self.breakers.get(subject, Breaker(subject))

    def begin(self, subject: str, now: datetime) -> None:
        """Notes that work begins, which is the probe where the breaker is half-open."""
        self._put(breaker.begin(self.of(subject), now))

    def end(self, subject: str, outcome: Outcome) -> None:
        """Notes how work has ended."""
        if self.settings.enabled or not outcome.failed:
            self._put(breaker.end(self.of(subject), outcome, self.limits(subject)))

    def give_up(self, subject: str) -> None:
        """Notes that a probe tells nothing: it was stopped, or failed for another reason."""
        self._put(replace(self.of(subject), probe=None))

    def reset(self, subject: str) -> None:
        """Closes a breaker."""
        self.breakers.pop(subject, None)

    def blocked(self, subject: str, now: datetime) -> bool:
        """Whether work may not begin."""
        return not self.of(subject).may_begin(now)

    def shift(self, jump: timedelta) -> None:
        """Has rests last as long as before, after the wall clock has jumped."""
        self.breakers = {
            subject: replace(known, until=known.until + jump) if known.until else known
            for subject, known in self.breakers.items()
        }

    def limits(self, subject: str) -> Limits:
        """When a breaker opens, and how long it rests."""
        own = self.settings
        is_table = subject.startswith("table:")
        return Limits(own.threshold, own.pause, own.longest if is_table else own.pause)

    def rebuild(self, history: Mapping[str, Sequence[RunRecord]]) -> None:
        """The breakers of tables, from the records of their runs.

        Args:
            history: the runs of each table, the earliest first; those that still only began are
                taken to have died.
        """
        if not self.settings.enabled:
            return
        for table, records in history.items():
            subject = table_subject(table)
            outcomes = list(_outcomes(records))
            rebuilt = breaker.rebuild(subject, outcomes, self.limits(subject))
            died = crashes(records)
            if len(died) >= POISON and rebuilt.until is None:
                rebuilt = replace(
                    rebuilt,
                    failures=max(rebuilt.failures, POISON),
                    failed_at=died[-1].began,
                    until=died[-1].began + timedelta(seconds=self.settings.longest),
                )
            self._put(rebuilt)

    def _put(self, changed: Breaker) -> None:
        if changed == Breaker(changed.subject):
            self.breakers.pop(changed.subject, None)
        else:
            self.breakers[changed.subject] = changed


def is_of_service(record: RunRecord) -> bool:
    """Whether a record is of a run that the service began, not of a command."""
    return record.command == "run" and record.scheduled is not None


def crashes(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The last runs in a row that have only begun: the process died in each."""
    died: list[RunRecord] = []
    for record in records:
        if is_of_service(record):
            died = [*died, record] if record.status == "began" else []
    return died


def _outcomes(records: Iterable[RunRecord]) -> Iterator[Outcome]:
    for record in records:
        if record.command != "run" or record.status == "stopped":
            continue
        if record.status == "began" and not is_of_service(record):
            continue
        if record.status == "failed" and suspect(record.error_kind, record.sqlstate) != "table":
            # It was probed then, and nobody knows what that told.
            continue
        failed = record.status in ("began", "failed")
        # Nobody knows when a process died; and a rest must not begin again with each restart.
        yield Outcome(record.began, record.ended or record.began, failed)
