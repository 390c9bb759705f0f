"""Connections to PostgreSQL.

Every session is pinned to the same settings, so that a value has one text form whatever the
server, the database or the role set.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from bronze import stopping
from bronze.errors import SourceBusy, SourceRefused, SourceUnreachable, Stopped
from bronze.model.locations import Origin
from bronze.postgres.connection import allowance, pooler, session_settings, sockets
from bronze.postgres.connection.allowance import LeasedConnection
from bronze.postgres.connection.parameters import address, parameters, renewed_parameters
from bronze.postgres.connection.translation import explain, source_errors

Connection = psycopg.Connection[tuple[object, ...]]

T = TypeVar("T")

_POOLER_TIMEOUT = 30
"""Seconds, if the origin has no connect_timeout."""

OLDEST_VERSION = 12
"""The oldest major version of PostgreSQL that bronze supports."""


def connect(origin: Origin, *, lasting: bool = False) -> Connection:
    """A new connection in autocommit mode, with pinned settings.

    It is one of those that ``pool.max`` allows this process; one that a command keeps until its end
    is ``lasting`` (`bronze.postgres.connection.allowance`).

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    return _connect(origin, {}, lasting)


def connect_again(origin: Origin) -> Connection:
    """A new connection as of `connect`, to the server that was reached before (`remember_server`).

    A connection string may name several servers, or a name that has several addresses: what a run
    reads beside its first connection has to come from the same server.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    server = _server_parameters.get(origin)
    return _connect(origin, {"hostaddr": "", **server} if server else {})


def _connect(origin: Origin, server: Mapping[str, Any], lasting: bool = False) -> Connection:
    """A new connection; ``server`` are parameters that replace those of the config."""

    def pinned(params: Mapping[str, str]) -> Connection:
        with source_errors(origin):
            connection = open_connection(origin, {**params, **server}, lasting)
            try:
                _pin(connection, origin)
            except BaseException:
                connection.close()
                raise
            return connection

    return log_in(origin, pinned)


def log_in(origin: Origin, work: Callable[[Mapping[str, str]], T]) -> T:
    """The result of ``work`` with the parameters of the config. Their password may have been
    changed since it was read: if the login is refused, the work is done again with a new one.

    Raises:
        SourceRefused: there is no other password, or it is refused, too.
        ConfigError, SecretsUnreachable: there is no password.
    """
    used = parameters(origin)
    try:
        return work(used)
    except SourceRefused:
        renewed = renewed_parameters(origin, used)
        if renewed == used:
            raise
    return work(renewed)


def open_connection(origin: Origin, params: Mapping[str, Any], lasting: bool = False) -> Connection:
    """A new connection in autocommit mode, whose queries are canceled when this work is stopped.

    Raises:
        psycopg.Error
        SourceBusy: ``pool.max`` allows no further connection.
        Stopped: while it connects.
    """
    conninfo = make_conninfo("", **params)
    lease = allowance.lease(origin, lasting)

    def open_leased() -> LeasedConnection:
        try:
            opened = LeasedConnection.connect(conninfo, autocommit=True)
        except BaseException:
            lease.end()
            raise
        opened.count(lease)
        return opened

    try:
        connection = stopping.call(open_leased, LeasedConnection.close)
    except Stopped:
        # A thread may still be connecting; what it opens is closed.
        lease.end()
        raise
    stopping.on_stop(connection, _cancel)
    return connection


_CANCEL_TIMEOUT = 1.0
_CUT_AFTER = 2.0


def _cancel(connection: Connection, seconds: float) -> None:
    """Cancels the query of a connection, if one runs; a server that does not answer is cut off."""
    if connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
        return
    if seconds > _CUT_AFTER:
        sockets.cut_connection(connection)
        return
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=_CANCEL_TIMEOUT)


@contextmanager
def one_snapshot(connection: Connection) -> Iterator[None]:
    """Makes the statements inside see one state of the database: they are a read-only transaction,
    unless they are part of one already.

    Raises:
        psycopg.Error
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        yield
        return
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def _pin(connection: Connection, origin: Origin) -> None:
    _refuse_old_version(connection, origin)
    condition = pooler.direct_condition(connection) if origin not in _indirect else ""
    row: Any = connection.execute(
        session_settings.pinning_statement(origin, condition=condition).encode()
    ).fetchone()
    if row is None:
        _refuse_shared_session(connection, origin)
        _indirect.add(origin)
        row = connection.execute(session_settings.pinning_statement(origin).encode()).fetchone()
    hiding_damage = session_settings.HIDING_DAMAGE
    for name, value in zip(hiding_damage, row[-len(hiding_damage) :], strict=True):
        if value == "on":
            raise SourceRefused(
                f"Sessions at {address(origin)} have {name} = on: PostgreSQL would read damaged"
                " pages as empty or as valid, and rows could be missing without an error.",
                hint=f"Turn it off where it is set (ALTER ROLE … RESET {name}); pg_settings shows"
                " where that is.",
            )


