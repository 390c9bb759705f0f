"""Under fire: kills at every step and at random, runs that race each other, foreign writers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from deltalake import write_deltalake

from bronze import failpoint
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from tests.support import feed
from tests.support.content import differences

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("BRONZE_SOAK_KILLS", "10"))
TABLES: Mapping[str, Mapping[str, Any]] = {
    "orders": {"pattern": "batch", "cluster_by": ["customer_id", "ordered_at"]},
    "order_details": {"pattern": "batch"},
    "inventory": {"pattern": "batch", "cursor": "updated_at"},
    "stock_levels": {"pattern": "micro_batch"},
    "shipments": {"pattern": "batch", "partition_by": "shipped_at"},
    "returns": {"pattern": "batch", "history": True},
    "suppliers": {"on_delete": "remove"},
}

# Only a stream comes by these.
STREAMED = ("slotted", "netted", "recorded")
CHILD = """
import json, sys
from bronze.config import loading
from bronze.ingest import pipeline
from bronze.maintenance import maintain
settings = loading.parse(json.loads(sys.argv[1]))
result = pipeline.run(settings)
maintain.maintain(settings)
sys.exit(result.exit_code)
"""


@pytest.fixture
def shop(server: Server) -> Iterator[str]:
    """The demo's source, small."""
    yield inventory.create(server.dsn(), scale=0.004)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{inventory.DATABASE}" WITH (FORCE)')


def document(dsn: str, lake: Path) -> dict[str, Any]:
    """A config with tables of every pattern."""
    return {
        "source": {"name": "DE", "dsn": dsn, "schema": inventory.SCHEMA},
        "lake": {"root": str(lake), "schema": "bronze"},
        "run": {"workers": 2, "retry_delay": 0},
        "tables": dict(TABLES),
    }


def child(settings: Settings, point: str = "") -> subprocess.Popen[bytes]:
    """A run and maintenance in a process of its own, which is killed at a failpoint."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, settings.model_dump_json(by_alias=True, exclude_unset=True)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "BRONZE_FAILPOINT": point},
    )


def landed(settings: Settings) -> None:
    """Runs, and all tables land."""
    result = pipeline.run(settings)
    assert [table.error for table in result.tables if table.error] == []


def proven(settings: Settings, lake: Path) -> None:
    """All tables equal the source, their feeds are true, their positions never went back."""
    assert differences(settings) == {}
    for folder in sorted((lake / "bronze").glob("bz_*")):
        assert (folder.name, feed.faults(folder)) == (folder.name, [])
        reached = feed.positions(folder)
        assert reached == sorted(reached)


@pytest.mark.slow
def test_the_next_run_completes_one_killed_at_any_failpoint(shop: str, tmp_path: Path) -> None:
    """Wherever a process dies, the next run leaves all as if it never had."""
    settings = loading.parse(document(shop, tmp_path))
    landed(settings)
    points = [point for point in failpoint.POINTS if point not in STREAMED]
    reached = set()
    later = [("file", 4), ("merged", 3), ("inserted", 3), ("commit", 4), ("committed", 4)]
    days = itertools.count()
    for point, times in [*((p, 1) for p in points), *later]:
        # A layout is improved only when enough has come together.
        for _ in range(10):
            inventory.change_day(shop, seed=next(days))
            code = child(settings, f"{point}:{times}").wait()
            assert code in (0, -signal.SIGKILL)
            landed(settings)
            assert differences(settings) == {}
            if code:
                reached.add(point)
                break
    assert reached == set(points)
    proven(settings, tmp_path)


def test_killed_at_random_while_the_source_changes(shop: str, tmp_path: Path) -> None:
    """Many kills in a row while the source changes: no row is lost or reported twice."""
    settings = loading.parse(document(shop, tmp_path))
    dice = random.Random(5)  # noqa: S311 - a load, no secret
    killed = 0
    for day in range(KILLS):
        running = child(settings)
        with changing(shop, day):
            try:
                running.wait(dice.uniform(0.8, 4))
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                killed += 1
    assert killed
    landed(settings)
    proven(settings, tmp_path)


@contextmanager
def changing(dsn: str, seed: int) -> Iterator[None]:
    """Days of business that go on until the context ends."""
    stopped = threading.Event()

    def work() -> None:
        for day in range(1000):
            if stopped.is_set():
                return
            inventory.change_day(dsn, seed=seed * 1000 + day)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@pytest.mark.slow
def test_runs_that_race_each_other(shop: str, tmp_path: Path) -> None:
    """Concurrent runs, repeatedly: the loser of a table reads it again, and no table is mixed."""
    settings = loading.parse(document(shop, tmp_path))
    for day in range(4):
        racing = [child(settings) for _ in range(2)]
        with changing(shop, day):
            assert [one.wait() for one in racing] == [0, 0]
        for folder in (tmp_path / "bronze").glob("bz_*"):
            assert feed.faults(folder) == []
    landed(settings)
    proven(settings, tmp_path)


@pytest.mark.slow
def test_runs_beside_maintenance_and_a_foreign_writer(shop: str, tmp_path: Path) -> None:
    """Others rewrite and append all the time: none of their rows counts, all of ours are there."""
    own = document(shop, tmp_path)
    own["run"] = {"workers": 2, "retry_delay": 0, "max_retries": 20}
    settings = loading.parse(own)
    landed(settings)
    stopped = threading.Event()
    orders = tmp_path / "bronze" / "bz_orders"
    foreign: list[int] = []

    def append() -> None:
        number = -1
        # After each of them all rows are compared, which takes a while.
        while not stopped.wait(2):
            row = pl.DataFrame({"order_id": [number]}, schema={"order_id": pl.Int32})
            with suppress(Exception):
                write_deltalake(str(orders), row.to_arrow(), mode="append", schema_mode="merge")
                foreign.append(number)
            number -= 1

    def tidy() -> None:
        while not stopped.wait(0.2):
            maintain.maintain(settings)

    threads = [threading.Thread(target=work) for work in (append, tidy)]
    for thread in threads:
        thread.start()
    try:
        for day in range(3):
            inventory.change_day(shop, seed=day)
            landed(settings)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    landed(settings)
    assert foreign
    theirs = pl.col("order_id") < 0, pl.col("record_status").ne_missing("DELETED")
    assert pl.read_delta(str(orders)).filter(*theirs).is_empty()
    assert differences(settings) == {}
