"""The rule of exactly-once: a stream may die anywhere, and each change is applied once.

A batch goes through four steps: each table's commit holds its rows and the position up to which it
has followed; then one checkpoint says that all tables have reached the position; then the slot is
confirmed. These are the four places where a stream can die; `tests.soak.test_stream_kills` kills
real processes at every step.
"""

from __future__ import annotations

import polars as pl
import pytest

from bronze import failpoint
from bronze.config.settings import Settings
from bronze.governance.tables import streams
from tests.conftest import Source
from tests.support import feed
from tests.support.content import differences
from tests.support.streams import caught_up

TABLES = ("a", "b")


class Died(BaseException):
    """Ends a stream at once, wherever it is."""


@pytest.fixture
def settings(source: Source) -> Settings:
    """Two streamed tables after their initial copy, each with a new row in the source."""
    given = source.settings(
        tables={table: {"pattern": "streaming"} for table in TABLES}, run={"workers": 1}
    )
    for table in TABLES:
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
    caught_up(given)
    source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
    return given


def rows(source: Source) -> list[int]:
    """How many rows each Bronze table shows."""
    return [pl.read_delta(str(source.table(table))).height for table in TABLES]


def checkpoint(source: Source) -> set[int | None]:
    """The versions of both tables in the last checkpoint."""
    records = pl.read_delta(str(source.lake / "governance" / streams.NAME))
    *_, (_, versions) = streams.with_versions(records)
    return set(versions.values())


def kill_stream_at(settings: Settings, point: str, before: int) -> None:
    """A stream that dies at a failpoint, when the Bronze tables have ``before`` rows in all."""
    patch = pytest.MonkeyPatch()

    def reach(name: str) -> None:
        made = [settings.place("bronze", f"bz_{table}").url for table in TABLES]
        if name == point and sum(pl.read_delta(url).height for url in made) == before:
            raise Died

    with patch.context() as context:
        context.setattr(failpoint, "reach", reach)
        with pytest.raises(Died):
            caught_up(settings)


def check_next_stream(source: Source, settings: Settings) -> None:
    """After the next stream each change is applied once."""
    caught_up(settings)
    assert differences(settings) == {}
    assert rows(source) == [1, 1]
    assert [feed.faults(source.table(table)) for table in TABLES] == [[], []]
    versions = [len(list((source.table(t) / "_delta_log").glob("*.json"))) for t in TABLES]
    assert versions == [2, 2]


def test_a_stream_that_dies_before_any_commit(source: Source, settings: Settings) -> None:
    """Nothing is visible: the server sends the batch again, and all tables apply it."""
    kill_stream_at(settings, "inserted", before=0)
    assert rows(source) == [0, 0]
    check_next_stream(source, settings)


def test_a_stream_that_dies_between_two_commits(source: Source, settings: Settings) -> None:
    """The server sends the batch again. One table's position says that it has it, and it leaves the
    batch out; the other one applies it.
    """
    kill_stream_at(settings, "committed", before=1)
    assert sorted(rows(source)) == [0, 1]
    check_next_stream(source, settings)


def test_a_stream_that_dies_before_its_checkpoint_applies_nothing_twice(
    source: Source, settings: Settings
) -> None:
    """The server sends the batch again, all tables leave it out, and the checkpoint is made."""
    kill_stream_at(settings, "landed", before=2)
    assert (rows(source), checkpoint(source)) == ([1, 1], {0})
    check_next_stream(source, settings)
    assert checkpoint(source) == {1}


def test_a_stream_that_dies_before_it_confirms_gets_nothing_again(
    source: Source, settings: Settings
) -> None:
    """The next stream asks for what comes after the checkpoint: nothing is sent again."""
    kill_stream_at(settings, "recorded", before=2)
    assert (rows(source), checkpoint(source)) == ([1, 1], {1})
    check_next_stream(source, settings)
