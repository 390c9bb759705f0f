"""Connections to PostgreSQL: one way to make them, one way to name what goes wrong.

Every session is pinned to the same settings, so that a value has one text form whatever the
server, the database or the role say.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from bronze import secrets
from bronze.dsn import parse_dsn
from bronze.errors import (
    BronzeError,
    ConfigError,
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
from bronze.postgres.connection import capacity, pooler, session_settings
from bronze.postgres.connection.sockets import cut as cut

# What the pool's own threads meet is met, and said, by the next connection that we ask for.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

Connection = psycopg.Connection[tuple[object, ...]]
Pool = ConnectionPool[Connection]

_POOL_PATIENCE = 30

OLDEST = 12
"""The oldest major version of PostgreSQL that can be read."""


def parameters(origin: Origin) -> dict[str, str]:
    """Libpq's connection parameters with the password in them.

    Raises:
        ConfigError: a secret cannot be found, or the connection string is not one.
    """
    text = secrets.resolve(origin.dsn) if origin.dsn else origin.conninfo
    given = parse_dsn(text, origin.name)
    if origin.password:
        given["password"] = secrets.resolve(origin.password)
    given.setdefault("application_name", origin.application_name)
    given.setdefault("connect_timeout", str(origin.connect_timeout))
    given.setdefault("keepalives_idle", "30")
    # From the first message on: psycopg does not know all encodings that a database may have.
    given["client_encoding"] = session_settings.PINNED["client_encoding"]
    return given


def connect(origin: Origin) -> Connection:
    """One connection of its own, in autocommit mode, pinned.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    with mapped(origin):
        connection = psycopg.connect(make_conninfo("", **parameters(origin)), autocommit=True)
        try:
            _pin(connection, origin)
        except BaseException:
            connection.close()
            raise
        return connection


def _pin(connection: Connection, origin: Origin) -> None:
    _refuse_old(connection, origin)
    ours = pooler.direct(connection) if origin not in _ours else ""
    row: Any = connection.execute(
        session_settings.pinning(origin, condition=ours).encode()
    ).fetchone()
    if row is None:
        _refuse_lent(connection, origin)
        _ours.add(origin)
        row = connection.execute(session_settings.pinning(origin).encode()).fetchone()
    for name, value in zip(
        session_settings.LOSSY, row[-len(session_settings.LOSSY) :], strict=True
    ):
        if value == "on":
            raise SourceRefused(
                f"Sessions at {address(origin)} have {name} on: damaged pages would be taken for"
                " empty, or for whole, and nobody would know which rows are missing.",
                hint=f"ALTER ROLE … RESET {name}, or wherever it is set: pg_settings says where.",
            )


def _refuse_old(connection: Connection, origin: Origin) -> None:
    if connection.info.server_version < OLDEST * 10_000:
        found = connection.info.parameter_status("server_version")
        raise SourceRefused(
            f"{address(origin)} is PostgreSQL {found}; servers are read from {OLDEST} on.",
            hint="Upgrade the server.",
        )


# Those that lead through something else to the server, where sessions were found to be ours.
_ours: set[Origin] = set()


def through(origin: Origin) -> bool:
    """Whether connections lead through something else to the server, such as a pooler."""
    return origin in _ours


def _refuse_lent(connection: Connection, origin: Origin) -> None:
    """Refuses a pooler that lends the session to others, before anything is set in it."""
    given = parameters(origin)
    conninfo = make_conninfo("", **given)
    try:
        pids = pooler.lent(
            connection,
            lambda: psycopg.connect(conninfo, autocommit=True),
            origin.connect_timeout or _POOL_PATIENCE,
        )
    except TimeoutError:
        raise SourceBusy(
            f"{address(origin)} leads through a pooler, which gave no server connection within"
            f" {origin.connect_timeout or _POOL_PATIENCE} s.",
            hint=_POOLER_HINT,
        ) from None
    except psycopg.Error as error:
        mine = explain(error, origin)
        mine.hint = f"{mine.hint} {_POOLER_HINT}".strip()
        raise mine from error
    if pids:
        met = " and ".join(str(pid) for pid in dict.fromkeys(pids))
        raise SourceRefused(
            f"{address(origin)} leads through a pooler that changes the server connection between"
            f" transactions: a session of ours has met what is not its own (process {met}).",
            hint=_POOLER_HINT,
        )


