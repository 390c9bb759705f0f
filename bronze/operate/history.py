"""What the governance tables tell of runs and streams, read once and then kept up.

Of each table only what is needed all the time lies in memory as values; its last records do so
compressed. One thread at a time may refresh a `History`; any thread may read it meanwhile, and sees
what was known before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

import polars as pl
import pyarrow as pa

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta.log import State
from bronze.governance.frames import frame_of
from bronze.governance.tables import runs as runs_table
from bronze.governance.tables import streams as streams_table
from bronze.governance.tables.runs import Command, RunRecord
from bronze.operate.facts import added as additions
from bronze.operate.facts import run_reader
from bronze.operate.facts.added import Added
from bronze.operate.facts.half_hours import Figures, HalfHours
from bronze.operate.freshness import USUAL_RUNS, Landing

_LANDED = ("landed", "unchanged")
_LANDINGS = 100
_LANDED_WITHIN = timedelta(hours=25)
_SLICE_ROWS = 2_000
_COMPRESSED_AFTER = 4_000
_JOINED_AFTER = 20
_MOST_PARTS = 100
_AT_ONCE = timedelta(minutes=1)
_TABLE_PARTS = 8
_NAME = pl.concat_str("source_system", "source_table", separator=".")
_LAST_FILES = 100


@dataclass(frozen=True)
class TableHistory:
    """What is known of a table's runs.

    ``first`` is when the first one that is known was due, or began. ``begun_for`` is the latest due
    time that one began for, ``landings`` those of the last day and the last ones before, in the
    order in which they ended, ``durations`` the seconds that the last ones took, the newest last.
    ``last`` is the last run that has ended, ``last_read`` the last that read rows, ``verified`` the
    last verification. ``open`` are the runs since that have only begun: they go on, or their
    processes died.
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


@dataclass(frozen=True)
class StreamPoint:
    """The last checkpoint of a source's stream. All that was committed up to ``as_of`` has landed
    in the Bronze tables ``targets``, by their full names; those of all records of its ``series``.
    """

    source: str
    recorded: datetime
    as_of: datetime
    lag_bytes: int
    lag_seconds: float
    targets: frozenset[str] = frozenset()
    series: str | None = None


@dataclass
class _Table:
    """A table's history while records are added to it."""

    key: str
    first: datetime
    record: RunRecord
    begun_for: datetime | None = None
    landings: deque[Landing] = field(default_factory=lambda: deque(maxlen=_LANDINGS))
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
        if record.scheduled and (self.begun_for is None or record.scheduled > self.begun_for):
            self.begun_for = record.scheduled
        if record.status == "began":
            self.open[record.run_id] = record
        else:
            self._end(record)

    def _end(self, record: RunRecord) -> None:
        ended = record.ended or record.began
        # A run that began before one that has ended, and is not heard of, is of a dead process.
        self.open = {
            run_id: begun
            for run_id, begun in self.open.items()
            if run_id != record.run_id and begun.began > record.began
        }
        self.last = record
        if record.rows_read:
            self.last_read = record
        if record.status not in _LANDED:
            return
        self.landings.append(Landing(record.as_of or record.began, ended))
        while len(self.landings) > 2 and self.landings[1].ended < ended - _LANDED_WITHIN:
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


@dataclass(frozen=True)
class _Kept:
    """Rows of records: many of them compressed, the newest as they are."""

    packed: tuple[bytes, ...] = ()
    unpacked: tuple[pl.DataFrame, ...] = ()

    def with_rows(self, rows: pl.DataFrame) -> _Kept:
        """These rows and more."""
        unpacked = (*self.unpacked, rows)
        if sum(frame.height for frame in unpacked) > _COMPRESSED_AFTER:
            buffer = BytesIO()
            pl.concat(unpacked).write_ipc(buffer, compression="zstd")
            return _Kept((*self.packed, buffer.getvalue()))
        if len(unpacked) > _JOINED_AFTER:
            # Each frame of a few rows takes as much memory and time as one of hundreds.
            unpacked = (pl.concat(unpacked, rechunk=True),)
        return _Kept(self.packed, unpacked)


