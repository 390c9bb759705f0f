"""Tables that cannot be streamed: they alone are refused, with a sentence and a hint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bronze.api import check
from bronze.cdc import apply_loop, resync, stream
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, TableRefused
from bronze.ingest import pipeline
from bronze.model.events import BatchApplied
from bronze.model.results import Failure, StreamResult
from tests.conftest import Source, database
from tests.support.streams import (
    LOOSE,
    STREAMED,
    TABLE,
    caught_up,
    proven,
    rows,
    settings,
    streaming,
    until,
)


@dataclass(frozen=True)
class Trouble:
    """The results of two streams of tables of which some cannot be followed."""

    source: Source
    first: StreamResult
    second: StreamResult

    def error(self, result: StreamResult, name: str) -> Failure:
        """The error of a table."""
        (error,) = [table.error for table in result.tables if table.table == f"public.{name}"]
        assert error is not None
        return error


@pytest.fixture(scope="module")
def trouble(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    """A good table, two whose rows cannot be identified, a retyped one and a dropped one."""
    with database(server, tmp_path_factory.mktemp("trouble") / "lake") as source:
        source.execute(
            "CREATE TABLE good (id int PRIMARY KEY);"
            "CREATE TABLE none (id int PRIMARY KEY); ALTER TABLE none REPLICA IDENTITY NOTHING;"
            "CREATE TABLE bare (id int);"
            "CREATE TABLE retyped (id int PRIMARY KEY, v text);"
            "CREATE TABLE dropped (id int PRIMARY KEY);"
            "INSERT INTO good VALUES (1); INSERT INTO dropped VALUES (1);"
            "INSERT INTO retyped VALUES (1, '5')"
        )
        names = ("good", "none", "bare", "retyped", "dropped")
        given = settings(source, {name: {"pattern": "streaming"} for name in names})
        first = stream.stream(given, until_caught_up=True)
        source.execute("ALTER TABLE retyped ALTER v TYPE int USING v::int")
        source.execute("UPDATE retyped SET v = 6")
        source.execute("DROP TABLE dropped")
        source.execute("INSERT INTO good VALUES (2)")
        second = stream.stream(given, until_caught_up=True)
        stream.drop(given)
        yield Trouble(source, first, second)


def test_a_table_without_replica_identity_is_refused(trouble: Trouble) -> None:
    """REPLICA IDENTITY NOTHING, and a table without a key, are refused with SQL that helps."""
    failed = {table.table for table in trouble.first.tables if table.error}
    assert failed == {"public.none", "public.bare"}
    hint = trouble.error(trouble.first, "none").hint
    assert "ALTER TABLE" in hint
    assert "REPLICA IDENTITY" in hint
    assert trouble.first.exit_code == 1


def test_an_incompatible_type_change_stops_its_table_alone(trouble: Trouble) -> None:
    """Its Bronze table stays as it was, the others follow, and the error says what to do."""
    assert "rename" in trouble.error(trouble.second, "retyped").hint
    assert rows(trouble.source, "retyped")["v"].to_list() == ["5"]
    (good,) = [table for table in trouble.second.tables if table.table == "public.good"]
    assert (good.error, good.inserted) == (None, 1)


def test_a_dropped_table_keeps_its_bronze_table(trouble: Trouble) -> None:
    """That is no error, its Bronze table stays, and the others follow."""
    assert "public.dropped" not in {t.table for t in trouble.second.tables if t.error}
    assert rows(trouble.source, "dropped").height == 1
    assert rows(trouble.source, "good").height == 2


def test_a_second_copy_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams cannot use one slot."""
    monkeypatch.setattr(stream, "_LEAVING", 0.2)
    source.execute(TABLE)
    given = settings(source)
    with streaming(given) as steps:
        until(lambda: steps)
        with pytest.raises(SourceRefused, match="Another copy"):
            stream.stream(given, until_caught_up=True)
        source.execute("INSERT INTO t VALUES (1)")
        until(lambda: any(isinstance(step, BatchApplied) for step in steps))
    proven(source, given)


