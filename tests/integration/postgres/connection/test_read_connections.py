"""Connections that read: kept for the next read of their snapshot, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import polars as pl
import psycopg
import pytest

from bronze.api import check
from bronze.config.settings import Settings
from bronze.ingest import pipeline
from bronze.model.columns import Column, DeltaType
from bronze.model.locations import Origin
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.connection.allowance import LeasedConnection
from bronze.postgres.connection.read_connections import BEGIN, read_connection
from bronze.postgres.copy import rows_reader, snapshot
from bronze.postgres.copy.snapshot import Consistency, Snapshot
from bronze.verify import verify
from tests.conftest import Source
from tests.support.features import since
from tests.support.proxy import until

ID = Column("id", "id", "integer", DeltaType("int"), "same", "", "", "", "")
COUNT = b"SELECT count(*) FROM public.t"
PID = b"SELECT pg_backend_pid()"


@pytest.fixture
def rows(source: Source) -> Source:
    """A table of three rows."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)")
    return source


@contextmanager
def held(
    source: Source, consistency: Consistency = "run", in_threads: bool = True
) -> Iterator[tuple[Origin, Snapshot]]:
    """A snapshot of the table."""
    origin = source.settings().origin("test")
    with connect.connect(origin) as holder:
        tables = relations(holder, ["public"])
        with snapshot.hold(
            origin, holder, tables, ["public"], consistency, in_threads=in_threads
        ) as current:
            yield origin, current


def value(connection: connect.Connection, query: bytes) -> Any:
    """The single value of a query."""
    ((answer,),) = connection.execute(query).fetchall()
    return answer


def processes(source: Source) -> list[int]:
    """The server processes of the reads' and the snapshot's sessions."""
    found = source.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'bronze'"
        " AND datname = current_database() ORDER BY backend_start"
    )
    return [pid for (pid,) in found]


def test_the_reads_of_a_snapshot_share_a_connection(rows: Source) -> None:
    """The one that was opened to see whether the snapshot can be joined; it ends with the
    snapshot.
    """
    with held(rows) as (origin, current):
        rows.execute("DELETE FROM t WHERE id = 1")
        opened = processes(rows)
        for _ in range(3):
            with read_connection(origin, current.session) as connection:
                assert value(connection, COUNT) == 3
                assert [value(connection, PID)] == opened[1:]
        with (
            read_connection(origin, current.session) as first,
            read_connection(origin, current.session) as second,
        ):
            # Two reads at once need two.
            assert value(first, PID) != value(second, PID)
        assert len(processes(rows)) == 3
    until(lambda: processes(rows) == [])


def test_a_read_leaves_neither_locks_nor_settings_nor_errors(rows: Source) -> None:
    """To the next read of its connection."""
    with held(rows) as (origin, current):
        settings = ("SET LOCAL work_mem = '64kB'",)
        with read_connection(origin, current.session, settings) as one:
            pid = value(one, PID)
            value(one, COUNT)
            with pytest.raises(psycopg.errors.DivisionByZero):
                value(one, b"SELECT 1 / 0")
        with read_connection(origin, current.session) as other:
            assert value(other, PID) == pid
            assert value(other, b"SHOW work_mem") != "64kB"
            locks = b"SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()"
            assert value(other, locks + b" AND relation = 'public.t'::regclass") == 0
            assert value(other, COUNT) == 3


def test_a_kept_connection_has_no_locks_while_it_waits(rows: Source) -> None:
    """Also after an error; the settings of the next read are those that it asks for."""
    locks = "SELECT relation::regclass::text FROM pg_locks WHERE pid = %s AND relation >= 16384"
    settings = ("SET LOCAL work_mem = '64kB'",)
    with held(rows) as (origin, current):
        for mine, expected in ((settings, "64kB"), (settings, "64kB"), ((), "4MB")):
            with read_connection(origin, current.session, mine) as connection:
                pid = value(connection, PID)
                assert value(connection, b"SHOW work_mem") == expected
                assert value(connection, COUNT) == 3
                assert rows.execute(locks, pid)
                with pytest.raises(psycopg.errors.DivisionByZero):
                    value(connection, b"SELECT 1 / 0")
            assert rows.execute(locks, pid) == []
            assert not connection.closed


def test_a_kept_connection_that_was_cut_is_replaced(rows: Source) -> None:
    """By another one in the same snapshot."""
    with held(rows) as (origin, current):
        holder, reader = processes(rows)
        rows.execute("DELETE FROM t WHERE id = 1")
        rows.execute("SELECT pg_terminate_backend(%s)", reader)
        until(lambda: processes(rows) == [holder])
        # With the settings that it has, and with others.
        for settings in ((), ("SET LOCAL work_mem = '64kB'",)):
            with read_connection(origin, current.session, settings) as connection:
                assert value(connection, COUNT) == 3
                assert value(connection, PID) != reader
                reader = value(connection, PID)
            rows.execute("SELECT pg_terminate_backend(%s)", reader)
            until(lambda: processes(rows) == [holder])


