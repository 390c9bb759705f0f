"""The connections of a process to a source: never more than pool.max, whatever works at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

import bronze
from bronze.errors import ConfigError, SourceBusy
from bronze.postgres.connection import allowance, connect, read_connections
from bronze.postgres.connection.read_connections import BEGIN
from tests.conftest import Source
from tests.support.content import differences
from tests.support.proxy import until

_COUNT = """
SELECT pg_stat_clear_snapshot(), count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND application_name LIKE 'bronze%%'
"""


@contextmanager
def sampled(source: Source) -> Iterator[list[int]]:
    """How many sessions the server has, again and again, while the block runs."""
    counts, done = [0], threading.Event()

    def sample() -> None:
        with psycopg.connect(source.dsn, autocommit=True) as watcher:
            while not done.wait(0.002):
                row: Any = watcher.execute(_COUNT).fetchone()
                counts.append(row[1])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield counts
    finally:
        done.set()
        thread.join()


@pytest.mark.soak
def test_commands_of_a_process_share_the_connections_of_a_source(source: Source) -> None:
    """Two runs, a stream and a verification at once: never more sessions than pool.max, and each
    of them ends well.
    """
    for name in ("a", "b", "c", "s"):
        source.execute(
            f"CREATE TABLE {name} AS SELECT i AS id, md5(i::text) AS w"
            " FROM generate_series(1, 20000) i"
        )
        source.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
    settings = source.settings(
        source={"pool": {"max": 6}},
        run={"workers": 4, "max_retries": 5},
        tables={"s": {"pattern": "streaming"}},
    )
    lake = bronze.Bronze(settings)
    lake.run(["c"])
    with sampled(source) as counts, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()
        stream = pool.submit(lake.stream, stop=stop)
        works: list[Future[Any]] = [pool.submit(lake.run, [name]) for name in ("a", "b")]
        works.append(pool.submit(lake.verify, ["c"]))
        codes = [work.result(120).exit_code for work in works]
        until(lambda: (source.lake / "bronze" / "bz_s" / "_delta_log").is_dir())
        stop.set()
        assert stream.result(60).exit_code == 0
    assert codes == [0, 0, 0]
    assert 4 <= max(counts) <= 6
    assert not differences(settings)


def test_a_read_waits_for_a_connection_and_then_says_why_not(source: Source) -> None:
    """A lasting connection leaves room for a read, and what is kept for later gives way."""
    settings = source.settings(source={"pool": {"max": 3}, "connect_timeout": 1})
    origin = settings.origin("test")
    with connect.connect(origin, lasting=True), connect.connect(origin, lasting=True):
        with pytest.raises(SourceBusy, match=r"pool\.max = 3 allows") as caught:
            connect.connect(origin, lasting=True)
        assert "Raise pool.max" in caught.value.hint
        with read_connections.keep_for(origin, (BEGIN,)):
            with read_connections.read_connection(origin, (BEGIN,)):
                pass
            # The connection of the read is kept, and closed for another one.
            other = replace(origin, application_name="bronze other")
            with connect.connect(other), pytest.raises(SourceBusy):
                connect.connect(other)
    # All are given back, also those of connections that nobody has closed.
    for _ in range(9):
        connect.connect(origin).close()


def test_a_stream_names_the_least_connections_that_would_do(source: Source) -> None:
    """Before it connects."""
    settings = source.settings(source={"pool": {"max": 4}}, tables={"t": {"pattern": "streaming"}})
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with pytest.raises(ConfigError, match="a stream needs at least 5") as caught:
        bronze.Bronze(settings).stream(until_caught_up=True)
    assert "Set pool.max to 5" in caught.value.hint
    origin = settings.origin("test")
    with pytest.raises(ConfigError, match="2 runs or verifications and a stream need at least 7"):
        allowance.check_least(origin, commands=2, streams=1)


def test_a_connection_counts_until_its_session_has_ended(source: Source) -> None:
    """PostgreSQL may take a while after the connection was closed here."""
    settings = source.settings(source={"pool": {"max": 3}, "connect_timeout": 1})
    origin = settings.origin("test")
    slow = connect.connect(origin)
    pid = slow.info.backend_pid
    with connect.connect(origin), connect.connect(origin):
        os.kill(pid, signal.SIGSTOP)
        try:
            slow.close()
            with pytest.raises(SourceBusy):
                connect.connect(origin)
        finally:
            os.kill(pid, signal.SIGCONT)
        connect.connect(origin).close()


def test_the_end_of_a_session_is_seen_with_many_open_files(source: Source) -> None:
    """`select` knows no file descriptor above 1023; a process may have more of them."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    many = list[int]()
    try:
        many += [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        origin = source.settings(source={"pool": {"max": 3}}).origin("test")
        for _ in range(9):
            connect.connect(origin).close()
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="sockets are counted in /proc")
def test_no_sockets_of_other_sources_stay_open(source: Source) -> None:
    """Sessions end after their connections, and their source may not be connected to again."""

    def sockets() -> int:
        kinds = [link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return sum(kind.startswith("socket:") for kind in kinds)

    origin = source.settings().origin("test")
    before = sockets()
    for number in range(20):
        connect.connect(replace(origin, name=f"source {number}")).close()

    def are_closed() -> bool:
        connect.connect(origin).close()
        return sockets() <= before + 2

    until(are_closed)


def test_a_connection_that_was_lost_does_not_count(source: Source) -> None:
    """Also if an error keeps it from being collected."""
    settings = source.settings(source={"pool": {"max": 3}, "connect_timeout": 1})
    origin = settings.origin("test")
    lost = []
    for _ in range(4):
        connection = connect.connect(origin)
        source.execute("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        with pytest.raises(psycopg.OperationalError), connection:
            connection.execute("SELECT 1")
        lost.append(connection)
