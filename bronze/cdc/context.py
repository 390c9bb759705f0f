"""What the modules of a stream share: the connection, its tables, totals, and where events go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from bronze.config.settings import Settings
from bronze.delta.log import State
from bronze.errors import BronzeError
from bronze.governance import lineage, openlineage
from bronze.governance.lineage import LineageEntry
from bronze.ingest import pipeline
from bronze.ingest.plan import Plan
from bronze.model.events import LoadEvent, Notice, StreamEvent, TableFailed
from bronze.model.locations import Origin
from bronze.model.quality import QualityTotals
from bronze.model.results import Failure, LateRecord, TableResult
from bronze.model.stamp import RowStamp
from bronze.model.units import NO_FINDINGS, Findings
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.batch import Batch
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.postgres.replication.slot import Session
from bronze.postgres.replication.text_values import TextColumn
from bronze.tables import selection
from bronze.tables.selection import Target

_log = logging.getLogger(__name__)


Notify = Callable[[StreamEvent], None]


class Stopped(Exception):
    """The stream was asked to stop."""


@dataclass(frozen=True)
class UnrecordedQuality:
    """The quality of the rows of some batches. The last one, with the ``stamp``, was committed in
    the source at ``as_of``, and applied ``age`` seconds later.
    """

    scored: QualityTotals
    stamp: RowStamp
    as_of: datetime
    age: float


@dataclass
class FollowedTable:
    """A table that follows the stream.

    Attributes:
        plan: its column contract, layout and key.
        sent_columns: the columns (name, type oid, modifier) that the contract was made for, as the
            stream describes them.
        texts: how the stream's texts become its columns.
        identity: the source's columns that identify a row at any moment.
        floor: the Bronze table has all transactions before this position.
        position: the position in the Bronze table's log; it may be less than ``floor``.
        version: the version of the Bronze table at ``position``.
        entry: its record in ``governance.data_lineage``, with the counts up to now.
        findings: the anomalies of its rows that are not recorded yet.
        quality: the quality of its rows that is not recorded yet.
        error: why it does not follow any more.
        ahead_of_audit: the state in which it named an audit record that the audit log lacked.
    """

    plan: Plan
    sent_columns: tuple[tuple[str, int, int], ...]
    texts: tuple[TextColumn, ...]
    identity: tuple[str, ...]
    floor: int
    position: int
    version: int
    entry: LineageEntry
    findings: Findings = NO_FINDINGS
    quality: UnrecordedQuality | None = field(default=None)
    error: BronzeError | None = field(default=None)
    ahead_of_audit: State | None = field(default=None)

    @property
    def target(self) -> Target:
        """The source table and its Bronze table."""
        return self.plan.target

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.target.label

    @property
    def oid(self) -> int:
        """The source table's oid."""
        return self.target.relation.oid


@dataclass(frozen=True)
class StartedTables:
    """The tables of a stream on a new connection: by oid those that are ``followed`` from their
    positions, and by the reason those ``to_resync``. Positions belong to the ``history``.
    """

    history: str
    followed: dict[int, FollowedTable]
    to_resync: dict[str, list[Target]]


@dataclass(frozen=True)
class AppliedChanges:
    """What a batch did to one table; ``read`` is the number of changes that were received."""

    following: FollowedTable
    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rejected: int = 0
    anomalies: int = 0
    quarantined: int = 0
    error: BronzeError | None = None


