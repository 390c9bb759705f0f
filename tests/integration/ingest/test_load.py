"""Loads of one table: which files they write, and how long they take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.delta import file_names
from bronze.errors import SnapshotLost
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from bronze.postgres.copy.snapshot import Snapshot
from bronze.verify import claim, verify
from tests.conftest import Source
from tests.support.content import differences


@pytest.fixture
def large(source: Source) -> Source:
    """A source with a table of 15 MB."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute(
        "INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 90000) g"
    )
    source.execute("VACUUM ANALYZE t")
    return source


@pytest.mark.soak
@pytest.mark.parametrize(
    ("own", "operations"),
    [({}, 1), ({"partition_by": "at"}, 2)],
)
def test_a_load_writes_its_bytes_once(large: Source, own: dict[str, Any], operations: int) -> None:
    """One file for each reader. Only where a table with partitions is to be clustered, its files
    are optimized afterwards.
    """
    large.execute("ALTER TABLE t ADD at timestamptz DEFAULT '2026-01-01'")
    clustered = {"cluster_by": ["v"]} if own else {}
    settings = large.settings(
        tables={"t": {**own, **clustered}},
        run={"workers": 4, "memory": "1GB"},
        maintain={"file_size": "1MB"},
    )
    assert pipeline.run(settings).exit_code == 0
    table = DeltaTable(str(large.table("t")))
    assert len(table.history()) == operations
    if not own:
        assert len(table.file_uris()) == 4
    assert differences(settings) == {}


def clustered(source: Source) -> Settings:
    """A config by which the table of `large` is clustered by both of its columns."""
    return source.settings(
        tables={"t": {"cluster_by": ["v", "id"]}},
        run={"workers": 2, "memory": "1GB"},
        maintain={"file_size": "1MB"},
    )


def shares_read(source: Source, columns: Sequence[str]) -> list[float]:
    """For each column the share of the files of ``t`` that may have a row with a given value."""
    adds = pl.DataFrame(DeltaTable(str(source.table("t"))).get_add_actions(flatten=True))
    shares = []
    for column in columns:
        low, high = adds[f"min.{column}"], adds[f"max.{column}"]
        points = pl.read_delta(str(source.table("t")), columns=[column])[column][::1000]
        shares.append(float(np.mean([((low <= p) & (p <= high)).mean() for p in points])))
    return shares


@pytest.mark.soak
def test_a_clustered_load_writes_its_bytes_once(large: Source) -> None:
    """Its files are clusters in the first version: filters on each of the columns skip about
    half of them. Another run has nothing to optimize, and finds no change.
    """
    settings = clustered(large)
    (loaded,) = pipeline.run(settings).tables
    assert (loaded.rows_read, loaded.version, loaded.notes) == (90_000, 0, ())
    paths = [Path(uri).name for uri in DeltaTable(str(large.table("t"))).file_uris()]
    assert len({file_names.cluster_of(path) for path in paths}) == 2
    assert all(file_names.batch_of(path) for path in paths)
    assert len(list(large.table("t").glob("*.parquet"))) == len(paths) == loaded.files
    assert max(shares_read(large, ["v", "id"])) < 0.6
    assert differences(settings) == {}
    (again,) = pipeline.run(settings).tables
    assert again.status == "unchanged"
    assert [Path(uri).name for uri in DeltaTable(str(large.table("t"))).file_uris()] == paths
    assert maintain.maintain(settings, ["t"]).tables[0].rewritten == 0


CHILD = """
import json, sys
from bronze.config import loading
from bronze.ingest import pipeline
pipeline.run(loading.parse(json.loads(sys.argv[1])))
"""


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_clustered_load_that_is_killed_leaves_nothing(
    large: Source, tmp_path: Path, engine: str
) -> None:
    """It is killed when its third file is written: there is no table and no scratch file. The next
    run loads it.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = clustered(large)
    run = settings.run.model_copy(update={"engine": engine})
    document = settings.model_copy(update={"run": run}).model_dump_json(
        by_alias=True, exclude_unset=True
    )
    done = subprocess.run(
        [sys.executable, "-c", CHILD, document],
        env={**os.environ, "BRONZE_FAILPOINT": "file:3", "TMPDIR": str(scratch)},
        check=False,
        timeout=60,
    )
    # A worker process that is killed ends the run with an error.
    assert done.returncode == (-signal.SIGKILL if engine == "threads" else 1)
    assert not DeltaTable.is_deltatable(str(large.table("t")))
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    assert pipeline.run(settings).exit_code == 0
    assert differences(settings) == {}


def test_the_seconds_of_a_table_are_of_its_own_work(source: Source) -> None:
    """With one worker tables are loaded, and verified, one after another: together their seconds
    are not more than those of the run.
    """

    class Slow(ThreadPoolExecutor):
        def submit(self, work: Any, /, *given: Any, **named: Any) -> Any:
            def slow() -> Any:
                time.sleep(0.1)
                return work(*given, **named)

            return super().submit(slow)

    for name in "abcd":
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
        source.execute(f"INSERT INTO {name} VALUES (1)")
    settings = source.settings(run={"workers": 1})
    with Slow(1) as pool:
        loaded = pipeline.run(settings, pool=pool)
        verified = verify.verify(settings, pool=pool)
    for seconds, tables in (
        (loaded.seconds, [table.seconds for table in loaded.tables]),
        (verified.seconds, [table.seconds for table in verified.tables]),
    ):
        assert len(tables) == 4
        assert min(tables) >= 0.1
        assert sum(tables) <= seconds


def test_rows_read_after_the_locks_were_lost_are_not_committed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that holds the snapshot is cut, and the table truncated: to connections that
    have joined the snapshot before it looks empty. Nothing is committed, and nothing is said to
    differ.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    settings = source.settings(run={"max_retries": 0})
    assert pipeline.run(settings).exit_code == 0
    version = DeltaTable(str(source.table("t"))).version()

    def cut(held: Snapshot) -> None:
        source.execute("SELECT pg_terminate_backend(%s, 10000)", held.holder.info.backend_pid)
        source.execute("TRUNCATE t")

    planned, claimed = pipeline._plan_all, claim.claims_of_source

    def plan_and_cut(*arguments: Any) -> Any:
        tables = planned(*arguments)
        cut(tables[0].snapshot)
        return tables

    def claim_and_cut(*arguments: Any) -> Any:
        claims = claimed(*arguments)
        cut(claims[0].context.snapshot)
        return claims

    monkeypatch.setattr(pipeline, "_plan_all", plan_and_cut)
    with pytest.raises(SnapshotLost):
        pipeline.run(settings)
    assert DeltaTable(str(source.table("t"))).version() == version
    monkeypatch.setattr(verify, "claims_of_source", claim_and_cut)
    (proof,) = verify.verify(settings).tables
    assert proof.error
    assert proof.error.kind == "SnapshotLost"
