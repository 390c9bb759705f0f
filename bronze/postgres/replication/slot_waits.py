"""Whom a new replication slot waits for: the transactions that are open at the server.

A slot can be made only once every transaction that has an id, and was open when the slot was asked
for, has ended; those of other databases count, and so do prepared ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import literal

_NAMED = 5


@dataclass(frozen=True)
class Transaction:
    """An open transaction with an id.

    ``pid`` is its session's (None: it is a prepared one, which has ``gid`` instead), ``since`` when
    it began or was prepared, ``state`` what its session does; both are None where the role is not
    shown them.
    """

    xid: str
    pid: int | None
    gid: str
    database: str
    user: str
    application: str
    state: str | None
    since: datetime | None

    def __str__(self) -> str:
        where = [f"database {self.database}"] if self.database else []
        where += [f"user {self.user}"] if self.user else []
        where += [f"application {self.application}"] if self.application else []
        where += [self.state] if self.state else []
        since = [f"since {self.since:%Y-%m-%d %H:%M:%S} UTC"] if self.since else []
        what = f"the prepared transaction {literal(self.gid)}" if self.gid else f"pid {self.pid}"
        return f"{what} ({', '.join([*where, *since])})"

    @property
    def ending(self) -> str:
        """The SQL that ends it."""
        if self.gid:
            return f"ROLLBACK PREPARED {literal(self.gid)}"
        return f"SELECT pg_terminate_backend({self.pid})"


# Of other roles' sessions everybody is shown the id, the user and the application's name.
_OPEN = """
SELECT a.backend_xid::text, a.pid, '', coalesce(a.datname, ''), coalesce(a.usename, ''),
       coalesce(nullif(a.application_name, ''), nullif(a.backend_type, 'client backend'), ''),
       nullif(a.state, 'disabled'), a.xact_start AS since
FROM pg_stat_activity a
WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
UNION ALL
SELECT p.transaction::text, NULL, p.gid, p.database::text, p.owner::text, '', 'prepared', p.prepared
FROM pg_prepared_xacts p
ORDER BY since NULLS LAST
"""


def transactions(connection: Connection) -> list[Transaction]:
    """The transactions with an id that are open at the whole server, the oldest first.

    Raises:
        psycopg.Error
    """
    rows: list[Any] = connection.execute(_OPEN).fetchall()
    return [Transaction(*row) for row in rows]


def sentence(found: Sequence[Transaction]) -> str:
    """Names open transactions, says what is not shown of them, and how to end them."""
    named = ", ".join(map(str, found[:_NAMED]))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    hidden = any(one.pid is not None and one.since is None for one in found)
    told = (
        " Their state and beginning are not shown to this role: GRANT pg_read_all_stats to it."
        if hidden
        else ""
    )
    return f"{named}{more}.{told} To end the first: {found[0].ending}"


def blocking(connection: Connection, pid: int) -> tuple[int, ...]:
    """The sessions that hold, or wait for, the lock that a session waits for.

    Raises:
        psycopg.Error
    """
    row: Any = connection.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchone()
    return tuple(row[0])
