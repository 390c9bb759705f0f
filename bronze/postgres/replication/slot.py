"""Replication slots: creating, finding and dropping them, and positions of the server's log.

A position (LSN) is an integer here, as everywhere in bronze.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from bronze.errors import BronzeError, ConfigError, SourceBusy, SourceRefused
from bronze.model.locations import Origin
from bronze.postgres.catalog.types import SQL_ASCII
from bronze.postgres.connection.connect import Connection, log_in, open_connection
from bronze.postgres.connection.session_settings import pinning_statement
from bronze.postgres.connection.translation import source_errors
from bronze.postgres.statement import quoted

PLUGIN = "pgoutput"

_FAILOVER, _OPTIONS = 170000, 150000


@dataclass(frozen=True)
class Slot:
    """A logical replication slot, from pg_replication_slots.

    ``active_pid`` is the server process that streams from it (None: none). ``restart`` is the
    position from which the server keeps its log for the slot, ``confirmed`` the position that the
    consumer has confirmed; each may be None. ``wal_status`` is "reserved", "extended", "unreserved"
    or "lost" ("": unknown), ``safe_wal_size`` the bytes of log that can be written before the slot
    is in danger of being lost (None: no limit, or lost already), ``reason`` the invalidation reason
    ("": it is valid, or the server is too old to report one), ``retained`` the bytes of log since
    ``restart``.
    """

    name: str
    active_pid: int | None
    restart: int | None
    confirmed: int | None
    wal_status: str
    safe_wal_size: int | None
    reason: str
    retained: int
    plugin: str
    temporary: bool

    @property
    def is_invalidated(self) -> bool:
        """Whether the slot was invalidated: its changes are lost, and it cannot be used again."""
        return self.wal_status == "lost" or bool(self.reason)


@dataclass(frozen=True)
class CreatedSlot:
    """A slot that was just created.

    ``snapshot`` is the name of its exported snapshot, with exactly the transactions committed
    before ``position``. It can be imported until the next command on the slot's connection.
    """

    snapshot: str
    position: int


def lsn(text: str) -> int:
    """A position from PostgreSQL's text, ``X/Y`` in hexadecimal."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


# Older servers lack some columns: read through JSON, a missing column is NULL.
_FIND = """
SELECT s.active_pid, s.restart_lsn::text, s.confirmed_flush_lsn::text,
       coalesce(to_jsonb(s) ->> 'wal_status', ''), (to_jsonb(s) ->> 'safe_wal_size')::int8,
       coalesce(to_jsonb(s) ->> 'invalidation_reason', ''),
       coalesce((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                      ELSE pg_current_wal_lsn() END - s.restart_lsn)::int8, 0),
       coalesce(s.plugin, ''), s.temporary, coalesce(s.database, ''),
       coalesce(s.database = current_database(), false)
FROM pg_replication_slots s WHERE s.slot_name = %s
"""


def find(connection: Connection, name: str) -> Slot | None:
    """The slot called ``name``, or None. Needs no privileges beyond CONNECT.

    Raises:
        ConfigError: the slot is of another database or plugin, so bronze cannot use it.
        psycopg.Error
    """
    row: Any = connection.execute(_FIND, [name]).fetchone()
    if row is None:
        return None
    pid, restart, confirmed, status, safe, reason, retained, plugin, temporary, where, here = row
    if plugin != PLUGIN or not here:
        kind = f"one of plugin {plugin} in database {where}" if plugin else "a physical slot"
        raise ConfigError(
            f"The replication slot {name} is {kind}: bronze cannot stream from it.",
            hint="Choose another name for bronze's slot.",
        )
    return Slot(
        name=name,
        active_pid=pid,
        restart=None if restart is None else lsn(restart),
        confirmed=None if confirmed is None else lsn(confirmed),
        wal_status=status,
        safe_wal_size=safe,
        reason=reason,
        retained=retained,
        plugin=plugin,
        temporary=temporary,
    )


def create(replication: Connection, name: str, *, temporary: bool, failover: bool) -> CreatedSlot:
    """Creates a slot, and exports the snapshot at which its stream begins.

    Args:
        replication: a `walsender` connection, without an open transaction.
        name: the slot's name: lower case letters, digits and underscores.
        temporary: whether the slot ends with the connection, or with the next error on it.
        failover: whether the slot is synchronised to standbys (17 and later, permanent slots only).

    Raises:
        ConfigError: the slot exists already, or the name is not valid.
        SourceRefused: all slots of the server are in use, its wal_level is not logical, or the
            role does not have the privilege.
        psycopg.Error: the connection was lost, for example.
    """
    statement = _create_statement(name, replication.info.server_version, temporary, failover)
    try:
        row: Any = replication.execute(statement).fetchone()
    except tuple(_REFUSALS) as error:
        raise _refusal(error, name) from error
    return CreatedSlot(snapshot=row[2], position=lsn(row[1]))


