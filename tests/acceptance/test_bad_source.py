"""A source that is locked, altered, disconnected, restarted, full, a standby or a pooler."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
import tenacity
from deltalake import DeltaTable

from bronze.api import check
from bronze.config.sections.source import Pool
from bronze.demo.server import Server, running, start
from bronze.errors import BronzeError, SnapshotRefused
from bronze.execution import executors
from bronze.ingest import pipeline
from bronze.ingest.worker import read_unit
from bronze.model.results import Failure, RunResult
from bronze.verify import verify
from tests.conftest import FAST, Source
from tests.support.features import has
from tests.support.proxy import GATE, closed_gate, landed, proxied, sessions, until

GATED = f"""
{GATE}; CREATE TABLE t AS SELECT generate_series(1, 50) AS id;
CREATE VIEW gated AS SELECT gate(id) AS id FROM t;
CREATE VIEW gated_too AS SELECT gate(id) AS id FROM t
"""
PATIENT = {"lock_timeout": "10m"}
# Between two tries there is still up to a second, at random.
AGAIN = {"max_retries": 20, "retry_delay": 0, "workers": 2}


def failures(result: RunResult) -> dict[str, Failure]:
    """Each failed table's failure."""
    return {table.table.partition(".")[2]: table.error for table in result.tables if table.error}


def ids(source: Source, table: str) -> list[int]:
    """The ids in a Bronze table, sorted."""
    return sorted(pl.read_delta(str(source.table(table)))["id"].to_list())


def whole(source: Source, *tables: str) -> bool:
    """Whether the tables equal the source, and their files are those of their versions."""
    for table in tables:
        if ids(source, table) != [row[0] for row in source.execute(f"SELECT id FROM {table}")]:
            return False
        folder = str(source.table(table))
        versions = range(DeltaTable(folder).version() + 1)
        known = [uri for version in versions for uri in DeltaTable(folder, version).file_uris()]
        files = {path.name for path in source.table(table).glob("*.parquet")}
        if files != {Path(uri).name for uri in known}:
            return False
    return True


