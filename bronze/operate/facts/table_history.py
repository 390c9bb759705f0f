"""What records of runs tell of each table and source, while they are added in the order in which
they were written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bronze.governance.tables.runs import RunRecord
from bronze.operate.facts.half_hours import HalfHours
from bronze.operate.freshness import USUAL_RUNS, Landing

LANDED = ("landed", "unchanged")
LANDINGS = 100
LANDED_WITHIN = timedelta(hours=25)
AT_ONCE = timedelta(minutes=1)
_AT_A_TIME = 1_000
SOURCE_KINDS = {
    "SourceUnreachable": "cannot be reached",
    "SourceBusy": "has no free connection",
    "SourceRefused": "refuses connections",
    "SourceRewound": "was restored to an earlier state",
}
"""The errors that are of a source as a whole, and what each says of it."""


@dataclass(frozen=True)
class TableHistory:
    """What is known of a table's runs.

    ``first`` is when the first one that is known was due, or began. ``begun_for`` is the latest due
    time that one began for, or when one began that no schedule began, ``landings`` those of the
    last day and the last ones before, in the order in which they ended, ``durations`` the seconds
    that the last ones took, the newest last. ``last`` is the last run that has ended, ``last_read``
    the last that read rows, ``verified`` the last verification. ``open`` are the runs since that
    have only begun: they go on, or their processes died.
    """

    key: str
    source: str
    label: str
    target: str
    first: datetime
    begun_for: datetime | None = None
    landings: tuple[Landing, ...] = ()
    durations: tuple[float, ...] = ()
    last: RunRecord | None = None
    last_read: RunRecord | None = None
    verified: RunRecord | None = None
    open: tuple[RunRecord, ...] = ()


@dataclass(frozen=True)
class SourceHistory:
    """Whether a source answered in the last runs: ``failure`` is the last record that says that it
    did not, None if it has answered since; ``since`` is when the first of them in a row failed.
    """

    failure: RunRecord | None = None
    since: datetime | None = None


@dataclass
class _Table:
    """A table's history while records are added to it."""

    key: str
    first: datetime
    record: RunRecord
    begun_for: datetime | None = None
    landings: deque[Landing] = field(default_factory=lambda: deque(maxlen=LANDINGS))
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_RUNS))
    last: RunRecord | None = None
    last_read: RunRecord | None = None
    verified: RunRecord | None = None
    open: dict[str, RunRecord] = field(default_factory=dict)

    def add(self, record: RunRecord) -> None:
        """Adds a record; they come in the order in which they were written."""
        if record.command == "verify":
            if record.status != "began":
                self.verified = record
            return
        self.first = min(self.first, _start(record))
        begun_for = record.scheduled or record.began
        self.begun_for = max(self.begun_for or begun_for, begun_for)
        if record.status == "began":
            self.open[record.run_id] = record
        else:
            self._end(record)

    def _end(self, record: RunRecord) -> None:
        ended = record.ended or record.began
        if self.open:
            # A run that began before one that has ended, and is not heard of, is of a dead process.
            self.open = {
                run_id: begun
                for run_id, begun in self.open.items()
                if run_id != record.run_id and begun.began > record.began
            }
        self.last = record
        if record.rows_read:
            self.last_read = record
        if record.status not in LANDED:
            return
        self.landings.append(Landing(record.as_of or record.began, ended))
        while len(self.landings) > 2 and self.landings[1].ended < ended - LANDED_WITHIN:
            self.landings.popleft()
        self.durations.append((ended - record.began).total_seconds())

    def history(self) -> TableHistory:
        known = self.last or self.record
        return TableHistory(
            key=self.key,
            source=known.source_system,
            label=known.source_table,
            target=known.target_table,
            first=self.first,
            begun_for=self.begun_for,
            landings=tuple(self.landings),
            durations=tuple(self.durations),
            last=self.last,
            last_read=self.last_read,
            verified=self.verified,
            open=tuple(self.open.values()),
        )


class Histories:
    """The histories of all tables and sources; other threads may read them meanwhile."""

    def __init__(self, names: Sequence[str]) -> None:
        """Without any; ``names`` are those of the sources of the config."""
        self.names = names
        self._building: dict[str, _Table] = {}
        # Other threads read these: they are replaced, never changed.
        self.tables: Mapping[str, TableHistory] = {}
        self.sources: Mapping[str, SourceHistory] = {}
        self.chores: Mapping[tuple[str, str], datetime] = {}
        """The latest due times that verifications of each source, and maintenance, began for: by
        the command and the source, "" for maintenance."""
        self.half_hours = HalfHours()

    def add(self, records: Iterable[RunRecord]) -> frozenset[str]:
        """Adds records in the order in which they were written; the keys of their tables."""
        changed, ended = set[str](), list[RunRecord]()
        chores = dict(self.chores)
        for record in records:
            self._add_answers(record)
            if record.command != "run" and record.scheduled:
                # Maintenance is of the whole lake, whatever source a table has.
                chore = record.command, record.source_system if record.command == "verify" else ""
                chores[chore] = max(chores.get(chore, record.scheduled), record.scheduled)
            if not record.source_table or record.command == "maintain":
                continue
            key = key_of(record)
            table = self._building.get(key)
            if table is None:
                table = self._building[key] = _Table(key, _start(record), record)
            table.add(record)
            changed.add(key)
            if record.command == "run" and record.status != "began":
                ended.append(record)
            if len(ended) == _AT_A_TIME:
                self.half_hours.add(ended)
                ended.clear()
        self.half_hours.add(ended)
        self.chores = chores
        self.tables = {**self.tables, **{key: self._building[key].history() for key in changed}}
        return frozenset(changed)

    def _add_answers(self, record: RunRecord) -> None:
        answers = self._answers(record)
        if any(self.sources.get(source) != answer for source, answer in answers.items()):
            self.sources = {**self.sources, **answers}

    def _answers(self, record: RunRecord) -> dict[str, SourceHistory]:
        """What a record tells of the sources that it is of."""
        if record.command == "maintain" or record.status in ("began", "stopped"):
            return {}
        if record.error_kind not in SOURCE_KINDS:
            # A run that failed for another reason may have read the source or not.
            has_read = record.status != "failed" and record.source_system
            return {record.source_system: SourceHistory()} if has_read else {}
        ended = record.ended or record.began
        names = [record.source_system] if record.source_system else self._sources_named(record)
        return {
            name: SourceHistory(record, self.sources.get(name, SourceHistory()).since or ended)
            for name in names
        }

    def _sources_named(self, record: RunRecord) -> list[str]:
        """The sources of a run that failed before its tables were known, by its message."""
        names = self.names
        return list(names) if len(names) == 1 else [n for n in names if n in record.error_message]


def key_of(record: RunRecord) -> str:
    """The name of a record's table among those of all sources."""
    return f"{record.source_system}.{record.source_table}"


def _start(record: RunRecord) -> datetime:
    """When a run was due, if it began then: a new table is not due for times before it was made."""
    due = record.scheduled
    return due if due and record.began - due < AT_ONCE else record.began
