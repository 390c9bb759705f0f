"""Creates a replication slot, in a thread and with connections of its own.

PostgreSQL creates a slot only when all transactions of the server that were open have ended, which
may take hours. Meanwhile no table is locked: a session that wants to alter one would wait as long,
and all others behind it. Once the slot is created, the tables are locked in its snapshot. What was
done to them in between, `bronze.postgres.copy.snapshot.changed_relations` finds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import psycopg
from psycopg import errors as pg

from bronze import failpoint
from bronze.cdc.context import Stopped, StreamContext
from bronze.errors import BronzeError, TableRefused
from bronze.model.events import Waiting
from bronze.model.locations import Origin
from bronze.postgres.connection import connect, sockets, translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import snapshot
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import publication, slot, slot_waits
from bronze.tables.selection import Target

_POLL = 0.05
# After this many seconds a notice names what the slot waits for; later, if that is unknown.
_NOTICE_AFTER = 2.0
_UNKNOWN_NOTICE_AFTER = 10.0
_CHECK_INTERVAL = 1.0
# The notice is repeated: if it names other transactions, and if it names the same ones.
_REPEAT_CHANGED, _REPEAT_SAME = 30.0, 300.0
# How long `close` waits for a server that does not answer.
_LEAVING = 3.0


def publish(
    origin: Origin, connection: Connection, name: str, targets: Sequence[Target]
) -> tuple[dict[str, BronzeError], PublishedTables]:
    """Publishes tables, and reads the fingerprints of their publication.

    To be called before the snapshot in which they are read, so that a later change of the
    publication is noticed.

    Returns:
        The errors of tables that are not published, by label: they are locked by another session,
        or do not exist any more; and all tables with their fingerprints.

    Raises:
        SourceRefused, SourceBusy: as `bronze.postgres.replication.publication.publish`.
        psycopg.Error
    """
    refused = _publish_each(origin, connection, name, targets)
    relations = [target.relation for target in targets]
    fingerprints = publication.fingerprints_of(connection, name, relations)
    published = [replace(t, published=fingerprints.get(t.relation.oid, "")) for t in targets]
    return refused, PublishedTables(publication.oid_of(connection, name) or 0, tuple(published))


@dataclass(frozen=True)
class PublishedTables:
    """A publication's oid, and tables with the fingerprints of their publication."""

    oid: int
    targets: tuple[Target, ...]


def _publish_each(
    origin: Origin, connection: Connection, name: str, targets: Sequence[Target]
) -> dict[str, BronzeError]:
    """Publishes the tables together; if that fails, one by one. Returns the errors by label."""
    try:
        publication.publish(connection, name, [target.relation for target in targets])
        return {}
    except (pg.LockNotAvailable, TableRefused) as error:
        if len(targets) == 1:
            label = targets[0].label
            if isinstance(error, TableRefused):
                return {label: error}
            return {label: translation.explain(error, origin, label)}
    refused: dict[str, BronzeError] = {}
    for target in targets:
        refused |= _publish_each(origin, connection, name, [target])
    return refused


