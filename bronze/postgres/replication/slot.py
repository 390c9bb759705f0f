"""Replication slots: where the server remembers, for us, from where on it must keep its log.

A position in the log (LSN) is an integer here, as everywhere in bronze.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bronze.errors import BronzeError, ConfigError, SourceBusy, SourceRefused
from bronze.model.locations import Origin
from bronze.postgres.catalog.types import ANY_BYTES
from bronze.postgres.connection.connect import Connection, mapped, parameters
from bronze.postgres.connection.session_settings import pinning
from bronze.postgres.statement import quoted

PLUGIN = "pgoutput"

_FAILOVER, _OPTIONS = 170000, 150000


@dataclass(frozen=True)
class Slot:
    """A logical replication slot as the server shows it.

    ``active_pid`` is the server process that streams from it, if one does. ``restart`` is the
    position from which on the server keeps its log for the slot, ``confirmed`` the one up to which
    the consumer has confirmed; each is None where the server has none. ``wal_status`` is
    "reserved", "extended", "unreserved" or "lost" ("" if the server does not say),
    ``safe_wal_size`` the bytes of log that can still be written before the slot is in danger of
    being lost (None: no limit, or lost already), ``reason`` why the slot was invalidated ("": it
    was not, or the server is too old to say), ``retained`` the bytes of log since ``restart``.
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
    def lost(self) -> bool:
        """Whether the slot can never be streamed from again: changes are missing for good."""
        return self.wal_status == "lost" or bool(self.reason)


@dataclass(frozen=True)
class Made:
    """A slot that was just made.

    ``snapshot`` is the name of the exported snapshot, which shows exactly what was committed
    before ``position``; it can be joined until the next command on the connection that made it.
    """

    snapshot: str
    position: int