def test_reads_without_a_shared_snapshot_see_moments_of_their_own(rows: Source) -> None:
    """Over one connection, which is in no transaction between them."""
    with held(rows, "per-table") as (origin, current):
        pids = []
        for left in (3, 2, 1):
            with read_connection(origin, current.session) as connection:
                assert value(connection, COUNT) == left
                pids.append(value(connection, PID))
            states = rows.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", pids[-1])
            assert states == [("idle",)]
            rows.execute("DELETE FROM t WHERE id = %s", left)
        assert len(set(pids)) == 1
    until(lambda: processes(rows) == [])


def test_a_connection_is_closed_where_no_snapshot_is_held(rows: Source) -> None:
    """As in a process of a cluster, which does not know when its run ends."""
    with held(rows) as (origin, current):
        session = (BEGIN, f"SET TRANSACTION SNAPSHOT '{current.name}'", "SET LOCAL jit = off")
        with read_connection(origin, session) as connection:
            assert value(connection, COUNT) == 3
        assert connection.closed


def test_no_connection_is_kept_where_processes_read(rows: Source) -> None:
    """They cannot use the connections of this process; a role may have a CONNECTION LIMIT."""
    with held(rows, in_threads=False) as (origin, current):
        until(lambda: len(processes(rows)) == 1)
        with read_connection(origin, current.session) as connection:
            assert value(connection, COUNT) == 3
        assert connection.closed


def test_a_read_by_connectorx_takes_the_place_of_a_kept_connection(rows: Source) -> None:
    """There are no more connections than reads at once."""
    fetch, before = rows_reader._fetch, []

    def recorded(*arguments: Any) -> Any:
        until(lambda: len(processes(rows)) == 1)
        before.extend(processes(rows))
        return fetch(*arguments)

    query = "SELECT id AS c0, NULL::text AS rejected FROM public.t"
    with held(rows) as (origin, current), mock.patch.object(rows_reader, "_fetch", recorded):
        holder, _ = processes(rows)
        ((part, _),) = rows_reader.read_rows(
            origin, current.session, query, ["true"], [ID], "public.t"
        )
    assert part["id"].sort().to_list() == [1, 2, 3]
    assert before == [holder]


COMMANDS: dict[str, Callable[[Settings], Any]] = {
    "check": check.check,
    "run": pipeline.run,
    "run again": pipeline.run,
    "verify": verify.verify,
}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts new connections, and the statements that are not reads of rows."""
    counts = {"connections": 0, "statements": 0}
    connecting, executing = LeasedConnection.connect, psycopg.Connection.execute

    def count_connection(*arguments: Any, **options: Any) -> Any:
        counts["connections"] += 1
        return connecting(*arguments, **options)

    def count_statement(self: connect.Connection, *arguments: Any, **options: Any) -> Any:
        counts["statements"] += 1
        return executing(self, *arguments, **options)

    with (
        mock.patch.object(LeasedConnection, "connect", count_connection),
        mock.patch.object(psycopg.Connection, "execute", count_statement),
    ):
        yield counts


@pytest.mark.soak
@since("scans of page ranges")
def test_more_tables_ask_no_more_of_the_catalog(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each table a command asks for its rows, and of its snapshot for everything else; a worker
    needs one connection.
    """
    # Once a second a snapshot asks who waits for its locks.
    monkeypatch.setattr(pipeline, "_RELIEF_INTERVAL", 3600)
    asked: dict[int, dict[str, int]] = {}
    for count in (2, 12):
        for number in range(count):
            source.execute(
                f"CREATE TABLE IF NOT EXISTS t{number}"
                " (id int PRIMARY KEY, name text NOT NULL, price numeric(12,2), CHECK (id > 0))"
            )
            source.execute(f"INSERT INTO t{number} VALUES (1, 'a', 1) ON CONFLICT DO NOTHING")
        for name, command in COMMANDS.items():
            with counted() as counts:
                result = command(source.settings(run={"workers": 1}))
            assert len(result.tables) == count
            # One that holds the snapshot, and that of the worker.
            assert counts["connections"] == 2, name
            asked.setdefault(count, {})[name] = counts["statements"]
    more = {name: asked[12][name] - asked[2][name] for name in COMMANDS}
    # A connection is made ready for each read, and the snapshot has to be there after it; one
    # statement of a check samples several tables.
    assert more == {"check": 0, "run": 20, "run again": 20, "verify": 20}


@since("scans of page ranges")
def test_a_worker_reads_all_tables_over_one_connection(source: Source) -> None:
    """If it is a thread."""
    for number in range(4):
        source.execute(f"CREATE VIEW v{number} AS SELECT pg_backend_pid() AS process")
    given = source.settings(run={"workers": 1})
    assert [table.error for table in pipeline.run(given).tables] == [None] * 4
    tables = [pl.read_delta(str(source.table(f"v{number}"))) for number in range(4)]
    assert pl.concat(table.select("process") for table in tables)["process"].n_unique() == 1
