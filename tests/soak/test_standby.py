"""Runs from a standby that follows its primary: what is committed late is not missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bronze.demo.server import Server
from tests.conftest import Source
from tests.integration.ingest.test_patterns import land
from tests.soak.test_failover import asked, folder, mirrored, started
from tests.support.proxy import until

__all__ = ["folder"]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

FOLLOWING = {"hot_standby_feedback": "on", "primary_slot_name": "mirror"}
OWN = {
    "xmin": {"pattern": "batch"},
    "cursor": {"pattern": "batch", "cursor": "at", "overlap": "1h"},
}


@dataclass(frozen=True)
class Followed(Source):
    """A standby as a source, read table by table."""

    primary: Server
    standby: Server

    def settings(self, **sections: Any) -> Any:
        """Settings for the standby."""
        source = {"consistency": "per-table", **sections.pop("source", {})}
        return super().settings(source=source, **sections)

    def caught_up(self) -> None:
        """Waits until the standby has replayed all that there is by now."""
        ((at,),) = asked(self.primary, "SELECT pg_current_wal_insert_lsn()::text")
        until(
            lambda: asked(self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{at}'") == [(True,)]
        )


@pytest.fixture
def followed(folder: Path, tmp_path: Path) -> Iterator[Followed]:
    """A primary with a table, and a standby that follows it."""
    with ExitStack() as stack:
        settings = {"max_prepared_transactions": "5"}
        primary = stack.enter_context(started(folder / "one", **settings))
        asked(primary, "CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now())")
        asked(primary, "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i")
        mirrored(primary, folder / "two")
        standby = stack.enter_context(started(folder / "two", **settings, **FOLLOWING))
        found = Followed(standby.dsn(), tmp_path / "lake", primary, standby)
        found.caught_up()
        yield found


def plain(connection: psycopg.Connection[Any], start: int) -> None:
    """A transaction that has written, and is open."""
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (%s, 'late')", [start])
    connection.execute("UPDATE t SET v = 'late', at = now() WHERE id = 1")


def nested(connection: psycopg.Connection[Any], start: int) -> None:
    """A transaction with more subtransactions than a standby receives."""
    connection.execute("BEGIN")
    for i in range(200):
        connection.execute("SAVEPOINT one")
        connection.execute("INSERT INTO t VALUES (%s, 'late')", [start + i])
        connection.execute("RELEASE SAVEPOINT one")


def prepared(connection: psycopg.Connection[Any], start: int) -> None:
    """One that is prepared, and whose session has gone on."""
    plain(connection, start)
    connection.execute("PREPARE TRANSACTION 'late'")


LATE: dict[str, tuple[Callable[[psycopg.Connection[Any], int], None], str]] = {
    "plain": (plain, "COMMIT"),
    "nested": (nested, "COMMIT"),
    "prepared": (prepared, "COMMIT PREPARED 'late'"),
}


@pytest.mark.parametrize("by", OWN)
def test_what_is_committed_late_is_not_missed(followed: Followed, by: str) -> None:
    """By xmin, and by a cursor column with an overlap: rows of transactions that were open on the
    primary while the standby was read come with a later run, restarts of the standby included.
    """
    own = OWN[by]
    land(followed, own)
    with psycopg.connect(followed.primary.dsn(), autocommit=True) as writer:
        for number, (begin, end) in enumerate(LATE.values(), 1):
            begin(writer, number * 1000)
            # Others come and go meanwhile, so that the ids move on.
            for i in range(5):
                asked(followed.primary, f"INSERT INTO t VALUES ({number * 1000 + 500 + i}, 'soon')")
            followed.caught_up()
            assert land(followed, own).inserted == 5
            writer.execute(end.encode())
            followed.caught_up()
            landed = land(followed, own)
            assert landed.inserted == (200 if begin is nested else 1)
            assert not any("compared" in note for note in landed.notes)