def _create_statement(name: str, version: int, temporary: bool, failover: bool) -> sql.SQL:
    kind = " TEMPORARY" if temporary else ""
    if version < _OPTIONS:
        options = "EXPORT_SNAPSHOT"
    else:
        copied = failover and not temporary and version >= _FAILOVER
        options = f"(SNAPSHOT 'export'{', FAILOVER true' if copied else ''})"
    return sql.SQL(f"CREATE_REPLICATION_SLOT {quoted(name)}{kind} LOGICAL {PLUGIN} {options}")


Refusal = tuple[type[BronzeError], str, str]

_REFUSALS: dict[type[psycopg.Error], Refusal] = {
    pg.DuplicateObject: (
        ConfigError,
        "exists already",
        "Another copy of bronze may have created it just now: then run again. Otherwise choose"
        " another name for bronze's slot.",
    ),
    pg.InvalidName: (
        ConfigError,
        "cannot be created: PostgreSQL does not accept the name",
        "The name of a slot consists of lower case letters, digits and underscores, at most 63.",
    ),
    pg.ConfigurationLimitExceeded: (
        SourceRefused,
        "cannot be created: all replication slots of the server are in use",
        "Drop one that is not needed (SELECT slot_name FROM pg_replication_slots WHERE NOT active;"
        " SELECT pg_drop_replication_slot(…)), or raise max_replication_slots and restart.",
    ),
    pg.InsufficientPrivilege: (
        SourceRefused,
        "cannot be created: permission denied",
        "Give the role the REPLICATION attribute: ALTER ROLE … REPLICATION.",
    ),
    pg.ObjectNotInPrerequisiteState: (
        SourceRefused,
        "cannot be created: the server's log has no row changes",
        "ALTER SYSTEM SET wal_level = logical; then restart the server.",
    ),
}


def _refusal(error: psycopg.Error, name: str) -> BronzeError:
    kind, fault, hint = next(_REFUSALS[known] for known in _REFUSALS if isinstance(error, known))
    return kind(f"Replication slot {name} {fault}.", hint=hint, sqlstate=error.sqlstate or "")


def drop(connection: Connection, name: str) -> None:
    """Drops the slot, if it exists; the server then removes the log that it kept for it.

    Raises:
        ConfigError: the slot is not one of bronze's (see `find`).
        SourceBusy: a session streams from it. A walsender whose client was lost ends only after
            wal_sender_timeout.
        psycopg.Error
    """
    if find(connection, name) is None:
        return
    try:
        _drop_when_free(connection, name)
    except pg.UndefinedObject:
        return
    except pg.ObjectInUse as error:
        slot = find(connection, name)
        pid = slot.active_pid if slot else None
        raise SourceBusy(
            f"Replication slot {name} is in use by server process {pid}.",
            hint="Stop the copy of bronze that streams from it; if there is none, end the process:"
            f" SELECT pg_terminate_backend({pid}).",
            sqlstate=error.sqlstate or "",
        ) from error


def _drop_when_free(connection: Connection, name: str) -> None:
    """Drops a slot. A walsender ends a moment after its client has gone."""
    until = time.monotonic() + _LEAVING
    while True:
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
        except pg.ObjectInUse:
            if time.monotonic() > until:
                raise
            time.sleep(_END_PAUSE)
        else:
            return


_LEAVING = 2.0
_ABANDONED = """
SELECT s.slot_name::text, s.active_pid
FROM pg_replication_slots s
WHERE s.database = current_database() AND s.active_pid IS NOT NULL
  AND ((s.slot_name = %(own)s AND s.confirmed_flush_lsn IS NULL)
       OR (s.temporary AND s.slot_name ~ %(others)s))
"""
_TEMPORARY = 50
_END_PATIENCE, _END_PAUSE = 5.0, 0.02


def temporary_name(own: str, suffix: str) -> str:
    """The name of a temporary slot for the slot ``own``; ``suffix`` is 8 hexadecimal digits."""
    if len(own) > _TEMPORARY:
        digest = hashlib.blake2b(own.encode(), digest_size=4).hexdigest()
        own = f"{own[: _TEMPORARY - len(digest)]}{digest}"
    return f"{own}_{suffix}"


def end_abandoned(connection: Connection, own: str) -> None:
    """Ends server sessions of a killed process that are still creating the slot ``own``, or one of
    its temporary slots.

    The server notices that their client is gone only when the slot is created. To be called only
    by the session that has claimed the slot (see `claim`).

    Raises:
        SourceBusy: they do not end.
        psycopg.Error
    """
    arguments = {"own": own, "others": f"^{temporary_name(own, '[0-9a-f]{8}')}$"}
    until = time.monotonic() + _END_PATIENCE
    while abandoned := connection.execute(_ABANDONED, arguments).fetchall():
        for name, pid in abandoned:
            try:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
            except pg.InsufficientPrivilege as error:
                raise _abandoned_error(str(name), pid) from error
        if time.monotonic() > until:
            raise _abandoned_error(*map(str, abandoned[0]))
        time.sleep(_END_PAUSE)