class _Runs:
    """What records of runs tell, while they are added in the order in which they were written."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.names = sources
        self._building: dict[str, _Table] = {}
        # Other threads read these: they are replaced, never changed.
        self._kept = _Kept()
        self.tables: Mapping[str, TableHistory] = {}
        self.sources: Mapping[str, SourceHistory] = {}
        self.half_hours = HalfHours()

    @property
    def is_scattered(self) -> bool:
        """Whether it keeps many small parts: to read all anew makes them few."""
        return len(self._kept.packed) > _MOST_PARTS

    def add(self, parts: Iterable[pl.DataFrame]) -> frozenset[str]:
        """Adds rows with the columns of ``governance.runs``; the keys of their tables."""
        changed = set()
        for part in parts:
            for rows in part.iter_slices(_SLICE_ROWS):
                for record in run_reader.of_rows(rows):
                    changed |= self._add_record(record)
            self._kept = self._kept.with_rows(part)
        self.tables = {**self.tables, **{key: self._building[key].history() for key in changed}}
        return frozenset(changed)

    def records(self, wanted: pl.Expr, most: int) -> tuple[RunRecord, ...]:
        """The records that count and are wanted, the last of each table, the earliest first."""
        kept = self._kept
        frames = [pl.read_ipc(BytesIO(packed)).filter(wanted) for packed in kept.packed]
        frames += [frame.filter(wanted) for frame in kept.unpacked]
        if not frames:
            return ()
        is_last = pl.int_range(pl.len()).reverse().over(_NAME, "target_table") < most
        return tuple(run_reader.of_rows(run_reader.merge(frames).filter(is_last)))

    def _add_record(self, record: RunRecord) -> set[str]:
        answers = self._answers(record)
        if any(self.sources.get(source) != answer for source, answer in answers.items()):
            self.sources = {**self.sources, **answers}
        if not record.source_table or record.command == "maintain":
            return set()
        key = key_of(record)
        table = self._building.get(key)
        if table is None:
            table = self._building[key] = _Table(key, _start(record), record)
        table.add(record)
        if record.command == "run" and record.status != "began":
            self.half_hours.add(record)
        return {key}

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


class History:
    """What is known of all tables and streams of a lake."""

    def __init__(self, settings: Settings) -> None:
        """A history that knows nothing yet; `refresh` reads it."""
        self._runs_state: State | None = None
        self._runs = _Runs(())
        self._points: Mapping[str, StreamPoint] = {}
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Goes on with another config of the same lake, which may have other sources."""
        self._names = self._runs.names = tuple(settings.source)
        self._runs_place = settings.place(GOVERNANCE, runs_table.NAME)
        self._streams_place = settings.place(GOVERNANCE, streams_table.NAME)
        # The last checkpoint of a source that is new may be an old one.
        self._streams_state: State | None = None

    @property
    def tables(self) -> Mapping[str, TableHistory]:
        """The tables that have records, by their keys: "SOURCE.SCHEMA.TABLE"."""
        return self._runs.tables

    @property
    def sources(self) -> Mapping[str, SourceHistory]:
        """The sources that runs have read."""
        return self._runs.sources

    @property
    def streams(self) -> Mapping[str, StreamPoint]:
        """The last checkpoint of each source's stream."""
        return self._points

    @property
    def half_hours(self) -> Mapping[datetime, Figures]:
        """The worst figures of the runs that ended in the half hours of the last day."""
        return self._runs.half_hours.figures

    @property
    def in_flight(self) -> Mapping[str, tuple[RunRecord, ...]]:
        """The runs that have only begun, by their ids: they go on, or their processes died."""
        found: dict[str, tuple[RunRecord, ...]] = {}
        for table in self.tables.values():
            for record in table.open:
                found[record.run_id] = (*found.get(record.run_id, ()), record)
        return found

    def refresh(self, *, streams: bool = True) -> frozenset[str]:
        """Reads what was added to the lake since the last call.

        Args:
            streams: whether checkpoints are read, too: a log with a commit each second.

        Returns:
            The keys of the tables that have new records.

        Raises:
            LakeError, LakeUnreachable: it cannot be read; what was known stays.
        """
        since = None if self._runs.is_scattered else self._runs_state
        added = additions.added_since(self._runs_place, since)
        changed = self._read_all(added) if added.is_whole else self._read_new(added)
        self._runs_state = added.state
        if streams:
            self._refresh_streams()
        return changed

    def add(self, rows: pl.DataFrame) -> frozenset[str]:
        """Adds rows with the columns of ``governance.runs``; the keys of their tables."""
        return self._runs.add([rows.sort("recorded_timestamp", maintain_order=True)])

    def runs(
        self, key: str, command: Command = "run", most: int = run_reader.LAST
    ) -> tuple[RunRecord, ...]:
        """The last records that count of a table's runs, the earliest first."""
        return self._runs.records((key == _NAME) & (pl.col("command") == command), most)[-most:]

    def all_runs(
        self, command: Command = "run", most: int = run_reader.LAST
    ) -> Mapping[str, Sequence[RunRecord]]:
        """The last runs of all tables, by their keys: a kilobyte of memory for each."""
        return {
            key: runs for part in self.parts_of_runs(command, most) for key, runs in part.items()
        }

    def parts_of_runs(
        self, command: Command = "run", most: int = run_reader.LAST
    ) -> Iterator[Mapping[str, Sequence[RunRecord]]]:
        """The same, some tables at a time: all of a thousand tables take a hundred megabytes."""
        for part in range(_TABLE_PARTS):
            found: dict[str, list[RunRecord]] = {}
            is_in_part = _NAME.hash() % _TABLE_PARTS == part
            wanted = is_in_part & (pl.col("command") == command)
            for record in self._runs.records(wanted, most):
                found.setdefault(key_of(record), []).append(record)
            yield found

    def _read_all(self, added: Added) -> frozenset[str]:
        runs = _Runs(self._names)
        changed = runs.add(run_reader.last_records(self._runs_place, added.files))
        changed |= frozenset(self._runs.tables)
        self._runs = runs
        # What Arrow has read stays with its pool otherwise: 30 MB where there are many records.
        pa.default_memory_pool().release_unused()
        return changed

    def _read_new(self, added: Added) -> frozenset[str]:
        parts = [
            part
            for file in added.files
            for part in additions.parts_of(self._runs_place, file, runs_table.COLUMNS)
        ]
        return self.add(pl.concat(parts)) if parts else frozenset()

    def _refresh_streams(self) -> None:
        added = additions.added_since(self._streams_place, self._streams_state)
        self._streams_state = added.state
        known = {} if added.is_whole else dict(self._points)
        for record, versions in streams_table.with_versions(self._checkpoints(added, known)):
            point = _point(record, versions)
            before = known.get(point.source)
            if before and before.series == point.series and point.series is not None:
                point = replace(point, targets=before.targets | point.targets)
            if before is None or point.recorded >= before.recorded:
                known[point.source] = point
        self._points = known

    def _checkpoints(self, added: Added, known: Mapping[str, StreamPoint]) -> pl.DataFrame:
        """The newest records of each source, back to one from which all tables are known."""
        rows = frame_of(streams_table.COLUMNS, [])
        # One is made each second. Every hundredth has all tables, and the newest files come first.
        for file in added.files[:_LAST_FILES]:
            parts = additions.parts_of(self._streams_place, file, streams_table.COLUMNS)
            rows = pl.concat([rows, *parts])
            last = rows.sort("recorded_timestamp").group_by("source_system").last()
            begun = {*rows.filter(pl.col("number") == 1)["series"], None}
            begun |= {point.series for point in known.values()}
            if set(self._names) <= set(last["source_system"]) and set(last["series"]) <= begun:
                break
        return rows


SOURCE_KINDS = {
    "SourceUnreachable": "cannot be reached",
    "SourceBusy": "has no free connection",
    "SourceRefused": "refuses connections",
    "SourceRewound": "was restored to an earlier state",
}
"""The errors that are of a source as a whole, and what each says of it."""


def key_of(record: RunRecord) -> str:
    """The name of a record's table among those of all sources."""
    return f"{record.source_system}.{record.source_table}"


def _start(record: RunRecord) -> datetime:
    """When a run was due, if it began then: a new table is not due for times before it was made."""
    due = record.scheduled
    return due if due and record.began - due < _AT_ONCE else record.began


def _point(row: Mapping[str, Any], versions: Iterable[str]) -> StreamPoint:
    recorded, committed = row["recorded_timestamp"], row["source_commit_timestamp"]
    # Without a transaction it is a heartbeat: there was nothing left to apply.
    has_caught_up = not row["lag_bytes"] or committed is None
    return StreamPoint(
        source=row["source_system"],
        recorded=recorded,
        as_of=recorded if has_caught_up else committed,
        lag_bytes=row["lag_bytes"] or 0,
        lag_seconds=row["lag_seconds"] or 0.0,
        targets=frozenset(versions),
        series=row["series"],
    )
