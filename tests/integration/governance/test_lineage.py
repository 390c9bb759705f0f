"""Lineage: one record per run and table, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bronze.cdc import stream
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout import optimize
from bronze.errors import LakeUnreachable
from bronze.governance import lineage
from bronze.governance.tables import data_lineage
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from tests.conftest import Source

CHILD = """
import json, sys
from bronze.cdc import stream
from bronze.config import loading
from bronze.ingest import pipeline
settings = loading.parse(json.loads(sys.argv[1]))
if sys.argv[2] == "stream":
    stream.stream(settings, until_caught_up=True)
else:
    pipeline.run(settings)
"""
STREAMED = {"t": {"pattern": "streaming"}}


@pytest.fixture
def shop(source: Source) -> Source:
    """A table of three rows."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, word text)")
    source.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')")
    return source


def records(source: Source) -> list[dict[str, Any]]:
    """The records in the order in which they were written."""
    return (
        pl.read_delta(str(source.lake / "governance" / data_lineage.NAME))
        .sort("created_timestamp", "version_after", nulls_last=True)
        .rows(named=True)
    )


def killed(settings: Settings, point: str, what: str = "run") -> None:
    """Runs a command in a process that is killed at a failpoint."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, document, what],
        env={**os.environ, "BRONZE_FAILPOINT": point},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


def figures(record: dict[str, Any]) -> tuple[Any, ...]:
    """The figures of a record."""
    names = ("mode", "status", "version_before", "version_after", "rows_read")
    return tuple(record[name] for name in (*names, "inserted", "updated", "deleted"))


def rows(source: Source) -> pl.DataFrame:
    """The Bronze table."""
    return pl.read_delta(str(source.table("t")))


def test_a_record_per_run_and_table(shop: Source) -> None:
    """A load, changes, no changes, and a failure: each run has one record with its figures, in the
    documented columns and their order.
    """
    settings = shop.settings()
    first = pipeline.run(settings)
    shop.execute("UPDATE t SET word = 'new' WHERE id = 1")
    shop.execute("DELETE FROM t WHERE id = 2")
    shop.execute("INSERT INTO t VALUES (4, 'four'), (5, 'five')")
    pipeline.run(settings)
    pipeline.run(settings)
    shop.execute("ALTER TABLE t ALTER word TYPE int USING 1")
    assert pipeline.run(settings).tables[0].error
    found = records(shop)
    assert list(found[0]) == [name for name, _ in data_lineage.COLUMNS]
    assert [figures(record) for record in found] == [
        ("load", "landed", None, 0, 3, 3, 0, 0),
        ("compare", "landed", 0, 1, 4, 2, 1, 1),
        ("compare", "unchanged", 1, 2, 4, 0, 0, 0),
        ("", "failed", None, None, 0, 0, 0, 0),
    ]
    assert found[3]["error_kind"] == "TableRefused"
    assert {record["lineage_id"] for record in found[:2]} == set(rows(shop)["data_lineage"])
    assert len({record["lineage_id"] for record in found}) == 4
    load = found[0]
    assert (load["batch_id"], load["position"]) == (first.batch_id, first.position)
    assert (load["source_system"], load["source_table"]) == ("test", "public.t")
    assert (load["target_system"], load["target_table"]) == (str(shop.lake), "bronze.bz_t")
    assert load["transformation_type"] == "full_refresh"
    assert load["schema_changes"] == '["created with 2 columns"]'
    assert load["contract_hash"] == found[2]["contract_hash"] != ""
    assert load["created_by"]


def test_a_new_column_is_recorded_once(shop: Source) -> None:
    """The contract's hash changes with the columns; only that run's record has the change."""
    settings = shop.settings()
    pipeline.run(settings)
    shop.execute("ALTER TABLE t ADD more int")
    result = pipeline.run(settings)
    assert result.tables[0].schema_changes == ("column more was added",)
    assert pipeline.run(settings).tables[0].schema_changes == ()
    first, second, third = records(shop)
    assert first["contract_hash"] != second["contract_hash"] == third["contract_hash"]
    assert [second["schema_changes"], third["schema_changes"]] == [
        '["column more was added"]',
        "[]",
    ]


@pytest.mark.soak
def test_the_next_run_records_a_run_that_died_after_its_commit(shop: Source) -> None:
    """Killed between the commit and its record: the next run writes the record, once."""
    settings = shop.settings(maintain={"auto": False})
    # The first commit is that of the audit log.
    killed(settings, "committed:2")
    # The audit log has begun, and the run is in no other table.
    assert [path.name for path in (shop.lake / "governance").iterdir()] == ["audit_log"]
    (dead,) = set(rows(shop)["data_lineage"])
    result = pipeline.run(settings)
    assert [(late.table, late.version) for late in result.late] == [("public.t", 0)]
    assert pipeline.run(settings).late == ()
    assert [figures(record) for record in records(shop)] == [
        ("load", "landed", None, 0, 3, 3, 0, 0),
        ("compare", "unchanged", 0, 1, 3, 0, 0, 0),
        ("compare", "unchanged", 1, 2, 3, 0, 0, 0),
    ]
    assert records(shop)[0]["lineage_id"] == dead


@pytest.mark.soak
def test_several_runs_that_died_are_all_recorded(shop: Source) -> None:
    """Each with its own figures, though other commits are rewrites without a run."""
    settings = shop.settings()
    pipeline.run(settings)
    for number in (4, 5):
        shop.execute("INSERT INTO t VALUES (%s, 'more')", number)
        killed(settings, "landed")
    assert len(records(shop)) == 1
    assert len(pipeline.run(settings).late) == 2
    assert [figures(r)[1:] for r in records(shop)] == [
        ("landed", None, 0, 3, 3, 0, 0),
        ("landed", 0, 1, 4, 1, 0, 0),
        ("landed", 1, 2, 5, 1, 0, 0),
        ("unchanged", 2, 3, 5, 0, 0, 0),
    ]


def test_a_slow_run_does_not_record_again_what_a_faster_one_has(shop: Source) -> None:
    """The first to write records the commits of both; the other one skips them."""
    settings = shop.settings()
    postponed: list[Sequence[lineage.LineageEntry]] = []

    def postpone(_: Settings, entries: Sequence[lineage.LineageEntry]) -> tuple[()]:
        postponed.append(list(entries))
        return ()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lineage, "record", postpone)
        pipeline.run(settings)
    fast = pipeline.run(settings)
    assert len(fast.late) == 1
    assert lineage.record(settings, postponed[0]) == ()
    assert [figures(record)[3] for record in records(shop)] == [0, 1]


def test_a_table_that_is_loaded_again_is_recorded_again(shop: Source) -> None:
    """When the Bronze table was moved away, its versions begin again, and so do its records."""
    settings = shop.settings()
    for _ in range(2):
        pipeline.run(settings)
    shop.table("t").rename(shop.lake / "moved")
    pipeline.run(settings)
    pipeline.run(settings)
    assert [figures(r)[:4] for r in records(shop)][2:] == [
        ("load", "landed", None, 0),
        ("compare", "unchanged", 0, 1),
    ]


def test_missing_records_do_not_fail_a_table(shop: Source) -> None:
    """The tables land, the result says what is missing, and the next run records it."""
    settings = shop.settings()
    governance = shop.lake / "governance"
    shop.lake.mkdir()
    governance.write_text("in the way")
    result = pipeline.run(settings)
    assert [table.status for table in result.tables] == ["landed"]
    assert result.unrecorded
    assert result.exit_code == 1
    governance.unlink()
    assert [late.batch_id for late in pipeline.run(settings).late] == [result.batch_id]


def test_a_retried_run_has_one_record(shop: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the connection was lost, the attempt that failed has no record."""
    settings = shop.settings(run={"max_retries": 1})
    planned, calls = pipeline._plan_all, []

    def once(*arguments: Any) -> Any:
        tables = planned(*arguments)
        calls.append(tables)
        if len(calls) == 1:
            (holder,) = {table.snapshot.holder for table in tables}
            shop.execute("SELECT pg_terminate_backend(%s, 10000)", holder.info.backend_pid)
        return tables

    monkeypatch.setattr(pipeline, "_plan_all", once)
    result = pipeline.run(settings)
    assert len(calls) == 2
    assert [record["batch_id"] for record in records(shop)] == [result.batch_id]


