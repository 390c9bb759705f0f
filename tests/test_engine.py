"""Engines: a unit of work does the same wherever it runs, and the source sets the pace."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import distributed
import polars as pl
import pytest

from bronze import config, engine, pipeline, prepare
from bronze.engine import dispatch, executor
from bronze.errors import BronzeError, ConfigError, SourceBusy, TableRefused
from bronze.model import Origin, Place, Stamp, Unit, Written
from bronze.work import work
from tests.conftest import Source
from tests.table.test_commit import batch

STAMP = Stamp(batch(), datetime(2024, 1, 1, tzinfo=UTC), "test", "full_refresh")


def units(count: int) -> list[Unit]:
    """Units that nobody reads with."""
    origin, place = Origin("test", ""), Place("nowhere")
    return [
        Unit(i, "public.t", origin, (), "", (), (), (), (), STAMP, place, 1) for i in range(count)
    ]


def always(_: Unit) -> bool:
    """All units are wanted."""
    return True


class Gauge:
    """Work that notes how much of it runs at once, and finds no connection above a limit.

    The first ``together`` calls wait for each other, so that they are certain to overlap.
    """

    def __init__(self, together: int = 1, slots: int = 99, fails: Sequence[int] = ()) -> None:
        self.slots = slots
        self.fails = fails
        self.calls = self.running = self.most = self.refused = 0
        self._lock = threading.Lock()
        self._together = together
        self._gate = threading.Barrier(together)

    def __call__(self, unit: Unit) -> Written:
        """Runs one unit."""
        with self._lock:
            first = self.calls < self._together
            granted = self.running < self.slots
            self.calls += 1
            self.refused += not granted
            self.running += granted
            self.most = max(self.most, self.running)
        if first:
            self._gate.wait(30)
        if not granted:
            raise SourceBusy("full")
        time.sleep(0.002)
        with self._lock:
            self.running -= 1
        if unit.number in self.fails:
            raise TableRefused(f"unit {unit.number}")
        return Written(unit.number, unit.number, None)


def outcomes(
    gauge: Callable[[Unit], Written],
    count: int,
    limit: int,
    wanted: Callable[[Unit], bool] = always,
) -> list[tuple[int, Any]]:
    """What each unit came to: its rows, or its error's class, in order of the units."""
    with ThreadPoolExecutor(8) as pool:
        ended = list(dispatch(pool, gauge, units(count), limit, wanted))
    return sorted(
        (unit.number, type(outcome) if isinstance(outcome, BronzeError) else outcome.rows)
        for unit, outcome in ended
    )


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_no_more_units_run_at_once_than_allowed(limit: int) -> None:
    """Each unit runs once, and never more of them together than the limit."""
    gauge = Gauge(together=limit)
    assert outcomes(gauge, 20, limit) == [(i, i) for i in range(20)]
    assert gauge.most == limit


def test_no_units_are_no_work() -> None:
    """Nothing to do ends at once."""
    assert outcomes(Gauge(), 0, 3) == []


