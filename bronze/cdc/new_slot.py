"""A replication slot in the making, on a thread and connections of its own.

A new slot waits for every transaction of the whole server that was open when it was asked for, be
that for hours. Until it is there no table is locked, as whoever wants to change one would wait as
long, and everybody else behind them. Once it is, the tables are locked in its snapshot; what was
done to them in between is for `bronze.postgres.copy.snapshot.changed_relations` to say.
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
# After so many seconds it is said whom it waits for.
_LONG = 2.0
_PUZZLING = 10.0
# How often it is looked, and said again: where they are others, and where they are the same.
_LOOK_EVERY = 1.0
_OTHERS_EVERY, _SAME_EVERY = 30.0, 300.0
# A server that does not answer is not waited for when all is to end.
_LEAVING = 3.0


def publish(
    origin: Origin, connection: Connection, name: str, targets: Sequence[Target]
) -> tuple[dict[str, BronzeError], Covered]:
    """Publishes tables, and notes how they are.

    That is asked for before the snapshot is taken in which they are read: what is changed after it
    is noticed later.

    Returns:
        By their labels, why some are not published: somebody has them locked, or they are gone; and
        all of them.

    Raises:
        SourceRefused, SourceBusy: as `bronze.postgres.replication.publication.publish`.
        psycopg.Error
    """
    refused = _refused(origin, connection, name, targets)
    found = publication.fingerprints_of(connection, name, [target.relation for target in targets])
    covered = [replace(one, published=found.get(one.relation.oid, "")) for one in targets]
    return refused, Covered(publication.oid_of(connection, name) or 0, tuple(covered))


@dataclass(frozen=True)
class Covered:
    """A publication's oid, and tables with how it has them."""

    oid: int
    targets: tuple[Target, ...]


def _refused(
    origin: Origin, connection: Connection, name: str, targets: Sequence[Target]
) -> dict[str, BronzeError]:
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
        refused |= _refused(origin, connection, name, [target])
    return refused