def test_a_stream_has_one_record_per_session(shop: Source) -> None:
    """It is written when the table joins, and again with all counts when the stream ends."""
    settings = shop.settings(tables=STREAMED)
    stream.stream(settings, until_caught_up=True)
    joined, ended = records(shop)
    assert joined["lineage_id"] == ended["lineage_id"]
    assert [figures(r) for r in (joined, ended)] == [
        ("stream", "streaming", None, 0, 3, 3, 0, 0),
        ("stream", "landed", None, 0, 3, 3, 0, 0),
    ]
    shop.execute("INSERT INTO t VALUES (4, 'four')")
    shop.execute("UPDATE t SET word = 'new' WHERE id = 1")
    stream.stream(settings, until_caught_up=True)
    again, last = records(shop)[2:]
    assert again["lineage_id"] == last["lineage_id"] != joined["lineage_id"]
    assert figures(again) == ("stream", "streaming", 0, 0, 0, 0, 0, 0)
    assert figures(last)[:2] == ("stream", "landed")
    assert figures(last)[4:] == (2, 1, 1, 0)
    assert last["version_after"] >= 1
    assert set(rows(shop)["data_lineage"]) == {joined["lineage_id"], last["lineage_id"]}


@pytest.mark.soak
def test_the_next_stream_records_a_stream_that_died(shop: Source) -> None:
    """Killed after its commit: the next stream writes its record, with all its counts."""
    settings = shop.settings(tables=STREAMED)
    stream.stream(settings, until_caught_up=True)
    shop.execute("INSERT INTO t VALUES (4, 'four'), (5, 'five')")
    killed(settings, "landed", "stream")
    (dead,) = set(rows(shop)["data_lineage"]) - {records(shop)[0]["lineage_id"]}
    result = stream.stream(settings, until_caught_up=True)
    assert [late.table for late in result.late] == ["public.t"]
    late = [record for record in records(shop) if record["lineage_id"] == dead]
    assert [figures(record) for record in late] == [
        ("stream", "streaming", 0, 0, 0, 0, 0, 0),
        ("stream", "landed", 0, 1, 2, 2, 0, 0),
    ]


