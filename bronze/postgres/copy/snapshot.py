"""The snapshot that all reads of a run share.

A REPEATABLE READ, read-only transaction stays open while the run reads. It first takes an ACCESS
SHARE lock on every table, as pg_dump does, because a TRUNCATE or a rewrite of a table also affects
older snapshots. Only then does it take and export the snapshot, so that no such change can happen
in between.

A standby exports snapshots, too, and they outlive its promotion. But it cancels reads, and ends the
sessions that hold snapshots and locks, when these hold up its replay for too long.

A snapshot that another session exported is older than the locks. `changed_relations` then finds the
tables that were changed in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import psycopg

from bronze import stopping
from bronze.errors import BronzeError, SnapshotLost, SnapshotRefused, Stopped
from bronze.model.locations import Origin
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection.connect import Connection, connect
from bronze.postgres.connection.parameters import address
from bronze.postgres.connection.read_connections import BEGIN, keep_for, read_connection
from bronze.postgres.connection.translation import (
    SNAPSHOT_HINT,
    STANDBY_HINT,
    explain,
    source_errors,
)
from bronze.postgres.statement import literal, quoted

Consistency = Literal["run", "per-table"]

# LOCK TABLE accepts only these; other relations are locked by a SELECT, after the snapshot.
_LOCKABLE = ("table", "partitioned", "view")
# It takes the locks of a SELECT and checks its privileges, but reads no row.
_EMPTY_SELECT = "SELECT FROM {} LIMIT 0"
_RELATIONS_PER_STATEMENT = 50


@dataclass(frozen=True)
class OpenTransactions:
    """The transactions that were open just before the snapshot. Times are in microseconds.

    ``began`` is the start of the oldest one (since 1970, UTC), or the current time. It is reliable
    only if ``visible``: the role is a member of pg_read_all_stats and track_activities is on.
    ``prepared`` says that there are prepared transactions, whose start is unknown. ``zone`` is the
    default time zone of the role's sessions. ``clock`` is the time of the source's clock, and
    ``ahead`` by how much it was ahead of the local clock.

    A ``standby`` does not show the primary's transactions. There ``clock`` is the commit time of
    the last transaction that it has replayed, ``began`` is not later, and ``ahead`` is None.
    ``prepared`` is also true if it has replayed none since it was started.
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
    """A snapshot of the source that other connections can join.

    ``name`` is PostgreSQL's (None with consistency "per-table"), ``position`` the LSN as an
    integer, ``timeline`` the cluster and timeline that positions belong to (see `timeline_of`),
    ``version`` the server's (for example 180006). ``relations`` are the locked ones as the snapshot
    shows them, ``refused`` the labels of the others with the errors. All transactions with an id
    (64 bits, with the epoch) below ``horizon`` had ended; none from ``following`` on had begun.
    ``since`` describes the transactions that were open, ``taken`` is when it was taken, by the
    clock of this machine. ``locked`` are the oids of the relations
    that have a lock, ``answers`` those to questions about all relations, by the question.
    """

    name: str | None
    position: int
    version: int
    horizon: int
    following: int
    since: OpenTransactions
    timeline: str
    relations: tuple[Relation, ...]
    refused: tuple[tuple[str, BronzeError], ...]
    holder: Connection
    taken: datetime
    locked: frozenset[int] = frozenset()
    answers: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def session(self) -> tuple[str, ...]:
        """The statements with which another connection joins the snapshot."""
        return (BEGIN, f"SET TRANSACTION SNAPSHOT '{self.name}'") if self.name else (BEGIN,)

    def give_way(self, origin: Origin) -> None:
        """Cancels reads that wait behind a session that waits for the snapshot's locks.

        An ALTER waits until the snapshot's lock on its table is released, and all later reads of
        the table wait behind the ALTER. The reads of the run would wait for ever: PostgreSQL sees
        no deadlock, because it does not know that the snapshot waits for them.
        """
        with suppress(psycopg.Error), self.holder.transaction():
            self.holder.execute("SELECT pg_stat_clear_snapshot()")
            self.holder.execute(_GIVE_WAY, [origin.application_name])

    def cancel_reads(self, origin: Origin) -> None:
        """Cancels the queries that read in the snapshot, of whatever process and client."""
        with suppress(psycopg.Error), self.holder.transaction():
            self.holder.execute("SELECT pg_stat_clear_snapshot()")
            self.holder.execute(_CANCEL_READS, [origin.application_name])

    def alive(self) -> bool:
        """Whether the transaction that holds the snapshot still exists.

        Raises:
            Stopped: this work is asked to stop, which cancels queries and cuts connections.
        """
        try:
            self.holder.execute("SELECT 1")
        except psycopg.Error:
            stopping.check()
            return False
        return True

    def check_alive(self) -> None:
        """Checks that the snapshot's locks lasted until now, after rows have been read in it.

        Connections that have joined it outlive its holder, but not the holder's locks: to them a
        table that was truncated or rewritten afterwards looks empty.

        Raises:
            SnapshotLost: the transaction that holds it has ended.
        """
        if self.name is not None and not self.alive():
            raise SnapshotLost(
                "The connection that holds the snapshot of the run was lost, and with it the locks"
                " on the tables.",
                hint="Run again: rows read since then may be incomplete, and were not committed."
                + (f" {STANDBY_HINT}" if self.since.standby else ""),
            )


