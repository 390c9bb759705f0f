"""Units on every engine: values without secrets that give the same tables everywhere."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.execution import budget
from bronze.execution.executors import executor
from bronze.ingest import pipeline
from bronze.model.units import ACTIVE
from tests.conftest import Source
from tests.support import streams
from tests.unit.execution.test_executors import Caught

if TYPE_CHECKING:
    from distributed import LocalCluster


def secretive(source: Source, tmp_path: Path) -> Settings:
    """Settings whose connection string has a password in it."""
    dsn = source.dsn.replace("postgres@", "postgres:hunter2@")
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\nname = "test"\ndsn = "{dsn}"\n'
        f'[lake]\nroot = "{source.lake.as_posix()}"\n'
        '[lake.options]\nshared_key = { secret = "STORE_KEY" }\n'
        "[run]\nworkers = 2\nmax_retries = 0\n"
    )
    return loading.load(file)


def test_a_unit_is_a_value_without_secrets(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit survives pickling, and neither its bytes nor its repr hold a password or a key."""
    monkeypatch.setenv("STORE_KEY", "swordfish")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamp, tags text[])")
    source.execute("INSERT INTO t VALUES (1, now(), '{a}')")
    pool = Caught()
    result = pipeline.run(secretive(source, tmp_path), pool=pool)
    assert [table.error for table in result.tables] == [None]
    (unit,) = pool.units
    carried = pickle.dumps(unit)
    assert pickle.loads(carried) == unit  # noqa: S301 - our own bytes
    for secret in ("hunter2", "swordfish"):
        assert secret.encode() not in carried
        assert secret not in repr(unit)
    with pytest.raises(dataclasses.FrozenInstanceError):
        unit.number = 2  # type: ignore[misc]


def test_a_unit_may_run_twice(source: Source) -> None:
    """A second run of a unit writes another file, and what is committed is the first's alone."""
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 100) i")
    with ThreadPoolExecutor(1) as threads:

        class Twice(Caught):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                fn(*args, **kwargs)
                return threads.submit(fn, *args, **kwargs)

        pipeline.run(source.settings(), pool=Twice())
    assert len(list(source.table("t").glob("*.parquet"))) == 2
    assert sorted(pl.read_delta(str(source.table("t")))["id"]) == list(range(1, 101))


