"""Runs from a standby that follows its primary: one snapshot, replay that goes on, a promotion, and
what is committed late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bronze.demo.server import Server
from bronze.errors import SnapshotLost, TableContested
from bronze.ingest import pipeline
from bronze.ingest.table_run import TableRun
from bronze.model.locations import Origin
from bronze.model.results import RunResult
from bronze.postgres.connection import translation
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.integration.ingest.test_patterns import land
from tests.soak.test_failover import asked, folder, mirrored, started
from tests.support.content import differences
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


@contextmanager
def following(folder: Path, lake: Path, **more: str) -> Iterator[Followed]:
    """A primary with a table, and a standby that follows it, with ``more`` settings."""
    with ExitStack() as stack:
        settings = {"max_prepared_transactions": "5"}
        primary = stack.enter_context(started(folder / "one", **settings))
        asked(primary, "CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now())")
        asked(primary, "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i")
        mirrored(primary, folder / "two")
        standby = stack.enter_context(started(folder / "two", **{**settings, **FOLLOWING, **more}))
        found = Followed(standby.dsn(), lake, primary, standby)
        found.caught_up()
        yield found


@pytest.fixture
def followed(folder: Path, tmp_path: Path) -> Iterator[Followed]:
    """A standby that follows."""
    with following(folder, tmp_path / "lake") as found:
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


def run_shared(
    followed: Followed, during: Callable[[], None] = lambda: None, retries: int = 0
) -> RunResult:
    """Runs with one snapshot for all tables; ``during`` is called once, when it was taken."""
    left = [during]

    def planned(_: Sequence[TableRun]) -> None:
        while left:
            left.pop()()

    given = followed.settings(source={"consistency": "run"}, run={"max_retries": retries})
    return pipeline.run(given, planned=planned)


def test_all_tables_are_read_from_one_snapshot_of_a_standby(followed: Followed) -> None:
    """What is replayed after the snapshot was taken lands with the next run, in all tables."""
    asked(followed.primary, "CREATE TABLE u (id int PRIMARY KEY, v text)")
    asked(followed.primary, "INSERT INTO u SELECT i, 'v' FROM generate_series(1, 100) i")
    followed.caught_up()

    def later() -> None:
        asked(followed.primary, "INSERT INTO t VALUES (101, 'late')")
        asked(followed.primary, "INSERT INTO u VALUES (101, 'late')")
        followed.caught_up()

    first = run_shared(followed, later)
    assert [(table.error, table.inserted) for table in first.tables] == [(None, 100)] * 2
    assert [table.inserted for table in run_shared(followed).tables] == [1, 1]
    given = followed.settings(source={"consistency": "run"})
    assert differences(given) == {}
    assert [table.status for table in verify(given).tables] == ["equal", "equal"]


def test_a_promotion_does_not_end_a_run(followed: Followed) -> None:
    """The snapshot outlives it; rows that are written to the promoted server come with the next
    run, which compares all rows, as positions are of another timeline.
    """

    def promoted() -> None:
        asked(followed.standby, "SELECT pg_promote()")
        until(lambda: asked(followed.standby, "SELECT pg_is_in_recovery()") == [(False,)])
        asked(followed.standby, "INSERT INTO t VALUES (101, 'after')")

    (first,) = run_shared(followed, promoted).tables
    assert (first.error, first.inserted) == (None, 100)
    (second,) = run_shared(followed).tables
    assert (second.error, second.inserted) == (None, 1)
    assert differences(followed.settings(source={"consistency": "run"})) == {}


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("TRUNCATE t", id="lock"),
        pytest.param("DELETE FROM t WHERE id < 50; VACUUM t", id="rows", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_holds_up_replay_begins_again(folder: Path, tmp_path: Path, what: str) -> None:
    """The standby ends the session that holds the snapshot. The run says what to set, and takes
    another snapshot if it may.
    """
    settings = {"max_standby_streaming_delay": "200ms", "hot_standby_feedback": "off"}
    with following(folder, tmp_path / "lake", **settings) as followed:

        def conflict() -> None:
            for statement in what.split(";"):
                asked(followed.primary, statement)
            followed.caught_up()

        with pytest.raises(SnapshotLost) as caught:
            run_shared(followed, conflict)
        assert "hot_standby_feedback" in caught.value.hint
        assert not list(followed.table("t").glob("_delta_log/*"))
        more = "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 60) i ON CONFLICT DO NOTHING"
        asked(followed.primary, more)
        followed.caught_up()
        (landed,) = run_shared(followed, conflict, 2).tables
        assert landed.error is None
        assert differences(followed.settings(source={"consistency": "run"})) == {}


def test_a_statement_that_is_canceled_for_replay_is_explained(folder: Path, tmp_path: Path) -> None:
    """The error of a table that is being read names the standby, the reason and what to set; the
    run retries such a table.
    """
    settings = {"max_standby_streaming_delay": "200ms", "hot_standby_feedback": "off"}
    with (
        following(folder, tmp_path / "lake", **settings) as followed,
        psycopg.connect(followed.standby.dsn(), autocommit=True) as reader,
    ):
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reader.execute("SELECT count(*) FROM t")
        asked(followed.primary, "DELETE FROM t")
        asked(followed.primary, "VACUUM t")
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            reader.execute("SELECT pg_sleep(60)")
        origin = Origin("test", followed.standby.dsn())
        error = translation.explain(caught.value, origin, "public.t")
        assert (type(error), error.table) == (TableContested, "public.t")
        assert "is a standby, whose replay did not wait longer for reads of table" in error.message
        assert "hot_standby_feedback" in error.hint
        assert isinstance(translation.explain(caught.value, origin), SnapshotLost)
