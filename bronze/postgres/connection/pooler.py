"""Whether a session at the server is ours alone, or one that a pooler lends to others as well.

A pooler in transaction mode (pgbouncer's pool_mode) gives each transaction whatever server
connection is free: what is set for a session, prepared or locked in it is lost for us, and met by
others. Nothing in the protocol tells. What tells is the server process that we reach.

Nothing is set here, as the session may be somebody else's a moment later; so every name in the SQL
has its schema.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg

from bronze.postgres.connection import sockets

Opening = Callable[[], "psycopg.Connection[tuple[object, ...]]"]

_OTHERS = 2


def direct(connection: psycopg.Connection[Any]) -> str:
    """The condition in SQL that the server process is the one to which the connection leads.

    A pooler gives out numbers of its own for cancelling, or those of a process that it has met; but
    its connection to the server has another port than ours has to it. Where ports are translated
    (NAT, a relay), this is false of sessions that are ours as well.
    """
    return (
        "pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=)"
        f" {connection.info.backend_pid} AND"
        " coalesce(pg_catalog.inet_client_port(), -1) OPERATOR(pg_catalog.=)"
        f" ({sockets.port(connection)})"
    )


# Each connection may lead to a server of its own, which is no matter here.
_PROCESS = """
SELECT pg_catalog.pg_backend_pid(),
       pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())
"""
_USE = """
SELECT pg_catalog.date_part('epoch', a.backend_start), pg_catalog.date_part('epoch', a.query_start)
FROM pg_catalog.pg_stat_activity a
WHERE a.pid OPERATOR(pg_catalog.=) {}
"""


def lent(connection: psycopg.Connection[Any], another: Opening, patience: float) -> tuple[int, ...]:
    """The server processes that served a session which is not ours alone; empty if it is ours.

    While the connection rests, others are opened, and each keeps a transaction open. A pooler that
    does not reserve the server process gives it to one of them, or had given it to somebody else;
    or it has another one for us afterwards.

    Args:
        connection: the one in question, in autocommit mode.
        another: opens one more like it.
        patience: seconds that a pooler may take to find a server connection.

    Raises:
        psycopg.Error: a connection fails.
        TimeoutError: patience has run out.
    """
    mine = _row(connection, _PROCESS, patience)
    pid, server = mine
    # Asked for itself, the time is that of this very question, and stays so while nobody asks.
    used = _row(connection, _USE.format("pg_catalog.pg_backend_pid()"), patience)
    with ExitStack() as stack:
        for _ in range(_OTHERS):
            other = stack.enter_context(another())
            _row(other, "BEGIN READ ONLY", patience)
            theirs = _row(other, _PROCESS, patience)
            beside = theirs[1] == server
            if beside and (theirs[0] == pid or _row(other, _USE.format(pid), patience) != used):
                return pid, theirs[0]
            again = _row(connection, _PROCESS, patience)
            if again != mine:
                return pid, again[0]
            used = _row(connection, _USE.format("pg_catalog.pg_backend_pid()"), patience)
    return ()


def _row(connection: psycopg.Connection[Any], statement: str, patience: float) -> Any:
    with sockets.patience(connection, patience):
        cursor = connection.execute(statement.encode())
    return cursor.fetchone() if cursor.description else None
