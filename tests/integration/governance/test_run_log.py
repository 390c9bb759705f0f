"""``governance.runs``: what each run did to each table, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import bronze
from bronze.api import recorded
from bronze.errors import SourceUnreachable
from bronze.governance.run_log import Cause
from bronze.governance.tables import runs
from bronze.ingest import pipeline
from tests.conftest import Source

CHILD = """
import json, sys
import bronze
bronze.open(json.loads(sys.argv[1])).run()
"""


@pytest.fixture
def shop(source: Source) -> Source:
    """Two tables; the reading of one fails."""
    source.execute("CREATE TABLE good (id int PRIMARY KEY, word text)")
    source.execute("INSERT INTO good VALUES (1, 'one'), (2, 'two'), (3, NULL)")
    source.execute("CREATE TABLE bad (id int PRIMARY KEY)")
    return source


def records(source: Source) -> list[dict[str, Any]]:
    """All records in the order in which they were written."""
    table = pl.read_delta(str(source.lake / "governance" / runs.NAME))
    return table.sort("recorded_timestamp", "source_table").rows(named=True)


def latest(source: Source) -> dict[str, dict[str, Any]]:
    """The records that count, by table."""
    table = pl.scan_delta(str(source.lake / "governance" / runs.NAME))
    rows = runs.latest(table).collect().rows(named=True)
    return {row["source_table"]: row for row in rows}


def test_a_run_records_each_table_when_it_begins_and_when_it_ends(shop: Source) -> None:
    """With its figures, its stages and the moment of its snapshot; a failed one with its error."""
    shop.execute("CREATE VIEW broken AS SELECT 1 / 0 AS id")
    before = datetime.now(UTC)
    due = before - timedelta(minutes=1)
    settings = shop.settings(source={"tables": ["good", "broken"]})
    cause = Cause("retry", scheduled=due, attempt=2)
    done = recorded.run(settings, (), pool=None, notify=lambda _: None, cause=cause)
    assert done.exit_code == 1
    written = records(shop)
    assert [row["status"] for row in written] == ["began", "began", "failed", "landed"]
    assert len({row["run_id"] for row in written}) == 1
    rows = latest(shop)
    good, broken = rows["public.good"], rows["public.broken"]
    assert (good["reason"], good["attempt"], good["scheduled_timestamp"]) == ("retry", 2, due)
    assert (good["rows_read"], good["inserted"], good["pattern"]) == (3, 3, "full_refresh")
    assert good["batch_id"] == done.batch_id
    assert good["bytes"] > 0
    assert before < good["began_timestamp"] < good["as_of_timestamp"] < good["ended_timestamp"]
    stages = json.loads(good["stages"])
    assert list(stages) == ["read", "write", "optimize"]
    assert abs(sum(stages.values()) - good["seconds"]) < 0.1
    assert broken["error_kind"]
    assert "public.broken" in broken["error_message"]
    assert broken["sqlstate"] == "22012"
    assert broken["as_of_timestamp"] is None
    assert {table.table for table in done.tables if table.as_of} == {"public.good"}


def test_a_source_that_is_down_leaves_a_record(shop: Source) -> None:
    """Of no table, as none is known; with the error and its hint."""
    settings = shop.settings(source={"dsn": "postgresql://postgres@127.0.0.1:1/x"})
    with pytest.raises(SourceUnreachable):
        recorded.run(settings, (), pool=None, notify=lambda _: None)
    (row,) = records(shop)
    assert (row["source_table"], row["status"]) == ("", "failed")
    assert row["error_kind"] == "SourceUnreachable"
    assert row["error_hint"]


def test_a_run_whose_process_died_stays_begun(shop: Source) -> None:
    """Its records say which tables were in flight, and on which machine."""
    settings = shop.settings()
    process = subprocess.run(
        [sys.executable, "-c", CHILD, settings.model_dump_json(by_alias=True, exclude_unset=True)],
        env={**os.environ, "BRONZE_FAILPOINT": "planned"},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert {row["status"] for row in records(shop)} == {"began"}
    bronze.Bronze(settings).run()
    counted = latest(shop)
    assert set(counted) == {"public.bad", "public.good"}
    assert all(row["host"] for row in counted.values())
    assert sum(row["status"] == "landed" for row in records(shop)) == 2


def test_an_interrupted_run_is_recorded_as_stopped(shop: Source) -> None:
    """What had landed before is recorded as landed."""

    def interrupt(event: Any) -> None:
        if type(event).__name__ == "TableLanded":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bronze.Bronze(shop.settings(run={"workers": 1})).run(notify=interrupt)
    assert sorted(row["status"] for row in latest(shop).values()) == ["landed", "stopped"]


def test_a_run_that_begins_again_has_one_record_of_each_table(
    shop: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost connection: one run with the id of its last batch."""
    planned, calls = pipeline._plan_all, []

    def once(*arguments: Any) -> Any:
        tables = planned(*arguments)
        calls.append(tables)
        if len(calls) == 1:
            holder = tables[0].snapshot.holder
            shop.execute("SELECT pg_terminate_backend(%s, 10000)", holder.info.backend_pid)
        return tables

    monkeypatch.setattr(pipeline, "_plan_all", once)
    done = bronze.Bronze(shop.settings(run={"max_retries": 1})).run()
    assert len(calls) == 2
    assert [row["status"] for row in records(shop)] == ["began", "began", "landed", "landed"]
    assert {row["batch_id"] for row in latest(shop).values()} == {done.batch_id}