_POOLER_HINT = (
    "Connect to PostgreSQL itself, or to the pooler in session mode (pgbouncer: pool_mode = session"
    " for this database), with at least three server connections."
)


def located(origin: Origin) -> dict[str, str]:
    """Libpq's parameters for the very server that a connection reached, with the password.

    What libpq finds out for itself (environment, service and password files, which of several
    hosts answers) is found out once per process by a connection, for clients that cannot; until
    `forget`. From then on this only asks whether the server is there.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    if origin in _located:
        _knock(origin, _located[origin])
    else:
        with connect(origin) as connection:
            locate(origin, connection)
    return _located[origin]


def locate(origin: Origin, connection: Connection) -> None:
    """Remembers where ``connection`` leads, so that `located` needs none of its own."""
    info = connection.info
    found = {**info.get_parameters(), "host": info.host, "port": str(info.port)}
    found |= {"user": info.user, "dbname": info.dbname}
    if info.hostaddr and not info.host.startswith("/"):
        found["hostaddr"] = info.hostaddr
    if info.password:
        found["password"] = info.password
    _located[origin] = found


_located: dict[Origin, dict[str, str]] = {}


def forget(origin: Origin) -> None:
    """Lets the next connection find out anew, after a failure: a password may have changed."""
    _located.pop(origin, None)
    _ours.discard(origin)


def _knock(origin: Origin, given: Mapping[str, str]) -> None:
    # A login would take one of the connections that the config allows.
    host, port = given.get("hostaddr") or given["host"], given["port"]
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(f"{host}/.s.PGSQL.{port}")
        else:
            socket.create_connection((host, int(port)), origin.connect_timeout or None).close()
    except OSError as error:
        raise SourceUnreachable(
            f"{address(origin)} cannot be reached: {error.strerror or 'no answer'}.",
            hint="Check that it runs, and that no firewall stands between.",
        ) from None


@contextmanager
def pool(origin: Origin, minimum: int, maximum: int) -> Iterator[Pool]:
    """A pool of pinned connections in autocommit mode, for control queries.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError: the first connection failed.
    """
    # A pool only reports that time ran out; the first connection tells why.
    connect(origin).close()
    with ConnectionPool(
        make_conninfo("", **parameters(origin)),
        connection_class=psycopg.Connection[tuple[object, ...]],
        kwargs={"autocommit": True},
        configure=lambda connection: _pin(connection, origin),
        min_size=minimum,
        max_size=maximum,
        timeout=origin.connect_timeout or _POOL_PATIENCE,
        name=f"bronze-{origin.name}",
        open=True,
    ) as opened:
        with mapped(origin):
            try:
                # Asked for a connection before it has one, the pool would open two.
                opened.wait(origin.connect_timeout or _POOL_PATIENCE)
            except PoolTimeout:
                # As many by themselves tell why.
                with ExitStack() as stack:
                    for _ in range(minimum):
                        stack.enter_context(connect(origin))
                raise
        yield opened


def cancel(origin: Origin) -> None:
    """Ends the queries that run under the origin's application name."""
    with mapped(origin), connect(origin) as connection:
        connection.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND pid <> pg_backend_pid()",
            [origin.application_name],
        )


@contextmanager
def mapped(origin: Origin, table: str = "") -> Iterator[None]:
    """Turns psycopg's errors into ours."""
    try:
        yield
    except PoolTimeout:
        raise SourceBusy(
            f"Source {origin.name} gave no connection within {origin.connect_timeout} s.",
            hint="Raise [source] pool.max, the server's max_connections, or the CONNECTION LIMIT of"
            " the role or the database.",
            table=table,
        ) from None
    except psycopg.Error as error:
        raise explain(error, origin, table) from error


def address(origin: Origin) -> str:
    """Where the source is, for people: ``host:port/database``, without secrets."""
    try:
        given = parameters(origin)
    except ConfigError:
        return origin.name
    host = given.get("host", "localhost")
    return f"{host}:{given.get('port', '5432')}/{given.get('dbname', given.get('user', ''))}"


