"""Detects poolers that share one session among several clients.

A pooler in transaction mode (pgbouncer's pool_mode) gives each transaction any free server
connection. Settings, prepared statements and locks of a session are then lost for bronze, and other
clients get them. The protocol does not show this; only the server process of the session does.

No setting is changed here, because the session may belong to another client a moment later. So
every name in the SQL is qualified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg

from bronze.postgres.connection import sockets

OpenConnection = Callable[[], "psycopg.Connection[tuple[object, ...]]"]

_OTHER_CONNECTIONS = 2


def direct_condition(connection: psycopg.Connection[Any]) -> str:
    """The SQL condition that the connection leads to its server process directly.

    A pooler reports a process number of its own for cancelling, or that of some server process; but
    its connection to the server has another port than the client's connection to the pooler. The
    condition is also false where ports are translated (NAT, a relay) and sessions are not shared.
    """
    return (
        "pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=)"
        f" {connection.info.backend_pid} AND"
        " coalesce(pg_catalog.inet_client_port(), -1) OPERATOR(pg_catalog.=)"
        f" ({sockets.local_port(connection)})"
    )


# The start time tells servers apart: a pooler may lead to several, whose processes do not matter.
_PROCESS = """
SELECT pg_catalog.pg_backend_pid(),
       pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())
"""
_LAST_QUERY = """
SELECT pg_catalog.date_part('epoch', a.backend_start), pg_catalog.date_part('epoch', a.query_start)
FROM pg_catalog.pg_stat_activity a
WHERE a.pid OPERATOR(pg_catalog.=) {}
"""
_OWN_LAST_QUERY = _LAST_QUERY.format("pg_catalog.pg_backend_pid()")


def shared_processes(
    connection: psycopg.Connection[Any], open_another: OpenConnection, timeout: float
) -> tuple[int, ...]:
    """The server processes of a session that a pooler shares among clients; empty if none does.

    While the connection is idle, others are opened, each with an open transaction. A pooler that
    does not reserve the server process gives it to one of them or to another client; or it gives
    this connection another process afterwards.

    Args:
        connection: the connection to test, in autocommit mode.
        open_another: opens another connection with the same parameters.
        timeout: seconds that the pooler may take to find a server connection.

    Raises:
        psycopg.Error: a connection fails.
        TimeoutError: the timeout has passed.
    """
    process = _first_row(connection, _PROCESS, timeout)
    pid, server = process
    # Read by the process itself, query_start is the time of this very query. It stays the same
    # until the process runs another one.
    last_query = _first_row(connection, _OWN_LAST_QUERY, timeout)
    with ExitStack() as stack:
        for _ in range(_OTHER_CONNECTIONS):
            other = stack.enter_context(open_another())
            _first_row(other, "BEGIN READ ONLY", timeout)
            other_pid, other_server = _first_row(other, _PROCESS, timeout)
            if other_server == server and (
                other_pid == pid
                or _first_row(other, _LAST_QUERY.format(pid), timeout) != last_query
            ):
                return pid, other_pid
            process_now = _first_row(connection, _PROCESS, timeout)
            if process_now != process:
                return pid, process_now[0]
            last_query = _first_row(connection, _OWN_LAST_QUERY, timeout)
    return ()


def _first_row(connection: psycopg.Connection[Any], statement: str, timeout: float) -> Any:
    with sockets.time_limit(connection, timeout):
        cursor = connection.execute(statement.encode())
    return cursor.fetchone() if cursor.description else None