@contextmanager
def _cluster() -> Iterator[Executor]:
    import distributed

    with (
        distributed.LocalCluster(  # type: ignore[no-untyped-call]
            processes=True, n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        executor(f"dask://{cluster.scheduler_address.removeprefix('tcp://')}", 2) as pool,
    ):
        yield pool


ENGINES: dict[str, Callable[[], Any]] = {
    "threads": lambda: executor("threads", 2),
    "processes": lambda: executor("processes", 2),
    "dask": _cluster,
}


@pytest.mark.soak
def test_every_engine_gives_the_same_tables(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, processes and a cluster land the same rows, hashes and rejected values."""
    monkeypatch.setattr(budget, "LARGEST_SPLIT", 2**20)
    source.execute(
        "CREATE SCHEMA kept;"
        "CREATE TABLE kept.t AS SELECT i AS id, repeat('x', 300) || i AS pad,"
        " CASE WHEN i % 5000 = 0 THEN 'NaN' ELSE i / 4.0 END::numeric(12,2) AS n,"
        " ARRAY[i, NULL] AS list FROM generate_series(1, 12000) i;"
        "CREATE TABLE t (LIKE kept.t, PRIMARY KEY (id)); INSERT INTO t TABLE kept.t;"
        "CREATE TABLE one AS SELECT 1 AS id;"
        "CREATE VIEW bad AS SELECT 1 / (id - 1) AS x FROM one"
    )
    expected, first, second = fresh(source, "one"), {}, {}
    for name, opened in ENGINES.items():
        elsewhere = dataclasses.replace(source, lake=source.lake / name)
        source.execute("TRUNCATE t; INSERT INTO t TABLE kept.t")
        with opened() as pool:
            first[name] = loaded(elsewhere, pool) == expected
            source.execute(
                "UPDATE t SET pad = 'new' WHERE id % 1000 = 7;"
                "DELETE FROM t WHERE id BETWEEN 100 AND 199;"
                "INSERT INTO t VALUES (-1, 'x', 'NaN', NULL)"
            )
            second[name] = compared(elsewhere, pool)
    expected = fresh(source, "two")
    assert first == EQUAL
    assert {name: hashes == expected for name, hashes in second.items()} == EQUAL


EQUAL = dict.fromkeys(ENGINES, True)


@pytest.mark.soak
def test_a_stream_uses_the_engine_for_the_loads_of_its_tables(source: Source) -> None:
    """A cluster reads a new table in the snapshot of the stream's slot; changes are applied by
    threads of the stream's own process.
    """
    import distributed

    source.execute(streams.TABLE)
    source.execute("INSERT INTO t SELECT i FROM generate_series(1, 100) i")
    with distributed.LocalCluster(  # type: ignore[no-untyped-call]
        processes=False, protocol="tcp", n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address.removeprefix("tcp://")
        config = streams.settings(source, engine=f"dask://{address}")
        tasks = [tasks_of(cluster)]
        for statement in ("", "UPDATE t SET v = 'new'"):
            source.execute(statement)
            streams.caught_up(config)
            tasks.append(tasks_of(cluster))
    before, loaded, applied = tasks
    assert before < loaded == applied
    streams.proven(source, config)


def tasks_of(cluster: LocalCluster) -> int:
    """How many transitions of tasks a cluster's scheduler has seen."""
    scheduler = cluster.scheduler
    assert scheduler is not None
    return int(scheduler.transition_counter)


def loaded(source: Source, pool: Executor) -> list[tuple[str, str]]:
    """Loads all tables; returns the hashes and checksums of ``t``."""
    ended = {t.table: t for t in pipeline.run(source.settings(), pool=pool).tables}
    assert {label: table.status for label, table in ended.items()} == {
        "public.t": "landed",
        "public.one": "landed",
        "public.bad": "failed",
    }
    assert ended["public.t"].rejected == 2
    assert ended["public.t"].files > 1
    error = ended["public.bad"].error
    assert error is not None
    assert error.kind == "TableRefused"
    landed = pl.read_delta(str(source.table("t"))).sort("id")
    assert landed["id"].to_list() == list(range(1, 12001))
    assert landed["n"].null_count() == 2
    return digests(landed)


def compared(source: Source, pool: Executor) -> list[tuple[str, str]]:
    """Lands what has changed in ``t``; returns the hashes and checksums of its rows."""
    again = pipeline.run(source.settings(), ["t", "one"], pool=pool)
    changed, same = sorted(again.tables, key=lambda table: -table.rows_read)
    assert (changed.status, same.status) == ("landed", "unchanged")
    assert (changed.inserted, changed.updated, changed.deleted) == (1, 12, 100)
    landed = pl.read_delta(str(source.table("t")))
    assert landed.height == 12001
    return digests(landed.filter(pl.col("record_status") == ACTIVE).sort("id"))


def digests(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """Each row's hash and checksum."""
    return rows.select("row_hash", "checksum").rows()


def fresh(source: Source, lake: str) -> list[tuple[str, str]]:
    """The hashes and checksums of the table ``t`` as threads load it into a lake of its own."""
    elsewhere = dataclasses.replace(source, lake=source.lake.parent / lake)
    (table,) = pipeline.run(elsewhere.settings(), ["t"]).tables
    assert (table.error, table.status) == (None, "landed")
    return digests(pl.read_delta(str(elsewhere.table("t"))).sort("id"))


KILLED = """
import os, time
from bronze.execution import executors
if __name__ == "__main__":
    with executors.executor("processes", 2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(4)}, flush=True)
        time.sleep(600)
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_worker_processes_end_with_the_one_that_is_killed(tmp_path: Path) -> None:
    """Nobody else would ever end them."""
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        workers = [Path("/proc") / pid for pid in process.stdout.readline().split()]
        assert workers
        process.kill()
    until = time.monotonic() + 10
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < until, "a worker goes on"
        time.sleep(0.02)