# The SQLSTATE classes of errors that values cause: data exception, integrity constraint violation,
# and what a function raises.
_OF_VALUES = ("22", "23", "P0")
_BUSY = (pg.TooManyConnections, pg.CannotConnectNow)
_GONE = (
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.DatabaseDropped,
    pg.IdleInTransactionSessionTimeout,
    pg.ConnectionException,
)
_NO_TEXT = (pg.CharacterNotInRepertoire, pg.UntranslatableCharacter)
# Of 17 and later, and of those before, whose SQLSTATE is that of a wrong value.
_GONE_SNAPSHOT = re.compile(
    'snapshot "[^"]*" does not exist|invalid snapshot identifier|could not import the requested'
)
_LOGIN = (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)

# (SQLSTATE's error, what to say after the table's name, what to do)
_TABLE: Sequence[tuple[type[psycopg.Error], str, str]] = (
    (
        pg.InsufficientPrivilege,
        "cannot be read: permission denied",
        "GRANT USAGE on its schema and SELECT on the table to the role that bronze uses; where"
        ' row-level security hides rows, give it BYPASSRLS or set row_security = "apply".',
    ),
    (pg.UndefinedTable, "does not exist", "It was dropped or renamed; see `bronze check`."),
    (
        pg.UndefinedColumn,
        "has lost a column that was there when the run was planned",
        "Run again: the new columns are then taken.",
    ),
    (
        pg.LockNotAvailable,
        "is locked by somebody else for longer than lock_timeout",
        "Wait for the ALTER or VACUUM FULL on it to end, or raise [source] lock_timeout.",
    ),
    (
        pg.QueryCanceled,
        "took longer to read than statement_timeout allows",
        "Raise [source] statement_timeout, or the role's own.",
    ),
)


_ELSEWHERE = (
    "It is read from a foreign server: see that this answers, and that the role that bronze uses"
    " has a mapping (CREATE USER MAPPING); or leave the table out with [source] exclude."
)
# What a SQLSTATE, or its beginning, says of a table that was not read: no user mapping, no answer,
# a fault of a foreign data wrapper; a materialized view that was never populated.
_UNREAD = {
    "42704": _ELSEWHERE,
    "08001": _ELSEWHERE,
    "HV": _ELSEWHERE,
    "55000": "REFRESH MATERIALIZED VIEW fills it; or leave it out with [source] exclude.",
}

# By `bronze.postgres.copy.snapshot.Snapshot.give_way`; or by an operator, for a reason of their
# own.
CANCELED = "canceling statement due to user request"


def contested(table: str) -> TableContested:
    """The error of a table whose reads were canceled, as others wait to change it."""
    return TableContested(
        f"Somebody waits to change table {table} (ALTER, TRUNCATE, VACUUM FULL), and its reads"
        " wait behind them: they were canceled.",
        hint="Run again when they are done; `bronze run` itself does so, max_retries times.",
        table=table,
        sqlstate="57014",
    )


_NAMELESS = (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedObject, pg.InvalidSchemaName)
PATH_HINT = (
    "bronze's sessions have an empty search_path, as pg_dump's do, so that nobody can put a"
    " function of theirs in the way. Name the schemas in the function, or give it a path of its"
    " own: ALTER FUNCTION … SET search_path = …."
)


def nameless(table: str) -> str:
    """What to say of a view or constraint whose function needs a search_path."""
    return f"Table {table} calls a function that names something without its schema"


