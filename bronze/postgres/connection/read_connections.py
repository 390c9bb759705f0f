"""Connections that read rows: each joins a snapshot once, and then serves one read after another.

While a snapshot is held in this process (`keep_for`), a connection that a read has finished with
waits for the next read. In other processes each read closes its connection: nothing would tell that
the snapshot has ended, and an open transaction keeps PostgreSQL from removing dead rows; and one
process cannot use the idle connection of another, which may be the last that a role may have.

Each read is a subtransaction: rolling it back releases its locks and settings, and makes good for
its error, but leaves the snapshot. That is done when the connection is put back, so that it holds
no lock while it waits; the same statement repeats the settings, as the next read usually has the
same. Where reads share no snapshot, each is a transaction.
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg.pq import TransactionStatus

from bronze.model.locations import Origin
from bronze.postgres.connection import allowance
from bronze.postgres.connection.connect import Connection, connect_again, is_indirect

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_END_READ = "ROLLBACK TO SAVEPOINT one_read"
_CANCEL_TIMEOUT = 5.0

_Key = tuple[Origin, tuple[str, ...]]
_lock = threading.Lock()
# With each connection the settings that it has.
_idle: dict[_Key, list[tuple[Connection, tuple[str, ...]]]] = {}


@contextmanager
def keep_for(origin: Origin, session: Sequence[str]) -> Iterator[None]:
    """Keeps the connections of a snapshot for further reads, until the context ends."""
    key = (origin, tuple(session))
    with _lock:
        is_first = key not in _idle
        _idle.setdefault(key, [])
    try:
        yield
    finally:
        if is_first:
            with _lock:
                connections = _idle.pop(key, [])
            for connection, _ in connections:
                connection.close()


@contextmanager
def read_connection(
    origin: Origin, session: Sequence[str], settings: Sequence[str] = ()
) -> Iterator[Connection]:
    """A connection for one read; arguments and errors as of `take`."""
    connection = take(origin, session, settings)
    try:
        yield connection
    finally:
        put_back(origin, session, connection, settings)


def take(origin: Origin, session: Sequence[str], settings: Sequence[str] = ()) -> Connection:
    """A connection in a transaction, for one read: one that is kept, or else a new one.

    Args:
        origin: the database; of several servers, the one that was reached before.
        session: the statements that begin the transaction, and join the snapshot.
        settings: statements for this read alone.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError: there is no connection.
        psycopg.Error: the snapshot cannot be joined.
    """
    begin = (_END_READ,) if _is_shared(session) else tuple(session)
    while (kept := _pop(origin, session)) is not None:
        connection, current_settings = kept
        # One that was cut in the meantime is replaced.
        with suppress(psycopg.Error):
            if not _is_shared(session) or current_settings != tuple(settings):
                connection.execute("; ".join((*begin, *settings)).encode())
                return connection
            if not _has_input(connection):
                return connection
        connection.close()
    connection = connect_again(origin)
    try:
        savepoint = ["SAVEPOINT one_read"] if _is_shared(session) else []
        connection.execute("; ".join((*session, *savepoint, *settings)).encode())
    except BaseException:
        connection.close()
        raise
    return connection


def put_back(
    origin: Origin, session: Sequence[str], connection: Connection, settings: Sequence[str] = ()
) -> None:
    """Keeps a connection for the next read, or closes it; a query that still runs is canceled.

    ``settings`` are those with which it was taken.
    """
    with suppress(psycopg.Error):
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
        elif _is_kept(origin, session) and not connection.closed:
            next_read = (_END_READ, *settings) if _is_shared(session) else ("ROLLBACK",)
            connection.execute("; ".join(next_read).encode())
            with _lock:
                if (connections := _idle.get((origin, tuple(session)))) is not None:
                    connections.append((connection, tuple(settings)))
                    return
    connection.close()


def close_one(origin: Origin, session: Sequence[str]) -> None:
    """Closes a connection that is kept, if there is one: a read without it is about to begin, and
    there shall not be more connections than reads.
    """
    if (kept := _pop(origin, session)) is not None:
        kept[0].close()


def _close_any(origin: Origin) -> None:
    """Closes a connection to a source that is kept for any snapshot; another read waits for it."""
    with _lock:
        kept = [
            connections
            for (other, _), connections in _idle.items()
            if connections and allowance.is_same_source(other, origin)
        ]
        idle = kept[0].pop() if kept else None
    if idle is not None:
        idle[0].close()


allowance.reclaimers.append(_close_any)


def _has_input(connection: Connection) -> bool:
    """Whether the server has sent something to an idle connection: usually that it ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def _pop(origin: Origin, session: Sequence[str]) -> tuple[Connection, tuple[str, ...]] | None:
    with _lock:
        connections = _idle.get((origin, tuple(session)))
        return connections.pop() if connections else None


def _is_kept(origin: Origin, session: Sequence[str]) -> bool:
    # A pooler may have fewer connections than there are reads: each is given back to it.
    return (origin, tuple(session)) in _idle and not is_indirect(origin)


def _is_shared(session: Sequence[str]) -> bool:
    """Whether the reads of a session share a snapshot, so that its transaction may go on."""
    return any(statement.startswith("SET TRANSACTION SNAPSHOT") for statement in session)