class NewSlot:
    """A slot that is being created, and then its snapshot with the tables locked.

    Attributes:
        targets: the tables to read in its snapshot.
        name: the slot's name.
        refused: the errors of tables that were not published, by label.
        published: the publication's oid.
        sender: the connection that created it, None before.
        error: why it was not created.
    """

    def __init__(
        self, stream: StreamContext, targets: Sequence[Target], name: str, *, temporary: bool
    ) -> None:
        """Begins to publish the tables and to create the slot. `close` it in any case."""
        self.targets, self.name = tuple(targets), name
        self.refused: dict[str, BronzeError] = {}
        self.published = 0
        self.sender: Connection | None = None
        self.error: BaseException | None = None
        self._stream, self._temporary = stream, temporary
        self._waiting = tuple(target.label for target in targets) if temporary else ()
        self._schemas = stream.settings.source[stream.origin.name].schema_
        self._holder: Connection | None = None
        self._snapshot: Snapshot | None = None
        self._created = False
        self._connections, self._locks = ExitStack(), ExitStack()
        self._releasing = threading.Lock()
        self._done, self._stopped = threading.Event(), threading.Event()
        self._began = time.monotonic()
        self._check_at, self._notified_at = self._began + _NOTICE_AFTER / 2, 0.0
        self._open_transactions: frozenset[str] = frozenset()
        self._notified: frozenset[str] | None = None
        self._thread = threading.Thread(target=self._run, name="bronze slot", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits until it is created or has failed; False if that takes longer."""
        return self._done.wait(seconds)

    def wait_or_stop(self, who: str) -> None:
        """Waits until it is created or has failed, with notices as of `notify_waiting`.

        Raises:
            Stopped: the stream is to end.
        """
        while not self.wait(_POLL):
            if self._stream.stop.is_set():
                raise Stopped
            self.notify_waiting(who, "")

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot, with the tables locked until it is closed.

        Raises:
            BronzeError: why there is none.
        """
        if self.error:
            raise self.error
        if self._snapshot is None:
            raise Stopped
        return self._snapshot

    def notify_waiting(self, who: str, meanwhile: str) -> None:
        """Sends a notice of what the slot waits for, if it takes long; repeats it now and then.

        Args:
            who: what waits for the slot, with its verb.
            meanwhile: a sentence about what goes on meanwhile; may be empty.
        """
        now = time.monotonic()
        if now < self._check_at or self._done.is_set():
            return
        self._check_at = now + _CHECK_INTERVAL
        # Also called early, so that it knows which transactions last.
        notice = self._lock_notice(who) if self._created else self._transaction_notice(who)
        if notice is None or now - self._began < _NOTICE_AFTER:
            return
        causes, text = notice
        interval = _REPEAT_SAME if causes == self._notified else _REPEAT_CHANGED
        if self._notified is None or now - self._notified_at >= interval:
            self._notified, self._notified_at = causes, now
            self._stream.notify(Waiting(f"{text} {meanwhile}".rstrip(), tables=self._waiting))

    def _transaction_notice(self, who: str) -> tuple[frozenset[str], str] | None:
        """The open transactions that the slot waits for, and the notice of them."""
        transactions = slot_waits.open_transactions(self._stream.control)
        # Those of the last check that are still open: the others come and go.
        lasting = [one for one in transactions if one.xid in self._open_transactions]
        self._open_transactions = frozenset(one.xid for one in transactions)
        text = f"{who} for a new replication slot, and that for"
        if lasting:
            names = slot_waits.describe_transactions(lasting)
            xids = frozenset(one.xid for one in lasting)
            return xids, f"{text} transactions that are still open: {names}."
        if time.monotonic() - self._began < _UNKNOWN_NOTICE_AFTER:
            return None
        return frozenset(), f"{text} the server; no transaction has been open for long."

    def _lock_notice(self, who: str) -> tuple[frozenset[str], str] | None:
        """The sessions whose locks it waits for, and the notice of them."""
        if self._holder is None:
            return None
        pids = slot_waits.blocking_pids(self._stream.control, self._holder.info.backend_pid)
        if not pids:
            return None
        names = ", ".join(map(str, pids))
        return frozenset(map(str, pids)), f"{who} for a lock on a table, which pid {names} has."

    def close(self) -> None:
        """Ends its connections and locks; a temporary slot ends with them."""
        self._stopped.set()
        until = time.monotonic() + _LEAVING
        while not self._done.wait(_POLL):
            given_up = time.monotonic() > until
            for connection in (self.sender, self._holder):
                if connection and given_up:
                    sockets.cut_connection(connection)
                elif connection:
                    with suppress(psycopg.Error):
                        connection.cancel_safe(timeout=1)
            if given_up:
                # The thread closes a connection that is still being opened.
                break
        if self._done.wait(_POLL):
            self._release()

    def take_sender(self) -> Connection:
        """The connection that created it, to stream from the slot; ends snapshot and locks.

        Raises:
            Stopped: there is none.
        """
        self._locks.close()
        if self.sender is None:
            raise Stopped
        return self.sender

    def _release(self) -> None:
        with self._releasing:
            self._locks.close()
            self._connections.close()

    # The thread

    def _run(self) -> None:
        try:
            with translation.source_errors(self._stream.origin):
                self._create()
        except BaseException as error:  # the thread that waits has to get it
            self.error = error
        finally:
            self._done.set()
            if self._stopped.is_set():
                self._release()

    def _create(self) -> None:
        origin = self._stream.origin
        self._holder = connect.connect(origin, lasting=True)
        self._connections.callback(self._holder.close)
        self.refused, published = publish(
            origin, self._holder, self._stream.publication, self.targets
        )
        self.targets, self.published = published.targets, published.oid
        sender = slot.walsender(origin)
        self._connections.callback(sender.close)
        self.sender = sender
        if self._stopped.is_set():
            return
        failover = not self._temporary
        created = slot.create(sender, self.name, temporary=self._temporary, failover=failover)
        failpoint.reach("slotted")
        self._created = True
        relations = [
            target.relation
            for target in self.targets
            if target.label not in self.refused and target.relation.readable
        ]
        exported = created.snapshot, created.position
        in_threads = self._stream.settings.run.engine == "threads"
        held = snapshot.hold(
            origin, self._holder, relations, self._schemas, "run", exported, in_threads
        )
        self._snapshot = self._locks.enter_context(held)