def explain(error: psycopg.Error, origin: Origin, table: str = "") -> BronzeError:
    """Our error for one of psycopg's."""
    state = error.sqlstate or ""
    where = address(origin)
    text = said = _first_line(error)
    if state[:2] in _OF_VALUES:
        # What PostgreSQL says of these quotes what is in a row.
        text = f"{type(error).__name__} (SQLSTATE {state})"

    def made(kind: type[BronzeError], message: str, hint: str) -> BronzeError:
        return kind(message, hint=hint, table=table, sqlstate=state)

    if limited := capacity.limit(origin, text):
        whose, hint = limited
        return made(
            SourceBusy, f"{where} has no connection free for {whose}, by its own limit.", hint
        )
    if isinstance(error, _BUSY):
        return made(SourceBusy, f"{where} has no connection free: {text}", "It is retried.")
    if isinstance(error, _LOGIN):
        return made(
            SourceRefused,
            f"{where} refused the login: {text}",
            "Check user, password and database of the connection string.",
        )
    if isinstance(error, _GONE) or (isinstance(error, psycopg.OperationalError) and not state):
        return _no_connection(where, text)
    if isinstance(error, _NO_TEXT) and not table:
        return made(
            SourceError,
            f"{where} has a text that it cannot send as UTF-8: the name of a table, a column, an"
            f" index or a type, or a value in a stream ({text}).",
            "Rename what is so called; psql shows it after SET client_encoding = 'SQL_ASCII'. A"
            " value has to be mended in the source; a run says which one.",
        )
    if table and isinstance(error, pg.QueryCanceled) and CANCELED in text:
        return contested(table)
    if isinstance(error, pg.LockNotAvailable) and not table:
        return made(SourceBusy, f"Somebody holds a lock at {where}: {text}", "It is retried.")
    if table and isinstance(error, _NAMELESS) and error.diag.context:
        return made(TableRefused, f"{nameless(table)} ({text}).", PATH_HINT)
    for kind, what, hint in _TABLE:
        if isinstance(error, kind) and table:
            return made(TableRefused, f"Table {table} {what} ({text}).", hint)
    if _GONE_SNAPSHOT.match(said):
        return made(SnapshotLost, f"The snapshot of this run at {where} is gone: {said}", "")
    if isinstance(error, (pg.FeatureNotSupported, pg.ObjectNotInPrerequisiteState)) and not table:
        return made(SnapshotRefused, f"{where} hands out no snapshot: {text}", SNAPSHOT_HINT)
    if table:
        hint = next((mend for begins, mend in _UNREAD.items() if state.startswith(begins)), "")
        return made(TableRefused, f"Table {table} at {where} could not be read: {text}.", hint)
    return made(SourceError, f"{where} could not be read: {text}.", "")


SNAPSHOT_HINT = (
    "Connect to the primary itself, past any pooler; or accept that each table is read at a moment"
    ' of its own with [source] consistency = "per-table".'
)


# (words in libpq's message, our error, what happened, what to do): libpq gives no SQLSTATE for a
# connection that was never made.
_AWAY = "Check host and port, that PostgreSQL runs, and that no firewall stands between."
_CONNECTING: Sequence[tuple[tuple[str, ...], type[SourceError], str, str]] = (
    (("resolve host", "translate host"), SourceUnreachable, "cannot be reached", _AWAY),
    (
        ("conversion between",),
        SourceRefused,
        "cannot send its texts as UTF-8",
        "Copy the database into one whose encoding PostgreSQL can convert.",
    ),
    (
        ("too many clients", "remaining connection slots", "too many connections"),
        SourceBusy,
        "has no connection free",
        "Close some, or raise the server's max_connections.",
    ),
    (
        ("password", "authentication", "does not exist", "pg_hba", "not permitted to log in"),
        SourceRefused,
        "refused the login",
        "Check user, password and database of the connection string.",
    ),
    (
        ("ssl", "certificate"),
        SourceRefused,
        "refused the encryption",
        "Check sslmode and sslrootcert of the connection string.",
    ),
    (
        ("standby connections exceeds",),
        SourceBusy,
        "has no WAL sender free",
        "End another replication connection, or raise the server's max_wal_senders.",
    ),
    (
        # The last servers that write it in one word are 15.
        ("start wal sender", "start walsender", "startup parameter: replication"),
        SourceRefused,
        "refused a replication connection",
        "Give the role the REPLICATION attribute (ALTER ROLE … REPLICATION), and connect to the"
        " server itself, past any pooler.",
    ),
    (
        (),
        SourceUnreachable,
        "cannot be reached",
        _AWAY,
    ),
)


def _no_connection(where: str, text: str) -> SourceError:
    low = text.lower()
    for words, kind, what, hint in _CONNECTING:
        if not words or any(word in low for word in words):
            return kind(f"{where} {what}: {text}.", hint=hint)
    raise AssertionError("the last line matches all")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # libpq puts the host and port before its reason, which we have said already.
    return (lines[0] if lines else type(error).__name__).rpartition("failed: ")[2].rstrip(".")
