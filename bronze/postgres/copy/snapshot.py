"""The snapshot that all reads of a run share.

One transaction, REPEATABLE READ and read only, is held open for as long as the run reads. It
first takes an ACCESS SHARE lock on every table, as pg_dump does: what a snapshot shows is only
true as long as nobody truncates or rewrites the table beneath it. Only then it takes the snapshot
and exports it, so that no such change can lie between the two.

A snapshot that another session has exported is there before the locks. Which tables were changed
in between is asked of `changed` then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from bronze.errors import BronzeError, SnapshotLost, SnapshotRefused
from bronze.model.locations import Origin
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection.connect import (
    SNAPSHOT_HINT,
    Connection,
    address,
    connect,
    explain,
    mapped,
)
from bronze.postgres.connection.session_settings import pinning
from bronze.postgres.statement import literal, quoted

Consistency = Literal["run", "per-table"]

# LOCK TABLE knows only these; the others are locked by a SELECT, after the snapshot.
_LOCKABLE = ("table", "partitioned", "view")
# It takes the lock of a SELECT with all that it asks for, and reads no row.
_PROBE = "SELECT FROM {} LIMIT 0"
_AT_ONCE = 50

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

    def give_way(self, origin: Origin) -> None:
        """Cancels reads that wait for those who wait for the snapshot's own locks.

        An ALTER waits until the tables are no longer locked, and whoever wants to read one of them
        queues up behind it: our reads, which would wait for ever, and everybody else's. To
        PostgreSQL that is no deadlock, as it does not know that the snapshot waits for the reads.
        """
        with suppress(psycopg.Error), self.holder.transaction():
            self.holder.execute("SELECT pg_stat_clear_snapshot()")
            self.holder.execute(_GIVE_WAY, [origin.application_name])

    def alive(self) -> bool:
        """Whether the transaction that holds the snapshot is still there."""
        try:
            self.holder.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True


_GIVE_WAY = """
SELECT pg_cancel_backend(a.pid) FROM pg_stat_activity a
WHERE a.application_name = %s AND a.usename = session_user AND a.datname = current_database()
  AND a.wait_event_type = 'Lock' AND a.pid <> pg_backend_pid()
  AND EXISTS (SELECT FROM unnest(pg_blocking_pids(a.pid)) AS before
              WHERE pg_backend_pid() = ANY(pg_blocking_pids(before)))
"""


@contextmanager
def hold(
    origin: Origin,
    holder: Connection,
    wanted: Sequence[Relation],
    schemas: Sequence[str],
    consistency: Consistency,
    exported: tuple[str, int] | None = None,
) -> Iterator[Snapshot]:
    """Holds a snapshot of ``wanted`` on ``holder`` for as long as the context lasts.

    Args:
        origin: the source.
        holder: a connection to it.
        wanted: what is to be read.
        schemas: where that is.
        consistency: whether all reads are of one snapshot.
        exported: another session's snapshot to join instead of taking one, and its position.

    Raises:
        SnapshotRefused: on a standby, or behind a pooler, with consistency "run".
        SourceUnreachable, SourceBusy, SourceRefused
    """
    with mapped(origin):
        _refuse_standby(origin, holder, consistency)
        # Asked before the snapshot is taken: whoever begins between the two began later.
        since = opened(holder)
        name, position = exported or ("", None)
        holder.execute(BEGIN)
        try:
            if name:
                holder.execute(f"SET TRANSACTION SNAPSHOT {literal(name)}")
            tables = [r for r in wanted if r.kind in _LOCKABLE and r.whole]
            refused = _lock(origin, holder, tables, "LOCK TABLE {} IN ACCESS SHARE MODE")
            with _locked_by_columns(origin, wanted, refused):
                moment = _export(holder, consistency, position)
                # It shows what the catalog does not: policies, a view that was never populated, a
                # foreign server that does not answer. It is also the lock of what knows no other.
                left = [r for r in wanted if r.label not in {label for label, _ in refused}]
                refused += _lock(origin, holder, left, _PROBE)
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


def changed(held: Snapshot, now: Sequence[Relation]) -> frozenset[str]:
    """The labels of the relations that are not what the snapshot shows any more.

    They were altered, rewritten, truncated, dropped or made anew since; or got or lost partitions.

    Args:
        held: the snapshot, in which the relations are locked by now.
        now: the relations as another session sees them after that.
    """
    seen = {relation.label: relation for relation in held.relations}
    there = {relation.label: relation for relation in now}
    return frozenset(
        label
        for label in seen.keys() | there.keys()
        if label not in seen or label not in there or _differ(seen[label], there[label])
    )


def _differ(one: Relation, other: Relation) -> bool:
    forms = [
        (r.oid, r.key, [(a.number, a.name, a.type, a.not_null) for a in r.attributes], r.rewritten)
        for r in (one, other)
    ]
    changed = definition.changed(one.definition, other.definition, storage=True)
    return forms[0] != forms[1] or bool(changed)


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
    for start in range(0, len(wanted), _AT_ONCE):
        refused += _lock_some(origin, holder, wanted[start : start + _AT_ONCE], statement)
    return refused


def _lock_some(
    origin: Origin, holder: Connection, wanted: Sequence[Relation], statement: str
) -> list[tuple[str, BronzeError]]:
    asked = "; ".join(statement.format(quoted(r.schema, r.name)) for r in wanted)
    try:
        holder.execute(f"SAVEPOINT one; {asked}; RELEASE SAVEPOINT one")
    except psycopg.Error as error:
        mine = explain(error, origin, wanted[0].label)
        if mine.retry:
            raise mine from error
        holder.execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")
        if len(wanted) == 1:
            return [(wanted[0].label, mine)]
        # Which one it was is found out one by one.
        return [fault for one in wanted for fault in _lock_some(origin, holder, [one], statement)]
    return []


@contextmanager
def _locked_by_columns(
    origin: Origin, wanted: Sequence[Relation], refused: list[tuple[str, BronzeError]]
) -> Iterator[None]:
    """Keeps tables locked of which only columns are granted, until the snapshot's own transaction
    has locked them.

    LOCK TABLE wants SELECT on the whole table, and a SELECT takes its snapshot before it locks. So
    another transaction locks them first.
    """
    tables = [r for r in wanted if r.kind in _LOCKABLE and not r.whole]
    if not tables:
        yield
        return
    with connect(origin) as other:
        other.execute("BEGIN READ ONLY")
        refused += _lock(origin, other, tables, _PROBE)
        yield
        _end(other)


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
