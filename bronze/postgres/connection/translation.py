"""The errors of bronze for the errors of psycopg: which class, which sentence, which hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg

from bronze import stopping
from bronze.errors import (
    BronzeError,
    SnapshotLost,
    SnapshotRefused,
    SourceBusy,
    SourceError,
    SourceRefused,
    SourceUnreachable,
    TableContested,
    TableRefused,
)
from bronze.model.locations import Origin
from bronze.postgres.connection import capacity
from bronze.postgres.connection.parameters import address

# SQLSTATE classes whose messages may quote values: data exception, integrity constraint violation,
# errors that functions raise.
_QUOTING_VALUES = ("22", "23", "P0")
_BUSY = (pg.TooManyConnections, pg.CannotConnectNow)
_CONNECTION_LOST = (
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.DatabaseDropped,
    pg.IdleInTransactionSessionTimeout,
    pg.ConnectionException,
)
# Deadlocks and lost races; a full disk, too little memory; a query that was canceled or took longer
# than its limit: the same query may succeed later.
_PASSING = ("40", "53", "57014")
_NOT_IN_UTF8 = (pg.CharacterNotInRepertoire, pg.UntranslatableCharacter)
# PostgreSQL 17 and later; and earlier versions, which use the SQLSTATE of a wrong value.
_SNAPSHOT_LOST = re.compile(
    'snapshot "[^"]*" does not exist|invalid snapshot identifier|could not import the requested'
)
_LOGIN = (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)

# (psycopg's error, predicate of the sentence about the table, hint)
_TABLE_ERRORS: Sequence[tuple[type[psycopg.Error], str, str]] = (
    (
        pg.InsufficientPrivilege,
        "cannot be read: permission denied",
        "GRANT USAGE on its schema and SELECT on the table to the role that bronze uses; where"
        ' row-level security hides rows, give it BYPASSRLS or set row_security = "apply".',
    ),
    (pg.UndefinedTable, "does not exist", "It was dropped or renamed; see `bronze check`."),
    (
        pg.UndefinedColumn,
        "lost a column after the run was planned",
        "Run again: the next run reads the new columns.",
    ),
    (
        pg.LockNotAvailable,
        "is locked by another session for longer than lock_timeout",
        "Wait until the ALTER or VACUUM FULL on it ends, or raise [source] lock_timeout.",
    ),
    (
        pg.QueryCanceled,
        "took longer to read than statement_timeout allows",
        "Raise [source] statement_timeout, or the role's own.",
    ),
)

_FOREIGN_HINT = (
    "The table is on a foreign server: check that the server answers and that the role that bronze"
    " uses has a user mapping (CREATE USER MAPPING); or leave the table out with [source] exclude."
)
# By the beginning of the SQLSTATE: no user mapping, no answer, an error of a foreign data wrapper;
# a materialized view that was never populated.
_TABLE_HINTS = {
    "42704": _FOREIGN_HINT,
    "08001": _FOREIGN_HINT,
    "HV": _FOREIGN_HINT,
    "55000": "REFRESH MATERIALIZED VIEW fills it; or leave it out with [source] exclude.",
}

# By `bronze.postgres.copy.snapshot.Snapshot.give_way`, or by an operator.
CANCELED = "canceling statement due to user request"


def contested_error(table: str) -> TableContested:
    """The error of a table whose reads were canceled because another session waits to change it."""
    return TableContested(
        f"Another session waits to change table {table} (ALTER, TRUNCATE or VACUUM FULL), so the"
        " reads of the table, which would wait behind it, were canceled.",
        hint="Run again when that session is done; `bronze run` retries by itself, up to"
        " max_retries times.",
        table=table,
        sqlstate="57014",
    )


_RECOVERY_CONFLICT = "due to conflict with recovery"
STANDBY_HINT = (
    "Set hot_standby_feedback = on on the standby, and its max_standby_streaming_delay to more than"
    " a run takes; bronze retries by itself, up to max_retries times."
)


def _conflict_error(error: psycopg.Error, where: str, table: str, text: str) -> BronzeError:
    """The error of a statement or session that a standby has ended."""
    why = f"{text}: {error.diag.message_detail or ''}".rstrip(".: ")
    kind: type[BronzeError] = TableContested if table else SnapshotLost
    subject = f"reads of table {table}" if table else "the snapshot of this run"
    return kind(
        f"{where} is a standby, whose replay did not wait longer for {subject} ({why}).",
        hint=STANDBY_HINT,
        table=table,
        sqlstate=error.sqlstate or "",
    )


_UNDEFINED = (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedObject, pg.InvalidSchemaName)
# How SQLSTATEs begin: of a lost connection, a refused login, a server that shuts down.
_CONNECTION_STATES = ("08", "28", "57P")


def is_of_connection(error: psycopg.Error) -> bool:
    """Whether an error is of a connection or a login, and not of a statement. libpq's errors of
    connections have no SQLSTATE.
    """
    return not error.sqlstate or error.sqlstate.startswith(_CONNECTION_STATES)


SEARCH_PATH_HINT = (
    "bronze's sessions have an empty search_path, as pg_dump's do, so that no function of another"
    " schema is called by mistake. Qualify the names in the function with their schemas, or give"
    " the function a search_path: ALTER FUNCTION … SET search_path = …."
)


def unqualified_name(table: str) -> str:
    """The message for a view or constraint whose function needs a search_path."""
    return f"Table {table} calls a function that uses a name without its schema"


@contextmanager
def source_errors(origin: Origin, table: str = "") -> Iterator[None]:
    """Raises psycopg's errors as errors of bronze (see `explain`)."""
    try:
        yield
    except psycopg.Error as error:
        raise explain(error, origin, table) from error


