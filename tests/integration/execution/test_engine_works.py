"""What may take long runs on the configured engine: loads, layout, verification, repair."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.execution import executors
from bronze.ingest import pipeline
from bronze.maintenance.maintain import maintain
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.support import streams
from tests.support.content import differences
from tests.support.sent import Sent

T = TypeVar("T")

SECRETS = ("hunter2", "swordfish")


class Recorded(Sent):
    """Threads to which work travels as bytes: its functions, and the bytes."""

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers)
        self.works: set[Callable[..., Any]] = set()
        self.carried: list[bytes] = []

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedules a call of what arrives."""
        self.works.add(args[0])
        self.carried.append(pickle.dumps((fn, args, kwargs)))
        return super().submit(fn, *args, **kwargs)

    @property
    def names(self) -> set[str]:
        """The functions that ran, as ``module.function``."""
        return {f"{work.__module__}.{work.__qualname__}" for work in self.works}


WORKS = {
    "bronze.ingest.worker.read_unit",
    "bronze.ingest.worker.merge_file",
    "bronze.delta.layout.rewrite.survey",
    "bronze.delta.layout.rewrite.write",
    "bronze.verify.evidence.source_sums",
    "bronze.verify.evidence.keyed_hashes_in_source",
    "bronze.verify.evidence.keyed_hashes_in_file",
    "bronze.verify.file_check.check_file",
}
"""The functions that workers perform, at least."""


@pytest.fixture(autouse=True)
def secrets(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets that the config names."""
    monkeypatch.setenv("STORE_KEY", SECRETS[1])
    monkeypatch.setenv("TEST_DSN", source.dsn.replace("postgres@", f"postgres:{SECRETS[0]}@"))


def config(source: Source, **run: Any) -> Settings:
    """A config that leaves all layout to maintenance, and clusters the table."""
    return source.settings(
        source={"dsn": {"secret": "TEST_DSN"}},
        lake={"options": {"shared_key": {"secret": "STORE_KEY"}}},
        tables={"t": {"cluster_by": ["n", "id"]}},
        maintain={"auto": False, "file_size": "1MB"},
        run=run,
    )


def small_files(source: Source, settings: Settings, pool: Executor | None = None) -> None:
    """A table in several runs, each of which adds a file."""
    source.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, v text, n int)")
    for start in range(4):
        source.execute(
            "INSERT INTO t SELECT i, (SELECT string_agg(md5(i::text || j), '')"
            " FROM generate_series(1, 512) j), i % 7"
            f" FROM generate_series({start * 100 + 1}, {start * 100 + 100}) i"
        )
        assert pipeline.run(settings, pool=pool).exit_code == 0


def lived(
    source: Source, lake: str, pool: Executor | None = None, **run: Any
) -> list[tuple[Any, ...]]:
    """Loads, changes, compares, verifies, repairs and optimizes a table; returns its rows."""
    source = dataclasses.replace(source, lake=source.lake / lake)
    settings = config(source, **run)
    small_files(source, settings, pool)
    source.execute("UPDATE t SET v = 'new' WHERE id % 50 = 3; DELETE FROM t WHERE id % 50 = 4")
    found = verify(settings, pool=pool).tables[0]
    assert (found.status, found.different, found.extra) == ("differs", 8, 8)
    assert verify(settings, repair=True, pool=pool).tables[0].status == "equal"
    (made,) = maintain(settings, ["t"], pool=pool).tables
    assert (made.error, made.rewritten > 0) == (None, True)
    assert verify(settings, at_rest=True, pool=pool).tables[0].status == "equal"
    assert differences(settings) == {}
    rows = pl.read_delta(str(source.table("t"))).sort("id")
    return rows.select("id", "v", "n", "record_status", "row_hash", "checksum").rows()


@pytest.mark.soak
def test_each_work_travels_as_bytes_without_secrets(source: Source) -> None:
    """The tasks of all commands can be sent; no secret is among the bytes. The modules of these
    tasks are known to import neither governance nor the API.
    """
    with Recorded() as pool:
        assert lived(source, "sent", pool)
    assert pool.names >= WORKS
    for secret in SECRETS:
        assert not any(secret.encode() in carried for carried in pool.carried)
    assert {work.__module__ for work in pool.works} - without_governance() == set()


def without_governance() -> set[str]:
    """The modules that never import governance or the API: those of the import contract, and the
    ones of the same layer as governance or a lower one.
    """
    linter = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [c for c in linter["contracts"] if c["name"] == "workers need no governance"]
    assert {"bronze.governance", "bronze.api"} <= set(contract["forbidden_modules"])
    lower = [m for m in sys.modules if m.startswith(("bronze.delta.", "bronze.tables."))]
    return {*contract["source_modules"], *lower}


@pytest.mark.soak
def test_maintenance_rewrites_in_worker_processes(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `[run] engine = "processes"`, `maintain` rewrites files in processes of its own."""
    settings = config(source)
    small_files(source, settings)
    works: list[Any] = []

    class Noted(ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            works.append(args[0].__name__)
            return super().submit(fn, *args, **kwargs)

    monkeypatch.setattr(executors, "ProcessPoolExecutor", Noted)
    (made,) = maintain(config(source, engine="processes", workers=1), ["t"]).tables
    assert (made.error, made.files_before > made.files_after) == (None, True)
    assert works == ["survey"] * made.files_before + ["write"]
    assert differences(settings) == {}


@contextmanager
def _cluster() -> Iterator[str]:
    import distributed

    with distributed.LocalCluster(  # type: ignore[no-untyped-call]
        processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_gives_the_same_rows_on_every_engine(source: Source) -> None:
    """Loads, comparisons, verification, repair and layout, by threads, processes and a cluster."""
    expected = lived(source, "threads")
    assert lived(source, "processes", engine="processes") == expected
    with _cluster() as engine:
        assert lived(source, "dask", engine=engine) == expected


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_initial_copy_of_a_stream_is_read_in_processes(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table sync, and the resync of a table whose columns changed, run on the engine; batches are
    applied by threads.
    """
    works: list[Any] = []

    class Noted(ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            works.append(args[0].__name__)
            return super().submit(fn, *args, **kwargs)

    monkeypatch.setattr(executors, "ProcessPoolExecutor", Noted)
    source.execute(streams.TABLE)
    source.execute("INSERT INTO t SELECT i FROM generate_series(1, 100) i")
    settings = streams.settings(source, engine="processes")
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    assert works == ["read_unit"]
    source.execute("UPDATE t SET v = 'new'")
    streams.caught_up(settings)
    assert works == ["read_unit"]
    streams.proven(source, settings)
