"""How many connections bronze needs, and the limits of the role and the database on them."""

from __future__ import annotations

import re
from typing import Any

from bronze.model.locations import Origin
from bronze.postgres.connection.allowance import READ, STREAM
from bronze.postgres.statement import quoted

_LIMIT_REACHED = re.compile(r'too many connections for (role|database) "(.*)"')


def connections_needed(origin: Origin, streaming: bool) -> tuple[int, int]:
    """The least and the largest number of connections that a run or a stream needs.

    Each read has a connection, while PostgreSQL may still be closing that of the previous one.
    """
    minimum, maximum = origin.connections
    return (STREAM + READ, maximum) if streaming else (minimum + 2, maximum)


def limit_reached(origin: Origin, text: str) -> tuple[str, str] | None:
    """The role or database whose limit an error of PostgreSQL reports, and a hint; or None."""
    match = _LIMIT_REACHED.search(text)
    if not match:
        return None
    kind, name = match.groups()
    statement = _raise_limit(origin, kind, name)
    return f"{kind} {name}", f"{_needs(origin)}: {statement}, or lower pool.max."


def _needs(origin: Origin) -> str:
    run, stream = connections_needed(origin, False), connections_needed(origin, True)
    return (
        f"With this [source] pool, a run or a check needs {run[0]} to {run[1]} connections,"
        f" a stream {stream[0]} to {stream[1]}"
    )


def _raise_limit(origin: Origin, kind: str, name: str) -> str:
    """The SQL that raises the limit of the role or the database."""
    maximum = connections_needed(origin, True)[1]
    others = "" if kind == "role" else " (plus the connections of other clients)"
    return f"ALTER {kind.upper()} {quoted(name)} CONNECTION LIMIT {maximum}{others}"


_LIMITS = """
SELECT CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END, r.rolname,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END, d.datname
FROM pg_roles r, pg_database d WHERE r.rolname = session_user AND d.datname = current_database()
"""


def low_connection_limits(connection: Any, origin: Origin, streamed: bool) -> list[tuple[str, str]]:
    """Connection limits that are too low for a run, or for a run and a stream.

    Returns:
        For each limit a sentence and a hint.

    Raises:
        psycopg.Error
    """
    run, stream = connections_needed(origin, False)[0], connections_needed(origin, True)[0]
    minimum = max(run, stream) if streamed else run
    role_limit, role, database_limit, database = connection.execute(_LIMITS).fetchone()
    limits = (("role", role, role_limit), ("database", database, database_limit))
    return [
        (
            f"The {kind} {name} has a CONNECTION LIMIT of {limit}; bronze needs at least"
            f" {minimum}.",
            f"{_raise_limit(origin, kind, name)}.",
        )
        for kind, name, limit in limits
        if 0 <= limit < minimum
    ]
