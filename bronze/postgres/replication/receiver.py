"""Receives the changes of a replication slot over PostgreSQL's streaming replication protocol.

Source: PostgreSQL's documentation, "Streaming Replication Protocol". A thread receives messages,
groups whole transactions into batches, and sends status updates: that the client is alive, and how
far the slot may advance. It reads ahead while a batch is applied, up to its memory limit; then the
rest waits at the server. The part of a transaction beyond the memory goes into a temporary file.
"""

from __future__ import annotations

import select
import socket
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
from bronze.postgres.connection.translation import explain, source_errors
from bronze.postgres.replication import pgoutput, slot
from bronze.postgres.replication.batch import Batch, Piece, Spool, TableChanges
from bronze.postgres.replication.pgoutput import RelationMessage
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.postgres.statement import literal, quoted

# The messages of a batch are packed into pieces of about this size.
_PIECE = 8 * 2**20
# Larger than any value.
_LARGEST = 2**40
# The memory that a message takes beside its bytes.
_OVERHEAD = 60
_STATUS_INTERVAL = 5.0
# A process that was just killed may hold its slot for a moment.
_SLOT_PATIENCE, _SLOT_PAUSE = 5.0, 0.01
# How often the thread checks whether the stream is to end, a batch is due, or a status update is.
_PAUSE = 0.05
# The header of an XLogData message: its kind, two positions and a time.
_HEADER = 25
_DATA, _KEEPALIVE = b"wk"
_STATUS = struct.Struct(">cQQQqB")
_POSITION = struct.Struct(">Q")
_EPOCH = 946_684_800


