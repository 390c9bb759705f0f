"""How many connections bronze needs, and whose limits they may meet."""

from __future__ import annotations

import re
from typing import Any

from bronze.model.locations import Origin
from bronze.postgres.statement import quoted

_LIMITED = re.compile(r'too many connections for (role|database) "(.*)"')
_STREAM = 4
"""A stream has one to ask, one to stream, one for the slot of a copy, one for its snapshot."""


def needed(origin: Origin, streamed: bool) -> tuple[int, int]:
    """How many a run or a stream needs at least, and how many it has at most.

    Each read has a connection, while PostgreSQL may still be closing that of the last one.
    """
    least, most = origin.connections
    return (_STREAM, _STREAM - 1 + most) if streamed else (least + 2, most)


def spoken(origin: Origin) -> str:
    """What to say of the connections that the config needs."""
    run, stream = needed(origin, False), needed(origin, True)
    return (
        f"By [source] pool a run or a check needs {run[0]} to {run[1]} connections, a stream"
        f" {stream[0]} to {stream[1]}"
    )


def limit(origin: Origin, text: str) -> tuple[str, str] | None:
    """Whose own limit an error of PostgreSQL is about, if it is, and what to do about it."""
    found = _LIMITED.search(text)
    if not found:
        return None
    kind, name = found.groups()
    return f"{kind} {name}", f"{spoken(origin)}: {raised(origin, kind, name)}, or lower pool.max."


def raised(origin: Origin, kind: str, name: str) -> str:
    """The SQL that makes room for a role, or for the role in a database."""
    most = needed(origin, True)[1]
    beside = "" if kind == "role" else " (beside those of others)"
    return f"ALTER {kind.upper()} {quoted(name)} CONNECTION LIMIT {most}{beside}"


LIMITS = """
SELECT CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END, r.rolname,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END, d.datname
FROM pg_roles r, pg_database d WHERE r.rolname = session_user AND d.datname = current_database()
"""


def narrow(connection: Any, origin: Origin, streamed: bool) -> list[tuple[str, str]]:
    """Limits below what a run, or also a stream, needs: a sentence for each, and what to do.

    Raises:
        psycopg.Error
    """
    run, stream = needed(origin, False)[0], needed(origin, True)[0]
    least = max(run, stream) if streamed else run
    role, role_name, database, database_name = connection.execute(LIMITS).fetchone()
    limits = (("role", role_name, role), ("database", database_name, database))
    return [
        (
            f"The {kind} {name} has a CONNECTION LIMIT of {most}; bronze needs {least} at least.",
            f"{raised(origin, kind, name)}.",
        )
        for kind, name, most in limits
        if 0 <= most < least
    ]