_GIVE_WAY = """
SELECT pg_cancel_backend(a.pid) FROM pg_stat_activity a
WHERE a.application_name = %s AND a.usename = session_user AND a.datname = current_database()
  AND a.wait_event_type = 'Lock' AND a.pid <> pg_backend_pid()
  AND EXISTS (SELECT FROM unnest(pg_blocking_pids(a.pid)) AS before
              WHERE pg_backend_pid() = ANY(pg_blocking_pids(before)))
"""

_CANCEL_READS = """
SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE application_name = %s AND usename = session_user AND datname = current_database()
  AND state = 'active' AND pid <> pg_backend_pid()
"""


@contextmanager
def hold(
    origin: Origin,
    holder: Connection,
    wanted: Sequence[Relation],
    schemas: Sequence[str],
    consistency: Consistency,
    exported: tuple[str, int] | None = None,
    in_threads: bool = True,
) -> Iterator[Snapshot]:
    """Holds a snapshot on the connection ``holder`` until the context ends.

    Args:
        origin: the source.
        holder: a connection to it.
        wanted: the relations to lock and read.
        schemas: the schemas of the relations.
        consistency: "run" for one snapshot that all reads share.
        exported: another session's snapshot to join instead of taking one, and its position.
        in_threads: whether threads of this process read the tables, so that their connections are
            kept for further reads; otherwise processes read them, over connections of their own.

    Raises:
        SnapshotRefused: behind a pooler, with consistency "run".
        SourceUnreachable, SourceBusy, SourceRefused
    """
    with source_errors(origin):
        # Before the snapshot: a transaction that begins between the two began later.
        since = open_transactions(holder)
        name, position = exported or ("", None)
        holder.execute(BEGIN)
        try:
            if name:
                holder.execute(f"SET TRANSACTION SNAPSHOT {literal(name)}")
            snapshot = _locked_snapshot(
                origin, holder, wanted, schemas, consistency, since, position
            )
            with keep_for(origin, snapshot.session) if in_threads else nullcontext():
                if snapshot.name:
                    _check_joinable(origin, snapshot)
                yield snapshot
        finally:
            _rollback(holder)


def _locked_snapshot(
    origin: Origin,
    holder: Connection,
    wanted: Sequence[Relation],
    schemas: Sequence[str],
    consistency: Consistency,
    since: OpenTransactions,
    position: int | None,
) -> Snapshot:
    """Locks the relations, then takes the snapshot."""
    tables = [r for r in wanted if r.kind in _LOCKABLE and r.whole]
    refused = _lock(origin, holder, tables, "LOCK TABLE {} IN ACCESS SHARE MODE")
    with _lock_by_columns(origin, wanted, refused):
        taken = datetime.now(UTC)
        state = _export(holder, consistency, position)
        # The SELECT fails for causes that are not in the catalog: row-level security, a
        # materialized view that was never populated, a foreign server that does not answer. It also
        # locks the relations that LOCK TABLE does not accept.
        failed = {label for label, _ in refused}
        remaining = [r for r in wanted if r.label not in failed]
        refused += _lock(origin, holder, remaining, _EMPTY_SELECT)
    failed = {label for label, _ in refused}
    locked = [r.oid for r in wanted if r.label not in failed]
    return Snapshot(
        *state,
        since=since,
        timeline=timeline_of(holder),
        relations=relations(holder, schemas, locked),
        refused=tuple(refused),
        holder=holder,
        taken=taken,
        locked=frozenset(locked),
    )


def changed_relations(snapshot: Snapshot, now: Sequence[Relation]) -> frozenset[str]:
    """The labels of the relations that changed after the snapshot was taken.

    They were altered, rewritten, truncated, dropped or created, or partitions were attached or
    detached.

    Args:
        snapshot: a snapshot whose relations have been locked in the meantime.
        now: the relations as another session sees them after that.
    """
    before = {relation.label: relation for relation in snapshot.relations}
    after = {relation.label: relation for relation in now}
    return frozenset(
        label
        for label in before.keys() | after.keys()
        if label not in before or label not in after or _differ(before[label], after[label])
    )