def test_a_key_shared_by_rows_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the config's key is not unique any more, the Bronze table stays as it was, and that is
    reported. The table follows again once the key is unique.
    """
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.5)
    source.execute("CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    given = settings(source, LOOSE)
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("INSERT INTO t VALUES (2, 'c'); DELETE FROM t WHERE v = 'b'")
        until(lambda: sorted(rows(source)["v"]) == ["a", "c"])
        assert not [step.message for step in steps if step.message]
        source.execute("INSERT INTO t VALUES (1, 'twice')")
        until(lambda: any("public.t: tried again" in step.message for step in steps), 60)
        assert any("share the key id" in step.message for step in steps), [s.message for s in steps]
        assert any("the same value of the key id" in step.message for step in steps)
        assert sorted(rows(source)["v"]) == ["a", "c"]
        source.execute("UPDATE t SET id = 3 WHERE v = 'twice'")
        until(lambda: any("is followed again" in step.message for step in steps), 60)
        source.execute("UPDATE t SET id = 4 - id")
        until(lambda: rows(source).sort("v")["id"].to_list() == [3, 2, 1])
    proven(source, given)


@pytest.mark.soak
@pytest.mark.parametrize("running", [True, False])
def test_a_key_without_its_constraint_is_resynced(
    source: Source, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """The stream does not report it: the table is resynced when the catalog is checked, at the
    latest by the next stream.
    """
    monkeypatch.setattr(apply_loop, "_CATALOG_INTERVAL", 0.2 if running else 60.0)
    source.execute("CREATE TABLE t (k int PRIMARY KEY, id int NOT NULL UNIQUE)")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t SELECT g, g FROM generate_series(1, 20) g")
    given, notes = settings(source, LOOSE), list[str]()
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("ALTER TABLE t DROP CONSTRAINT t_id_key, ADD UNIQUE (id) DEFERRABLE")
        source.execute("UPDATE t SET id = id + 1")
        shifted = list(range(2, 22))
        until(lambda: not running or sorted(rows(source)["id"]) == shifted)
        until(lambda: running or rows(source)["id"].max() == 21)
    caught_up(given, notes)
    assert bool(notes) is not running
    source.execute("UPDATE t SET id = 23 - id")
    caught_up(given, notes)
    assert len(notes) == (not running)
    proven(source, given)


def test_a_partition_with_another_replica_identity_is_resynced(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If rows may share a key and not all old rows are sent in full, the table is refused."""
    monkeypatch.setattr(apply_loop, "_CATALOG_INTERVAL", 0.2)
    source.execute(
        "CREATE TABLE t (id int, d int) PARTITION BY LIST (d);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1);"
        "ALTER TABLE t_1 REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1);"
        "CREATE TABLE t_2 (id int PRIMARY KEY, d int)"
    )
    with streaming(settings(source, LOOSE)) as steps:
        until(lambda: steps)
        source.execute("ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)")
        said = "rows of several partitions may share the key id"
        until(lambda: any(said in step.message for step in steps), told=lambda: steps)


def test_missing_privileges_are_reported_with_their_grants(source: Source) -> None:
    """Without the privilege REPLICATION nothing is created, and the hint has the SQL for it."""
    source.execute(TABLE)
    source.execute("CREATE ROLE reader LOGIN")
    source.execute("GRANT SELECT ON t TO reader")
    given = source.settings(
        source={"dsn": source.dsn.replace("postgres@", "reader@")},
        tables=STREAMED,
    )
    try:
        with pytest.raises(SourceRefused) as caught:
            stream.stream(given, until_caught_up=True)
    finally:
        source.execute("DROP OWNED BY reader")
        source.execute("DROP ROLE reader")
    assert "REPLICATION" in caught.value.hint
    assert "CREATE PUBLICATION" in caught.value.hint


def test_the_config_decides_what_is_streamed(source: Source) -> None:
    """A run loads no streamed table, and a stream no other; an error says so if one is named."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = settings(source)
    assert [table.table for table in pipeline.run(given).tables] == ["public.u"]
    with pytest.raises(ConfigError, match=r"does not load .*public\.t"):
        pipeline.run(given, ["t"])
    with pytest.raises(ConfigError, match=r"does not stream public\.u"):
        stream.stream(given, ["u"], until_caught_up=True)
    with pytest.raises(ConfigError, match="any table"):
        stream.stream(source.settings(), until_caught_up=True)
    assert [t.table for t in stream.stream(given, ["t"], until_caught_up=True).tables] == [
        "public.t"
    ]


def test_check_reports_what_prevents_streaming(source: Source) -> None:
    """With the sentences of the stream, before it begins."""
    source.execute(TABLE)
    assert check.check(settings(source)).problems == ()
    source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    (problem,) = check.check(settings(source)).problems
    assert "REPLICA IDENTITY" in problem.hint
    assert source.execute("SELECT * FROM pg_publication") == []


def test_all_tables_refused_is_an_error(source: Source) -> None:
    """If no table can be streamed, the error is the first table's."""
    source.execute(TABLE)
    source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    with pytest.raises(TableRefused, match="t"):
        stream.stream(settings(source), until_caught_up=True)
