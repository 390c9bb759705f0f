"""``governance.runs``: what each run did to each table, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import bronze
from bronze.api import recorded
from bronze.config.settings import Settings
from bronze.errors import SourceUnreachable, Stopped
from bronze.governance.run_log import Cause
from bronze.governance.tables import runs
from bronze.ingest import pipeline
from tests.conftest import Source

CHILD = """
import json, sys
import bronze
getattr(bronze.open(json.loads(sys.argv[1])), sys.argv[2])()
"""
RECORDER = """
import json, sys
import bronze
from bronze.governance.run_log import Cause, Outcome, RunTable, begin
settings = bronze.open(json.loads(sys.argv[1])).config
print("ready", flush=True)
sys.stdin.read()
for _ in range(10):
    log = begin(settings, "run", Cause())
    log.plan("", [RunTable("shop", "public.t", "bronze.bz_t")])
    log.end([Outcome("public.t", "bronze.bz_t", "landed", 0.1)])
"""


def begin(settings: Settings, command: str = "run", failpoint: str = "") -> subprocess.Popen[bytes]:
    """A command in a process of its own, which dies at a failpoint."""
    config = settings.model_dump_json(by_alias=True, exclude_unset=True)
    environment = {**os.environ, "BRONZE_FAILPOINT": failpoint}
    return subprocess.Popen([sys.executable, "-c", CHILD, config, command], env=environment)


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


@pytest.mark.soak
def test_a_run_whose_process_died_stays_begun(shop: Source) -> None:
    """Its records say which tables were in flight, and on which machine."""
    settings = shop.settings()
    assert begin(settings, failpoint="planned").wait() == -signal.SIGKILL
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


def test_verifications_and_maintenance_are_recorded_like_runs(shop: Source) -> None:
    """With status and reason; with how a table differs, or the error of one that fails."""
    settings = shop.settings()
    bronze.Bronze(settings).run()
    shop.execute("DELETE FROM good WHERE id = 1")
    shop.execute("INSERT INTO good VALUES (4, 'four')")
    shop.execute("DROP TABLE bad")
    shop.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    cause = Cause("schedule", scheduled=datetime(2026, 3, 1, tzinfo=UTC))
    options: dict[str, Any] = {"pool": None, "notify": lambda _: None, "cause": cause}
    checks: dict[str, Any] = {"repair": False, "trust_hashes": False}
    recorded.verify(settings, (), at_rest=False, **checks, **options)
    recorded.verify(settings, (), at_rest=True, **checks, **options)
    (shop.table("bad") / "_delta_log" / f"{0:020}.json").write_text("{")
    recorded.maintain(settings, (), **options)
    written = [row for row in records(shop) if row["command"] != "run"]
    assert {row["reason"] for row in written} == {"schedule"}
    assert {row["scheduled_timestamp"] for row in written} == {cause.scheduled}
    compared, at_rest, maintained = (
        {row["target_table"]: row for row in written if row["run_id"] == run_id}
        for run_id in dict.fromkeys(row["run_id"] for row in written)
    )
    begun = [row for row in written if row["status"] == "began"]
    assert len(begun) == len(compared) + len(at_rest) + len(maintained)
    good = compared["bronze.bz_good"]
    assert (good["command"], good["status"], good["rows_read"]) == ("verify", "differs", 3)
    assert good["error_message"] == "Rows: 1 missing, 1 extra."
    assert (good["source_table"], good["pattern"]) == ("public.good", "full_refresh")
    assert good["began_timestamp"] < good["ended_timestamp"]
    assert good["seconds"] > 0
    assert compared["bronze.bz_bad"]["status"] == "failed"
    assert compared["bronze.bz_bad"]["sqlstate"] == "22012"
    assert {row["status"] for row in at_rest.values()} == {"equal"}
    good, bad, runs_table = (
        maintained[name] for name in ("bronze.bz_good", "bronze.bz_bad", "governance.runs")
    )
    assert (good["command"], good["status"], good["error_kind"]) == ("maintain", "done", "")
    assert (bad["status"], bad["error_kind"]) == ("failed", "LakeError")
    assert (runs_table["status"], runs_table["source_table"]) == ("done", "")


@pytest.mark.soak
def test_a_verification_or_maintenance_whose_process_died_stays_begun(shop: Source) -> None:
    """Like a run: it is seen afterwards in which tables it was."""
    settings = shop.settings()
    bronze.Bronze(settings).run()
    shop.execute("INSERT INTO good VALUES (4, 'four')")
    bronze.Bronze(settings).run(["good"])
    assert begin(settings, "verify", "planned").wait() == -signal.SIGKILL
    assert begin(settings, "maintain", "rewritten").wait() == -signal.SIGKILL
    rows = pl.read_delta(str(shop.lake / "governance" / runs.NAME))
    died = rows.filter(pl.col("command") != "run")
    assert set(died["status"]) == {"began"}
    assert set(died["target_table"]) >= {"bronze.bz_good", "bronze.bz_bad"}
    assert set(died["command"]) == {"verify", "maintain"}


def test_a_stopped_verification_and_maintenance_are_recorded_as_stopped(shop: Source) -> None:
    """Each table that they did not get to."""
    settings, stop = shop.settings(), threading.Event()
    bronze.Bronze(settings).run()
    stop.set()
    for call in (bronze.Bronze(settings).verify, bronze.Bronze(settings).maintain):
        with suppress(Stopped):
            call(stop=stop)
    rows = pl.scan_delta(str(shop.lake / "governance" / runs.NAME))
    ended = runs.latest(rows.filter(pl.col("command") != "run")).collect().rows(named=True)
    assert {row["status"] for row in ended} == {"stopped"}
    assert {row["command"] for row in ended} == {"verify", "maintain"}


@pytest.mark.soak
def test_two_processes_record_their_runs_at_once(shop: Source) -> None:
    """Neither loses a record of the other."""
    config = shop.settings().model_dump_json(by_alias=True, exclude_unset=True)
    start = [sys.executable, "-c", RECORDER, config]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(start, **pipes) as one, subprocess.Popen(start, **pipes) as other:
        for process in (one, other):
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        for process in (one, other):
            assert process.stdin
            process.stdin.close()
    assert (one.returncode, other.returncode) == (0, 0)
    rows = pl.read_delta(str(shop.lake / "governance" / runs.NAME))
    assert rows["run_id"].n_unique() == 20
    counts = rows.group_by("run_id", "status").len()
    assert sorted(counts["status"].unique()) == ["began", "landed"]
    assert counts["len"].to_list() == [1] * 40
