"""Servers that change beneath a stream: a standby takes over, a backup is put in place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from deltalake import DeltaTable

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.demo import installation
from bronze.demo import server as postgres
from bronze.demo.server import Server
from bronze.errors import BronzeError
from tests.conftest import FAST, Source
from tests.soak.test_stream_kills import (
    BOOKS,
    TOTAL,
    balance,
    loaded,
    moments,
    opened,
    settings,
    streaming,
    until,
)
from tests.support import feed
from tests.support.content import differences
from tests.support.features import since

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(300)]

SLOT, MIRROR = "bronze_test", "mirror"
SETTINGS = {**FAST, "wal_sender_timeout": "5s", "wal_receiver_status_interval": "1s"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for servers that their user can enter."""
    found = Path(os.path.realpath(tempfile.mkdtemp(prefix="bronze-tests-")))
    yield found
    shutil.rmtree(found, ignore_errors=True)


@contextmanager
def started(data: Path, **more: str) -> Iterator[Server]:
    """A server, which may be dead by the end."""
    port = int(more.pop("port", 0)) or None
    server = postgres.start(data, port=port, settings={**SETTINGS, **more})
    try:
        yield server
    finally:
        with suppress(BronzeError):
            server.stop("immediate")


def mirrored(primary: Server, data: Path) -> None:
    """Makes the data directory of a standby."""
    made = ["-D", str(data), "-d", primary.dsn(), "-R", "-S", MIRROR, "-C", "-c", "fast"]
    subprocess.run([str(installation.binary("pg_basebackup")), *made], check=True)


def asked(server: Server, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def killed(server: Server) -> None:
    """Kills a server as the kernel would that runs out of memory."""
    os.kill(int((server.data / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGKILL)


def either(one: Server, other: Server) -> str:
    """The address of whichever of two servers may be written to."""
    hosts = f"{one.host}:{one.port},{other.host}:{other.port}"
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"


def equal(given: Settings, source: Source) -> None:
    """The tables equal the source, their feeds are true, and each record shows one state."""
    assert differences(given) == {}
    for name in BOOKS:
        assert (name, feed.faults(source.table(name))) == (name, [])
    found = moments(source.lake, 40)
    assert [balance(source.lake, at) for at in found] == [TOTAL] * len(found)


def compared(source: Source) -> int:
    """How often a table was compared with the source."""
    facts = (json.loads(e["bronze"]) for e in DeltaTable(source.table(BOOKS[0])).history())
    return [fact.get("mode") for fact in facts].count("compare")


def synchronise(primary: Server, standby: Server) -> None:
    """Lets the standby have the slot, too."""
    asked(standby, "ALTER SYSTEM SET sync_replication_slots = on")
    asked(standby, "SELECT pg_reload_conf()")
    there = (
        f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND synced"
        " AND NOT temporary"
    )

    def done() -> bool:
        # The slot can be taken over once it has moved past what the standby still has.
        asked(primary, "SELECT pg_log_standby_snapshot()")
        return asked(standby, there) == [(1,)]

    until(done)


@pytest.mark.parametrize("synchronised", [pytest.param(True, marks=since("failover slots")), False])
def test_a_standby_takes_over(folder: Path, tmp_path: Path, synchronised: bool) -> None:
    """A stream that runs on finds the server that was promoted, and compares; nothing is lost.

    Positions are of another history then, whether the standby has the slot or not. Where nothing
    makes the stream wait for the standby, the lake is ahead of it: what was lost is taken back.
    """
    waiting = {"synchronized_standby_slots": MIRROR} if synchronised else {}
    following = {"hot_standby_feedback": "on", "primary_slot_name": MIRROR}
    with started(folder / "one", **waiting) as primary:
        opened(Source(primary.dsn(), tmp_path / "lake"))
        mirrored(primary, folder / "two")
        with started(folder / "two", **following) as standby:
            source = Source(either(primary, standby), tmp_path / "lake")
            given = settings(source)
            with streaming(given) as running:
                with loaded(primary.dsn(), 0.005) as load:
                    running.lands()
                    if synchronised:
                        synchronise(primary, standby)
                        running.lands()
                    else:
                        asked(standby, "SELECT pg_wal_replay_pause()")
                        running.lands()
                        running.lands()
                    killed(primary)
                until(running.notes)
                asked(standby, "SELECT pg_promote()")
                with loaded(standby.dsn(), 0.005, seed=2):
                    running.lands()
                    running.lands()
            assert load.committed
            equal(given, source)
            assert compared(source)


def caught_up(given: Settings) -> list[str]:
    """Streams until all that is committed has landed; what it has said."""
    notes: list[str] = []
    told = stream.stream(
        given, until_caught_up=True, notify=lambda step: notes.append(step.message)
    )
    assert [table.error for table in told.tables if table.error] == []
    return [note for note in notes if note]


def busy(source: Source, transactions: int, seed: int) -> None:
    """So many transactions."""
    with loaded(source.dsn, 0, seed) as load:
        until(lambda: load.committed >= transactions)


@pytest.mark.parametrize("slot", [True, False], ids=["slot", "none"])
@pytest.mark.parametrize("later", [2, 60], ids=["behind", "ahead"])
def test_a_backup_is_put_in_place(folder: Path, tmp_path: Path, slot: bool, later: int) -> None:
    """A server that was put back says nothing of it: the stream finds out, and compares.

    What had landed of the time that never was is taken back, be the server's log shorter than the
    lake's position or longer by now, and whether the slot is in the backup or not.
    """
    data, backup = folder / "data", folder / "backup"
    with started(data) as server:
        source = Source(server.dsn(), tmp_path / "lake")
        opened(source)
        given = settings(source)
        if slot:
            caught_up(given)
        busy(source, 10, 1)
        if slot:
            caught_up(given)
        server.stop()
        shutil.copytree(data, backup)
        with started(data, port=str(server.port)):
            busy(source, 20, 2)
            caught_up(given)
            busy(source, 3, 3)
            caught_up(given)
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        with started(data, port=str(server.port)):
            busy(source, later, 4)
            caught_up(given)
            equal(given, source)
            busy(source, 5, 5)
            before = compared(source)
            caught_up(given)
            equal(given, source)
            assert compared(source) == before
