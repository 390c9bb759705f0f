"""The open transactions that the creation of a replication slot waits for.

PostgreSQL creates a slot only when all transactions with an id that were open at its beginning have
ended; also those of other databases, and prepared ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import literal

_LISTED = 5


@dataclass(frozen=True)
class Transaction:
    """An open transaction with an id.

    ``pid`` is that of its session (None: a prepared transaction, which has a ``gid``), ``since``
    the time at which it began or was prepared, ``state`` that of its session. Both are None if the
    role may not see them.
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
        details = [f"database {self.database}"] if self.database else []
        details += [f"user {self.user}"] if self.user else []
        details += [f"application {self.application}"] if self.application else []
        details += [self.state] if self.state else []
        details += [f"since {self.since:%Y-%m-%d %H:%M:%S} UTC"] if self.since else []
        name = f"the prepared transaction {literal(self.gid)}" if self.gid else f"pid {self.pid}"
        return f"{name} ({', '.join(details)})"

    @property
    def ending(self) -> str:
        """The SQL that ends the transaction."""
        if self.gid:
            return f"ROLLBACK PREPARED {literal(self.gid)}"
        return f"SELECT pg_terminate_backend({self.pid})"


# Without pg_read_all_stats, a role sees id, user and application of other roles' sessions only.
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


def open_transactions(connection: Connection) -> list[Transaction]:
    """The open transactions with an id of the whole server, the oldest first.

    Raises:
        psycopg.Error
    """
    rows: list[Any] = connection.execute(_OPEN).fetchall()
    return [Transaction(*row) for row in rows]


def describe_transactions(blockers: Sequence[Transaction]) -> str:
    """A text that lists open transactions and says how to end them, for a message."""
    listed = ", ".join(map(str, blockers[:_LISTED]))
    more = f" and {len(blockers) - _LISTED} more" if len(blockers) > _LISTED else ""
    hidden = any(one.pid is not None and one.since is None for one in blockers)
    advice = (
        " This role cannot see their state and start: GRANT pg_read_all_stats to it."
        if hidden
        else ""
    )
    return f"{listed}{more}.{advice} To end the first: {blockers[0].ending}"


def blocking_pids(connection: Connection, pid: int) -> tuple[int, ...]:
    """The pids of the sessions that hold the lock a session waits for, or wait for it before it.

    Raises:
        psycopg.Error
    """
    row: Any = connection.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchone()
    return tuple(row[0])
