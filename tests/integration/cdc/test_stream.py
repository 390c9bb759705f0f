"""A stream: the tables show what the source has, with the metadata and checkpoints that belong."""

from __future__ import annotations

import json

import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner

from bronze.api import check
from bronze.cdc import apply_loop, stream
from bronze.cli.main import app
from bronze.execution import budget
from tests.conftest import Source
from tests.support.streams import (
    STREAMED,
    TABLE,
    caught_up,
    proven,
    rows,
    settings,
    streaming,
    table_state,
    until,
)


def test_a_large_altered_table_is_resynced_in_splits(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in the snapshot of a slot: it does not need to fit into the memory."""
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g; ANALYZE t")
    given = settings(source)
    caught_up(given)
    source.execute("ALTER TABLE t ADD w int DEFAULT 7; UPDATE t SET v = 'w' WHERE id < 9")
    monkeypatch.setattr(budget, "GROWTH", 10**12)
    monkeypatch.setattr(budget, "split_and_file", lambda *_: (10**6, 10**6))
    assert check.check(given).problems == ()
    caught_up(given)
    proven(source, given)


def test_a_stream_that_has_caught_up_ends_at_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for changes, after a load as after a stream that had nothing to apply."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1, 'copied')")
    given = settings(source)
    monkeypatch.setattr(apply_loop, "_PATIENCE", 30.0)
    for _ in range(3):
        assert caught_up(given).seconds < 20
    source.execute("INSERT INTO t VALUES (2, 'streamed')")
    assert caught_up(given).seconds < 20
    proven(source, given)


def test_rows_have_ingestion_method_and_commit_time(source: Source) -> None:
    """Streamed rows have the method "streaming", and the time of their commit in the source."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1, 'copied')")
    given = settings(source)
    caught_up(given)
    source.execute("INSERT INTO t VALUES (2, 'streamed')")
    ((after,),) = source.execute("SELECT clock_timestamp()")
    source.execute("INSERT INTO t VALUES (3, 'too')")
    assert caught_up(given).transactions == 2
    found = rows(source).sort("id")
    assert found["ingestion_method"].to_list() == ["streaming"] * 3
    assert found["source_commit_timestamp"].is_null().to_list() == [True, False, False]
    assert found["at"][1] <= found["source_commit_timestamp"][1] <= after


def test_no_change_makes_no_commit(source: Source) -> None:
    """A table without changes gets no new version; changes of other tables advance the slot."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1)")
    source.execute("CREATE TABLE other (id int)")
    given = source.settings(source={"exclude": ["other"]}, tables=STREAMED, stream={"interval": 0})
    caught_up(given)
    before = table_state(source).version
    source.execute("INSERT INTO other SELECT generate_series(1, 1000)")
    source.execute("UPDATE t SET v = v")
    result = caught_up(given)
    assert table_state(source).version == before

    def is_confirmed() -> bool:
        ((confirmed, now),) = source.execute(
            "SELECT confirmed_flush_lsn - '0/0', pg_current_wal_lsn() - '0/0'"
            " FROM pg_replication_slots WHERE slot_name = 'bronze_test'"
        )
        return bool(result.position <= confirmed + 1 <= now + 1)

    # The server may process the confirmation a moment after the stream has ended.
    until(is_confirmed)
    assert [t.inserted for t in caught_up(given).tables] == []
    proven(source, given)


@pytest.mark.soak
def test_a_transaction_larger_than_memory_is_applied_as_a_whole(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is spooled to a file, and applied as a whole."""
    monkeypatch.setattr(apply_loop, "_SHARE", 10**6)
    monkeypatch.setattr(apply_loop, "_LEAST_BATCH", 2**16)
    monkeypatch.setattr("bronze.postgres.replication.batch_builder._PIECE", 2**15)
    monkeypatch.setattr(budget, "_MOST_CHANGES", 2**16)
    source.execute(TABLE)
    given = settings(source)
    caught_up(given)
    with psycopg.connect(source.dsn) as connection:
        connection.execute("INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 2000) g")
        connection.execute("UPDATE t SET v = 'w' WHERE id % 3 = 0")
        connection.execute("DELETE FROM t WHERE id % 5 = 0")
    caught_up(given)
    proven(source, given)
    source.execute("DELETE FROM t WHERE id % 2 = 0")
    source.execute("UPDATE t SET id = -id")
    caught_up(given)
    proven(source, given)


def test_changes_are_applied_while_it_runs(source: Source) -> None:
    """A running stream applies each change within moments."""
    source.execute(TABLE)
    given = settings(source)
    with streaming(given) as steps:
        for number in range(3):
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (%s)", number)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
    assert [step.message for step in steps if step.message] == []
    proven(source, given)


def test_checkpoints_map_a_position_to_versions(source: Source) -> None:
    """At the versions of one checkpoint, two tables show the same moment."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY, n int)")
    given = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    source.execute("INSERT INTO t VALUES (1, '', 100)")
    source.execute("INSERT INTO u VALUES (1, 0)")
    caught_up(given)
    for _ in range(2):
        with psycopg.connect(source.dsn) as connection:
            connection.execute("UPDATE t SET n = n - 1")
            connection.execute("UPDATE u SET n = n + 1")
        caught_up(given)
    records = pl.read_delta(str(source.lake / "governance" / "streams")).sort("position")
    positions = records["position"].to_list()
    assert positions == sorted(positions)
    for text in records["tables"]:
        at = json.loads(text)
        t = pl.read_delta(str(source.table("t")), version=at["bronze.bz_t"])["n"].sum()
        u = pl.read_delta(str(source.table("u")), version=at["bronze.bz_u"])["n"].sum()
        assert int(t) + u == 100
    assert len({tuple(json.loads(text).items()) for text in records["tables"]}) == 3


def test_an_idle_slot_is_advanced(source: Source) -> None:
    """The server does not keep the log of other tables' changes for a stream without changes."""
    source.execute(TABLE)
    source.execute("CREATE TABLE other (id int)")
    given = source.settings(tables=STREAMED, stream={"interval": 0, "heartbeat": 0})
    query = (
        "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots"
        " WHERE slot_name = 'bronze_test'"
    )
    with streaming(given) as steps:
        until(lambda: steps)
        ((before,),) = source.execute(query)
        source.execute("INSERT INTO other SELECT generate_series(1, 10000)")
        until(lambda: source.execute(query)[0][0] > before + 100_000)
    assert table_state(source).version == 0


def test_retained_log_beyond_the_budget_is_reported(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that makes the server keep more log than the budget is reported before it is lost."""
    monkeypatch.setattr(apply_loop, "_SLOT_INTERVAL", 0.0)
    source.execute(TABLE)
    given = source.settings(tables=STREAMED, stream={"interval": 0, "wal_budget": "1KB"})
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        until(lambda: any("wal_budget" in step.message for step in steps))


def test_drop_removes_slot_and_publication(source: Source) -> None:
    """Slot and publication are dropped, the tables stay, and dropping twice is no error."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1)")
    given = settings(source)
    caught_up(given)
    assert stream.drop(given) == "bronze_test"
    assert stream.drop(given) == "bronze_test"
    assert (
        source.execute("SELECT * FROM pg_replication_slots WHERE slot_name = 'bronze_test'") == []
    )
    assert source.execute("SELECT * FROM pg_publication") == []
    assert rows(source).height == 1


def test_help_lists_the_options() -> None:
    """The help of the command names its options."""
    text = CliRunner().invoke(app, ["stream", "--help"]).stdout
    assert "--until-caught-up" in text
    assert "--drop" in text