def _differ(before: Relation, after: Relation) -> bool:
    forms = [
        (r.oid, r.key, [(a.number, a.name, a.type, a.not_null) for a in r.attributes], r.rewritten)
        for r in (before, after)
    ]
    changes = definition.definition_change(before.definition, after.definition, storage=True)
    return forms[0] != forms[1] or bool(changes)


def _rollback(holder: Connection) -> None:
    try:
        holder.execute("ROLLBACK")
    except psycopg.Error:
        # The connection is lost, and the transaction with it.
        holder.close()


def _lock(
    origin: Origin, holder: Connection, wanted: Sequence[Relation], statement: str
) -> list[tuple[str, BronzeError]]:
    refused: list[tuple[str, BronzeError]] = []
    for start in range(0, len(wanted), _RELATIONS_PER_STATEMENT):
        refused += _lock_together(
            origin, holder, wanted[start : start + _RELATIONS_PER_STATEMENT], statement
        )
    return refused


def _lock_together(
    origin: Origin, holder: Connection, wanted: Sequence[Relation], statement: str
) -> list[tuple[str, BronzeError]]:
    statements = "; ".join(statement.format(quoted(r.schema, r.name)) for r in wanted)
    try:
        holder.execute(f"SAVEPOINT one; {statements}; RELEASE SAVEPOINT one")
    except psycopg.Error as error:
        refusal = explain(error, origin, wanted[0].label)
        if refusal.retry or isinstance(refusal, Stopped):
            raise refusal from error
        holder.execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")
        if len(wanted) == 1:
            return [(wanted[0].label, refusal)]
        # One by one, to find those that cannot be locked.
        return [
            failure
            for relation in wanted
            for failure in _lock_together(origin, holder, [relation], statement)
        ]
    return []


@contextmanager
def _lock_by_columns(
    origin: Origin, wanted: Sequence[Relation], refused: list[tuple[str, BronzeError]]
) -> Iterator[None]:
    """Locks tables of which the role may read only some columns, in another transaction.

    LOCK TABLE needs the SELECT privilege on the whole table, and a SELECT takes its snapshot before
    its locks. So another transaction holds the locks until the snapshot's own transaction has them.
    """
    tables = [r for r in wanted if r.kind in _LOCKABLE and not r.whole]
    if not tables:
        yield
        return
    with connect(origin) as other:
        other.execute("BEGIN READ ONLY")
        refused += _lock(origin, other, tables, _EMPTY_SELECT)
        yield
        _rollback(other)


START_MARGIN = 10 * 10**6
"""Microseconds by which `Since.began` is earlier than the time that the server shows: it shows the
start of a transaction a little later."""

_OPEN_TRANSACTIONS = """
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


def open_transactions(holder: Connection) -> OpenTransactions:
    """The transactions that are open now."""
    row: Any = holder.execute(_OPEN_TRANSACTIONS).fetchone()
    began, visible, prepared, zone, clock, standby = row
    ahead = None if standby else clock - _local_clock()
    return OpenTransactions(began - START_MARGIN, visible, prepared, zone, clock, ahead, standby)


def _local_clock() -> int:
    """The time of the local clock in microseconds since 1970."""
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


# A promoted server writes its new timeline to its control file at its next checkpoint only; the
# names of its WAL files have it at once.
_IDENTITY = """
SELECT s.system_identifier,
       CASE WHEN pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int4 END,
       current_database()
FROM pg_control_system() s, pg_control_checkpoint() c
"""


def timeline_of(connection: Connection) -> str:
    """The cluster, timeline and database that positions belong to; "unknown" if they are hidden.

    Positions can be compared only within one timeline of one cluster: a promoted standby and a
    backup that was recovered to a point in time start a new timeline.
    """
    try:
        with connection.transaction():
            row: Any = connection.execute(_IDENTITY).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        # Some managed services do not grant these functions.
        return "unknown"
    return "/".join(map(str, row))


def _check_joinable(origin: Origin, snapshot: Snapshot) -> None:
    """Joins the snapshot over another connection, which is kept for the first read of a thread.

    Raises:
        SnapshotRefused: it reaches another server.
    """
    try:
        with read_connection(origin, snapshot.session):
            pass
    except psycopg.Error as error:
        refusal = explain(error, origin)
        if not isinstance(refusal, (SnapshotRefused, SnapshotLost)):
            raise refusal from error
        raise SnapshotRefused(
            f"A second connection to {address(origin)} cannot join the snapshot of the first"
            f" ({literal(str(snapshot.name))}): the two do not reach the same server.",
            hint=SNAPSHOT_HINT,
        ) from error