@contextmanager
def under_way(source: Source, /, *tables: str, **sections: Any) -> Iterator[Future[RunResult]]:
    """A run in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(pipeline.run, source.settings(**sections), tables)


@pytest.mark.parametrize("change", ["DROP TABLE t CASCADE", "ALTER TABLE t DROP id CASCADE"])
def test_ddl_waits_until_a_table_is_read(source: Source, change: str) -> None:
    """DROP and ALTER wait for the run from the plan to the last row."""
    source.execute(GATED)
    with closed_gate(source.dsn) as gate, under_way(source, "gated", "t", source=PATIENT) as run:
        gate.reached()
        with psycopg.connect(source.dsn, autocommit=True) as other:
            other.execute("SET lock_timeout = 200")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(change)
        gate.open()
        assert failures(run.result(30)) == {}
    assert whole(source, "t", "gated")
    source.execute(change)


@pytest.mark.parametrize("proves", [False, True])
def test_waiting_ddl_is_let_through(
    source: Source, monkeypatch: pytest.MonkeyPatch, proves: bool
) -> None:
    """An ALTER waits for the lock of the run, and reads would wait behind the ALTER for ever: they
    are canceled. The run reads the table again after the ALTER; verify fails the table.
    """
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 50) AS id; CREATE TABLE u (id int)")
    given = source.settings(source=PATIENT, run={"max_retries": 3})
    if proves:
        pipeline.run(given)
    original, altering = executors.drive, list[Future[Any]]()

    def drive(*arguments: Any) -> Iterator[Any]:
        if not altering:
            altering.append(pool.submit(source.execute, "ALTER TABLE t ADD w int DEFAULT 7"))
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
            until(lambda: source.execute(waiting))
        return original(*arguments)

    monkeypatch.setattr(executors, "drive", drive)
    with ThreadPoolExecutor(1) as pool:
        if proves:
            refused, equal = verify.verify(given).tables
            assert equal.status == "equal"
            assert refused.error
            assert refused.error.kind == "TableContested"
            assert "Another session waits to change table public.t" in refused.error.message
        else:
            assert failures(pipeline.run(given)) == {}
            assert set(pl.read_delta(str(source.table("t")))["w"]) == {7}
        altering[0].result(30)


def test_a_table_dropped_before_its_lock_fails_alone(source: Source) -> None:
    """It is dropped while bronze waits for its lock; its Bronze table stays."""
    source.execute("CREATE TABLE a AS SELECT 1 AS id; CREATE TABLE b AS SELECT 2 AS id")
    assert failures(pipeline.run(source.settings())) == {}
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE b IN ACCESS EXCLUSIVE MODE")
        with under_way(source) as run:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'b'::regclass"
            until(lambda: other.execute(waiting).fetchone() == (1,))
            other.execute("DROP TABLE b")
            other.commit()
            result = run.result(30)
    (failure,) = failures(result).values()
    assert failure.kind == "TableRefused"
    assert "Table public.b does not exist" in failure.message
    assert failure.sqlstate == "42P01"
    assert failure.hint
    assert result.exit_code == 1
    assert ids(source, "a") == [1]
    assert ids(source, "b") == [2]
    assert DeltaTable(str(source.table("b"))).version() == 0


def test_a_table_altered_before_its_lock_is_planned_again(source: Source) -> None:
    """The plan is made from the catalog after the lock."""
    source.execute("CREATE TABLE b AS SELECT 2 AS id, 'x' AS gone")
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE b IN ACCESS EXCLUSIVE MODE")
        with under_way(source) as run:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'b'::regclass"
            until(lambda: other.execute(waiting).fetchone() == (1,))
            other.execute("ALTER TABLE b DROP gone; ALTER TABLE b ADD came text DEFAULT 'y'")
            other.commit()
            assert failures(run.result(30)) == {}
    frame = pl.read_delta(str(source.table("b")))
    assert frame.select(frame.columns[:2]).rows(named=True) == [{"id": 2, "came": "y"}]


def test_a_locked_table_fails_alone(source: Source) -> None:
    """Another session has ACCESS EXCLUSIVE for longer than lock_timeout: the others land."""
    source.execute("CREATE TABLE a AS SELECT 1 AS id; CREATE TABLE b AS SELECT 2 AS id")
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        result = pipeline.run(source.settings(source={"lock_timeout": 1}))
    (failure,) = failures(result).values()
    assert (failure.kind, failure.sqlstate) == ("TableRefused", "55P03")
    assert "Table public.a is locked by another session" in failure.message
    assert "lock_timeout" in failure.hint
    assert result.exit_code == 1
    assert ids(source, "b") == [2]
    assert not source.table("a").exists()


def test_a_statement_timeout_fails_its_table(source: Source) -> None:
    """The read ends and leaves no file; other tables land."""
    source.execute(GATED)
    with closed_gate(source.dsn):
        limits = {"statement_timeout": 1, "lock_timeout": "1h"}
        result = pipeline.run(source.settings(source=limits), ["t", "gated"])
    (failure,) = failures(result).values()
    assert failure.kind == "TableRefused"
    assert "Table public.gated" in failure.message
    assert "statement_timeout" in failure.message + failure.hint
    assert whole(source, "t")
    assert not list(source.table("gated").glob("*"))


def test_one_terminated_reader_is_retried(source: Source) -> None:
    """The snapshot still exists, so only that read is repeated, in the same batch."""
    source.execute(GATED)
    with (
        closed_gate(source.dsn) as gate,
        under_way(source, "gated", source=PATIENT, run=AGAIN) as run,
    ):
        gate.reached()
        (reader,) = gate.waiting()
        gate.keeper.execute("SELECT pg_terminate_backend(%s)", [reader])
        until(lambda: gate.waiting() not in ([], [reader]))
        source.execute("INSERT INTO t VALUES (99)")
        gate.open()
        result = run.result(30)
    assert failures(result) == {}
    assert ids(source, "gated") == list(range(1, 51)), "the first snapshot is the one"
    assert len(list(source.table("gated").glob("*.parquet"))) == 1


@pytest.mark.parametrize("away", [0.0, pytest.param(1.0, marks=pytest.mark.soak)])
def test_a_lost_snapshot_restarts_the_run(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch, away: float
) -> None:
    """When all connections end, the snapshot is lost: all tables are read from a new one."""
    monkeypatch.setattr(read_unit.retry, "wait", tenacity.wait_none())
    source.execute(GATED)
    with proxied(server) as proxy:
        dsn = proxy.dsn(source.dsn.rpartition("/")[2])
        tables = {"t": {"priority": 1}}
        with (
            closed_gate(source.dsn) as gate,
            under_way(source, source={"dsn": dsn, **PATIENT}, run=AGAIN, tables=tables) as run,
        ):
            # Both: a reader that is about to connect would be cut off in a way of its own.
            gate.reached(2)
            until(lambda: landed(source, "t"))
            proxy.refuse()
            proxy.cut()
            source.execute("INSERT INTO t VALUES (99)")
            time.sleep(away)
            gate.open()
            proxy.accept()
            result = run.result(60)
    assert failures(result) == {}
    assert len(result.tables) == 3
    assert whole(source, "t", "gated", "gated_too")
    assert 99 in ids(source, "t")
    for table in ("t", "gated", "gated_too"):
        frame = pl.read_delta(str(source.table(table)))
        assert frame["batch_id"].unique().to_list() == [result.batch_id]


def test_a_source_that_stays_unreachable_ends_the_run(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the retries the run reports an unreachable source; committed tables stay."""
    monkeypatch.setattr(read_unit.retry, "wait", tenacity.wait_none())
    source.execute(GATED)
    with proxied(server) as proxy:
        dsn = proxy.dsn(source.dsn.rpartition("/")[2])
        more = {"dsn": dsn, "connect_timeout": 2, **PATIENT}
        tables = {"t": {"priority": 1}}
        once = {"max_retries": 1, "retry_delay": 0, "workers": 2}
        with (
            closed_gate(source.dsn) as gate,
            under_way(source, source=more, run=once, tables=tables) as run,
        ):
            # Both: a reader that is about to connect waits for half a minute, in connectorx.
            gate.reached(2)
            until(lambda: landed(source, "t"))
            proxy.refuse()
            proxy.cut()
            gate.open()
            with pytest.raises(BronzeError) as caught:
                run.result(45)
    assert caught.value.exit_code == 3
    assert f"127.0.0.1:{proxy.port}" in caught.value.message
    assert "Check host and port" in caught.value.hint
    assert whole(source, "t")
    assert not list(source.table("gated").glob("*"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module's own, with few connections."""
    data = tmp_path_factory.mktemp("small") / "data"
    with running(data, settings=SMALL) as server:
        yield server


SMALL = {
    **FAST,
    "max_connections": "8",
    "superuser_reserved_connections": "0",
    "autovacuum": "off",
    **({"reserved_connections": "0"} if has("reserved_connections") else {}),
}


@pytest.fixture
def fresh(small: Server, tmp_path: Path) -> Source:
    """An empty database in it."""
    until(lambda: _alone(small))
    with psycopg.connect(small.dsn(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
        admin.execute("CREATE DATABASE fresh")
    return Source(small.dsn("fresh"), tmp_path / "lake")


def _alone(server: Server) -> bool:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with suppress(psycopg.OperationalError), psycopg.connect(server.dsn()) as connection:
        return connection.execute(query).fetchone() == (0,)
    return False


@pytest.mark.soak
def test_a_run_survives_a_server_restart(
    small: Server, fresh: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL crashes and recovers: the run starts again, and Bronze equals the source."""
    monkeypatch.setattr(read_unit.retry, "wait", tenacity.wait_none())
    fresh.execute(GATED)
    fresh.execute("CHECKPOINT")
    with under_way(fresh, source=PATIENT, run=AGAIN) as run:
        with closed_gate(fresh.dsn) as gate:
            gate.reached()
            small.stop("immediate")
        start(small.data, port=small.port, settings=SMALL)
        result = run.result(60)
    assert failures(result) == {}
    assert whole(fresh, "t", "gated", "gated_too")


@contextmanager
def taken(dsn: str, count: int) -> Iterator[Callable[[int], None]]:
    """Takes connections; what it yields gives back some of them."""
    kept = [psycopg.connect(dsn) for _ in range(count)]

    def give_back(some: int) -> None:
        for _ in range(some):
            kept.pop().close()

    try:
        yield give_back
    finally:
        give_back(len(kept))


@pytest.mark.soak
def test_a_run_waits_for_free_connections(fresh: Source) -> None:
    """Without free connections a run waits, and continues with fewer readers."""
    fresh.execute(GATED)
    for i in range(4):
        fresh.execute(f"CREATE TABLE t{i} AS SELECT {i} AS id")
    # Of 8, the gate has 1 and others have 4: 3 are left, where the run wants 5.
    with (
        closed_gate(fresh.dsn) as gate,
        taken(fresh.dsn, 4) as give_back,
        under_way(fresh, source=PATIENT, run={"workers": 4}) as run,
    ):
        gate.reached()
        until(lambda: _full(fresh.dsn))
        give_back(2)
        gate.open()
        assert failures(run.result(60)) == {}
    assert whole(fresh, "t", "gated", "gated_too", "t0", "t1", "t2", "t3")


def _full(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as error:
        return "too many clients" in str(error)
    return False


def test_a_server_without_free_connections_is_reported(fresh: Source) -> None:
    """A run that gets no connection ends with exit code 3 and says why."""
    fresh.execute("CREATE TABLE t AS SELECT 1 AS id")
    with taken(fresh.dsn, 8), pytest.raises(BronzeError) as caught:
        pipeline.run(fresh.settings())
    assert type(caught.value).__name__ == "SourceBusy"
    assert "has no free connection" in caught.value.message
    assert "max_connections" in caught.value.hint
    assert caught.value.exit_code == 3


def test_pool_max_bounds_all_connections(source: Source) -> None:
    """Those of the snapshot, the readers and the control queries together."""
    source.execute(GATED)
    for i in range(6):
        source.execute(f"CREATE VIEW gated_{i} AS SELECT gate(id) AS id FROM t")
    most: dict[int, int] = {}
    for pool in ({"max": 3}, {"min": 2, "max": 4}, {"min": 1, "max": 6}):
        elsewhere = Source(source.dsn, source.lake / str(pool["max"]))
        with (
            psycopg.connect(source.dsn, autocommit=True) as watcher,
            closed_gate(source.dsn) as gate,
            under_way(elsewhere, source={"pool": pool, **PATIENT}, run={"workers": 8}) as run,
        ):
            gate.reached(Pool(**pool).readers)
            most[pool["max"]] = len(sessions(watcher))
            gate.open()
            while not run.done():
                most[pool["max"]] = max(most[pool["max"]], len(sessions(watcher)))
                time.sleep(0.001)
            assert failures(run.result()) == {}
    assert {limit: used for limit, used in most.items() if not 2 <= used <= limit} == {}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """A primary and a standby of the same database, ``shop``."""
    folder = tmp_path_factory.mktemp("pair")
    with running(folder / "primary", settings=FAST) as made:
        with psycopg.connect(made.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE shop")
        with psycopg.connect(made.dsn("shop"), autocommit=True) as shop:
            shop.execute(
                "CREATE TABLE t AS SELECT i AS id, now() AS at FROM generate_series(1, 50) i"
            )
    shutil.copytree(folder / "primary", folder / "standby")
    (folder / "standby" / "standby.signal").touch()
    owner = (folder / "primary").stat()
    for path in [folder / "standby", *(folder / "standby").rglob("*")]:
        shutil.chown(path, owner.st_uid, owner.st_gid)
    with (
        running(folder / "primary", settings=FAST) as primary,
        running(folder / "standby", settings=FAST) as standby,
    ):
        yield primary, standby


@pytest.mark.soak
@pytest.mark.parametrize("consistency", ["run", "per-table"])
def test_a_standby_is_read_as_a_primary_is(
    pair: tuple[Server, Server], tmp_path: Path, consistency: str
) -> None:
    """It exports a snapshot for all readers, or each table is read from a snapshot of its own."""
    source = Source(pair[1].dsn("shop"), tmp_path / "lake")
    result = pipeline.run(source.settings(source={"consistency": consistency}))
    assert failures(result) == {}
    assert whole(source, "t")


def test_a_cursor_column_on_a_standby_needs_an_overlap(
    pair: tuple[Server, Server], tmp_path: Path
) -> None:
    """It does not show the primary's open transactions: run and check refuse without an overlap."""
    source = Source(pair[1].dsn("shop"), tmp_path / "lake")
    table = {"t": {"pattern": "batch", "cursor": "at", "key": ["id"]}}
    given = source.settings(source={"consistency": "per-table"}, tables=table)
    ((_, failure),) = failures(pipeline.run(given)).items()
    assert "is a standby, which does not show transactions of the primary" in failure.message
    assert "overlap" in failure.hint
    assert [problem.message for problem in check.check(given).problems] == [failure.message]
    table["t"]["overlap"] = "1h"
    given = source.settings(source={"consistency": "per-table"}, tables=table)
    assert check.check(given).problems == ()
    assert failures(pipeline.run(given)) == {}
    assert whole(source, "t")


def test_check_reports_the_limits_of_a_standby(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """A stream is a problem; without one there is a note."""
    source = Source(pair[1].dsn("shop"), tmp_path / "lake")
    found = check.check(source.settings())
    assert found.problems == ()
    (note,) = found.notes
    assert "is a standby: a cursor column needs an overlap" in note
    streamed = source.settings(
        source={"consistency": "per-table"}, tables={"t": {"pattern": "streaming"}}
    )
    assert any("The server is a standby" in p.message for p in check.check(streamed).problems)


@pytest.mark.parametrize("first", [0, 1])
def test_a_pooler_for_two_servers_is_refused(
    pair: tuple[Server, Server], tmp_path: Path, first: int
) -> None:
    """Readers could not reach the server of the snapshot; that is found out before they read."""
    with proxied(pair[first], pair[1 - first]) as pooler:
        source = Source(pooler.dsn("shop"), tmp_path / "lake")
        with pytest.raises(SnapshotRefused) as caught:
            pipeline.run(source.settings())
    assert "do not reach the same server" in caught.value.message
    assert "not through a pooler" in caught.value.hint
    assert not [path for path in source.lake.rglob("*") if path.is_file()]
