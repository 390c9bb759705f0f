"""The stream of changes, over PostgreSQL's streaming replication protocol.

Source: PostgreSQL's documentation, "Streaming Replication Protocol". A thread of its own receives
what the server sends, gathers whole transactions into batches, and tells the server that it is
alive and how far its slot may move on. It reads ahead while a batch is being landed, but never
more than its memory allows: then it leaves the rest with the server. What one transaction is
larger than is put aside in files.
"""

from __future__ import annotations

import select
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
from psycopg import pq

from bronze.errors import Mismatch, SourceBusy, SourceUnreachable
from bronze.model.locations import Origin
from bronze.postgres.connection.connect import explain, mapped
from bronze.postgres.replication import pgoutput, slot
from bronze.postgres.replication.batch import Batch, Gathered, Piece, Spool
from bronze.postgres.replication.pgoutput import Described
from bronze.postgres.replication.rewind import Past
from bronze.postgres.statement import literal, quoted

# What is gathered of a table is packed in pieces of this size.
_PIECE = 8 * 2**20
# No value has more.
_LARGEST = 2**40
# A message's share of memory beside its bytes.
_OVERHEAD = 60
_STATUS_EVERY = 5.0
# A process that was just killed may hold its slot for a moment.
_BUSY_PATIENCE = 5.0
_PATIENCE = 0.05
# Of the frame around each message: its kind, two positions and a time.
_FRAME = 25
_DATA, _ALIVE = b"wk"
_STATUS = struct.Struct(">cQQQqB")
_POSITION = struct.Struct(">Q")
_EPOCH = 946_684_800