class Receiver:
    """Receives batches in a thread, for the time of the context."""

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
        past: KnownTransactions | None = None,
        lost: Callable[[], None] = lambda: None,
        stop: threading.Event | None = None,
    ) -> None:
        """Takes over a connection in replication mode.

        Args:
            origin: the source, for errors.
            connection: to the server, opened with ``replication=database``; closed at the end.
            name: the name of the replication slot.
            publication: the name of the publication.
            tables: the oids of the tables to receive.
            interval: the seconds for which a batch collects transactions.
            memory: the bytes of messages at which a batch is complete.
            largest: the bytes that a change may have. A larger one is not received: its size is in
                `TableChanges.oversize`.
            past: the transactions that the server has to send again first.
            lost: called in the receiver's thread when the server has not answered for longer than
                its wal_sender_timeout.
            stop: ends the wait of `take` once it is set.
        """
        self._origin, self._connection, self._pg = origin, connection, connection.pgconn
        self._tables = frozenset(tables)
        self._interval, self._memory, self._largest = interval, memory, largest
        self._name = name
        names = literal(quoted(publication))
        options = f"(proto_version '1', publication_names {names})"
        self._start_command = f"START_REPLICATION SLOT {quoted(name)} LOGICAL 0/0 {options}"
        self._relations: dict[int, RelationMessage] = {}
        self._messages: dict[int, list[Any]] = {}
        self._marks: dict[int, list[tuple[int, int, int]]] = {}
        # The lists in it of the tables that the current transaction has changed.
        self._current: dict[int, list[Any]] = {}
        self._unpacked, self._full = 0, False
        # Whether the current transaction changed our tables: servers before 15 send empty ones.
        self._relevant = False
        self._batch, self._past = Batch(), past
        self._begin: pgoutput.Begin | None = None
        self._lock = threading.Condition()
        self._ready: Batch | None = None
        self._waiting = False
        self._error: BaseException | None = None
        self._stopped, self._stop = False, stop or threading.Event()
        # Wakes the thread while it waits for the server.
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._flushed = self._idle = 0
        self._last_status, self._status_interval = 0.0, _STATUS_INTERVAL
        self._server_timeout, self._last_received, self._on_lost = 0.0, 0.0, lost
        self._spools: list[Spool] = []
        self._thread = threading.Thread(target=self._run, name="bronze receiver", daemon=True)

    def __enter__(self) -> Receiver:
        try:
            with source_errors(self._origin):
                self._server_timeout = slot.sender_timeout(self._connection)
                slot.send_any_bytes(self._connection)
                until = time.monotonic() + _SLOT_PATIENCE
                while not self._start_streaming(last=time.monotonic() > until):
                    time.sleep(_SLOT_PAUSE)
        except BaseException:
            self._close()
            raise
        # While a batch waits, requests of the server are not read: it needs status updates unasked.
        self._status_interval = min(_STATUS_INTERVAL, self._server_timeout / 4 or _STATUS_INTERVAL)
        self._last_received = time.monotonic()
        self._thread.start()
        return self

    def _start_streaming(self, last: bool) -> bool:
        """Starts streaming; False while another session uses the slot.

        Raises:
            SourceBusy: the slot is in use at the ``last`` attempt, or was dropped.
        """
        result = self._pg.exec_(self._start_command.encode())
        if result.status == pq.ExecStatus.COPY_BOTH:
            return True
        error = _error(result)
        if isinstance(error, psycopg.errors.UndefinedObject):
            raise self._dropped_error(error) from error
        if not isinstance(error, psycopg.errors.ObjectInUse):
            raise error
        if last:
            raise SourceBusy(
                f"The replication slot {self._name} is in use.",
                hint="After wal_sender_timeout the server releases a slot whose client was lost.",
                sqlstate=error.sqlstate or "",
            ) from error
        return False

    def _dropped_error(self, error: psycopg.Error) -> SourceBusy:
        """The error of a slot or publication that was dropped: both are created again."""
        return SourceBusy(
            f"The source {self._origin.name} has ended the stream: {error.diag.message_primary}.",
            hint="The stream starts again with a new slot, and all tables are resynced.",
            sqlstate=error.sqlstate or "",
        )

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            self._wake()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for spool in self._spools:
            spool.close()
        with suppress(psycopg.Error):
            self._connection.close()
        self._bell.close()
        self._ringer.close()

    def _wake(self) -> None:
        """Makes the thread look at what has changed, instead of waiting; holds the lock."""
        self._lock.notify_all()
        # If its buffer is full, the thread wakes up anyway; if it is closed, the thread has ended.
        with suppress(OSError):
            self._ringer.send(b"\0")

    def take(self, patience: float, beyond: int) -> Batch | None:
        """Waits for the next batch.

        Args:
            patience: seconds to wait; the wait ends earlier when the stream is to stop.
            beyond: a position; the wait ends once `idle` is behind it.

        Returns:
            None if there is no batch by then.

        Raises:
            SourceUnreachable: the connection was lost.
            SourceRewound: the server was put back to an earlier state.
            SourceError: the server ended the stream.
        """
        with self._lock:
            self._waiting = True
            self._wake()
            self._lock.wait_for(
                lambda: self._ready or self._error or self._idle > beyond or self._stop.is_set(),
                patience,
            )
            self._waiting = False
            batch, self._ready = self._ready, None
            self._lock.notify_all()
            if batch is None and self._error:
                raise self._error
            return batch

    @property
    def idle(self) -> int:
        """The position before which all changes are in batches that were taken; 0: unknown."""
        with self._lock:
            return 0 if self._ready else self._idle

    def want(self, tables: Iterable[int]) -> None:
        """Receives later changes of these tables, too; ``tables`` are oids."""
        self._tables |= frozenset(tables)

    def confirm(self, position: int) -> None:
        """Lets the slot advance to ``position``: all changes before it are in the lake."""
        with self._lock:
            self._flushed = max(self._flushed, position)
            self._last_status = 0.0
            self._wake()

    def nudge(self) -> None:
        """Asks the server for its position."""
        with self._lock:
            self._last_status = 0.0
            self._wake()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._check_stop()
                self._status()
                if self._full or not self._receive():
                    self._wait()
                self._offer()
            with suppress(psycopg.Error):
                self._status(last=True)
        except psycopg.errors.UndefinedObject as error:
            # Servers before 18 end the stream if the publication does not exist.
            self._fail(self._dropped_error(error))
        except psycopg.Error as error:
            self._fail(explain(error, self._origin))
        except BaseException as error:  # the thread that waits for a batch has to get it
            self._fail(error)

    def _check_stop(self) -> None:
        """Ends the wait of `take` when the stream is to stop."""
        if self._stop.is_set():
            with self._lock:
                self._lock.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            self._lock.notify_all()

    def _receive(self) -> bool:
        """Processes the messages that have arrived; whether there were any."""
        get, received = self._pg.get_copy_data, False
        for _ in range(1000):
            size, message = get(1)
            if size <= 0:
                if size < 0:
                    self._raise_end()
                return received
            received = True
            if message[0] == _DATA:
                self._process(message)
            elif message[0] == _KEEPALIVE:
                self._keepalive(message)
            if self._full:
                return True
        return True

    def _raise_end(self) -> None:
        result = self._pg.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise _error(result)
        raise SourceUnreachable(
            f"The source {self._origin.name} has ended the stream.", hint="The stream starts again."
        )

    def _wait(self) -> None:
        if self._full:
            # Unread messages wait at the server.
            with self._lock:
                self._lock.wait(_PAUSE)
            self._last_received = time.monotonic()
            return
        due = self._batch.began + self._interval - time.monotonic()
        # A batch that is due waits for `take`, which wakes the thread.
        wait = min(_PAUSE, due) if self._batch.position and due > 0 else _PAUSE
        sources: list[Any] = [self._pg.socket, self._bell]
        readable = select.select(sources, [], [], wait)[0]
        if self._bell in readable:
            self._bell.recv(4096)
        if self._pg.socket in readable:
            self._pg.consume_input()
            self._last_received = time.monotonic()
        elif self._is_silent():
            self._on_lost()
            raise SourceUnreachable(
                f"The source {self._origin.name} has sent nothing for"
                f" {self._server_timeout:.0f} s.",
                hint="A firewall or proxy in between may have dropped the connection.",
            )

    def _is_silent(self) -> bool:
        """Whether the server has not answered for longer than its timeout."""
        silent = time.monotonic() - self._last_received
        patience = self._server_timeout + self._status_interval
        return self._server_timeout > 0 and silent > patience

    def _process(self, message: Any) -> None:
        if len(message) > self._largest and message[_HEADER] in pgoutput.CHANGES:
            self._discard_oversize(
                int.from_bytes(message[_HEADER + 1 : _HEADER + 5], "big"), len(message)
            )
            return
        # A copy takes less memory than libpq's buffer, which a view would keep.
        body = message[_HEADER:].tobytes()
        kind = body[0]
        if kind in pgoutput.CHANGES:
            oid = int.from_bytes(body[1:5], "big")
            if oid in self._current:
                self._current[oid].append(body)
                self._unpacked += len(body) + _OVERHEAD
                if self._unpacked > _PIECE:
                    self._pack()
            elif oid in self._tables:
                self._first_change(oid, body)
        elif kind == pgoutput.BEGIN:
            self._begin = pgoutput.read_begin(body)
            if not self._batch.position:
                self._batch.began = time.monotonic()
            self._current, self._relevant = {}, False
        elif kind == pgoutput.COMMIT:
            self._commit(pgoutput.read_commit(body))
        elif kind == pgoutput.RELATION:
            self._describe(pgoutput.read_relation(body))
        elif kind == pgoutput.TRUNCATE:
            for oid in pgoutput.read_truncate(body):
                self._truncate(oid)

    def _first_change(self, oid: int, body: Any) -> None:
        begin = self._begin
        if begin is None:
            raise Mismatch("The stream has a change outside of a transaction.")
        if self._table_changes(oid).oversize:
            return
        messages = self._messages.setdefault(oid, [])
        mark = (len(messages), begin.position, begin.committed)
        self._marks.setdefault(oid, []).append(mark)
        messages.append(body)
        self._unpacked += len(body) + _OVERHEAD
        self._current[oid] = messages

    def _table_changes(self, oid: int) -> TableChanges:
        self._relevant = True
        if oid not in self._batch.tables:
            if oid not in self._relations:
                raise Mismatch(f"The stream did not describe the relation {oid}.")
            self._batch.tables[oid] = TableChanges(self._relations[oid])
        return self._batch.tables[oid]

    def _describe(self, described: RelationMessage) -> None:
        oid = described.oid
        gathered = self._batch.tables.get(oid)
        if gathered:
            known = gathered.described
            gathered.drifted |= known.columns != described.columns
            # Only the columns that are sent with every change of the batch can be used.
            common = known.identifying & described.identifying
            gathered.described = replace(known, identifying=common)
        self._relations[oid] = described

    def _truncate(self, oid: int) -> None:
        if oid in self._tables and self._begin:
            self._discard(oid).truncated = self._begin.position

    def _discard_oversize(self, oid: int, size: int) -> None:
        """Discards the changes of a table with a change that is too large."""
        if oid in self._tables and self._begin:
            gathered = self._discard(oid)
            gathered.oversize = max(gathered.oversize, size)

    def _discard(self, oid: int) -> TableChanges:
        gathered = self._table_changes(oid)
        gathered.pieces.clear()
        self._messages.pop(oid, None)
        self._current.pop(oid, None)
        self._marks.pop(oid, None)
        return gathered

    def _commit(self, end: int) -> None:
        batch, begin = self._batch, self._begin
        self._begin = None
        if self._past and begin:
            self._past = self._past.check_commit(end, begin.committed)
        self._set_idle(0)
        batch.position = end
        batch.committed = begin.committed if begin else 0
        batch.transactions += self._relevant
        self._full = batch.size + self._unpacked >= self._memory
        self._offer()

    def _pack(self) -> None:
        """Packs the messages into pieces, and moves those beyond the memory into the spool."""
        for oid, messages in self._messages.items():
            lengths = np.fromiter(map(len, messages), np.int64, len(messages))
            piece = Piece(lengths, tuple(self._marks[oid]), b"".join(messages))
            self._batch.tables[oid].pieces.append(piece)
            self._batch.changes += len(messages)
            self._batch.size += len(piece.data)
            if self._batch.size > self._memory:
                piece.move_to_spool(self._spool())
        self._messages, self._marks, self._current, self._unpacked = {}, {}, {}, 0

    def _spool(self) -> Spool:
        """The spool of the batch."""
        if self._batch.spool is None:
            self._batch.spool = Spool()
            self._spools = [spool for spool in self._spools if not spool.closed]
            self._spools.append(self._batch.spool)
        return self._batch.spool

    def _offer(self) -> None:
        """Hands the batch over if it is due and `take` waits for it."""
        batch = self._batch
        if self._begin is not None or not batch.position:
            return
        with self._lock:
            if not batch.tables and not self._ready:
                # It has no changes of our tables.
                self._idle = max(self._idle, batch.position)
                self._batch = Batch()
                self._lock.notify_all()
                return
        due = time.monotonic() >= batch.began + self._interval
        if not due and batch.size + self._unpacked < self._memory:
            return
        with self._lock:
            if self._ready is None and (
                self._waiting or batch.size + self._unpacked > self._memory
            ):
                self._pack()
                self._ready, self._batch, self._full = batch, Batch(), False
                self._lock.notify_all()

    def _set_idle(self, position: int) -> None:
        with self._lock:
            self._idle = position
            self._lock.notify_all()

    def _keepalive(self, message: Any) -> None:
        (position,) = _POSITION.unpack_from(message, 1)
        if self._past and self._begin is None:
            self._past.check_position(position)
        if self._begin is None and not self._batch.position:
            self._set_idle(position)
        if message[17]:
            self._last_status = 0.0

    def _status(self, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._last_status < self._status_interval and not last:
            return
        self._last_status = now
        with self._lock:
            flushed = self._flushed
        clock = int((time.time() - _EPOCH) * 1_000_000)
        # Requests a reply, which has the position of the server.
        self._pg.put_copy_data(
            _STATUS.pack(b"r", flushed, flushed, flushed, clock, 0 if last else 1)
        )
        self._pg.flush()


def _error(result: pq.abc.PGresult) -> psycopg.Error:
    """The error of a result. One without SQLSTATE is of libpq: the connection was lost."""
    error = psycopg.errors.error_from_result(result)
    return error if error.sqlstate else psycopg.OperationalError(str(error))
