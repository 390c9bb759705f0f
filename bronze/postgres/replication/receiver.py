"""Receives the changes of a replication slot over PostgreSQL's streaming replication protocol.

Source: PostgreSQL's documentation, "Streaming Replication Protocol". A thread receives messages,
groups whole transactions into batches, and sends status updates: that the client is alive, and how
far the slot may advance. It reads ahead while a batch is applied, up to its memory limit; then the
rest waits at the server. The part of a transaction beyond the memory goes into a temporary file.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg
from psycopg import pq

from bronze.errors import SourceBusy, SourceUnreachable
from bronze.model.locations import Origin
from bronze.postgres.connection.translation import explain, source_errors
from bronze.postgres.replication import pgoutput, slot
from bronze.postgres.replication.batch import Batch
from bronze.postgres.replication.batch_builder import BatchBuilder
from bronze.postgres.replication.messages import KEEPALIVE, LARGE, Messages, messages_of
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.postgres.statement import literal, quoted

# Larger than any value.
_LARGEST = 2**40
_STATUS_INTERVAL = 5.0
# A process that was just killed may hold its slot for a moment.
_SLOT_PATIENCE, _SLOT_PAUSE = 5.0, 0.01
# How often the thread checks whether the stream is to end, a batch is due, or a status update is.
_PAUSE = 0.05
_MOMENT = 0.001
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
        size: int = 0,
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
            memory: the bytes of messages that a batch has in memory; the others are in a file.
            size: the bytes of messages at which a batch is complete, if that is more.
            largest: the bytes that a change may have. A larger one is not received: its size is in
                `TableChanges.oversize`.
            past: the transactions that the server has to send again first.
            lost: called in the receiver's thread when the server has not answered for longer than
                its wal_sender_timeout.
            stop: ends the wait of `take` once it is set.
        """
        self._origin, self._connection, self._pg = origin, connection, connection.pgconn
        self._interval, self._size, self._largest = interval, max(memory, size), largest
        self._most_bytes = min(LARGE, self._size // 4)
        self._name = name
        names = literal(quoted(publication))
        options = f"(proto_version '1', publication_names {names})"
        self._start_command = f"START_REPLICATION SLOT {quoted(name)} LOGICAL 0/0 {options}"
        self._builder = BatchBuilder(tables, memory, past)
        self._unread: list[Messages] = []
        self._full = self._is_ended = False
        self._lock = threading.Condition()
        self._ready: Batch | None = None
        self._waiting = False
        self._error: BaseException | None = None
        self._stopped, self._stop = False, stop or threading.Event()
        # Wakes the thread while it waits for the server.
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for source in (self._pg.socket, self._bell):
            self._selector.register(source, selectors.EVENT_READ)
        self._flushed = self._idle = 0
        self._last_status, self._status_interval = 0.0, _STATUS_INTERVAL
        self._server_timeout, self._last_received, self._on_lost = 0.0, 0.0, lost
        self._heard_at = 0.0
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
        self._builder.close()
        with suppress(psycopg.Error):
            self._connection.close()
        self._selector.close()
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

    @property
    def heard_at(self) -> float:
        """The monotonic time of the last message of the server; 0 if there was none."""
        return self._heard_at

    def want(self, tables: Iterable[int]) -> None:
        """Receives later changes of these tables, too; ``tables`` are oids."""
        self._builder.tables |= frozenset(tables)

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
        unread, self._unread = self._unread, []
        for messages in unread:
            self._process(messages)
        views = self._read()
        if not views:
            return False
        self._last_received = self._heard_at = time.monotonic()
        arrived, start = messages_of(views, self._largest), 0
        for keepalive in np.flatnonzero(arrived.kinds == KEEPALIVE).tolist():
            self._process(arrived.between(start, keepalive))
            self._keepalive(arrived.whole(keepalive))
            start = keepalive + 1
        self._process(arrived.between(start, len(arrived)))
        return True

    def _read(self) -> list[Any]:
        """The messages that have arrived, up to a limit."""
        get, views, size, is_read = self._pg.get_copy_data, [], 0, False
        while not (self._full or self._is_ended) and size < self._most_bytes:
            count, view = get(1)
            if count > 0:
                # Small messages are copied at once, while they are in the processor's cache.
                views.append(bytes(view) if count < LARGE else view)
                size += count
                is_read = False
            elif count == 0 and not is_read:
                self._pg.consume_input()
                is_read = True
            else:
                self._is_ended = count < 0
                break
        if self._is_ended and not views:
            self._raise_end()
        return views

    def _process(self, messages: Messages) -> None:
        """Adds messages to the batch; those after its end, once it is complete, have to wait."""
        builder, ends = self._builder, np.flatnonzero(messages.kinds == pgoutput.COMMIT)
        end = int(ends[-1]) + 1 if len(ends) and not self._full else 0
        if end:
            builder.add(messages.between(0, end))
            self._set_idle(0)
            self._full = builder.size >= self._size
            self._offer()
        rest = messages.between(end, len(messages))
        if self._full and len(rest):
            self._unread.append(rest)
        else:
            builder.add(rest)

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
        batch = self._builder.batch
        due = batch.began + self._interval - time.monotonic()
        # A batch that is due waits for `take`, which wakes the thread.
        wait = min(_PAUSE, due) if batch.position and due > 0 else _PAUSE
        readable = {key.fileobj for key, _ in self._selector.select(wait)}
        if self._bell in readable:
            self._bell.recv(4096)
        if self._pg.socket in readable:
            # PostgreSQL sends each message by itself: a few at once take less of both sides.
            time.sleep(_MOMENT)
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

    def _offer(self) -> None:
        """Hands the batch over if it is due and `take` waits for it."""
        builder, batch = self._builder, self._builder.batch
        if builder.is_open or not batch.position:
            return
        with self._lock:
            if not batch.tables and not self._ready:
                # It has no changes of our tables.
                self._idle = max(self._idle, builder.take().position)
                self._lock.notify_all()
                return
        due = time.monotonic() >= batch.began + self._interval
        if not due and builder.size < self._size:
            return
        with self._lock:
            if self._ready is None and (self._waiting or builder.size > self._size):
                self._ready, self._full = builder.take(), False
                self._lock.notify_all()

    def _set_idle(self, position: int) -> None:
        with self._lock:
            self._idle = position
            self._lock.notify_all()

    def _keepalive(self, message: Any) -> None:
        (position,) = _POSITION.unpack_from(message, 1)
        builder = self._builder
        if not builder.is_open and not self._unread:
            if builder.past:
                builder.past.check_position(position)
            if not builder.batch.position:
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