Explanation = tuple[type[BronzeError], str, str]
"""The class of an error, its message and its hint."""


def explain(error: psycopg.Error, origin: Origin, table: str = "") -> BronzeError:
    """The error of bronze for one of psycopg's. ``table`` is the label of the table being read.

    Work that is asked to stop has its queries canceled and its connections cut: that is `Stopped`.
    """
    if stopping.is_requested():
        return stopping.error(table)
    state = error.sqlstate or ""
    where = address(origin)
    text = line = _first_line(error)
    if state[:2] in _QUOTING_VALUES:
        text = f"{type(error).__name__} (SQLSTATE {state})"
    if _RECOVERY_CONFLICT in text:
        return _conflict_error(error, where, table, text)
    explanation = _login_error(error, origin, where, text)
    if explanation is None:
        no_state = isinstance(error, psycopg.OperationalError) and not state
        if no_state or isinstance(error, _CONNECTION_LOST):
            return _connection_error(origin, where, text)
        if table and isinstance(error, pg.QueryCanceled) and CANCELED in text:
            return contested_error(table)
        if _SNAPSHOT_LOST.match(line):
            message = f"The snapshot of this run at {where} no longer exists: {line}."
            explanation = SnapshotLost, message, ""
        elif table:
            explanation = _table_error(error, where, table, text)
        else:
            explanation = _database_error(error, where, text)
    kind, message, hint = explanation
    return kind(message, hint=hint, table=table, sqlstate=state)


_RETRIED = "bronze retries by itself."
_LOGIN_HINT = "Check user, password and database of the connection string."
_IDENTITY_HINT = (
    "Check the user of the connection string, that the server lets it log in with tokens, the"
    " rights of the identity, and the clock of this machine: tokens are for a time."
)


def _login_error(error: psycopg.Error, origin: Origin, where: str, text: str) -> Explanation | None:
    if limit := capacity.limit_reached(origin, text):
        subject, hint = limit
        message = f"{where} has no free connection: the CONNECTION LIMIT of {subject} is reached."
        return SourceBusy, message, hint
    if isinstance(error, _BUSY):
        return SourceBusy, f"{where} has no free connection: {text}.", _RETRIED
    if isinstance(error, _LOGIN):
        hint = _IDENTITY_HINT if origin.auth else _LOGIN_HINT
        return SourceRefused, f"{where} refused the login: {text}.", hint
    return None


def _table_error(error: psycopg.Error, where: str, table: str, text: str) -> Explanation:
    if isinstance(error, _UNDEFINED) and error.diag.context:
        return TableRefused, f"{unqualified_name(table)} ({text}).", SEARCH_PATH_HINT
    for kind, predicate, hint in _TABLE_ERRORS:
        if isinstance(error, kind):
            return TableRefused, f"Table {table} {predicate} ({text}).", hint
    state = error.sqlstate or ""
    hint = next((hint for start, hint in _TABLE_HINTS.items() if state.startswith(start)), "")
    return TableRefused, f"Table {table} at {where} could not be read: {text}.", hint


