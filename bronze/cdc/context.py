"""A stream's line to its source: a connection, its names, and whom it tells of what happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bronze.cdc.apply import Followed
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.governance import lineage, openlineage
from bronze.governance.lineage import Entry
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.model.results import Failure, Late, TableResult
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.rewind import Past
from bronze.postgres.replication.slot import Session
from bronze.tables import selection
from bronze.tables.selection import Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What just happened: a batch landed, or (with no ``tables``) the stream is idle.

    ``lag_bytes`` is how much of the source's log is not landed yet; ``lag_seconds`` how long ago
    the last landed transaction was committed, 0 where nothing is left. ``note`` tells people what
    else there is to know.
    """

    position: int
    transactions: int = 0
    changes: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    tables: tuple[str, ...] = ()
    note: str = ""


Notify = Callable[[Step], None]


class Stopped(Exception):
    """The stream was asked to stop while it copied."""


@dataclass
class Tally:
    """What a stream has done since it began; ``names`` are the Bronze tables that it has made, or
    found there.
    """

    batches: int = 0
    transactions: int = 0
    changes: int = 0
    position: int = 0
    tables: dict[str, TableResult] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    late: list[Late] = field(default_factory=list)
    unrecorded: Failure | None = None

    def copied(self, result: TableResult) -> None:
        """Adds what a copy did."""
        self._add(result.table, result)

    def followed(self, one: Followed) -> None:
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
class Line:
    """One connection's time.

    Attributes:
        settings: the config.
        origin: the source.
        control: a connection to it, for everything but the stream itself.
        slot: the replication slot's name.
        publication: the publication's; ``published`` is its oid.
        stop: ends the stream once it is set.
        tally: what the stream has done so far, on earlier lines too.
        notify: is told of each batch.
        copied: is told of the progress of copies.
        mine: the sessions at the server.
        done: the position before which everything has landed.
        lag: the bytes of the source's log behind it.
        past: what the server has to tell again first.
    """

    settings: Settings
    origin: Origin
    control: Connection
    slot: str
    publication: str
    stop: threading.Event
    tally: Tally
    notify: Notify
    copied: pipeline.Notify
    mine: list[Session]
    published: int = 0
    done: int = 0
    lag: int = 0
    past: Past = field(default_factory=Past)

    def say(self, note: str) -> None:
        """Tells people."""
        _log.warning("%s", note)
        self.notify(Step(self.done, lag_bytes=self.lag, note=note))

    def copying(self, progress: pipeline.Progress) -> None:
        """Tells of a copy.

        Raises:
            Stopped: there is to be none any more.
        """
        if self.stop.is_set():
            raise Stopped
        self.copied(progress)

    def failed(self, target: Target, error: BronzeError) -> None:
        """Tells that a table does not follow."""
        self.tally.copied(
            TableResult(
                table=target.label,
                target=target.full_name,
                status="failed",
                error=error.failure(),
            )
        )
        self.say(f"{target.label} is not followed: {error.message} {error.hint}")

    def remember(self, entries: Sequence[Entry], *, begins: bool = False) -> None:
        """Enters records of lineage; ``begins`` says that they are of tables that have just come.

        Raises:
            LakeError, LakeUnreachable: they cannot be written.
        """
        late = lineage.enter(self.settings, entries)
        self.tally.late += [lineage.late(record) for record in late]
        for note in openlineage.tell(self.settings, entries, begins=begins):
            self.say(note)

    def found(self) -> tuple[Relation, ...]:
        """What is in the source's schemas now."""
        schemas = self.settings.source[self.origin.name].schema_
        with connect.mapped(self.origin):
            return selection.found(self.control, self.origin.name, schemas)