class Receiver:
    """Receives batches in a thread of its own, for as long as the context lasts."""

    def __init__(
        self,
        origin: Origin,
        connection: psycopg.Connection[Any],
        name: str,
        publication: str,
        tables: Iterable[int],
        *,
        interval: float,
        memory: int,
        largest: int = _LARGEST,
        past: Past | None = None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes over a connection in replication mode.

        Args:
            origin: the source, for errors.
            connection: to the server, opened with ``replication=database``.
            name: the replication slot's.
            publication: the publication.
            tables: the oids of the tables that are wanted.
            interval: the seconds for which transactions are gathered.
            memory: how many bytes a batch may take before the next one is begun.
            largest: how many bytes a change may have; larger ones are left out, and told.
            past: what the server has to tell again first.
            lost: is told in the receiver's thread that the server has gone without a word: it has
                been silent for longer than its wal_sender_timeout, though it was asked.
        """
        self._origin, self._connection, self._pg = origin, connection, connection.pgconn
        self._tables = frozenset(tables)
        self._interval, self._memory, self._largest = interval, memory, largest
        self._name = name
        names = literal(quoted(publication))
        options = f"(proto_version '1', publication_names {names})"
        self._start = f"START_REPLICATION SLOT {quoted(name)} LOGICAL 0/0 {options}"
        self._relations: dict[int, Described] = {}
        self._open: dict[int, list[Any]] = {}
        self._marks: dict[int, list[tuple[int, int, int]]] = {}
        # Of what is open, that of the tables that the transaction at hand has touched.
        self._touched: dict[int, list[Any]] = {}
        self._kept, self._full = 0, False
        # Whether the transaction at hand is of our tables: servers before 15 send empty ones, too.
        self._ours = False
        self._batch, self._past = Batch(), past
        self._begin: pgoutput.Begin | None = None
        self._lock = threading.Condition()
        self._ready: Batch | None = None
        self._waiting = False
        self._error: BaseException | None = None
        self._stopped = False
        self._flushed = self._idle = 0
        self._told, self._every = 0.0, _STATUS_EVERY
        self._silence, self._heard, self._lost = 0.0, 0.0, lost
        self._spools: list[Spool] = []
        self._thread = threading.Thread(target=self._run, name="bronze receiver", daemon=True)

    def __enter__(self) -> Receiver:
        try:
            with mapped(self._origin):
                self._silence = slot.timeout(self._connection)
                slot.take_all_bytes(self._connection)
                until = time.monotonic() + _BUSY_PATIENCE
                while not self._begun(last=time.monotonic() > until):
                    time.sleep(_PATIENCE)
        except BaseException:
            self._close()
            raise
        # While a batch waits nothing is read: the server has to hear from us unasked.
        self._every = min(_STATUS_EVERY, self._silence / 4 or _STATUS_EVERY)
        self._heard = time.monotonic()
        self._thread.start()
        return self

    def _begun(self, last: bool) -> bool:
        """Asks for the stream; False while the slot is in somebody's use.

        Raises:
            SourceBusy: it still is, the ``last`` time; or somebody has dropped it.
        """
        result = self._pg.exec_(self._start.encode())
        if result.status == pq.ExecStatus.COPY_BOTH:
            return True
        error = _error(result)
        if isinstance(error, psycopg.errors.UndefinedObject):
            raise self._dropped(error) from error
        if not isinstance(error, psycopg.errors.ObjectInUse):
            raise error
        if last:
            raise SourceBusy(
                f"The slot {self._name} is in use.",
                hint="The server lets go of a connection that was cut after wal_sender_timeout.",
                sqlstate=error.sqlstate or "",
            ) from error
        return False

    def _dropped(self, error: psycopg.Error) -> SourceBusy:
        """The error where slot or publication were dropped: both are made anew."""
        return SourceBusy(
            f"The source {self._origin.name} has ended the stream: {error.diag.message_primary}.",
            hint="It is begun anew, and all tables are compared.",
            sqlstate=error.sqlstate or "",
        )

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for spool in self._spools:
            spool.close()
        with suppress(psycopg.Error):
            self._connection.close()

    def take(self, patience: float, beyond: int) -> Batch | None:
        """The next batch, None if there is none within ``patience`` seconds, or if nothing is left
        to land before a position ``beyond`` the one given.

        Raises:
            SourceUnreachable: the connection was lost.
            SourceRewound: the server's past is not what it was.
            SourceError: the server ended the stream.
        """
        with self._lock:
            self._waiting = True
            self._lock.wait_for(lambda: self._ready or self._error or self._idle > beyond, patience)
            self._waiting = False
            batch, self._ready = self._ready, None
            self._lock.notify_all()
            if batch is None and self._error:
                raise self._error
            return batch

    @property
    def idle(self) -> int:
        """The position before which nothing is left to land, once all batches taken have."""
        with self._lock:
            return 0 if self._ready else self._idle

    def want(self, tables: Iterable[int]) -> None:
        """Receives what happens from now on in these tables, too; ``tables`` are oids."""
        self._tables |= frozenset(tables)

    def confirm(self, position: int) -> None:
        """Lets the slot forget what is before ``position``."""
        with self._lock:
            self._flushed = max(self._flushed, position)
            self._told = 0.0

    def nudge(self) -> None:
        """Asks the server how far it is."""
        with self._lock:
            self._told = 0.0

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._status()
                if self._full or not self._received():
                    self._wait()
                self._offer()
            with suppress(psycopg.Error):
                self._status(last=True)
        except psycopg.errors.UndefinedObject as error:
            # Servers before 18 end the stream where there is no publication.
            self._fail(self._dropped(error))
        except psycopg.Error as error:
            self._fail(explain(error, self._origin))
        except BaseException as error:  # whatever it is, the one who waits has to hear of it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            self._lock.notify_all()

    def _received(self) -> bool:
        """Takes in what is there; whether there was anything."""
        get, found = self._pg.get_copy_data, False
        for _ in range(1000):
            size, message = get(1)
            if size <= 0:
                if size < 0:
                    self._ended()
                return found
            found = True
            if message[0] == _DATA:
                self._take_in(message)
            elif message[0] == _ALIVE:
                self._alive(message)
            if self._full:
                return True
        return True

    def _ended(self) -> None:
        result = self._pg.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise _error(result)
        raise SourceUnreachable(
            f"The source {self._origin.name} has ended the stream.", hint="It is begun again."
        )

    def _wait(self) -> None:
        if self._full:
            # What is not read stays with the server.
            with self._lock:
                self._lock.wait(_PATIENCE)
            self._heard = time.monotonic()
            return
        due = self._batch.began + self._interval - time.monotonic()
        wait = min(_PATIENCE, max(due, 0.005)) if self._batch.position else _PATIENCE
        if select.select([self._pg.socket], [], [], wait)[0]:
            self._pg.consume_input()
            self._heard = time.monotonic()
        elif self._silence and time.monotonic() - self._heard > self._silence + self._every:
            self._lost()
            raise SourceUnreachable(
                f"The source {self._origin.name} has not said a word for {self._silence:.0f} s.",
                hint="A firewall or a proxy between may have lost the connection.",
            )

    def _take_in(self, message: Any) -> None:
        if len(message) > self._largest and message[_FRAME] in pgoutput.CHANGES:
            self._outgrow(int.from_bytes(message[_FRAME + 1 : _FRAME + 5], "big"), len(message))
            return
        # A copy is smaller than the buffer that libpq gives, with all that keeps it alive.
        body = message[_FRAME:].tobytes()
        kind = body[0]
        if kind in pgoutput.CHANGES:
            oid = int.from_bytes(body[1:5], "big")
            if oid in self._touched:
                self._touched[oid].append(body)
                self._kept += len(body) + _OVERHEAD
                if self._kept > _PIECE:
                    self._pack()
            elif oid in self._tables:
                self._first(oid, body)
        elif kind == pgoutput.BEGIN:
            self._begin = pgoutput.begin(body)
            if not self._batch.position:
                self._batch.began = time.monotonic()
            self._touched, self._ours = {}, False
        elif kind == pgoutput.COMMIT:
            self._committed(pgoutput.commit(body))
        elif kind == pgoutput.RELATION:
            self._describe(pgoutput.relation(body))
        elif kind == pgoutput.TRUNCATE:
            for oid in pgoutput.truncate(body):
                self._empty(oid)

    def _first(self, oid: int, body: Any) -> None:
        begin = self._begin
        if begin is None:
            raise Mismatch("The stream has a change outside of a transaction.")
        if self._table(oid).oversize:
            return
        messages = self._open.setdefault(oid, [])
        mark = (len(messages), begin.position, begin.committed)
        self._marks.setdefault(oid, []).append(mark)
        messages.append(body)
        self._kept += len(body) + _OVERHEAD
        self._touched[oid] = messages

    def _table(self, oid: int) -> Gathered:
        self._ours = True
        if oid not in self._batch.tables:
            if oid not in self._relations:
                raise Mismatch(f"The stream did not describe the relation {oid}.")
            self._batch.tables[oid] = Gathered(self._relations[oid])
        return self._batch.tables[oid]

    def _describe(self, described: Described) -> None:
        oid = described.oid
        gathered = self._batch.tables.get(oid)
        if gathered:
            known = gathered.described
            gathered.drifted |= known.columns != described.columns
            # What counts is told with each of the batch's changes.
            gathered.described = replace(known, told=known.told & described.told)
        self._relations[oid] = described

    def _empty(self, oid: int) -> None:
        if oid in self._tables and self._begin:
            self._drop(oid).emptied = self._begin.position

    def _outgrow(self, oid: int, size: int) -> None:
        """Leaves out what has come of a table with a change that is too large."""
        if oid in self._tables and self._begin:
            gathered = self._drop(oid)
            gathered.oversize = max(gathered.oversize, size)

    def _drop(self, oid: int) -> Gathered:
        gathered = self._table(oid)
        gathered.pieces.clear()
        self._open.pop(oid, None)
        self._touched.pop(oid, None)
        self._marks.pop(oid, None)
        return gathered

    def _committed(self, end: int) -> None:
        batch, begin = self._batch, self._begin
        self._begin = None
        if self._past and begin:
            self._past = self._past.told(end, begin.committed)
        self._idle_at(0)
        batch.position = end
        batch.committed = begin.committed if begin else 0
        batch.transactions += self._ours
        self._full = batch.size + self._kept >= self._memory
        self._offer()

    def _pack(self) -> None:
        """Packs what is gathered; beyond the memory it is put into files."""
        for oid, messages in self._open.items():
            lengths = np.fromiter(map(len, messages), np.int64, len(messages))
            piece = Piece(lengths, tuple(self._marks[oid]), b"".join(messages))
            self._batch.tables[oid].pieces.append(piece)
            self._batch.changes += len(messages)
            self._batch.size += len(piece.data)
            if self._batch.size > self._memory:
                piece.put_aside(self._spool())
        self._open, self._marks, self._touched, self._kept = {}, {}, {}, 0

    def _spool(self) -> Spool:
        """The file of the batch."""
        if self._batch.spool is None:
            self._batch.spool = Spool()
            self._spools = [spool for spool in self._spools if not spool.closed]
            self._spools.append(self._batch.spool)
        return self._batch.spool

    def _offer(self) -> None:
        """Hands the batch over if it is due and somebody waits for it."""
        batch = self._batch
        if self._begin is not None or not batch.position:
            return
        with self._lock:
            if not batch.tables and not self._ready:
                # Nothing of it concerns us.
                self._idle = max(self._idle, batch.position)
                self._batch = Batch()
                self._lock.notify_all()
                return
        due = time.monotonic() >= batch.began + self._interval
        if not due and batch.size + self._kept < self._memory:
            return
        with self._lock:
            if self._ready is None and (self._waiting or batch.size + self._kept > self._memory):
                self._pack()
                self._ready, self._batch, self._full = batch, Batch(), False
                self._lock.notify_all()

    def _idle_at(self, position: int) -> None:
        with self._lock:
            self._idle = position
            self._lock.notify_all()

    def _alive(self, message: Any) -> None:
        (position,) = _POSITION.unpack_from(message, 1)
        if self._past and self._begin is None:
            self._past.passed(position)
        if self._begin is None and not self._batch.position:
            self._idle_at(position)
        if message[17]:
            self._told = 0.0

    def _status(self, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._told < self._every and not last:
            return
        self._told = now
        with self._lock:
            flushed = self._flushed
        clock = int((time.time() - _EPOCH) * 1_000_000)
        # An answer is asked for, as it tells how far the server is.
        self._pg.put_copy_data(
            _STATUS.pack(b"r", flushed, flushed, flushed, clock, 0 if last else 1)
        )
        self._pg.flush()


def _error(result: pq.abc.PGresult) -> psycopg.Error:
    """The error of a result. One without an SQLSTATE is libpq's own: the connection is gone."""
    error = psycopg.errors.error_from_result(result)
    return error if error.sqlstate else psycopg.OperationalError(str(error))
