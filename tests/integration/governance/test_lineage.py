"""Lineage: one record per run and table, whatever becomes of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
from bronze.governance.tables import data_lineage as book
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from bronze.model.results import Failure, LateRecord
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
    """The records in the order in which they were entered."""
    return (
        pl.read_delta(str(source.lake / "governance" / book.NAME))
        .sort("created_timestamp", "version_after", nulls_last=True)
        .rows(named=True)
    )


def killed(settings: Settings, point: str, what: str = "run") -> None:
    """Works in a process of its own, until it is killed."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, document, what],
        env={**os.environ, "BRONZE_FAILPOINT": point},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


def figures(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a record says was done."""
    names = ("mode", "status", "version_before", "version_after", "rows_read")
    return tuple(record[name] for name in (*names, "inserted", "updated", "deleted"))


def rows(source: Source) -> pl.DataFrame:
    """The Bronze table."""
    return pl.read_delta(str(source.table("t")))


def test_a_record_per_run_and_table(shop: Source) -> None:
    """A load, changes, nothing, and a failure: each run leaves one record with true figures, in the
    columns that are documented, in their order.
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
    assert list(found[0]) == [name for name, _ in book.COLUMNS]
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


def test_a_column_that_comes_is_told_once(shop: Source) -> None:
    """The contract's hash moves with the columns, and the change is told by that run's record."""
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


def test_a_run_that_dies_after_its_commit_is_entered_by_the_next(shop: Source) -> None:
    """Killed between the table's commit and the book: the next run enters it, and only once."""
    settings = shop.settings(maintain={"auto": False})
    # The first commit is that of the audit log.
    killed(settings, "committed:2")
    # The audit log has begun, and the run is in no book.
    assert [path.name for path in (shop.lake / "governance").iterdir()] == ["audit_log"]
    (dead,) = set(rows(shop)["data_lineage"])
    result = pipeline.run(settings)
    assert [(one.table, one.version) for one in result.late] == [("public.t", 0)]
    assert pipeline.run(settings).late == ()
    assert [figures(record) for record in records(shop)] == [
        ("load", "landed", None, 0, 3, 3, 0, 0),
        ("compare", "unchanged", 0, 1, 3, 0, 0, 0),
        ("compare", "unchanged", 1, 2, 3, 0, 0, 0),
    ]
    assert records(shop)[0]["lineage_id"] == dead


@pytest.mark.soak
def test_deaths_in_a_row_are_all_entered(shop: Source) -> None:
    """Each run that died is entered with its own figures, beside rewrites that are no runs."""
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


def test_a_slow_run_does_not_enter_what_a_faster_one_has(shop: Source) -> None:
    """Who writes first enters what both know; who comes after leaves it."""
    settings = shop.settings()
    held: list[lineage.LineageLedger] = []
    closed = lineage.LineageLedger.closed

    def kept(ledger: lineage.LineageLedger) -> tuple[tuple[LateRecord, ...], Failure | None]:
        held.append(ledger)
        return (), None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lineage.LineageLedger, "closed", kept)
        pipeline.run(settings)
    fast = pipeline.run(settings)
    assert len(fast.late) == 1
    assert closed(held[0]) == ((), None)
    assert [figures(record)[3] for record in records(shop)] == [0, 1]


def test_a_table_that_is_made_anew_is_entered_anew(shop: Source) -> None:
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


def test_a_book_that_cannot_be_written_fails_no_table(shop: Source) -> None:
    """The tables land, the result says what is missing, and the next run enters it."""
    settings = shop.settings()
    governance = shop.lake / "governance"
    shop.lake.mkdir()
    governance.write_text("in the way")
    result = pipeline.run(settings)
    assert [table.status for table in result.tables] == ["landed"]
    assert result.unrecorded
    assert result.exit_code == 1
    governance.unlink()
    assert [one.batch_id for one in pipeline.run(settings).late] == [result.batch_id]


def test_a_source_that_goes_away_leaves_its_records(
    shop: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is begun again has a record of each attempt's commit, and none of a failure."""
    settings = shop.settings(run={"max_retries": 1})
    planned, calls = pipeline._plan_all, []

    def once(*arguments: Any) -> Any:
        tables = planned(*arguments)
        calls.append(tables)
        if len(calls) == 1:
            (holder,) = {table.held.holder for table in tables}
            shop.execute("SELECT pg_terminate_backend(%s, 10000)", holder.info.backend_pid)
        return tables

    monkeypatch.setattr(pipeline, "_plan_all", once)
    result = pipeline.run(settings)
    assert len(calls) == 2
    assert [record["batch_id"] for record in records(shop)] == [result.batch_id]


def test_a_stream_has_one_record_per_session(shop: Source) -> None:
    """It is entered when the table joins and when the stream ends, its counts then of all of it."""
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
def test_a_stream_that_dies_is_entered_by_the_next(shop: Source) -> None:
    """Killed after its commit: the next stream enters what it had landed, with all its counts."""
    settings = shop.settings(tables=STREAMED)
    stream.stream(settings, until_caught_up=True)
    shop.execute("INSERT INTO t VALUES (4, 'four'), (5, 'five')")
    killed(settings, "landed", "stream")
    (dead,) = set(rows(shop)["data_lineage"]) - {records(shop)[0]["lineage_id"]}
    result = stream.stream(settings, until_caught_up=True)
    assert [one.table for one in result.late] == ["public.t"]
    told = [record for record in records(shop) if record["lineage_id"] == dead]
    assert [figures(record) for record in told] == [
        ("stream", "streaming", 0, 0, 0, 0, 0, 0),
        ("stream", "landed", 0, 1, 2, 2, 0, 0),
    ]


def test_no_secret_is_in_a_commit(shop: Source, tmp_path: Path) -> None:
    """What a commit tells of its run has no password, though the config file holds one."""
    path = tmp_path / "bronze.toml"
    dsn = f"{shop.dsn}&password=hush-hush" if "?" in shop.dsn else f"{shop.dsn}?password=hush-hush"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{dsn}"\n[lake]\nroot = "lake"\n[run]\nworkers = 1\n'
    )
    pipeline.run(loading.load(path))
    held = [file for file in (tmp_path / "lake").rglob("*") if file.is_file()]
    assert held
    assert not [file for file in held if b"hush-hush" in file.read_bytes()]


def test_tables_of_one_name_in_two_sources(shop: Source) -> None:
    """Each has its own record; nothing is taken for a dead run."""
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


def test_books_do_not_grow_into_many_files(shop: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run adds files to them; runs join these now and then, and what hinders it is told."""
    monkeypatch.setattr(maintain, "_MANY_FILES", 4)
    settings = shop.settings()
    place = settings.place("governance", book.NAME)
    counts = []
    for _ in range(6):
        assert pipeline.run(settings).notes == ()
        state = log.read(place)
        assert state is not None
        counts.append(len(state.files))
    assert counts == [1, 2, 3, 1, 2, 3]
    assert len(records(shop)) == 6
    monkeypatch.setattr(maintain, "_MANY_FILES", 1)
    monkeypatch.setattr(optimize, "improve", failed)
    (note, *_) = pipeline.run(settings).notes
    assert "were not joined: The lake is away." in note
    assert len(records(shop)) == 7


def failed(*_: Any, **__: Any) -> Any:
    """A lake that cannot be reached."""
    raise LakeUnreachable("The lake is away.")