class NewSlot:
    """A slot that is being made, and then the snapshot of its position with the tables locked.

    Attributes:
        targets: the tables that it is made for.
        name: the slot's.
        refused: by label, why a table was not published.
        published: the publication's oid.
        sender: the connection on which it was made, once it was.
        error: why there is none.
    """

    def __init__(
        self, stream: StreamContext, targets: Sequence[Target], name: str, *, temporary: bool
    ) -> None:
        """Publishes the tables, and asks for the slot. `close` it, whatever comes of it."""
        self.targets, self.name = tuple(targets), name
        self.refused: dict[str, BronzeError] = {}
        self.published = 0
        self.sender: Connection | None = None
        self.error: BaseException | None = None
        self._stream, self._temporary = stream, temporary
        self._schemas = stream.settings.source[stream.origin.name].schema_
        self._holder: Connection | None = None
        self._held: Snapshot | None = None
        self._made = False
        self._stack, self._locked = ExitStack(), ExitStack()
        self._releasing = threading.Lock()
        self._done, self._stopped = threading.Event(), threading.Event()
        self._began = time.monotonic()
        self._look_at, self._said_at = self._began + _LONG / 2, 0.0
        self._open: frozenset[str] = frozenset()
        self._said: frozenset[str] | None = None
        self._thread = threading.Thread(target=self._run, name="bronze slot", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits for it; whether it is there, or has failed."""
        return self._done.wait(seconds)

    def wait_or_stop(self, who: str) -> None:
        """Waits for it for as long as it takes, and says whom it waits for; see `say`.

        Raises:
            Stopped: the stream is to end.
        """
        while not self.wait(_POLL):
            if self._stream.stop.is_set():
                raise Stopped
            self.say(who, "")

    @property
    def held(self) -> Snapshot:
        """The snapshot, with the tables locked, until it is closed.

        Raises:
            BronzeError: why there is none.
        """
        if self.error:
            raise self.error
        if self._held is None:
            raise Stopped
        return self._held

    def say(self, who: str, meanwhile: str) -> None:
        """Says whom it waits for, once it has for long, and again from time to time.

        Args:
            who: what waits for the slot, with its verb.
            meanwhile: what goes on, as a sentence; may be empty.
        """
        now = time.monotonic()
        if now < self._look_at or self._done.is_set():
            return
        self._look_at = now + _LOOK_EVERY
        long = now - self._began >= _LONG
        said = self._locks(who) if self._made else self._transactions(who)
        if said is None or not long:
            return
        whom, text = said
        every = _SAME_EVERY if whom == self._said else _OTHERS_EVERY
        if self._said is None or now - self._said_at >= every:
            self._said, self._said_at = whom, now
            self._stream.tell(Waiting(f"{text} {meanwhile}".rstrip()))

    def _transactions(self, who: str) -> tuple[frozenset[str], str] | None:
        found = slot_waits.open_transactions(self._stream.control)
        # Those that were open when it was looked last: the others come and go.
        lasting = [one for one in found if one.xid in self._open]
        self._open = frozenset(one.xid for one in found)
        text = f"{who} for a new replication slot, and that for"
        if lasting:
            named = slot_waits.describe_transactions(lasting)
            whom = frozenset(one.xid for one in lasting)
            return whom, f"{text} transactions that are still open: {named}."
        if time.monotonic() - self._began < _PUZZLING:
            return None
        return frozenset(), f"{text} the server; no transaction has been open for long."

    def _locks(self, who: str) -> tuple[frozenset[str], str] | None:
        holder = self._holder
        pids = (
            slot_waits.blocking_pids(self._stream.control, holder.info.backend_pid)
            if holder
            else ()
        )
        if not pids:
            return None
        named = ", ".join(map(str, pids))
        return frozenset(map(str, pids)), f"{who} for a table's lock, which pid {named} has taken."

    def close(self) -> None:
        """Ends it, and what it has locked; a temporary slot is gone then."""
        self._stopped.set()
        until = time.monotonic() + _LEAVING
        while not self._done.wait(_POLL):
            given_up = time.monotonic() > until
            for connection in (self.sender, self._holder):
                if connection and given_up:
                    sockets.cut(connection)
                elif connection:
                    with suppress(psycopg.Error):
                        connection.cancel_safe(timeout=1)
            if given_up:
                # What is only being connected is closed by the thread.
                break
        if self._done.wait(_POLL):
            self._release()

    def take_sender(self) -> Connection:
        """The connection on which it was made, to stream from it; snapshot and locks end.

        Raises:
            Stopped: there is none.
        """
        self._locked.close()
        if self.sender is None:
            raise Stopped
        return self.sender

    def _release(self) -> None:
        with self._releasing:
            self._locked.close()
            self._stack.close()

    # The thread

    def _run(self) -> None:
        try:
            with translation.source_errors(self._stream.origin):
                self._make()
        except BaseException as error:  # whatever it is, the one who waits has to hear of it
            self.error = error
        finally:
            self._done.set()
            if self._stopped.is_set():
                self._release()

    def _make(self) -> None:
        origin = self._stream.origin
        self._holder = connect.connect(origin)
        self._stack.callback(self._holder.close)
        self.refused, covered = publish(
            origin, self._holder, self._stream.publication, self.targets
        )
        self.targets, self.published = covered.targets, covered.oid
        wanted = [one for one in self.targets if one.label not in self.refused]
        sender = slot.walsender(origin)
        self._stack.callback(sender.close)
        self.sender = sender
        if self._stopped.is_set():
            return
        failover = not self._temporary
        made = slot.create(sender, self.name, temporary=self._temporary, failover=failover)
        failpoint.reach("slotted")
        self._made = True
        relations = [one.relation for one in wanted if one.relation.readable]
        exported = made.snapshot, made.position
        holding = snapshot.hold(origin, self._holder, relations, self._schemas, "run", exported)
        self._held = self._locked.enter_context(holding)
