"""Lineage: what a run did to each table is entered into ``governance.data_lineage``, once.

All records of a run are one append at its end. Each commit of a table holds its record among its
facts, and the book holds, for each table, the version up to which all commits are in it (as app
transactions). So whoever writes next sees which commits lie between, and enters those of runs that
died, or that are still to write theirs, which then leave it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from bronze import failpoint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, positions
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError
from bronze.governance.tables import data_lineage as book
from bronze.governance.tables.data_lineage import LineageRecord
from bronze.governance.writer import Page, append
from bronze.model.columns import Column
from bronze.model.locations import Place
from bronze.model.results import Failure, LateRecord, TableResult

FACT = "lineage"
"""The key of a commit's facts under which its record is."""

STREAM = "stream"


@dataclass(frozen=True)
class LineageEntry:
    """A record to be entered, and what it is about.

    ``version`` is the latest one that is known of its table, which lies at ``place``; None where
    nothing is known. ``columns`` are the contract, ``database`` is the source's as
    ``host:port/name``, ``began`` when the run began.
    """

    record: LineageRecord
    place: Place
    version: int | None
    columns: tuple[Column, ...]
    database: str
    began: datetime


def with_result(entry: LineageEntry, result: TableResult) -> LineageEntry:
    """The record with what was done."""
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
    """The record of a table that follows a stream from here on."""
    record = entry.record
    known = record.version_before if record.version_after is None else record.version_after
    done = replace(record, mode=STREAM, status="streaming", version_after=known, error_kind="")
    return replace(entry, record=done)


def add_counts(entry: LineageEntry, **done: int) -> LineageEntry:
    """The record with what a batch of the stream has added to its counts."""
    known = asdict(entry.record)
    sums = {name: known[name] + count for name, count in done.items()}
    return replace(entry, record=replace(entry.record, **sums))


def advance(entry: LineageEntry, batch_id: str, position: int, version: int) -> LineageEntry:
    """The record of a table that a stream has brought to a version."""
    done = replace(entry.record, batch_id=batch_id, position=position, version_after=version)
    return replace(entry, record=done, version=version)


def end_stream(entry: LineageEntry, error: BronzeError | None) -> LineageEntry:
    """The record of a table that does not follow the stream any more."""
    record = entry.record
    moved = record.inserted or record.updated or record.deleted
    status = "failed" if error else "landed" if moved else "unchanged"
    kind = type(error).__name__ if error else ""
    return replace(entry, record=replace(record, status=status, error_kind=kind))


def facts_of(entry: LineageEntry, **done: Any) -> Mapping[str, Any]:
    """The record as a commit holds it; its version is told by where it is."""
    return {FACT: asdict(replace(entry.record, **done))}


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, book.NAME)


def record(settings: Settings, entries: Sequence[LineageEntry]) -> tuple[LineageRecord, ...]:
    """Enters records, and with them those that others have left out about the same tables.

    Returns:
        The latter.

    Raises:
        CommitConflict: others wrote at the same time, again and again.
        LakeError, LakeUnreachable: the book cannot be written, or a table's log not be read.
    """
    late: list[LineageRecord] = []

    def page(state: State | None) -> Page | None:
        late[:] = []
        marks: dict[str, int] = {}
        own: list[LineageRecord] = []
        for table in _by_table(entries):
            mark = _mark(state, table)
            late.extend(_unrecorded(table, mark))
            own += [e.record for e in table if not _is_recorded(e.record, mark)]
            if (known := _latest(table)) is not None:
                name = table[0].record.target_table
                marks[name] = known if mark is None else max(known, mark)
        records = [*late, *own]
        if not records:
            return None
        count = positions.read(state, positions.LINEAGE) or 0
        reached = Position(positions.LINEAGE, count + len(records), tuple(marks.items()))
        notes = dict(settings.maintain.properties())
        return Page(book.frame(records), reached, notes, {"records": len(records)})

    append(place(settings), book.COLUMNS, page)
    failpoint.reach("remembered")
    return tuple(late)


def _by_table(entries: Sequence[LineageEntry]) -> Iterable[list[LineageEntry]]:
    tables: dict[str, list[LineageEntry]] = {}
    for one in entries:
        tables.setdefault(one.record.target_table, []).append(one)
    return tables.values()


def _latest(table: Sequence[LineageEntry]) -> int | None:
    return max((one.version for one in table if one.version is not None), default=None)


def _mark(state: State | None, table: Sequence[LineageEntry]) -> int | None:
    """The version up to which the book has all commits of a table, None where it has none."""
    first, known = table[0], _latest(table)
    mark = positions.recorded_version(state, first.record.target_table)
    if mark is None or known is None or known >= mark:
        return mark
    # Either somebody else was faster, or the table was moved away and made anew.
    now = log.read(first.place)
    return mark if now is not None and now.version >= mark else None


def _is_recorded(record: LineageRecord, mark: int | None) -> bool:
    """Whether somebody else has entered it: a stream's records are its own to enter."""
    version = record.version_after
    return record.mode != STREAM and version is not None and mark is not None and version <= mark


def _unrecorded(table: Sequence[LineageEntry], mark: int | None) -> Iterator[LineageRecord]:
    """The records in a table's log that the book does not have, latest first."""
    known = _latest(table)
    if known is None:
        return
    own = [one.record for one in table]
    mine = {record.lineage_id for record in own}
    made = {r.version_after for r in own if r.version_after != r.version_before}
    for version in range(known, -1 if mark is None else mark, -1):
        if version in made:
            continue
        info = log.info(table[0].place, version)
        if info is None:
            return
        fact = commit.facts_of(info).get(FACT)
        if not fact:
            continue
        found = _read(fact, version)
        if found.lineage_id not in mine:
            mine.add(found.lineage_id)
            yield found
        if found.mode == STREAM:
            # Its counts are of all its commits, and before its first one it has entered the table.
            return


def _read(fact: Mapping[str, Any], version: int) -> LineageRecord:
    known: dict[str, Any] = {one.name: fact.get(one.name) for one in fields(LineageRecord)}
    before = _before(version) if known["mode"] != STREAM else known["version_before"]
    return LineageRecord(**{**known, "version_before": before, "version_after": version})


@dataclass
class LineageLedger:
    """The entries of a run, until they are entered together; ``unwritten`` is why something else
    that is to be remembered could not be entered.
    """

    settings: Settings
    entries: list[LineageEntry] = field(default_factory=list)
    unwritten: Failure | None = None

    def add(self, entry: LineageEntry) -> None:
        """Keeps an entry. A failure gives way to what a later attempt has done."""
        target = entry.record.target_table
        self.entries = [
            one
            for one in self.entries
            if one.record.target_table != target or one.record.version_after is not None
        ]
        self.entries.append(entry)

    def closed(self) -> tuple[tuple[LateRecord, ...], Failure | None]:
        """Enters them.

        Returns:
            What was entered of others, and why nothing could be entered, if so. What is in the
            tables then is entered by the next run.
        """
        try:
            return tuple(
                late_record(record) for record in record(self.settings, self.entries)
            ), self.unwritten
        except BronzeError as error:
            return (), error.failure()


def late_record(record: LineageRecord) -> LateRecord:
    """What is told of a record that somebody else has left out."""
    return LateRecord(
        record.batch_id,
        record.source_table,
        record.target_table,
        record.version_after,
        tuple(json.loads(record.schema_changes)),
    )