def _database_error(error: psycopg.Error, where: str, text: str) -> Explanation:
    if isinstance(error, _NOT_IN_UTF8):
        return (
            SourceError,
            f"{where} cannot send a text as UTF-8: the name of a table, a column, an index or a"
            f" type, or a value in a stream ({text}).",
            "Rename the object (psql shows its name after SET client_encoding = 'SQL_ASCII'), or"
            " correct the value in the source (`bronze run` reports its row).",
        )
    if isinstance(error, pg.LockNotAvailable):
        return SourceBusy, f"Another session holds a lock at {where}: {text}.", _RETRIED
    if (error.sqlstate or "").startswith(_PASSING):
        return SourceBusy, f"{where} could not answer: {text}.", _RETRIED
    if isinstance(error, (pg.FeatureNotSupported, pg.ObjectNotInPrerequisiteState)):
        return SnapshotRefused, f"{where} cannot export a snapshot: {text}.", SNAPSHOT_HINT
    return SourceError, f"{where} could not be read: {text}.", ""


SNAPSHOT_HINT = (
    "Connect to the primary directly, not through a pooler; or set [source] consistency ="
    ' "per-table", with which each table is read at a time of its own.'
)


_UNREACHABLE_HINT = (
    "Check host and port, that PostgreSQL runs, and that no firewall blocks the connection."
)
# libpq gives no SQLSTATE for a connection that it could not open, only a message:
# (words in it, error class, predicate of the sentence about the server, hint)
_CONNECTION_ERRORS: Sequence[tuple[tuple[str, ...], type[SourceError], str, str]] = (
    (("resolve host", "translate host"), SourceUnreachable, "cannot be reached", _UNREACHABLE_HINT),
    (
        ("conversion between",),
        SourceRefused,
        "cannot send its texts as UTF-8",
        "Copy the database into one whose encoding PostgreSQL can convert.",
    ),
    (
        ("too many clients", "remaining connection slots", "too many connections"),
        SourceBusy,
        "has no free connection",
        "Close some connections, or raise the server's max_connections.",
    ),
    (
        ("password", "authentication", "does not exist", "pg_hba", "not permitted to log in"),
        SourceRefused,
        "refused the login",
        _LOGIN_HINT,
    ),
    (
        ("unexpected eof", "eof detected", "syscall error", "reset by peer"),
        SourceUnreachable,
        "closed the connection",
        _UNREACHABLE_HINT,
    ),
    (
        ("ssl", "certificate"),
        SourceRefused,
        "cannot be used over TLS",
        "Check sslmode and sslrootcert of the connection string. Where the server has no TLS, set"
        " ssl = on there; only for a server on this machine leave sslmode out.",
    ),
    (
        ("standby connections exceeds",),
        SourceBusy,
        "has no free WAL sender",
        "Close another replication connection, or raise the server's max_wal_senders.",
    ),
    (
        # PostgreSQL 15 and earlier write "walsender".
        ("start wal sender", "start walsender", "startup parameter: replication"),
        SourceRefused,
        "refused a replication connection",
        "Give the role the REPLICATION attribute (ALTER ROLE … REPLICATION), and connect to the"
        " server directly, not through a pooler.",
    ),
    (
        (),
        SourceUnreachable,
        "cannot be reached",
        _UNREACHABLE_HINT,
    ),
)


def _connection_error(origin: Origin, where: str, text: str) -> SourceError:
    lower = text.lower()
    for words, kind, predicate, hint in _CONNECTION_ERRORS:
        if not words or any(word in lower for word in words):
            if origin.auth and hint == _LOGIN_HINT:
                hint = _IDENTITY_HINT
            return kind(f"{where} {predicate}: {text}.", hint=hint)
    raise AssertionError("the last entry matches everything")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # libpq puts host and port before the reason; our messages have the address already.
    return (lines[0] if lines else type(error).__name__).rpartition("failed: ")[2].rstrip(".")
