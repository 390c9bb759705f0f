"""The snapshot that all reads of a run share.

One transaction, REPEATABLE READ and read only, is held open for as long as the run reads. It
first takes an ACCESS SHARE lock on every table, as pg_dump does: what a snapshot shows is only
true as long as nobody truncates or rewrites the table beneath it. Only then it takes the snapshot
and exports it, so that no such change can lie between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from bronze.errors import BronzeError, SnapshotLost, SnapshotRefused
from bronze.model import Origin
from bronze.source.catalog import Relation, relations
from bronze.source.connect import (
    SNAPSHOT_HINT,
    Connection,
    address,
    connect,
    explain,
    mapped,
)
from bronze.source.pins import pinning
from bronze.source.statement import literal, quoted

Consistency = Literal["run", "per-table"]

# LOCK TABLE knows only these; the others are locked by a SELECT, after the snapshot.
_LOCKABLE = ("table", "partitioned", "view")

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


@dataclass(frozen=True)
class Since:
    """When the oldest transaction began that was open just before the snapshot.

    ``began`` is in microseconds since 1970 (UTC), at most the time of looking; it is true only if
    ``visible``: others' transactions are shown to members of pg_read_all_stats alone, and not where
    track_activities is off. ``prepared``
    says that there are prepared transactions, whose beginning nobody knows. ``zone`` is the time
    zone in which sessions of the role are, if they do not set one. ``clock`` is the source's, and
    ``ahead`` by how much it was ahead of ours.

    A ``standby`` does not show the primary's transactions. There ``clock`` is when the last one was
    committed of those that it has, and ``began`` is not later; where it has had none since it was
    started, as little is known as of prepared ones. ``ahead`` is None.
    """

    began: int
    visible: bool
    prepared: bool
    zone: str
    clock: int
    ahead: int | None
    standby: bool


@dataclass(frozen=True)
class Snapshot:
    """A state of the source that reads can join.

    ``name`` is PostgreSQL's (None with consistency "per-table"), ``position`` the log position
    (LSN) as an integer, ``timeline`` names the history that positions belong to, ``version`` is
    the server's (for example 180006), ``relations`` what was there, ``refused`` why a table that
    was asked for is not among them. Of the transaction ids (64 bits, with their epoch) all below
    ``horizon`` had ended, and none from ``following`` on had begun. ``since`` says since when
    transactions were open.
    """

    name: str | None
    position: int
    version: int
    horizon: int
    following: int
    since: Since
    timeline: str
    relations: tuple[Relation, ...]
    refused: tuple[tuple[str, BronzeError], ...]
    holder: Connection

    def session(self, origin: Origin) -> tuple[str, ...]:
        """The statements with which another connection joins the snapshot."""
        joining = [f"SET TRANSACTION SNAPSHOT '{self.name}'"] if self.name else []
        # They end with the transaction: whoever has the session next has none of them.
        return (BEGIN, *joining, pinning(origin, local=True))

    def alive(self) -> bool:
        """Whether the transaction that holds the snapshot is still there."""
        try:
            self.holder.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True


@contextmanager
def hold(
    origin: Origin,
    holder: Connection,
    wanted: Sequence[Relation],
    schemas: Sequence[str],
    consistency: Consistency,
    export: Callable[[], tuple[str, int]] | None = None,
) -> Iterator[Snapshot]:
    """Holds a snapshot of ``wanted`` on ``holder`` for as long as the context lasts.

    Args:
        origin: the source.
        holder: a connection to it.
        wanted: what is to be read.
        schemas: where that is.
        consistency: whether all reads are of one snapshot.
        export: another one's snapshot to join instead of taking one, with its position; it is
            asked for once the tables are locked.

    Raises:
        SnapshotRefused: on a standby, or behind a pooler, with consistency "run".
        SourceUnreachable, SourceBusy, SourceRefused
    """
    with mapped(origin):
        _refuse_standby(origin, holder, consistency)
        # Asked before the snapshot is taken: whoever begins between the two began later.
        since = opened(holder)
        holder.execute(BEGIN)
        try:
            tables = [r for r in wanted if r.kind in _LOCKABLE]
            refused = _lock(origin, holder, tables, "LOCK TABLE {} IN ACCESS SHARE MODE")
            name, position = export() if export else ("", None)
            if name:
                holder.execute(f"SET TRANSACTION SNAPSHOT {literal(name)}")
            moment = _export(holder, consistency, position)
            others = [r for r in wanted if r.kind not in _LOCKABLE]
            refused += _lock(origin, holder, others, "SELECT FROM {} LIMIT 0")
            failed = {label for label, _ in refused}
            locked = [r.oid for r in wanted if r.label not in failed]
            taken = Snapshot(
                *moment,
                since=since,
                timeline=identity(holder),
                relations=relations(holder, schemas, locked),
                refused=tuple(refused),
                holder=holder,
            )
            if taken.name:
                _prove(origin, taken)
            yield taken
        finally:
            _end(holder)


def _end(holder: Connection) -> None:
    try:
        holder.execute("ROLLBACK")
    except psycopg.Error:
        # The connection is gone, and the transaction with it.
        holder.close()


def _refuse_standby(origin: Origin, holder: Connection, consistency: Consistency) -> None:
    row: Any = holder.execute("SELECT pg_is_in_recovery()").fetchone()
    if row[0] and consistency == "run":
        raise on_standby(origin)


def on_standby(origin: Origin) -> SnapshotRefused:
    """Why there is no shared snapshot on a standby."""
    return SnapshotRefused(
        f"{address(origin)} is a standby, which cannot share a snapshot between connections.",
        hint=SNAPSHOT_HINT,
    )


def _lock(
    origin: Origin, holder: Connection, wanted: Sequence[Relation], statement: str
) -> list[tuple[str, BronzeError]]:
    refused: list[tuple[str, BronzeError]] = []
    for relation in wanted:
        holder.execute("SAVEPOINT one")
        try:
            holder.execute(statement.format(quoted(relation.schema, relation.name)))
            holder.execute("RELEASE SAVEPOINT one")
        except psycopg.Error as error:
            mine = explain(error, origin, relation.label)
            if mine.retry:
                raise mine from error
            refused.append((relation.label, mine))
            holder.execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")
    return refused


MARGIN = 10 * 10**6
"""By so much (microseconds) `Since.began` is earlier than what was shown: a transaction's beginning
is shown a little after it was noted."""

_SINCE = """
WITH source AS (
    SELECT pg_is_in_recovery() AS standby, clock_timestamp() AS now,
           CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END AS replayed
)
SELECT (extract(epoch FROM least(s.now, s.replayed, min(a.xact_start))) * 1000000)::int8,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
           AND coalesce(bool_and(a.state IS DISTINCT FROM 'disabled'), true),
       EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())
           OR (s.standby AND s.replayed IS NULL),
       (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'),
       (extract(epoch FROM coalesce(s.replayed, s.now)) * 1000000)::int8, s.standby
FROM source s LEFT JOIN pg_stat_activity a
    ON a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND a.backend_type <> 'autovacuum worker'
GROUP BY s.standby, s.now, s.replayed
"""


def opened(holder: Connection) -> Since:
    """Since when transactions are open, as it is shown now."""
    row: Any = holder.execute(_SINCE).fetchone()
    began, visible, prepared, zone, clock, standby = row
    ahead = None if standby else clock - _here()
    return Since(began - MARGIN, visible, prepared, zone, clock, ahead, standby)


def _here() -> int:
    """Our own clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def _export(
    holder: Connection, consistency: Consistency, position: int | None
) -> tuple[str | None, int, int, int, int]:
    exported = "pg_export_snapshot()" if consistency == "run" else "NULL::text"
    query = f"""
        SELECT {exported},
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                    ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn,
               current_setting('server_version_num')::int4,
               txid_snapshot_xmin(txid_current_snapshot()),
               txid_snapshot_xmax(txid_current_snapshot())
    """
    row: Any = holder.execute(query).fetchone()
    return row[0], int(row[1]) if position is None else position, *row[2:]


# A server that was promoted has the timeline that it writes in its control file only after its
# next checkpoint; the names of its log's files have it at once.
_IDENTITY = """
SELECT s.system_identifier,
       CASE WHEN pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int4 END,
       current_database()
FROM pg_control_system() s, pg_control_checkpoint() c
"""


def identity(connection: Connection) -> str:
    """The name of the history that the server's positions belong to.

    Positions can be compared only within one cluster and one timeline of it: a standby that was
    promoted, or a backup that was recovered up to some moment, starts a new one.
    """
    try:
        with connection.transaction():
            row: Any = connection.execute(_IDENTITY).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        # Some hosted servers hide these functions.
        return "unknown"
    return "/".join(map(str, row))


def _prove(origin: Origin, taken: Snapshot) -> None:
    with connect(origin) as other:
        try:
            for statement in taken.session(origin)[:2]:
                other.execute(statement)
        except psycopg.Error as error:
            mine = explain(error, origin)
            if not isinstance(mine, (SnapshotRefused, SnapshotLost)):
                raise mine from error
            raise SnapshotRefused(
                f"A second connection to {address(origin)} cannot join the snapshot of the first"
                f" ({literal(str(taken.name))}): they do not reach the same server.",
                hint=SNAPSHOT_HINT,
            ) from error