@dataclass
class StreamTotals:
    """What a stream has done since it began, over all its connections.

    ``bronze_tables`` are the names of the Bronze tables that it has created or found in the lake.
    """

    batches: int = 0
    transactions: int = 0
    changes: int = 0
    position: int = 0
    tables: dict[str, TableResult] = field(default_factory=dict)
    bronze_tables: set[str] = field(default_factory=set)
    late: list[LateRecord] = field(default_factory=list)
    unrecorded: Failure | None = None

    def add_load(self, result: TableResult) -> None:
        """Adds the result of a table sync or resync."""
        self._add(result.table, result)

    def add_changes(self, applied: AppliedChanges) -> None:
        """Adds what a batch did to a table."""
        target = applied.following.target
        self._add(
            applied.following.label,
            TableResult(
                table=target.label,
                target=target.full_name,
                status="failed" if applied.error else "landed",
                rows_read=applied.read,
                inserted=applied.inserted,
                updated=applied.updated,
                deleted=applied.deleted,
                rejected=applied.rejected,
                anomalies=applied.anomalies,
                quarantined=applied.quarantined,
                version=applied.following.version,
                error=applied.error.failure() if applied.error else None,
            ),
        )

    def add_batch(self, batch: Batch) -> None:
        """Adds a batch that all tables have applied."""
        self.batches += 1
        self.transactions += batch.transactions
        self.changes += batch.changes

    def _add(self, label: str, new: TableResult) -> None:
        old = self.tables.get(label)
        if old is None:
            self.tables[label] = new
            return
        self.tables[label] = replace(
            new,
            status="landed" if old.status == "landed" and not new.error else new.status,
            rows_read=old.rows_read + new.rows_read,
            inserted=old.inserted + new.inserted,
            updated=old.updated + new.updated,
            deleted=old.deleted + new.deleted,
            rejected=old.rejected + new.rejected,
            anomalies=old.anomalies + new.anomalies,
            quarantined=old.quarantined + new.quarantined,
            seconds=old.seconds + new.seconds,
            schema_changes=(*old.schema_changes, *new.schema_changes),
            notes=tuple(dict.fromkeys((*old.notes, *new.notes))),
        )


@dataclass
class StreamProgress:
    """The progress of a stream.

    All changes before the position ``done`` are applied; the source's log has ``lag`` more bytes.
    ``published`` is the publication's oid, ``past`` what the server has to send again first.
    """

    done: int = 0
    lag: int = 0
    published: int = 0
    past: KnownTransactions = field(default_factory=KnownTransactions)


@dataclass(frozen=True)
class StreamContext:
    """What all modules of a stream share, for the life of one connection.

    Attributes:
        settings: the config.
        origin: the source.
        control: a connection to it, for everything but the stream itself.
        slot: the replication slot's name.
        publication: the publication's name.
        stop: ends the stream once it is set.
        totals: what the stream has done, on earlier connections too.
        on_event: is called with each event.
        on_load_event: is called with the progress of table syncs and resyncs.
        sessions: its sessions at the server.
        progress: its progress.
    """

    settings: Settings
    origin: Origin
    control: Connection
    slot: str
    publication: str
    stop: threading.Event
    totals: StreamTotals
    on_event: Notify
    on_load_event: pipeline.Notify
    sessions: list[Session]
    progress: StreamProgress = field(default_factory=StreamProgress)

    def notify(self, event: StreamEvent) -> None:
        """Passes an event on, and logs its message if it has one."""
        if event.message:
            _log.warning("%s", event.message)
        self.on_event(event)

    def notify_load(self, event: LoadEvent) -> None:
        """Passes on the progress of a table sync or resync.

        Raises:
            Stopped: the stream is to end.
        """
        if self.stop.is_set():
            raise Stopped
        self.on_load_event(event)

    def notify_failure(
        self, target: Target, error: BronzeError, again_in: float | None = None
    ) -> None:
        """Reports and counts a table that is not followed because of an error; it is tried again
        after ``again_in`` seconds, if that is known.
        """
        failure = error.failure()
        self.totals.add_load(
            TableResult(table=target.label, target=target.full_name, status="failed", error=failure)
        )
        self.notify(TableFailed(target.label, failure, again_in))

    def record_lineage(self, entries: Sequence[LineageEntry], *, begins: bool = False) -> None:
        """Records lineage; ``begins`` says that the tables begin to follow now.

        Raises:
            LakeError, LakeUnreachable: it cannot be written.
        """
        late = lineage.record(self.settings, entries)
        self.totals.late += [lineage.late_record(record) for record in late]
        for note in openlineage.send(self.settings, entries, begins=begins):
            self.notify(Notice(note))

    def relations(self) -> tuple[Relation, ...]:
        """The relations that the source's schemas have now."""
        schemas = self.settings.source[self.origin.name].schema_
        with translation.source_errors(self.origin):
            return selection.relations_of(self.control, self.origin.name, schemas)
