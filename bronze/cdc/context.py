"""What the parts of a stream share: connection, names, totals, and who gets its events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bronze.cdc.apply import AppliedChanges
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.governance import lineage, openlineage
from bronze.governance.lineage import LineageEntry
from bronze.ingest import pipeline
from bronze.model.events import LoadEvent, Notice, StreamEvent, TableFailed
from bronze.model.locations import Origin
from bronze.model.results import Failure, LateRecord, TableResult
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.postgres.replication.slot import Session
from bronze.tables import selection
from bronze.tables.selection import Target

_log = logging.getLogger(__name__)


Notify = Callable[[StreamEvent], None]


class Stopped(Exception):
    """The stream was asked to stop while it copied."""


@dataclass
class StreamTotals:
    """What a stream has done since it began; ``names`` are the Bronze tables that it has made, or
    found there.
    """

    batches: int = 0
    transactions: int = 0
    changes: int = 0
    position: int = 0
    tables: dict[str, TableResult] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    late: list[LateRecord] = field(default_factory=list)
    unrecorded: Failure | None = None

    def copied(self, result: TableResult) -> None:
        """Adds what a copy did."""
        self._add(result.table, result)

    def followed(self, one: AppliedChanges) -> None:
        """Adds what a batch did to a table."""
        target = one.following.plan.target
        self._add(
            one.following.label,
            TableResult(
                table=target.label,
                target=target.full_name,
                status="failed" if one.error else "landed",
                rows_read=one.read,
                inserted=one.inserted,
                updated=one.updated,
                deleted=one.deleted,
                rejected=one.rejected,
                anomalies=one.anomalies,
                quarantined=one.quarantined,
                version=one.following.version,
                error=one.error.failure() if one.error else None,
            ),
        )

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
    """How far a stream has come: ``done`` is the position before which everything is applied,
    ``lag`` how many bytes of the source's log are behind it. ``published`` is the publication's
    oid, ``past`` what the server has to send again first.
    """

    done: int = 0
    lag: int = 0
    published: int = 0
    past: KnownTransactions = field(default_factory=KnownTransactions)


@dataclass(frozen=True)
class StreamContext:
    """What all parts of a stream share, for the time of one connection.

    Attributes:
        settings: the config.
        origin: the source.
        control: a connection to it, for everything but the stream itself.
        slot: the replication slot's name.
        publication: the publication's name.
        stop: ends the stream once it is set.
        totals: what the stream has done so far, on earlier connections too.
        notify: is called with each event.
        copied: is called with the progress of copies.
        sessions: the sessions at the server.
        progress: how far the stream has come.
    """

    settings: Settings
    origin: Origin
    control: Connection
    slot: str
    publication: str
    stop: threading.Event
    totals: StreamTotals
    notify: Notify
    copied: pipeline.Notify
    sessions: list[Session]
    progress: StreamProgress = field(default_factory=StreamProgress)

    def tell(self, event: StreamEvent) -> None:
        """Passes an event on, and logs it where it has something to say."""
        if event.message:
            _log.warning("%s", event.message)
        self.notify(event)

    def copying(self, event: LoadEvent) -> None:
        """Passes the progress of a copy on.

        Raises:
            Stopped: the stream is to end.
        """
        if self.stop.is_set():
            raise Stopped
        self.copied(event)

    def failed(self, target: Target, error: BronzeError) -> None:
        """Counts and tells that a table is not followed."""
        failure = error.failure()
        self.totals.copied(
            TableResult(table=target.label, target=target.full_name, status="failed", error=failure)
        )
        self.tell(TableFailed(target.label, failure))

    def remember(self, entries: Sequence[LineageEntry], *, begins: bool = False) -> None:
        """Enters records of lineage; ``begins`` says that they are of tables that have just come.

        Raises:
            LakeError, LakeUnreachable: they cannot be written.
        """
        late = lineage.record(self.settings, entries)
        self.totals.late += [lineage.late_record(record) for record in late]
        for note in openlineage.send(self.settings, entries, begins=begins):
            self.tell(Notice(note))

    def found(self) -> tuple[Relation, ...]:
        """What is in the source's schemas now."""
        schemas = self.settings.source[self.origin.name].schema_
        with translation.source_errors(self.origin):
            return selection.relations_of(self.control, self.origin.name, schemas)