def _abandoned_error(name: str, pid: object) -> SourceBusy:
    return SourceBusy(
        f"Replication slot {name} is being created by server process {pid}, whose client is gone.",
        hint=f"End it: SELECT pg_terminate_backend({pid}).",
    )


def walsender(origin: Origin) -> Connection:
    """Opens a connection that can create slots and stream from them, in autocommit mode.

    Its settings are those of `bronze.postgres.connection.connect.connect`, so that the values of
    pgoutput have the same texts as those of a SELECT. Its only timeout is wal_sender_timeout.
    It accepts only statements without parameters. After streaming, `close` it: the end of a
    ``with`` block would send COMMIT, which is an error in a stream.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    patient = replace(origin, statement_timeout=0, lock_timeout=0)

    def pinned(params: Mapping[str, str]) -> Connection:
        with source_errors(origin):
            given = {**params, "replication": "database"}
            connection = open_connection(origin, given, lasting=True)
            try:
                connection.execute(pinning_statement(patient).encode())
            except BaseException:
                connection.close()
                raise
            return connection

    return log_in(origin, pinned)


def send_any_bytes(sender: Connection) -> None:
    """Makes a `walsender` connection send texts of a database in SQL_ASCII as they are.

    Otherwise the server would end the stream, again and again, at bytes that are not valid UTF-8.

    Raises:
        psycopg.Error
    """
    row: Any = sender.execute("SHOW server_encoding").fetchone()
    if row[0] == SQL_ASCII:
        sender.execute(f"SET client_encoding = '{SQL_ASCII}'")


def flushed_position(connection: Connection) -> int:
    """The position up to which the server's log is flushed to disk.

    Raises:
        psycopg.Error: also on a standby, which does not write a log.
    """
    row: Any = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    return lsn(row[0])


@dataclass(frozen=True)
class ServerPosition:
    """Positions up to which the server's log is ``written`` (at least into memory) and ``flushed``
    (to disk), and its ``clock`` in microseconds since 1970.
    """

    written: int
    flushed: int
    clock: int


def server_position(connection: Connection) -> ServerPosition:
    """The current positions and clock of the server.

    Raises:
        psycopg.Error: also on a standby, which does not write a log.
    """
    query = """
        SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,
               (extract(epoch FROM clock_timestamp()) * 1000000)::int8
    """
    row: Any = connection.execute(query).fetchone()
    return ServerPosition(lsn(row[0]), lsn(row[1]), row[2])


_WRITTEN_POSITION = """
SELECT pg_current_wal_insert_lsn()::text,
       (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_writer_delay')
"""
# PostgreSQL's documentation, "Asynchronous Commit": the flush takes at most three delays.
_FLUSH_DELAYS = 3
# A server without processors does not keep to its delays.
_SHORTEST_FLUSH = 0.3
_PAUSE = 0.005


def committed_position(connection: Connection) -> int:
    """A flushed position that is behind all transactions committed by now.

    With synchronous_commit off, commits are flushed a moment later: this function waits for them.
    Other records may stay in memory for longer, and do not matter.

    Raises:
        psycopg.Error: also on a standby, which does not write a log.
    """
    row: Any = connection.execute(_WRITTEN_POSITION).fetchone()
    wait = max(_FLUSH_DELAYS * float(row[1]), _SHORTEST_FLUSH)
    written, until = lsn(row[0]), time.monotonic() + wait
    while (flushed := flushed_position(connection)) < written and time.monotonic() < until:
        time.sleep(_PAUSE)
    return flushed


def sender_timeout(connection: Connection) -> float:
    """The wal_sender_timeout in seconds, after which the server ends a silent stream; 0: never.

    It can be set per role and database: ask on the connection that streams, or on another one of
    the same role to the same database.
    """
    query = "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'"
    row: Any = connection.execute(query).fetchone()
    return int(row[0]) / 1000


def claim(connection: Connection, name: str) -> bool:
    """Takes an advisory lock for the slot, for as long as the connection lasts.

    False if another session of this database has it. The same session may take it repeatedly.
    """
    digest = hashlib.blake2b(f"bronze slot {name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, signed=True)
    row: Any = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
    return bool(row[0])


@dataclass(frozen=True)
class Session:
    """A session at the server; ``began`` distinguishes it from a later one with the same pid."""

    pid: int
    began: str


def session_of(connection: Connection) -> Session:
    """The session of a connection."""
    query = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    row: Any = connection.execute(query).fetchone()
    return Session(*row)


def end_sessions(connection: Connection, sessions: Iterable[Session]) -> None:
    """Ends sessions whose connection was lost, if the server has not noticed it yet."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid = %s AND backend_start = %s::timestamptz"
    )
    for lost in sessions:
        connection.execute(query, [lost.pid, lost.began])