@pytest.mark.parametrize("slots", [1, 2])
def test_a_full_source_slows_the_run_down(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that found no connection run again, with fewer at once, and all of them end well."""
    monkeypatch.setattr(engine, "_BUSY_DELAY", 0.001)
    gauge = Gauge(together=8, slots=slots)
    assert outcomes(gauge, 20, 8) == [(i, i) for i in range(20)]
    assert gauge.most == slots
    assert 8 - slots <= gauge.refused < 30


def test_a_source_that_stays_full_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many tries a full source is an error of the unit, not an endless loop."""
    monkeypatch.setattr(engine, "_BUSY_DELAY", 0)
    monkeypatch.setattr(engine, "_BUSY_TRIES", 5)
    gauge = Gauge(slots=0)
    assert outcomes(gauge, 2, 2) == [(0, SourceBusy), (1, SourceBusy)]
    assert gauge.refused == 7


def test_one_units_error_does_not_stop_the_others() -> None:
    """Failed units are told, and all others still run."""
    ended = outcomes(Gauge(fails=[3, 4]), 9, 2)
    assert [i for i, outcome in ended if outcome is TableRefused] == [3, 4]
    assert [i for i, outcome in ended if outcome == i] == [0, 1, 2, 5, 6, 7, 8]


def test_unwanted_units_are_left_out() -> None:
    """A unit whose table has failed meanwhile is not begun."""
    assert outcomes(Gauge(), 6, 2, lambda unit: unit.number % 2 == 0) == [(0, 0), (2, 2), (4, 4)]
    assert outcomes(Gauge(), 3, 2, lambda _: False) == []


def test_a_fault_of_ours_is_the_error_of_its_unit_alone() -> None:
    """An error that is not ours is told as a fault in bronze, and the other units go on."""

    def broken(unit: Unit) -> Written:
        if unit.number == 1:
            raise ZeroDivisionError
        return Written(unit.number, 0, None)

    with ThreadPoolExecutor(1) as pool:
        ended = [outcome for _, outcome in dispatch(pool, broken, units(3), 2, always)]
    (fault,) = [outcome for outcome in ended if isinstance(outcome, BronzeError)]
    assert "ZeroDivisionError inside bronze" in fault.message
    assert len(ended) == 3


def secretive(source: Source, tmp_path: Path) -> config.Settings:
    """Settings whose connection string has a password in it."""
    dsn = source.dsn.replace("postgres@", "postgres:hunter2@")
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\nname = "test"\ndsn = "{dsn}"\n'
        f'[lake]\nroot = "{source.lake.as_posix()}"\n'
        '[lake.options]\nshared_key = { secret = "STORE_KEY" }\n'
        "[run]\nworkers = 2\nmax_retries = 0\n"
    )
    return config.load(file)


class Caught(Executor):
    """Runs units here and now, and keeps them."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a unit."""
        self.units.append(args[0])
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(fn, *args, **kwargs)


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
    with (
        distributed.LocalCluster(  # type: ignore[no-untyped-call]
            processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        executor(f"dask://{cluster.scheduler_address.removeprefix('tcp://')}", 2) as pool,
    ):
        yield pool


ENGINES: dict[str, Callable[[], Any]] = {
    "threads": lambda: executor("threads", 2),
    "processes": lambda: executor("processes", 2),
    "dask": _cluster,
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_same_tables(
    source: Source, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, processes and a cluster land the same rows, hashes and rejected values."""
    monkeypatch.setattr(prepare, "_SLICE", 2**20)
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, repeat('x', 300) || i AS pad,"
        " CASE WHEN i % 5000 = 0 THEN 'NaN' ELSE i / 4.0 END::numeric(12,2) AS n,"
        " ARRAY[i, NULL] AS list FROM generate_series(1, 12000) i;"
        "ALTER TABLE t ADD PRIMARY KEY (id);"
        "CREATE TABLE one AS SELECT 1 AS id;"
        "CREATE VIEW bad AS SELECT 1 / (id - 1) AS x FROM one"
    )
    with ENGINES[name]() as pool:
        result = pipeline.run(source.settings(), pool=pool)
    ended = {table.table: table for table in result.tables}
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
    digest = landed.select(pl.col("row_hash", "checksum").str.join())
    again = pipeline.run(source.settings(), ["t"])
    assert again.tables[0].status == "landed"
    here = pl.read_delta(str(source.table("t"))).sort("id")
    assert here.select(pl.col("row_hash", "checksum").str.join()).equals(digest)


def test_work_is_what_engines_run() -> None:
    """Engines get a plain function of a module, which any process can import."""
    assert pickle.loads(pickle.dumps(work)) is work  # noqa: S301 - our own bytes


def test_a_scheduler_that_is_not_there_is_the_configs_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster that does not answer is said to be so."""

    def impatient(address: str, **options: Any) -> Any:
        return client(address, **{**options, "timeout": "200ms"})

    client: Any = distributed.Client
    monkeypatch.setattr(distributed, "Client", impatient)
    with (
        pytest.raises(ConfigError, match="does not answer") as caught,
        executor("dask://127.0.0.1:1", 1),
    ):
        pass
    assert "engine" in caught.value.hint
