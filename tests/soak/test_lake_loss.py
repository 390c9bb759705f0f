"""The lake is lost while a stream goes on: bronze goes on from the copy, and equals the source."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from bronze.api.client import Bronze
from bronze.backup import manifest
from bronze.config import loading
from bronze.model.events import Resynced, StreamEvent
from tests.conftest import Source
from tests.soak.test_stream_kills import until
from tests.support import feed
from tests.support.content import differences

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

TIMES = int(os.environ.get("BRONZE_SOAK_FAILOVERS", "3"))
RATE, TRANSACTIONS = 1000, 20
TABLES = """
CREATE TABLE s1 (id bigint PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
CREATE TABLE s2 (id bigint PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
CREATE TABLE r (id bigint PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
INSERT INTO s1 SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
INSERT INTO s2 SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
INSERT INTO r SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
"""
BACKUPS = """
import sys, time
from bronze.backup import copy
from bronze.config import loading
from bronze.model.events import Resynced, StreamEvent
while True:
    copy.back_up(loading.load(sys.argv[1]))
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def changing(dsn: str, first: int) -> Iterator[None]:
    """A thread that changes a thousand rows a second: inserts, updates and deletes; ``first`` is
    the first new key.
    """
    stop = threading.Event()

    def change() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            some = RATE // TRANSACTIONS // 2
            begun = time.monotonic()
            for number in range(10**9):
                table, new = ("s1", "s2", "s1", "r")[number % 4], first + number * some
                connection.execute(
                    f"INSERT INTO {table} SELECT i, md5(i::text) FROM"
                    f" generate_series({new}, {new + some - 1}) i;"
                    f"UPDATE {table} SET n = n + 1, v = repeat('x', n % 90) WHERE id BETWEEN"
                    f" {number * 7 % 4900} AND {number * 7 % 4900 + some - 5};"
                    f"DELETE FROM {table} WHERE id BETWEEN {new - 5} AND {new - 3}"
                )
                if stop.wait(max(0.0, begun + (number + 1) / TRANSACTIONS - time.monotonic())):
                    return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def config_of(source: Source, folder: Path, lake: Path, copy: Path | None) -> Path:
    """A config file of a lake and its copy, if it has one."""
    file = folder / f"{lake.name}-{copy.name if copy else 'alone'}.toml"
    backup = f'[backup]\nroot = "{copy}"\n' if copy else ""
    file.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{lake}"\n'
        f'schema = "bronze"\n{backup}'
        "[run]\nworkers = 2\nmax_retries = 3\nretry_delay = 0\n[stream]\ninterval = 0\n"
        '[tables.s1]\npattern = "streaming"\n[tables.s2]\npattern = "streaming"\n'
    )
    return file


def started(config: Path, pause: float) -> list[subprocess.Popen[bytes]]:
    """The stream and the backups, each in a process of its own."""
    quiet = {"stdout": subprocess.DEVNULL}
    stream = [sys.executable, "-m", "bronze", "stream", "-c", str(config)]
    copies = [sys.executable, "-c", BACKUPS, str(config), str(pause)]
    return [subprocess.Popen(command, **quiet) for command in (stream, copies)]  # type: ignore[call-overload]


def test_bronze_goes_on_from_the_copy_of_a_lost_lake(source: Source, tmp_path: Path) -> None:
    """Killed at a random moment, backups in the middle, lake deleted; then the copy is the lake.

    Tables equal the source, feeds are whole, nothing is wrong at rest or in the audit log; and the
    next loss is that of the lake which was the copy.
    """
    seed = int(os.environ.get("BRONZE_SEED", "0")) or random.randrange(2**32)  # noqa: S311
    print(f"BRONZE_SEED={seed}")
    draw = random.Random(seed)  # noqa: S311
    source.execute(TABLES)
    lake = tmp_path / "lake0"
    for number in range(TIMES):
        copy = tmp_path / f"lake{number + 1}"
        after = Bronze(loading.load(config_of(source, tmp_path, copy, None)))
        with changing(source.dsn, (number + 1) * 10**7):
            # Every other copy stays behind, until the slot has moved on.
            is_behind = number % 2 == 1
            lose(source, config_of(source, tmp_path, lake, copy), draw.uniform(0, 4), is_behind)
            shutil.rmtree(lake)
            lake = copy
            events: list[StreamEvent] = []
            began = time.monotonic()
            result = after.stream(until_caught_up=True, notify=events.append)
            resynced = sum(isinstance(event, Resynced) for event in events)
            print(f"failover {number}: {time.monotonic() - began:.1f} s, {resynced} resynced")
            assert result.exit_code == 0, result
            assert resynced == 2 or not is_behind
        assert after.stream(until_caught_up=True).exit_code == 0
        check_whole(after, lake, number + 1)


def lose(source: Source, config: Path, seconds: float, is_behind: bool) -> None:
    """Has a lake streamed and copied until some seconds after its first generation, then kills. A
    copy that is behind has one generation, and the slot has passed it.
    """
    opened = Bronze(loading.load(config))
    assert opened.run().exit_code == 0
    place = opened.config.copy_root
    assert place
    processes = started(config, 999 if is_behind else 0.3)
    try:
        until(lambda: manifest.generations(place), 300)
        if is_behind:
            first = manifest.read(place, manifest.generations(place)[0])
            reached = max(moment.position or 0 for moment in first.moments)
            until(lambda: confirmed(source) > reached, 300)
        time.sleep(seconds)
    finally:
        ended = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
    assert ended == [None, None]


def confirmed(source: Source) -> int:
    """The position up to which the slot has passed."""
    slot = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s"
    rows = source.execute(slot, "bronze_test")
    return int(rows[0][0]) if rows and rows[0][0] is not None else 0


def check_whole(after: Bronze, lake: Path, failovers: int) -> None:
    """Everything equals the source, and proves itself."""
    assert after.run().exit_code == 0
    assert differences(after.config) == {}
    assert after.verify().exit_code == 0
    assert after.verify(at_rest=True).exit_code == 0
    assert after.audit(verify=True).problems == ()
    assert len(after.audit(action="failover").records) == failovers
    for name in ("s1", "s2"):
        folder = lake / "bronze" / f"bz_{name}"
        assert feed.faults(folder, first_version(folder)) == []


def first_version(folder: Path) -> int:
    """The version from which on a table's log has all entries: those that a checkpoint of the next
    generation made needless are not in a copy.
    """
    entries = {int(path.stem) for path in (folder / "_delta_log").glob("*.json")}
    first = max(entries)
    while first - 1 in entries:
        first -= 1
    return first