def lsn(text: str) -> int:
    """A log position from PostgreSQL's text, ``X/Y`` in hexadecimal."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


# Newer servers know more columns: by way of JSON those that are missing are NULL.
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
    """The slot called ``name``, or None. Needs no rights beyond connecting.

    Raises:
        ConfigError: the slot belongs to another database or to another plugin: it is not ours.
        psycopg.Error
    """
    row: Any = connection.execute(_FIND, [name]).fetchone()
    if row is None:
        return None
    pid, restart, confirmed, status, safe, reason, retained, plugin, temporary, where, here = row
    if plugin != PLUGIN or not here:
        owner = f"of the plugin {plugin} in database {where}" if plugin else "for a standby"
        raise ConfigError(
            f"The replication slot {name} is one {owner}, not one that bronze can stream from.",
            hint="Give bronze's slot another name.",
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


def make(replication: Connection, name: str, *, temporary: bool, failover: bool) -> Made:
    """Makes a slot and exports the snapshot of the state at which its stream begins.

    Args:
        replication: a `walsender` connection, with no transaction open.
        name: the slot's; lower case letters, digits and underscores.
        temporary: the slot ends with the connection, or with the next error on it.
        failover: standbys get a copy of the slot, where the server knows how to (17 and later)
            and the slot is to last.

    Raises:
        ConfigError: the name is taken, or is not a slot's name.
        SourceRefused: the server's slots are all in use, its log has too little in it, or the role
            may not.
        psycopg.Error: the connection was cut, or the like.
    """
    statement = _making(name, replication.info.server_version, temporary, failover)
    try:
        row: Any = replication.execute(statement).fetchone()
    except tuple(_REFUSED) as error:
        raise _refused(error, name) from error
    return Made(snapshot=row[2], position=lsn(row[1]))


def _making(name: str, version: int, temporary: bool, failover: bool) -> sql.SQL:
    kind = " TEMPORARY" if temporary else ""
    if version < _OPTIONS:
        options = "EXPORT_SNAPSHOT"
    else:
        copied = failover and not temporary and version >= _FAILOVER
        options = f"(SNAPSHOT 'export'{', FAILOVER true' if copied else ''})"
    return sql.SQL(f"CREATE_REPLICATION_SLOT {quoted(name)}{kind} LOGICAL {PLUGIN} {options}")


Refusal = tuple[type[BronzeError], str, str]

_REFUSED: dict[type[psycopg.Error], Refusal] = {
    pg.DuplicateObject: (
        ConfigError,
        "is there already",
        "Another copy of bronze may have made it just now: run again then. Otherwise give bronze's"
        " slot another name.",
    ),
    pg.InvalidName: (
        ConfigError,
        "cannot be made: PostgreSQL does not take that name",
        "The name of a slot has lower case letters, digits and underscores, 63 at most.",
    ),
    pg.ConfigurationLimitExceeded: (
        SourceRefused,
        "cannot be made: all replication slots of the server are in use",
        "Drop one that nobody needs (SELECT slot_name FROM pg_replication_slots WHERE NOT active;"
        " SELECT pg_drop_replication_slot(…)), or raise max_replication_slots and restart.",
    ),
    pg.InsufficientPrivilege: (
        SourceRefused,
        "cannot be made: permission denied",
        "Give the role the REPLICATION attribute: ALTER ROLE … REPLICATION.",
    ),
    pg.ObjectNotInPrerequisiteState: (
        SourceRefused,
        "cannot be made: the server's log has too little in it to stream from",
        "ALTER SYSTEM SET wal_level = logical, and restart the server.",
    ),
}


def _refused(error: psycopg.Error, name: str) -> BronzeError:
    kind, what, hint = next(_REFUSED[known] for known in _REFUSED if isinstance(error, known))
    return kind(f"Replication slot {name} {what}.", hint=hint, sqlstate=error.sqlstate or "")


def drop(connection: Connection, name: str) -> None:
    """Drops the slot, if it is there; the server then gives up the log that it kept for it.

    Raises:
        ConfigError: the slot is not ours (see `find`).
        SourceBusy: somebody streams from it. A walsender whose client was cut off goes away only
            after wal_sender_timeout.
        psycopg.Error
    """
    if find(connection, name) is None:
        return
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except pg.UndefinedObject:
        return
    except pg.ObjectInUse as error:
        slot = find(connection, name)
        pid = slot.active_pid if slot else None
        raise SourceBusy(
            f"Replication slot {name} is in use by server process {pid}.",
            hint="Stop the copy of bronze that streams from it; if none does, end the process:"
            f" SELECT pg_terminate_backend({pid}).",
            sqlstate=error.sqlstate or "",
        ) from error


_ABANDONED = """
SELECT s.slot_name::text, s.active_pid
FROM pg_replication_slots s
WHERE s.database = current_database() AND s.active_pid IS NOT NULL
  AND ((s.slot_name = %(own)s AND s.confirmed_flush_lsn IS NULL)
       OR (s.temporary AND s.slot_name ~ %(others)s))
"""
_TEMPORARY = 50
_GONE_PATIENCE, _GONE_PAUSE = 5.0, 0.02


def temporary_name(own: str, suffix: str) -> str:
    """The name of a temporary slot beside the slot ``own``; ``suffix`` are 8 hexadecimal digits."""
    if len(own) > _TEMPORARY:
        digest = hashlib.blake2b(own.encode(), digest_size=4).hexdigest()
        own = f"{own[: _TEMPORARY - len(digest)]}{digest}"
    return f"{own}_{suffix}"


def end_abandoned(connection: Connection, own: str) -> None:
    """Ends what a process that was killed has left behind: sessions that still wait to make the
    slot ``own``, or a temporary one beside it.

    The server notices that their client is gone only once the slot is there. Call it only with the
    right to the slot (see `claim`).

    Raises:
        SourceBusy: they do not go.
        psycopg.Error
    """
    wanted = {"own": own, "others": f"^{temporary_name(own, '[0-9a-f]{8}')}$"}
    until = time.monotonic() + _GONE_PATIENCE
    while left := connection.execute(_ABANDONED, wanted).fetchall():
        for name, pid in left:
            try:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
            except pg.InsufficientPrivilege as error:
                raise _abandoned(str(name), pid) from error
        if time.monotonic() > until:
            raise _abandoned(*map(str, left[0]))
        time.sleep(_GONE_PAUSE)


def _abandoned(name: str, pid: object) -> SourceBusy:
    return SourceBusy(
        f"Replication slot {name} is being made by server process {pid}, whose client is gone.",
        hint=f"End it: SELECT pg_terminate_backend({pid}).",
    )


def walsender(origin: Origin) -> Connection:
    """A connection that can make slots and stream from them, in autocommit mode.

    It is pinned as `bronze.postgres.connection.connect.connect` pins, so that pgoutput's values
    have the same texts as those of a SELECT, and nothing on it times out but by wal_sender_timeout,
    which is the server's. It takes statements without parameters only. Once it streams, `close` it:
    leaving a ``with`` block says COMMIT, which a stream does not take.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    given = parameters(origin) | {"replication": "database"}
    with mapped(origin):
        connection = psycopg.connect(make_conninfo("", **given), autocommit=True)
        try:
            patient = replace(origin, statement_timeout=0, lock_timeout=0)
            connection.execute(pinning(patient).encode())
        except BaseException:
            connection.close()
            raise
        return connection


