"""Loads of one table: which files they write, and how long they take."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from deltalake import DeltaTable

from bronze.errors import SnapshotLost
from bronze.ingest import pipeline
from bronze.postgres.copy.snapshot import Snapshot
from bronze.verify import claim, verify
from tests.conftest import Source
from tests.support.content import differences


@pytest.mark.parametrize(
    ("own", "file_size", "operations"), [({}, "4MB", 1), ({"cluster_by": ["id"]}, "1MB", 2)]
)
def test_a_load_writes_its_bytes_once(
    source: Source, own: dict[str, Any], file_size: str, operations: int
) -> None:
    """One file for each reader; only files that are to be clustered are optimized."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute(
        "INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 90000) g"
    )
    source.execute("VACUUM ANALYZE t")
    settings = source.settings(
        tables={"t": own},
        run={"workers": 4, "memory": "1GB"},
        maintain={"file_size": file_size},
    )
    assert pipeline.run(settings).exit_code == 0
    table = DeltaTable(str(source.table("t")))
    assert len(table.history()) == operations
    if not own:
        assert len(table.file_uris()) == 4
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
