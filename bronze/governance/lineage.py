"""Lineage: what a run did to each table is recorded in ``governance.data_lineage``, once.

All records of a run are one append at its end. Each commit to a Bronze table has its record among
its facts, and ``data_lineage`` has, for each table, the version up to which all commits are
recorded (as an app transaction). So the next run sees which commits are not, and writes the records
of runs that died, or that have not written theirs yet; those then skip them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from bronze import failpoint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, positions
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError
from bronze.governance.json_values import json_value
from bronze.governance.tables import data_lineage
from bronze.governance.tables.data_lineage import LineageRecord
from bronze.governance.writer import Page, append
from bronze.model.columns import Column
from bronze.model.locations import Place
from bronze.model.results import Failure, LateRecord, TableResult

FACT = "lineage"
"""The key of a commit's facts with its record."""

STREAM = "stream"


@dataclass(frozen=True)
class LineageEntry:
    """A record to write, and its table.

    ``version`` is the latest known version of the Bronze table at ``place``, None if there is none.
    ``columns`` are the column contract, ``database`` is the source as ``host:port/name``, ``began``
    is when the run began.
    """

    record: LineageRecord
    place: Place
    version: int | None
    columns: tuple[Column, ...]
    database: str
    began: datetime


def with_result(entry: LineageEntry, result: TableResult) -> LineageEntry:
    """The entry with the result of a run."""
    record, landed = entry.record, result.version is not None
    done = replace(
        record,
        version_before=_before(result.version) if landed else record.version_before,
        version_after=result.version,
        rows_read=result.rows_read,
        inserted=result.inserted,
        updated=result.updated,
        deleted=result.deleted,
        rejected=result.rejected,
        schema_changes=record.schema_changes if landed else "[]",
        status=result.status,
        error_kind=result.error.kind if result.error else "",
    )
    return replace(entry, record=done, version=result.version if landed else entry.version)


def _before(version: int | None) -> int | None:
    return version - 1 if version else None


def begin_stream(entry: LineageEntry) -> LineageEntry:
    """The entry of a table that joins a stream."""
    record = entry.record
    known = record.version_before if record.version_after is None else record.version_after
    done = replace(record, mode=STREAM, status="streaming", version_after=known, error_kind="")
    return replace(entry, record=done)


def add_counts(entry: LineageEntry, **done: int) -> LineageEntry:
    """The entry with the counts of a batch of the stream added."""
    known = vars(entry.record)
    sums = {name: known[name] + count for name, count in done.items()}
    return replace(entry, record=replace(entry.record, **sums))


def advance(entry: LineageEntry, batch_id: str, position: int, version: int) -> LineageEntry:
    """The entry of a table that a stream has written at a version."""
    done = replace(entry.record, batch_id=batch_id, position=position, version_after=version)
    return replace(entry, record=done, version=version)


def end_stream(entry: LineageEntry, error: BronzeError | None) -> LineageEntry:
    """The entry of a table that leaves the stream."""
    record = entry.record
    moved = record.inserted or record.updated or record.deleted
    status = "failed" if error else "landed" if moved else "unchanged"
    kind = type(error).__name__ if error else ""
    return replace(entry, record=replace(record, status=status, error_kind=kind))


def facts_of(entry: LineageEntry, **done: Any) -> Mapping[str, Any]:
    """The facts of a commit with the record; the commit itself is its version."""
    return {FACT: dict(vars(replace(entry.record, **done)))}


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, data_lineage.NAME)


def record(settings: Settings, entries: Sequence[LineageEntry]) -> tuple[LineageRecord, ...]:
    """Writes records, together with records about the same tables that other runs did not write.

    Returns:
        The records of other runs.

    Raises:
        CommitConflict: other writers committed first each time.
        LakeError, LakeUnreachable: ``data_lineage`` cannot be written, or the log of a table cannot
            be read.
    """
    late: list[LineageRecord] = []

    def page(state: State | None) -> Page | None:
        late[:] = []
        versions: dict[str, int] = {}
        own: list[LineageRecord] = []
        for table in _by_table(entries):
            recorded = _recorded_version(state, table)
            late.extend(_missing_records(table, recorded))
            own += [e.record for e in table if not _is_recorded(e.record, recorded)]
            if (latest := _latest(table)) is not None:
                name = table[0].record.target_table
                versions[name] = latest if recorded is None else max(latest, recorded)
        records = [*late, *own]
        if not records:
            return None
        count = positions.read(state, positions.LINEAGE) or 0
        reached = Position(positions.LINEAGE, count + len(records), tuple(versions.items()))
        notes = dict(settings.maintain.properties())
        return Page(data_lineage.frame(records), reached, notes, {"records": len(records)})

    append(place(settings), data_lineage.COLUMNS, page)
    failpoint.reach("remembered")
    return tuple(late)