def _refuse_old_version(connection: Connection, origin: Origin) -> None:
    if connection.info.server_version < OLDEST_VERSION * 10_000:
        version = connection.info.parameter_status("server_version")
        raise SourceRefused(
            f"{address(origin)} is PostgreSQL {version}; bronze supports {OLDEST_VERSION} and"
            " later.",
            hint="Upgrade the server.",
        )


# Origins whose connections do not reach the server directly, but have sessions of their own there.
_indirect: set[Origin] = set()


def is_indirect(origin: Origin) -> bool:
    """Whether connections reach the server through something else, such as a pooler."""
    return origin in _indirect


def _refuse_shared_session(connection: Connection, origin: Origin) -> None:
    """Refuses a pooler that shares the session among clients, before any setting is changed."""
    conninfo = make_conninfo("", **parameters(origin))
    timeout = origin.connect_timeout or _POOLER_TIMEOUT
    try:
        pids = pooler.shared_processes(
            connection, lambda: psycopg.connect(conninfo, autocommit=True), timeout
        )
    except TimeoutError:
        raise SourceBusy(
            f"Connections to {address(origin)} go through a pooler, which gave no server connection"
            f" within {timeout} s.",
            hint=_POOLER_HINT,
        ) from None
    except psycopg.Error as error:
        refusal = explain(error, origin)
        refusal.hint = f"{refusal.hint} {_POOLER_HINT}".strip()
        raise refusal from error
    if pids:
        processes = " and ".join(str(pid) for pid in dict.fromkeys(pids))
        raise SourceRefused(
            f"Connections to {address(origin)} go through a pooler that changes the server"
            " connection between transactions: other clients share this session (server process"
            f" {processes}).",
            hint=_POOLER_HINT,
        )


_POOLER_HINT = (
    "Connect to PostgreSQL directly, or to the pooler in session mode (pgbouncer: pool_mode ="
    " session for this database), with at least three server connections."
)


def server_parameters(origin: Origin) -> dict[str, str]:
    """Libpq's parameters, including the password, for the server that a connection has reached.

    libpq looks up some of them itself: in the environment, in service and password files, by trying
    several hosts. For clients that cannot, one connection per process looks them up, until
    `forget_server`; later calls only check that the server accepts connections.

    Raises:
        SourceUnreachable, SourceBusy, SourceRefused, ConfigError
    """
    if origin in _server_parameters:
        _check_reachable(origin, _server_parameters[origin])
    else:
        with connect(origin) as connection:
            remember_server(origin, connection)
    return {**parameters(origin), **_server_parameters[origin]}


def remember_server(origin: Origin, connection: Connection) -> None:
    """Remembers the server of ``connection``, so that `server_parameters` need not connect."""
    info = connection.info
    params = {**info.get_parameters(), "host": info.host, "port": str(info.port)}
    params |= {"user": info.user, "dbname": info.dbname}
    if info.hostaddr and not info.host.startswith("/"):
        params["hostaddr"] = info.hostaddr
    # Without a password of the config, which may change: one that libpq has found by itself.
    if info.password and "password" not in parameters(origin):
        params["password"] = info.password
    else:
        params.pop("password", None)
    _server_parameters[origin] = params


_server_parameters: dict[Origin, dict[str, str]] = {}


def forget_server(origin: Origin) -> None:
    """Forgets the server of an origin whose connection was lost or refused: its address or password
    may have changed.
    """
    _server_parameters.pop(origin, None)


def forget_origin(origin: Origin) -> None:
    """Forgets all that is known of an origin, at the end of a run or a stream."""
    forget_server(origin)
    _indirect.discard(origin)


def _check_reachable(origin: Origin, params: Mapping[str, str]) -> None:
    # A login would use one of the connections that the config allows.
    host, port = params.get("hostaddr") or params["host"], params["port"]
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as unix_socket:
                unix_socket.connect(f"{host}/.s.PGSQL.{port}")
        else:
            timeout = origin.connect_timeout or None
            stopping.call(lambda: socket.create_connection((host, int(port)), timeout)).close()
    except OSError as error:
        raise SourceUnreachable(
            f"{address(origin)} cannot be reached: {error.strerror or 'no answer'}.",
            hint="Check that PostgreSQL runs and that no firewall blocks the connection.",
        ) from None


def cancel_queries(origin: Origin) -> None:
    """Cancels the queries that run under the origin's application name."""
    with stopping.unstoppable(), source_errors(origin), connect(origin) as connection:
        connection.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND pid <> pg_backend_pid()",
            [origin.application_name],
        )