def test_no_secret_is_in_a_commit(shop: Source, tmp_path: Path) -> None:
    """The facts of a commit have no password, though the config file has one."""
    path = tmp_path / "bronze.toml"
    dsn = f"{shop.dsn}&password=hush-hush" if "?" in shop.dsn else f"{shop.dsn}?password=hush-hush"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{dsn}"\n[lake]\nroot = "lake"\n[run]\nworkers = 1\n'
    )
    pipeline.run(loading.load(path))
    files = [file for file in (tmp_path / "lake").rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"hush-hush" in file.read_bytes()]


def test_tables_of_one_name_in_two_sources(shop: Source) -> None:
    """Each has its own record, and neither is taken for a run that died."""
    document = {
        "source": {name: {"dsn": shop.dsn, "schema": "public"} for name in ("one", "two")},
        "lake": {"root": str(shop.lake)},
        "tables": {"two.public.t": {"target": "bz_other"}},
    }
    settings = loading.parse(document)
    first = pipeline.run(settings)
    assert first.exit_code == 0, first
    found = {(r["source_system"], r["target_table"], r["lineage_id"]) for r in records(shop)}
    assert {(system, target) for system, target, _ in found} == {
        ("one", "bronze.bz_t"),
        ("two", "bronze.bz_other"),
    }
    held = {path: pl.read_delta(str(shop.lake / "bronze" / path)) for path in ("bz_t", "bz_other")}
    assert {(f"bronze.{name}", rows["data_lineage"][0]) for name, rows in held.items()} == {
        (target, own) for _, target, own in found
    }
    assert pipeline.run(settings).late == ()
    assert pipeline.run(settings).late == ()


def test_governance_tables_do_not_grow_into_many_files(
    shop: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run adds files; some runs optimize them, and a note says if that fails."""
    monkeypatch.setattr(maintain, "_MANY_FILES", 4)
    settings = shop.settings()
    place = settings.place("governance", data_lineage.NAME)
    counts = []
    for _ in range(6):
        assert pipeline.run(settings).notes == ()
        state = log.read(place)
        assert state is not None
        counts.append(len(state.files))
    assert counts == [1, 2, 3, 1, 2, 3]
    assert len(records(shop)) == 6
    monkeypatch.setattr(maintain, "_MANY_FILES", 1)
    monkeypatch.setattr(optimize, "optimize_table", failed)
    (note, *_) = pipeline.run(settings).notes
    assert "were not joined: The lake is away." in note
    assert len(records(shop)) == 7


def failed(*_: Any, **__: Any) -> Any:
    """A lake that cannot be reached."""
    raise LakeUnreachable("The lake is away.")
