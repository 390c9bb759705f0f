"""The service when the source, the lake, its clock or itself fails: nothing is lost or repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest

from bronze.demo.server import Server
from bronze.operate import beat
from bronze.operate.facts import resources
from bronze.operate.service import watch
from bronze.operate.tables.guards import LAKE, source_subject, table_subject
from tests.conftest import Source
from tests.integration.operate.test_service import NOON, config, make
from tests.support.content import differences
from tests.support.serving import Hands, runs_of, serving, until

READS = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%slow%' AND pid <> pg_backend_pid()"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at sources and the lake are as frequent as tests need them."""
    monkeypatch.setattr(watch, "_LISTED_EVERY", 0.5)
    monkeypatch.setattr(watch, "_BEAT_EVERY", 0.5)
    monkeypatch.setattr(watch, "_AGAIN", 0.2)
    monkeypatch.setattr(watch, "_PROBED_EVERY", 0.2)


@contextmanager
def stopped(server: Server, source: Source) -> Iterator[None]:
    """A database that refuses connections, and whose sessions have ended."""
    name = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_an_outage_is_noticed_between_listings(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, although the source is listed much later, and nothing reads it."""
    monkeypatch.setattr(watch, "_LISTED_EVERY", 600.0)
    make(source, "one")
    with serving(config(source), Hands(NOON)) as own:
        board = own.service.board
        until(lambda: own.landed("public.one"))
        with stopped(server, source):
            until(lambda: "test" in board.live().source_errors)
        until(lambda: "test" not in board.live().source_errors)


@pytest.mark.soak
def test_a_source_that_stops_and_comes_back(server: Server, source: Source) -> None:
    """Its tables wait with a sentence, none is counted as failing; what was due runs once."""
    make(source, "one", "two")
    settings = config(source, breaker={"threshold": 3, "pause": 1, "longest": 1})
    hands = Hands(NOON + timedelta(minutes=59, seconds=30))
    with serving(settings, hands) as own:
        board = own.service.board
        until(lambda: own.landed("public.two"))
        with stopped(server, source):
            until(lambda: board.guards.of(source_subject("test")).until is not None)
            assert "test" in board.live().source_errors
            hands.move(seconds=40)
            until(lambda: "test.public.one" in board.live().waiting)
            waits = board.live().waiting["test.public.one"]
            until(lambda: any(s.error for s in own.service.overview.view.sources))
            kinds = {alert.condition.kind for alert in own.service.overview.view.alerts}
            assert "table_failed" not in kinds
        until(lambda: len(own.landed("public.one")) == 2)
        until(lambda: "test" not in board.live().source_errors)
        assert not board.guards.breakers
    assert waits == "source test cannot be reached"
    assert len(own.landed("public.two")) == 2
    assert differences(settings) == {}


def test_a_source_that_is_down_at_the_start_is_no_reason_to_exit(
    server: Server, source: Source
) -> None:
    """Its tables run once it can be reached."""
    make(source, "word")
    settings = config(source, breaker={"pause": 1, "longest": 1})
    with stopped(server, source), serving(settings, Hands(NOON)) as own:
        until(lambda: own.service.board.source_errors)
        assert own.code is None
        name = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        until(lambda: own.landed("public.word"))


@pytest.mark.soak
def test_a_lake_that_is_renamed_and_put_back(source: Source) -> None:
    """Nothing is written in its place meanwhile; what was due runs once afterwards."""
    make(source, "word")
    settings = config(source, breaker={"threshold": 2, "pause": 1, "longest": 1})
    hands = Hands(NOON + timedelta(minutes=59, seconds=30))
    away = source.lake.with_name("away")
    with serving(settings, hands) as own:
        board = own.service.board
        until(lambda: own.landed("public.word"))
        until(lambda: not board.works)
        source.lake.rename(away)
        until(lambda: board.guards.of(LAKE).until is not None)
        assert "no such folder" in board.live().lake_error
        hands.move(seconds=40)
        until(lambda: board.live().waiting.get("test.public.word") == "the lake cannot be reached")
        assert not source.lake.exists()
        away.rename(source.lake)
        until(lambda: len(own.landed("public.word")) == 2)
        until(lambda: board.lake_error == "")
    assert differences(settings) == {}


def test_a_clock_that_jumps_runs_nothing_twice(source: Source) -> None:
    """Two hours forward: what was missed runs once. Back again: nothing runs for the same time."""
    make(source, "word")
    settings = config(source)
    hands = Hands(NOON)
    with serving(settings, hands) as own:
        board = own.service.board
        until(lambda: len(own.landed("public.word")) == 1)
        hands.move(hours=2)
        until(lambda: len(own.landed("public.word")) == 2)
        assert "forward" in board.troubles["clock_jumped"].text
        hands.move(hours=-2)
        until(lambda: "back" in board.troubles["clock_jumped"].text)
        until(lambda: not board.is_dirty)
        hands.move(minutes=61)
        until(lambda: not board.is_dirty)
        until(lambda: not board.works)
    dues = [record.scheduled for record in own.runs()]
    assert len(dues) == len(set(dues)) == 2


@pytest.mark.soak
def test_a_run_that_a_stop_of_the_source_ends_counts_for_no_table(
    server: Server, source: Source
) -> None:
    """It is tried again once the source is back."""
    source.execute("CREATE TABLE seconds AS SELECT 30 AS s")
    source.execute("CREATE VIEW slow AS SELECT 1 AS id, pg_sleep(s)::text AS word FROM seconds")
    settings = config(
        source,
        source={"tables": ["slow"]},
        breaker={"threshold": 1, "pause": 1, "longest": 1},
    )
    with serving(settings, Hands(NOON)) as own:
        board = own.service.board
        until(lambda: board.live().running)
        until(lambda: source.execute(READS))
        with stopped(server, source):
            until(lambda: not board.works)
            assert table_subject("test.public.slow") not in board.guards.breakers
            assert board.state("test.public.slow").retry_at is not None
        source.execute("UPDATE seconds SET s = 0")
        until(lambda: own.landed("public.slow"))
    assert [record.reason for record in own.landed("public.slow")] == ["retry"]


@pytest.mark.soak
def test_a_table_that_ends_its_own_connection_is_no_outage_of_the_source(source: Source) -> None:
    """A probe tells that the source can be reached: only the table is quarantined."""
    make(source, "good")
    source.execute(
        "CREATE VIEW bad AS SELECT 1 AS id, pg_terminate_backend(pg_backend_pid()) AS ended"
    )
    settings = config(
        source,
        source={"tables": ["good", "bad"]},
        tables={"bad": {"schedule": "every 30m"}},
        breaker={"threshold": 1, "pause": 60},
    )
    with serving(settings, Hands(NOON + timedelta(minutes=31))) as own:
        board = own.service.board
        until(lambda: table_subject("test.public.bad") in board.guards.breakers)
        assert source_subject("test") not in board.guards.breakers
        until(lambda: own.landed("public.good"))


def test_a_table_that_is_dropped_fails_no_other(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the service has not listed the tables since: the others of the run land."""
    monkeypatch.setattr(watch, "_LISTED_EVERY", 60.0)
    make(source, "stays", "goes")
    settings = config(source)
    hands = Hands(NOON + timedelta(minutes=59, seconds=30))
    with serving(settings, hands) as own:
        until(lambda: own.landed("public.goes"))
        source.execute("DROP TABLE goes")
        hands.move(seconds=40)
        until(lambda: len(own.landed("public.stays")) == 2)


SERVE = """
import os, signal, sys, time
from bronze.cli.main import app
from bronze.ingest import load

loaded = load.load_table

def load_table(settings, table):
    if table.target.label == os.environ.get("BRONZE_TEST_POISON"):
        os.kill(os.getpid(), signal.SIGKILL)
    if table.target.label == os.environ.get("BRONZE_TEST_HANGS"):
        print("it hangs", file=sys.stderr, flush=True)
        time.sleep(120)
    return loaded(settings, table)

load.load_table = load_table
app(["serve", "-c", sys.argv[1]])
"""


@contextmanager
def process(file: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`bronze serve` as a process of its own."""
    command = [sys.executable, "-c", SERVE, str(file)]
    started = subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def write(source: Source, folder: Path, more: str = "", schedule: str = "every 10s") -> Path:
    """A config file."""
    file = folder / "bronze.toml"
    file.write_text(
        f"""
[source]
name = "test"
dsn = "{source.dsn}"
[lake]
root = "{source.lake}"
[web]
listen = ""
[serve.schedule]
full_refresh = "{schedule}"
maintain = ""
verify = ""
{more}
"""
    )
    return file


@pytest.mark.soak
@pytest.mark.parametrize("point", ["planned", "file", "commit", "committed", "remembered"])
def test_a_process_that_is_killed_goes_on_after_a_restart(
    source: Source, tmp_path: Path, point: str
) -> None:
    """At any point of a run: the next process does what was in flight again, each row once."""
    make(source, "one", "two")
    file = write(source, tmp_path, schedule="hourly")
    with process(file, BRONZE_FAILPOINT=point) as killed:
        assert killed.wait(60) == -signal.SIGKILL
    settings = config(source)
    with serving(settings) as own:
        until(lambda: own.landed("public.one") and own.landed("public.two"), 60)
        assert "ended without a stop" in own.service.board.troubles["process_crashed"].text
        until(lambda: not own.service.board.works, 60)
    assert differences(settings) == {}


@pytest.mark.soak
def test_a_table_that_kills_the_process_is_quarantined_and_the_rest_goes_on(
    source: Source, tmp_path: Path
) -> None:
    """After the first crash those in flight run alone; after the second, the one is poison."""
    make(source, "good", "poison")
    file = write(source, tmp_path)
    settings, environment = config(source), {"BRONZE_TEST_POISON": "public.poison"}
    for _ in range(2):
        with process(file, **environment) as killed:
            assert killed.wait(60) == -signal.SIGKILL
    crashed = [r for r in runs_of(settings) if r.source_table == "public.poison"]
    assert [record.status for record in crashed] == ["began", "began"]
    before = len([r for r in runs_of(settings) if r.source_table == "public.good"])
    with process(file, **environment) as alive:
        until(lambda: len([r for r in runs_of(settings) if r.status != "began"]) > before + 1, 60)
        assert alive.poll() is None
        live = beat.read(settings)
        assert live is not None
        assert live.breakers[table_subject("test.public.poison")].until is not None
    assert [r for r in runs_of(settings) if r.source_table == "public.poison"] == crashed


@pytest.mark.soak
def test_a_stop_in_a_large_load_takes_no_longer_than_the_grace(
    source: Source, tmp_path: Path
) -> None:
    """SIGTERM: reads are canceled, what is in hand ends, exit 0; the next start loads the table."""
    source.execute("CREATE TABLE large (id int PRIMARY KEY, word text)")
    source.execute(
        "INSERT INTO large SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 400000) g"
    )
    file = write(source, tmp_path, '[serve]\ngrace = "10s"', schedule="hourly")
    with process(file) as started:
        wait_for_line(started, b"tables=")
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        assert started.wait(15) == 0
        assert time.monotonic() - began < 12
    with serving(config(source), once=True) as own:
        until(lambda: own.landed("public.large"), 60)
    assert pl.scan_delta(str(source.table("large"))).select(pl.len()).collect().item() == 400_000


def test_a_disk_that_hangs_does_not_hold_the_loop(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the view: how much room a lake has is asked in a thread of its own."""
    make(source, "word")
    release = threading.Event()
    monkeypatch.setattr(resources, "_disk", lambda _: (release.wait(60), None))
    with serving(config(source), Hands(NOON)) as own:
        until(lambda: own.landed("public.word"))
    assert own.code == 0
    release.set()


def test_a_lake_that_hangs_at_the_end_is_not_waited_for(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ends all the same, and has collected nothing that only `--once` needs."""
    make(source, "word")
    release, settings = threading.Event(), config(source)
    monkeypatch.setattr("bronze.operate.service.service._RECORDED_WITHIN", 0.2)
    with serving(settings, Hands(NOON)) as own:
        until(lambda: own.landed("public.word"))
        until(lambda: not own.service.board.works)
        monkeypatch.setattr(beat, "write", lambda *_: release.wait(60))
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert own.code == 0
    assert own.service.board.outcomes == []
    release.set()


@pytest.mark.soak
def test_work_that_hangs_is_left_after_the_grace_or_at_a_second_signal(
    source: Source, tmp_path: Path
) -> None:
    """The exit code is 130; nothing half-written is visible."""
    make(source, "word")
    for grace, signals in (("2s", 1), ("60s", 2)):
        file = write(source, tmp_path, f'[serve]\ngrace = "{grace}"', schedule="hourly")
        with process(file, BRONZE_TEST_HANGS="public.word") as started:
            wait_for_line(started, b"it hangs")
            started.send_signal(signal.SIGTERM)
            if signals == 2:
                wait_for_line(started, b"service ends")
                started.send_signal(signal.SIGTERM)
            assert started.wait(20) == 130
    assert not source.table("word").exists()


@pytest.mark.soak
def test_what_a_stop_has_left_is_no_crash(source: Source, tmp_path: Path) -> None:
    """Also twice in a row: the table is neither quarantined as poison, nor is anybody told."""
    make(source, "word")
    file = write(source, tmp_path, '[serve]\ngrace = "2s"', schedule="hourly")
    for _ in range(2):
        with process(file, BRONZE_TEST_HANGS="public.word") as started:
            wait_for_line(started, b"it hangs")
            started.send_signal(signal.SIGTERM)
            assert started.wait(30) == 130
    with serving(config(source)) as own:
        until(lambda: own.landed("public.word"), 60)
        board = own.service.board
        assert table_subject("test.public.word") not in board.guards.breakers
        assert "process_crashed" not in board.troubles
        statuses = [record.status for record in own.runs()]
    assert statuses == ["stopped", "stopped", "landed"]


def wait_for_line(started: subprocess.Popen[bytes], word: bytes) -> None:
    """Waits for a line of the log."""
    assert started.stderr is not None
    assert any(word in line for line in started.stderr)