def take_all_bytes(sender: Connection) -> None:
    """Lets a `walsender` connection send texts of a database in SQL_ASCII as they are: else the
    server would end the stream, each time anew, at bytes that are no UTF-8.

    Raises:
        psycopg.Error
    """
    row: Any = sender.execute("SHOW server_encoding").fetchone()
    if row[0] == ANY_BYTES:
        sender.execute(f"SET client_encoding = '{ANY_BYTES}'")


def horizon(connection: Connection) -> int:
    """The position up to which the server's log is safe on its disk, at this moment.

    Raises:
        psycopg.Error: also on a standby, which writes no log.
    """
    row: Any = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    return lsn(row[0])


@dataclass(frozen=True)
class Moment:
    """How far the server is: positions up to which its log is ``written`` (into memory, at least)
    and ``flushed`` (to disk), and its clock, in microseconds since 1970.
    """

    written: int
    flushed: int
    clock: int


def moment(connection: Connection) -> Moment:
    """How far the server is now.

    Raises:
        psycopg.Error: also on a standby, which writes no log.
    """
    query = """
        SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,
               (extract(epoch FROM clock_timestamp()) * 1000000)::int8
    """
    row: Any = connection.execute(query).fetchone()
    return Moment(lsn(row[0]), lsn(row[1]), row[2])


_WRITTEN = """
SELECT pg_current_wal_insert_lsn()::text,
       (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_writer_delay')
"""
# PostgreSQL's documentation, "Asynchronous Commit": it lasts at most so many delays.
_DELAYS = 3
_PAUSE = 0.005


def settled(connection: Connection) -> int:
    """The position before which everything lies that is committed by now; it is on disk.

    With synchronous_commit off, commits are on disk a moment later, which is waited for. Other
    records may stay in memory for long, and concern nobody.

    Raises:
        psycopg.Error: also on a standby, which writes no log.
    """
    row: Any = connection.execute(_WRITTEN).fetchone()
    written, until = lsn(row[0]), time.monotonic() + _DELAYS * float(row[1])
    while (flushed := horizon(connection)) < written and time.monotonic() < until:
        time.sleep(_PAUSE)
    return flushed


def timeout(connection: Connection) -> float:
    """Seconds of silence after which the server cuts a stream (wal_sender_timeout); 0: never.

    It may be set for a role or a database: ask on the very connection that streams, or on another
    one of the same role to the same database.
    """
    query = "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'"
    row: Any = connection.execute(query).fetchone()
    return int(row[0]) / 1000


def claim(connection: Connection, name: str) -> bool:
    """Takes the right to work with the slot, for as long as the connection lasts.

    False if another session of this database has it. The same session gets it any number of times.
    """
    digest = hashlib.blake2b(f"bronze slot {name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, signed=True)
    row: Any = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
    return bool(row[0])


@dataclass(frozen=True)
class Session:
    """A session of ours at the server, told apart from a later one of the same process id."""

    pid: int
    began: str


def session(connection: Connection) -> Session:
    """The session of a connection."""
    query = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    row: Any = connection.execute(query).fetchone()
    return Session(*row)


def end(connection: Connection, sessions: Iterable[Session]) -> None:
    """Ends sessions whose connection was lost, where the server has not noticed it yet."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid = %s AND backend_start = %s::timestamptz"
    )
    for lost in sessions:
        connection.execute(query, [lost.pid, lost.began])