def _by_table(entries: Sequence[LineageEntry]) -> Iterable[list[LineageEntry]]:
    tables: dict[str, list[LineageEntry]] = {}
    for entry in entries:
        tables.setdefault(entry.record.target_table, []).append(entry)
    return tables.values()


def _latest(table: Sequence[LineageEntry]) -> int | None:
    return max((entry.version for entry in table if entry.version is not None), default=None)


def _recorded_version(state: State | None, table: Sequence[LineageEntry]) -> int | None:
    """The version up to which all commits of a table are recorded, None if none is."""
    first, latest = table[0], _latest(table)
    recorded = positions.recorded_version(state, first.record.target_table)
    if recorded is None or latest is None or latest >= recorded:
        return recorded
    # Either another run has committed since, or the table was moved away and loaded again.
    now = log.read(first.place)
    return recorded if now is not None and now.version >= recorded else None


def _is_recorded(record: LineageRecord, recorded: int | None) -> bool:
    """Whether another run has written the record; those of a stream are written by it only."""
    version = record.version_after
    return (
        record.mode != STREAM
        and version is not None
        and recorded is not None
        and version <= recorded
    )


def _missing_records(
    table: Sequence[LineageEntry], recorded: int | None
) -> Iterator[LineageRecord]:
    """The records in a table's commits after version ``recorded``, latest first."""
    latest = _latest(table)
    if latest is None:
        return
    own = [entry.record for entry in table]
    ids = {record.lineage_id for record in own}
    committed = {r.version_after for r in own if r.version_after != r.version_before}
    for version in range(latest, -1 if recorded is None else recorded, -1):
        if version in committed:
            continue
        info = log.info(table[0].place, version)
        if info is None:
            return
        fact = commit.facts_of(info).get(FACT)
        if not isinstance(fact, dict):
            # No fact, or none of bronze's.
            continue
        record = _record_in(fact, version)
        if record.lineage_id not in ids:
            ids.add(record.lineage_id)
            yield record
        if record.mode == STREAM:
            # Its counts are of all its commits, and it wrote a record before the first of them.
            return


def _record_in(fact: Mapping[str, Any], version: int) -> LineageRecord:
    values: dict[str, Any] = {field.name: fact.get(field.name) for field in fields(LineageRecord)}
    before = _before(version) if values["mode"] != STREAM else values["version_before"]
    return LineageRecord(**{**values, "version_before": before, "version_after": version})


@dataclass
class LineageLedger:
    """The entries of a run until they are written together; ``unwritten`` is why another record of
    the run could not be written.
    """

    settings: Settings
    entries: list[LineageEntry] = field(default_factory=list)
    unwritten: Failure | None = None
    _targets: set[str] = field(default_factory=set)

    def add(self, entry: LineageEntry) -> None:
        """Adds an entry. It replaces that of an earlier, failed attempt."""
        target = entry.record.target_table
        if target in self._targets:
            self.entries = [
                earlier
                for earlier in self.entries
                if earlier.record.target_table != target or earlier.record.version_after is not None
            ]
        self._targets.add(target)
        self.entries.append(entry)

    def write(self) -> tuple[tuple[LateRecord, ...], Failure | None]:
        """Writes the entries.

        Returns:
            The records of other runs that were written with them, and why something could not be
            written, if so; the next run then writes it from the commits.
        """
        try:
            return tuple(
                late_record(record) for record in record(self.settings, self.entries)
            ), self.unwritten
        except BronzeError as error:
            return (), error.failure()


def late_record(record: LineageRecord) -> LateRecord:
    """The result of a record that another run did not write."""
    return LateRecord(
        record.batch_id,
        record.source_table,
        record.target_table,
        record.version_after,
        tuple(json_value(record.schema_changes, data_lineage.NAME, list)),
    )
