"""Streaming: what the source does is what the tables show, whatever it is and whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner

from bronze.api import check
from bronze.cdc import session, stream
from bronze.cdc.stream import Step
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.delta import commit, log
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, TableRefused
from bronze.ingest import pipeline, units
from bronze.model.locations import Place
from bronze.model.results import Failure, StreamResult, TableResult
from tests.conftest import Source, database
from tests.support import feed
from tests.support.content import differences
from tests.support.features import has
from tests.support.proxy import proxied

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now())"
STREAMED: Mapping[str, Any] = {"t": {"pattern": "streaming"}}


def settings(source: Source, tables: Mapping[str, Any] = STREAMED, **more: Any) -> Settings:
    """A config in which tables are streamed, gathered for no time at all; ``more`` is of [run]."""
    return source.settings(tables=tables, stream={"interval": 0}, run=more)


def caught_up(given: Settings, notes: list[str] | None = None) -> StreamResult:
    """Streams until all that is committed has landed."""

    def told(step: Step) -> None:
        if step.note and notes is not None:
            notes.append(step.note)

    result = stream.stream(given, until_caught_up=True, notify=told)
    assert [table.error for table in result.tables if table.error] == []
    return result


def proven(source: Source, given: Settings, *tables: str) -> None:
    """The tables equal the source, and their feeds are true."""
    assert differences(given) == {}
    for name in tables or ("t",):
        assert feed.faults(source.table(name)) == []


def rows(source: Source, name: str = "t") -> pl.DataFrame:
    """The rows that a Bronze table shows as there."""
    return pl.read_delta(str(source.table(name))).filter(pl.col("record_status") == "ACTIVE")


def version(source: Source, name: str = "t") -> int:
    """A Bronze table's version."""
    return int(pl.read_delta(str(source.table(name))).height and _state(source, name).version)


def _state(source: Source, name: str = "t") -> log.State:
    state = log.read(settings(source).place("bronze", f"bz_{name}"))
    assert state is not None
    return state


@contextmanager
def streaming(given: Settings, tables: Sequence[str] = ()) -> Iterator[list[Step]]:
    """A stream in a thread, stopped at the end; gives the steps that it has told of so far."""
    stop, steps, failures = threading.Event(), list[Step](), list[BaseException]()

    def work() -> None:
        try:
            stream.stream(given, tables, stop=stop, notify=steps.append)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield steps
    finally:
        stop.set()
        thread.join(60)
    assert failures == []


def until(
    true: Callable[[], object], patience: float = 30, told: Callable[[], object] = lambda: None
) -> None:
    """Waits until something is true; ``told`` says what is not."""
    end = time.monotonic() + patience
    began = time.monotonic()
    while not true():
        now = time.monotonic()
        assert now < end, told()
        # What costs much to find out is left to those who are waited for, for as long.
        time.sleep(max(0.02, now - began))
        began = time.monotonic()


@dataclass(frozen=True)
class Case:
    """A table ``{t}``: what makes it, and the transactions before the second and third stream."""

    made: str
    second: Sequence[str]
    third: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


MADE = TABLE.replace("TABLE t", "TABLE {t}") + ";"
SOME = "INSERT INTO {t} SELECT g, 'v' FROM generate_series(1, 20) g;"

FOLLOWED = Case(
    MADE + "INSERT INTO {t} SELECT g, 'v' || g, g / 7.0 FROM generate_series(1, 200) g",
    [
        "INSERT INTO {t} SELECT g, NULL, g FROM generate_series(201, 300) g",
        "UPDATE {t} SET v = v || '!' WHERE id <= 50",
        "UPDATE {t} SET id = id + 1000 WHERE id BETWEEN 60 AND 69",
        "DELETE FROM {t} WHERE id BETWEEN 70 AND 79",
        "INSERT INTO {t} VALUES (70, 'again')",
    ],
    [
        "UPDATE {t} SET n = coalesce(n, 0) + 1 WHERE id % 3 = 0",
        "DELETE FROM {t} WHERE id IN (SELECT min(id) FROM {t})",
    ]
    * 2,
)
TRUNCATED = {
    on_delete: Case(
        MADE + SOME,
        [
            "INSERT INTO {t} VALUES (99, 'before'); TRUNCATE {t};"
            "INSERT INTO {t} VALUES (5, 'new'), (30, 'new')"
        ],
        ["TRUNCATE {t}"],
        {"on_delete": on_delete},
    )
    for on_delete in ("mark", "remove")
}
_BIG = "repeat(md5(%s::text), 200)"
_FILL = (
    f"INSERT INTO {{t}} SELECT g, 0, {_BIG % 'g'}, {_BIG % '(-g)'} FROM generate_series(%s, %s) g;"
)
LARGE = Case(
    "CREATE TABLE {t} (id int PRIMARY KEY, n int, big text, other text);"
    "ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;"
    + _FILL
    % (1, 10),
    [
        "UPDATE {t} SET n = 1 WHERE id <= 5;"
        "UPDATE {t} SET id = 101 WHERE id = 1;"
        "UPDATE {t} SET id = 102, n = 2 WHERE id = 101;"
        "UPDATE {t} SET big = 'small' WHERE id = 2;"
        "UPDATE {t} SET n = 3 WHERE id = 2;"
        + _FILL
        % (11, 12)
        + "UPDATE {t} SET n = 4 WHERE id = 11;"
        "UPDATE {t} SET id = 112 WHERE id = 12;"
        "DELETE FROM {t} WHERE id = 3"
    ],
)
IDENTITIES = {
    identity: Case(
        "CREATE TABLE {t} (id int PRIMARY KEY, k text NOT NULL, v text);"
        "CREATE UNIQUE INDEX {t}_k ON {t} (k);"
        f"ALTER TABLE {{t}} REPLICA IDENTITY {identity};"
        "INSERT INTO {t} SELECT g, 'k' || g, 'v' FROM generate_series(1, 20) g",
        [
            "UPDATE {t} SET v = 'w' WHERE id < 5",
            "UPDATE {t} SET id = id + 100 WHERE id = 5",
            "UPDATE {t} SET k = k || 'x' WHERE id = 6",
            "DELETE FROM {t} WHERE id = 7",
        ],
    )
    for identity in ("FULL", "USING INDEX {t}_k", "DEFAULT")
}
DRIFTS = {
    drift: Case(
        MADE + SOME,
        [
            f"UPDATE {{t}} SET n = 1 WHERE id < 5; {changes};"
            "UPDATE {t} SET n = 2 WHERE id < 3; INSERT INTO {t} (id) VALUES (50)"
        ],
        ["UPDATE {t} SET n = 3 WHERE id < 10"],
    )
    for drift, changes in {
        "a column with a default": "ALTER TABLE {t} ADD extra int DEFAULT 7",
        "a column dropped": "ALTER TABLE {t} DROP v",
        "a wider type": "ALTER TABLE {t} ALTER id TYPE bigint",
        "a column renamed": "ALTER TABLE {t} RENAME v TO w",
        "dropped and added": "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v text DEFAULT 'd'",
        "several": "ALTER TABLE {t} ADD a text; UPDATE {t} SET a = 'x'; ALTER TABLE {t} DROP a",
    }.items()
}
PARTITIONED = Case(
    "CREATE TABLE {t} (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);"
    "CREATE TABLE {t}_3 PARTITION OF {t} FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');"
    "CREATE TABLE {t}_4 PARTITION OF {t} FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');"
    "INSERT INTO {t} SELECT g, date '2023-06-01' + g, 'v' FROM generate_series(1, 300) g",
    [
        "UPDATE {t} SET v = 'w' WHERE id % 7 = 0",
        "UPDATE {t} SET d = d + 365 WHERE d < '2023-07-01'",
        "DELETE FROM {t} WHERE id = 200",
    ],
    config={"partition_by": "d"},
)
_DEFERRED = (
    "CREATE TABLE {t} (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text, big text);"
    "ALTER TABLE {t} REPLICA IDENTITY FULL; ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;"
    f"INSERT INTO {{t}} SELECT g, 'v' || g, {_BIG % 'g'} FROM generate_series(1, 20) g"
)
_SHIFTS = [
    "UPDATE {t} SET id = id + 1",
    "UPDATE {t} SET id = 5 - id WHERE id IN (2, 3); UPDATE {t} SET v = v || '!' WHERE id < 5",
    # A key that is left, marked, and taken again; a row that comes before another one goes.
    "DELETE FROM {t} WHERE id = 21; UPDATE {t} SET id = 21 WHERE id = 20",
    "INSERT INTO {t} VALUES (7, 'new', 'n'); DELETE FROM {t} WHERE id = 7 AND v <> 'new'",
    "UPDATE {t} SET id = 1 + id % 21",
]
_CYCLE = "UPDATE {t} SET id = CASE id WHEN 4 THEN 5 WHEN 5 THEN 6 ELSE 4 END WHERE id IN (4, 5, 6)"
SHIFTED = {
    "marked": Case(_DEFERRED, _SHIFTS, [*_SHIFTS, _CYCLE], {"key": ["id"]}),
    "removed": Case(_DEFERRED, _SHIFTS, [_CYCLE], {"key": ["id"], "on_delete": "remove"}),
    "known by another index": Case(
        "CREATE TABLE {t} (id int, n int, v text, big text, PRIMARY KEY (id, n));"
        "ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;"
        f"INSERT INTO {{t}} SELECT g, g, 'v', {_BIG % 'g'} FROM generate_series(1, 20) g",
        ["UPDATE {t} SET id = id + 1", "UPDATE {t} SET v = 'w'", "UPDATE {t} SET id = 22 - id"],
        ["INSERT INTO {t} VALUES (5, 50, 'new', 'n'); DELETE FROM {t} WHERE id = 5 AND n <> 50"],
        {"key": ["id"]},
    ),
    "over partitions": Case(
        "CREATE TABLE {t} (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);"
        "CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);"
        "CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);"
        "INSERT INTO {t} SELECT g, 1 + g % 2, 'v' || g FROM generate_series(1, 20) g",
        ["UPDATE {t} SET id = id + 1", "UPDATE {t} SET d = 3 - d, id = 2 + id % 20"],
        [
            "INSERT INTO {t} VALUES (9, 3 - (SELECT d FROM {t} WHERE id = 9), 'new');"
            "DELETE FROM {t} WHERE id = 9 AND v <> 'new'"
        ],
        {"key": ["id"]},
    ),
    "over partitions alike": Case(
        "CREATE TABLE {t} (id int, d int, v text) PARTITION BY LIST (d);"
        "CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);"
        "CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);"
        "ALTER TABLE {t}_1 REPLICA IDENTITY FULL; ALTER TABLE {t}_2 REPLICA IDENTITY FULL;"
        "INSERT INTO {t} SELECT g, 1 + g % 2, 'v' || g FROM generate_series(1, 20) g",
        ["UPDATE {t} SET id = id + 1", "UPDATE {t} SET d = 3 - d, id = 2 + id % 20"],
        [
            "INSERT INTO {t} VALUES (9, 1, 'v'), (9, 1, 'v'); DELETE FROM {t} WHERE id = 9;"
            "INSERT INTO {t} VALUES (9, 2, 'v')"
        ],
        {"key": ["id"]},
    ),
    "in partitions of Bronze": Case(
        "CREATE TABLE {t} (id int PRIMARY KEY DEFERRABLE, d date);"
        "ALTER TABLE {t} REPLICA IDENTITY FULL;"
        "INSERT INTO {t} SELECT g, date '2024-01-01' + g % 3 FROM generate_series(1, 20) g",
        ["UPDATE {t} SET id = id + 1", "UPDATE {t} SET id = 22 - id"],
        ["UPDATE {t} SET id = id - 1", "UPDATE {t} SET id = 21 - id, d = d + 1"],
        {"key": ["id"], "partition_by": "d"},
    ),
}
EXCHANGES = {
    how: Case(
        "CREATE TABLE {t} (id int, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);"
        "CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);"
        "CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);"
        "INSERT INTO {t} SELECT g, 1 + g % 2 FROM generate_series(1, 100) g",
        [exchange],
    )
    for how, exchange in {
        "truncated": "TRUNCATE {t}_1",
        "detached": "ALTER TABLE {t} DETACH PARTITION {t}_2",
        "attached": "CREATE TABLE {t}_3 (id int NOT NULL, d int NOT NULL);"
        "INSERT INTO {t}_3 VALUES (500, 3);"
        "ALTER TABLE {t} ATTACH PARTITION {t}_3 FOR VALUES IN (3)",
    }.items()
}
_VIRTUAL = ", w int GENERATED ALWAYS AS (n * 3) VIRTUAL" if has("virtual generated columns") else ""
GENERATED = Case(
    "CREATE TABLE {t} (id int PRIMARY KEY, n int,"
    f" s int GENERATED ALWAYS AS (n * 2) STORED{_VIRTUAL});"
    "INSERT INTO {t} VALUES (1, 1)",
    ["UPDATE {t} SET n = 5", "INSERT INTO {t} VALUES (2, 2)"],
)
ANEW = Case(
    MADE + "INSERT INTO {t} VALUES (1, 'old'), (2, 'old')",
    ["DROP TABLE {t}", MADE, "INSERT INTO {t} VALUES (2, 'new'), (3, 'new')"],
    ["INSERT INTO {t} VALUES (4, 'new')"],
)
CASES = {
    "followed": FOLLOWED,
    **{f"truncated_{how}": case for how, case in TRUNCATED.items()},
    "large": LARGE,
    **{f"identity_{i}": case for i, case in enumerate(IDENTITIES.values())},
    **{f"drift_{i}": case for i, case in enumerate(DRIFTS.values())},
    "partitioned": PARTITIONED,
    **{f"shifted_{i}": case for i, case in enumerate(SHIFTED.values())},
    **{f"exchange_{how}": case for how, case in EXCHANGES.items()},
    "generated": GENERATED,
    "anew": ANEW,
}


@dataclass(frozen=True)
class Streams:
    """All cases after three streams in a row: what each stream left, by table."""

    source: Source
    tables: list[dict[str, TableResult]] = field(default_factory=list)
    wrong: list[dict[str, str]] = field(default_factory=list)
    versions: list[dict[str, int]] = field(default_factory=list)

    def named(self, case: Case) -> str:
        """A case's table."""
        (name,) = [name for name, one in CASES.items() if one is case]
        return name

    def proven(self, case: Case, since: int = 0) -> str:
        """A case's table, which equalled the source after each stream, its feed true."""
        name = self.named(case)
        assert [wrong.get(f"public.{name}") for wrong in self.wrong] == [None] * 3
        assert feed.faults(self.source.table(name), self.versions[since][name]) == []
        return name

    def rows(self, name: str, stream: int) -> pl.DataFrame:
        """The rows that a table showed as there after a stream."""
        version = self.versions[stream][name]
        held = pl.read_delta(str(self.source.table(name)), version=version)
        return held.filter(pl.col("record_status") == "ACTIVE")


@pytest.fixture(scope="module")
def streams(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    """The cases, streamed together."""
    with database(server, tmp_path_factory.mktemp("streams") / "lake") as source:
        found = Streams(source)
        given = source.settings(
            source={"tables": list(CASES)},
            tables={t: {"pattern": "streaming", **case.config} for t, case in CASES.items()},
            stream={"interval": 0},
        )
        for number in range(3):
            with psycopg.connect(source.dsn, autocommit=True) as connection:
                for name, case in CASES.items():
                    for transaction in ([case.made], case.second, case.third)[number]:
                        connection.execute(transaction.replace("{t}", name))
            tables = caught_up(given).tables
            found.tables.append({t.table.removeprefix("public."): t for t in tables})
            found.wrong.append(differences(given))
            found.versions.append({name: _state(source, name).version for name in CASES})
        # All slots of these tests have one name, and belong to the whole server.
        stream.drop(given)
        yield found


def test_a_large_table_that_has_changed_is_compared_when_the_stream_goes_on(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in the snapshot of a slot, in parts: it need not fit into memory at once."""
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g; ANALYZE t")
    given = settings(source)
    caught_up(given)
    source.execute("ALTER TABLE t ADD w int DEFAULT 7; UPDATE t SET v = 'w' WHERE id < 9")
    monkeypatch.setattr(units, "_GROWTH", 10**12)
    monkeypatch.setattr(units, "_sizes", lambda *_: (10**6, 10**6))
    assert check.check(given).problems == ()
    caught_up(given)
    proven(source, given)


def test_what_changes_is_followed(streams: Streams) -> None:
    """After the copy: rows come, change, change their keys and go, in one batch and in several."""
    name = streams.proven(FOLLOWED)
    copied = streams.tables[0][name]
    assert (copied.status, copied.inserted) == ("landed", 200)


@pytest.mark.parametrize("on_delete", TRUNCATED)
def test_truncated_tables_are_emptied(streams: Streams, on_delete: str) -> None:
    """All rows are gone but those that came afterwards, in the same transaction or a later one."""
    name = streams.proven(TRUNCATED[on_delete])
    assert [sorted(streams.rows(name, number)["id"]) for number in (1, 2)] == [[5, 30], []]


def test_large_values_that_are_left_out(streams: Streams) -> None:
    """What the stream does not send, as it is large and unchanged, stays what it is."""
    streams.proven(LARGE)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_replica_identity_that_tells_rows_apart(streams: Streams, identity: str) -> None:
    """Old rows come whole, or with the columns of an index: rows are known by them."""
    streams.proven(IDENTITIES[identity])


@pytest.mark.parametrize("drift", DRIFTS)
def test_columns_that_change_in_between(streams: Streams, drift: str) -> None:
    """A table whose columns change in mid-stream is compared once, and goes on."""
    name = streams.proven(DRIFTS[drift], since=1)
    assert streams.tables[2][name].rows_read == 9


def test_partitioned_tables_are_one(streams: Streams) -> None:
    """Changes of all partitions, and rows that move between them, are the root's."""
    streams.proven(PARTITIONED)


@pytest.mark.parametrize("how", SHIFTED)
def test_keys_that_rows_share_for_a_while(streams: Streams, how: str) -> None:
    """Rows that shift, swap and cycle their keys are all there, and no comparison is needed."""
    name = streams.proven(SHIFTED[how])
    assert [streams.tables[i][name].notes for i in (1, 2)] == [(), ()]


@pytest.mark.parametrize("how", EXCHANGES)
def test_partitions_that_are_exchanged_between_streams(streams: Streams, how: str) -> None:
    """The stream does not tell of it: it is seen in the catalog, and the table is compared."""
    streams.proven(EXCHANGES[how])


def test_partitions_that_are_exchanged_while_it_runs(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked for now and then; each table is compared when it was found out."""
    monkeypatch.setattr(session, "_LOOK_EVERY", 0.1)
    for name, case in EXCHANGES.items():
        source.execute(case.made.replace("{t}", name))
    given = source.settings(
        source={"tables": list(EXCHANGES)},
        tables={name: {"pattern": "streaming"} for name in EXCHANGES},
        stream={"interval": 0},
    )
    with streaming(given) as steps:
        until(lambda: steps)
        for name, case in EXCHANGES.items():
            source.execute(case.second[0].replace("{t}", name))
        wrong: dict[str, str] = {}

        def equal() -> bool:
            nonlocal wrong
            wrong = differences(given)
            return wrong == {}

        until(equal, told=lambda: wrong)
    proven(source, given, *EXCHANGES)


def test_generated_columns(streams: Streams) -> None:
    """Stored ones come by the stream where the server sends them; the others are left out of the
    table, which follows for all that.
    """
    name = streams.named(GENERATED)
    found = streams.rows(name, 2)
    stored = ["s"] if has("generated columns in publications") else []
    values = [(1, 5, 10), (2, 2, 4)]
    wanted = [row[: 2 + len(stored)] for row in values]
    assert found.sort("id").select("id", "n", *stored).rows() == wanted
    assert {"s", "w"} & set(found.columns) == set(stored)
    followed = streams.tables[1][name]
    assert (followed.inserted, followed.updated, followed.notes) == (1, 1, ())


def test_a_table_that_was_made_anew_is_compared(streams: Streams) -> None:
    """Another table of the same name: its rows take the place of the old ones."""
    assert sorted(streams.rows(streams.proven(ANEW), 2)["id"]) == [2, 3, 4]


def test_rows_say_how_and_when_they_came(source: Source) -> None:
    """Rows of the stream have its method, and the time of their commit in the source."""
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


def test_nothing_new_writes_nothing(source: Source) -> None:
    """A table that did not change gets no new version; what concerns others moves the slot on."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1)")
    source.execute("CREATE TABLE other (id int)")
    given = source.settings(source={"exclude": ["other"]}, tables=STREAMED, stream={"interval": 0})
    caught_up(given)
    before = _state(source).version
    source.execute("INSERT INTO other SELECT generate_series(1, 1000)")
    source.execute("UPDATE t SET v = v")
    result = caught_up(given)
    assert _state(source).version == before

    def is_confirmed() -> bool:
        ((confirmed, now),) = source.execute(
            "SELECT confirmed_flush_lsn - '0/0', pg_current_wal_lsn() - '0/0'"
            " FROM pg_replication_slots WHERE slot_name = 'bronze_test'"
        )
        return bool(result.position <= confirmed + 1 <= now + 1)

    # The server may hear of it a moment after the stream has gone.
    until(is_confirmed)
    assert [t.inserted for t in caught_up(given).tables] == []
    proven(source, given)


@dataclass(frozen=True)
class Trouble:
    """Tables of which some cannot be followed: what the first stream said, and the second."""

    source: Source
    first: StreamResult
    second: StreamResult

    def error(self, result: StreamResult, name: str) -> Failure:
        """Why a table did not follow."""
        (error,) = [table.error for table in result.tables if table.table == f"public.{name}"]
        assert error is not None
        return error


@pytest.fixture(scope="module")
def trouble(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    """A good table beside two that cannot be told by their rows, one retyped and one dropped."""
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


def test_tables_whose_rows_cannot_be_told_apart_are_refused(trouble: Trouble) -> None:
    """REPLICA IDENTITY NOTHING, and a table without a key, are refused with the mend; others go."""
    failed = {table.table for table in trouble.first.tables if table.error}
    assert failed == {"public.none", "public.bare"}
    hint = trouble.error(trouble.first, "none").hint
    assert "ALTER TABLE" in hint
    assert "REPLICA IDENTITY" in hint
    assert trouble.first.exit_code == 1


def test_a_change_of_type_that_cannot_be_held_stops_this_table_alone(trouble: Trouble) -> None:
    """The table stays as it was, the others go on, and the error says what to do."""
    assert "rename" in trouble.error(trouble.second, "retyped").hint
    assert rows(trouble.source, "retyped")["v"].to_list() == ["5"]
    (good,) = [table for table in trouble.second.tables if table.table == "public.good"]
    assert (good.error, good.inserted) == (None, 1)


def test_a_dropped_table_is_left_as_it_is(trouble: Trouble) -> None:
    """The others go on, it is no error, and its Bronze table stays."""
    assert "public.dropped" not in {t.table for t in trouble.second.tables if t.error}
    assert rows(trouble.source, "dropped").height == 1
    assert rows(trouble.source, "good").height == 2


@pytest.mark.soak
def test_a_transaction_larger_than_memory(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put aside in files, and lands whole."""
    monkeypatch.setattr(session, "_SHARE", 10**6)
    monkeypatch.setattr(session, "_LEAST_BATCH", 2**16)
    monkeypatch.setattr("bronze.postgres.replication.receiver._PIECE", 2**15)
    monkeypatch.setattr("bronze.cdc.net_changes._IN_MEMORY", 2**16)
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


def test_what_a_slot_does_not_bring_is_made_up_for(source: Source) -> None:
    """Whether somebody moved it, dropped it, or the server gave it up (which is said): all rows are
    compared, and only what differs is written.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
    given, notes = settings(source), list[str]()
    caught_up(given)
    found = {}

    def follow(how: str) -> None:
        (table,) = caught_up(given, notes).tables
        found[how] = (table.inserted, table.updated, table.deleted)
        assert differences(given) == {}, how

    source.execute("UPDATE t SET v = 'w' WHERE id = 1")
    source.execute("SELECT pg_replication_slot_advance('bronze_test', pg_current_wal_lsn())")
    follow("moved")
    source.execute("SELECT pg_drop_replication_slot('bronze_test')")
    source.execute("UPDATE t SET v = 'x' WHERE id = 1")
    source.execute("DELETE FROM t WHERE id = 2")
    follow("dropped")
    assert not any("was lost" in note for note in notes)
    source.execute("UPDATE t SET v = 'y' WHERE id = 1")
    source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    try:
        source.execute("SELECT pg_reload_conf()")
        for _ in range(3):
            source.execute("INSERT INTO t (id) VALUES (1000) ON CONFLICT DO NOTHING")
            source.execute("SELECT pg_switch_wal()")
        until(lambda: _lost(source))
        follow("lost")
    finally:
        source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        source.execute("SELECT pg_reload_conf()")
    assert any("was lost" in note for note in notes)
    assert found == {"moved": (0, 1, 0), "dropped": (0, 1, 1), "lost": (1, 1, 0)}
    proven(source, given)


def _lost(source: Source) -> bool:
    source.execute("CHECKPOINT")
    query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'bronze_test'"
    return source.execute(query) == [("lost",)]


def _with_an_earlier_slot(source: Source, given: Settings) -> None:
    """Streams a change, and has the slot forget it."""
    source.execute("SELECT pg_copy_logical_replication_slot('bronze_test', 'test_earlier')")
    source.execute("UPDATE t SET v = v || 'w' WHERE id = 1")
    caught_up(given)
    for slot in ("bronze_test", "test_earlier"):
        if slot == "test_earlier":
            copy = "SELECT pg_copy_logical_replication_slot('test_earlier', 'bronze_test')"
            source.execute(copy)
        source.execute("SELECT pg_drop_replication_slot(%s)", slot)


def _puts(source: Source, place: Place, name: str, change: int) -> None:
    """Moves one of a table's app transactions."""
    state = log.read(place)
    ((identity,),) = source.execute(
        "SELECT system_identifier || '/1/' || current_database() FROM pg_control_system()"
    )
    assert state is not None
    value = state.position(commit.transaction(f"{identity}/{name}"))
    assert value is not None
    moved = commit.Position(f"{identity}/{name}", value + change)
    commit.commit(place, state, commit.Change("WRITE"), {}, reached=moved)


# Once all was compared, positions are of another era.
@pytest.mark.parametrize("cases", [("nothing", "time"), ("log",)])
def test_a_source_that_was_put_back_is_compared(source: Source, cases: Sequence[str]) -> None:
    """What a slot brings again is left out; if it is something else, all tables are compared.

    So they are if the server's log ends before a position of ours.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    given = settings(source)
    caught_up(given)
    ((oid,),) = source.execute("SELECT 't'::regclass::oid::int8")
    moves: Mapping[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "log": lambda: _puts(source, given.place("governance", "streams"), "bronze_test", 10**12),
        "time": lambda: _puts(source, given.place("bronze", "bz_t"), f"{oid}/last/committed", 1),
    }
    for another in cases:
        notes = list[str]()
        _with_an_earlier_slot(source, given)
        moves[another]()
        before = _state(source).version
        compared = another != "nothing"
        result = caught_up(given, notes)
        assert [t.rows_read for t in result.tables] == ([10] if compared else []), another
        assert any("put back to an earlier state" in note for note in notes) == compared, another
        assert _state(source).version - before == compared, another
        source.execute("UPDATE t SET v = v || 'x' WHERE id = 2")
        assert [t.updated for t in caught_up(given).tables] == [1], another
    proven(source, given)


def test_a_table_that_was_away_is_compared(source: Source) -> None:
    """A table that others streamed without, or that a run took in between, is compared first."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    both = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    caught_up(both)
    source.execute("UPDATE t SET v = 'w' WHERE id = 1")
    caught_up(settings(source, {"u": {"pattern": "streaming"}}))
    source.execute("UPDATE t SET v = 'w' WHERE id = 2")
    found = {t.table: t for t in caught_up(both).tables}
    assert found["public.t"].updated == 2
    proven(source, both, "t", "u")
    assert pipeline.run(source.settings(tables={"t": {"pattern": "batch"}})).exit_code == 0
    source.execute("UPDATE t SET v = 'x' WHERE id = 3")
    found = {t.table: t for t in caught_up(both).tables}
    assert found["public.t"].updated == 1
    proven(source, both, "t", "u")


def test_a_table_restored_to_an_earlier_version_is_compared(source: Source) -> None:
    """A table whose position went back has lost what the slot no longer has."""
    from deltalake import DeltaTable

    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1)")
    given = settings(source)
    caught_up(given)
    source.execute("INSERT INTO t VALUES (2)")
    caught_up(given)
    folder = source.table("t") / "_delta_log"
    assert DeltaTable(str(source.table("t"))).version() == 1
    (folder / f"{1:020}.json").unlink()
    assert rows(source)["id"].to_list() == [1]
    (table,) = caught_up(given).tables
    assert table.inserted == 1
    proven(source, given)


def cut(source: Source) -> None:
    """Cuts a stream's connections, the one that brings the changes among them."""
    query = """
        WITH mine AS (SELECT * FROM pg_stat_activity WHERE application_name ~ '^bronze stream')
        SELECT pg_terminate_backend(pid) FROM mine
        WHERE EXISTS (SELECT FROM mine WHERE backend_type = 'walsender')
    """
    until(lambda: source.execute(query))


def test_a_second_copy_is_refused(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams would take turns with one slot."""
    monkeypatch.setattr(stream, "_LEAVING", 0.2)
    source.execute(TABLE)
    given = settings(source)
    with streaming(given) as steps:
        until(lambda: steps)
        with pytest.raises(SourceRefused, match="Another copy"):
            stream.stream(given, until_caught_up=True)
        source.execute("INSERT INTO t VALUES (1)")
        until(lambda: any(step.changes for step in steps))
    proven(source, given)


def test_changes_land_while_it_runs(source: Source) -> None:
    """A stream that goes on lands each change within moments."""
    source.execute(TABLE)
    given = settings(source)
    with streaming(given) as steps:
        for number in range(3):
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (%s)", number)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
    assert [step.note for step in steps if step.note] == []
    proven(source, given)


def test_a_connection_that_is_cut_is_made_again(source: Source) -> None:
    """The stream goes on where it was, and says that it was cut."""
    source.execute(TABLE)
    given = settings(source, retry_delay=0)
    with streaming(given) as steps:
        for number in range(2):
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (%s)", number)
            cut(source)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
    assert any("Again" in step.note for step in steps)
    proven(source, given)


@pytest.mark.soak
def test_interruptions_are_counted_anew_once_something_has_landed(source: Source) -> None:
    """However often the connection is cut, a stream that lands in between is back at once."""
    source.execute(TABLE)
    given = settings(source, retry_delay=1)
    with streaming(given) as steps:
        until(lambda: steps)
        # The third pause in a row would be one of two seconds at least.
        for number in range(3):
            source.execute("INSERT INTO t VALUES (%s)", number)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
            cut(source)
            told = number + 1
            until(lambda told=told: sum("Again" in s.note for s in steps) == told)  # type: ignore[misc]
        source.execute("INSERT INTO t VALUES (9)")
        until(lambda: rows(source).height == 4)
    notes = [step.note for step in steps if step.note]
    assert [note for note in notes if not note.endswith(("Again in 0 s.", "Again in 1 s."))] == []


def test_a_server_that_says_nothing_is_left(source: Source, server: Server) -> None:
    """A connection over which nothing comes any more is made again, though nobody closed it."""
    source.execute(TABLE)
    ((database,),) = source.execute("SELECT current_database()")
    source.execute(f"ALTER DATABASE {database} SET wal_sender_timeout = '500ms'")
    with proxied(server) as proxy:
        given = settings(Source(proxy.dsn(database), source.lake), retry_delay=0)
        with streaming(given) as steps:
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (1)")
            until(lambda: any(step.changes for step in steps))
            proxy.stall()
            source.execute("INSERT INTO t VALUES (2)")
            until(lambda: rows(source).height == 2)
    assert any("Again" in step.note for step in steps)
    proven(source, settings(source))


def test_a_lake_without_room_is_waited_for(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is given up because nothing can be written for a while."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(session, "_LONGEST_PAUSE", 0.2)
    source.execute(TABLE)
    given = settings(source, retry_delay=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with streaming(given) as steps:
        until(lambda: steps)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        try:
            # What the stream records still has room.
            source.execute("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 9999) g")
            until(lambda: any("no space left" in step.note for step in steps))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        until(lambda: rows(source).height == 9999)
    proven(source, given)


@pytest.mark.parametrize("met", ["by a batch", "on a line of its own"])
def test_a_lake_that_is_gone_is_waited_for(
    source: Source, monkeypatch: pytest.MonkeyPatch, met: str
) -> None:
    """Whether its folder is gone or, once unmounted, empty: nothing is made in its place."""
    monkeypatch.setattr(session, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(stream, "_LONGEST_PAUSE", 0.2)
    source.execute(TABLE)
    given, away = settings(source, retry_delay=1), source.lake.with_name("away")
    with streaming(given) as steps:
        until(lambda: steps)
        source.lake.rename(away)
        if met == "by a batch":
            source.execute("INSERT INTO t VALUES (1)")
        else:
            source.lake.mkdir()
            cut(source)
        until(lambda: any("is gone" in step.note for step in steps), told=lambda: steps)
        assert not list(source.lake.rglob("*"))
        if met != "by a batch":
            source.lake.rmdir()
            source.execute("INSERT INTO t VALUES (1)")
        away.rename(source.lake)
        until(lambda: rows(source).height == 1)
    proven(source, given)


def test_a_table_that_is_gone_is_given_up(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a new one, on another line neither; once it is back, it follows again."""
    monkeypatch.setattr(session, "_FIRST_REST", 0.3)
    monkeypatch.setattr(session, "_LONGEST_REST", 0.3)
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given, away = settings(source, both, retry_delay=0), source.lake / "away"
    with streaming(given) as steps:
        until(lambda: steps)
        source.table("t").rename(away)
        source.execute("INSERT INTO t VALUES (1)")
        until(lambda: any("bz_t was there and is gone" in step.note for step in steps))
        source.execute("INSERT INTO u VALUES (1)")
        until(lambda: rows(source, "u").height == 1)
        cut(source)
        told = len(steps)
        until(lambda: any("tried again" in step.note for step in steps[told:]))
        assert not source.table("t").exists()
        away.rename(source.table("t"))
        until(lambda: any("t is followed again" in step.note for step in steps))
        source.execute("INSERT INTO t VALUES (2)")
        until(lambda: rows(source).height == 2)
    proven(source, given, "t", "u")


def test_a_table_that_failed_is_tried_again(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then, and at growing intervals: then it is compared, and what comes later follows."""
    monkeypatch.setattr(session, "_FIRST_REST", 0.1)
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given = settings(source, both)
    with streaming(given) as steps:
        until(lambda: any(not step.note for step in steps))
        assert any("u is not followed" in step.note for step in steps)
        source.execute("ALTER TABLE t ALTER v TYPE int USING 7")
        source.execute("INSERT INTO t VALUES (1, 7)")
        until(lambda: any("public.t: tried again" in step.note for step in steps), 60)
        source.execute("ALTER TABLE t ALTER v TYPE text")
        source.execute("ALTER TABLE u ADD PRIMARY KEY (id)")
        source.execute("INSERT INTO u VALUES (1)")
        for name in ("t", "u"):
            said = f"public.{name} is followed again."
            until(lambda said=said: any(said in step.note for step in steps), 60)  # type: ignore[misc]
            source.execute(f"INSERT INTO {name} VALUES (2)")
            until(lambda name=name: rows(source, name).height == 2)  # type: ignore[misc]
    proven(source, given, "t", "u")


def test_a_change_that_is_too_large_has_its_table_compared(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that does not fit into the memory is not taken in, and said: the table is compared,
    so that it lands if it can be read by itself; else this table alone fails, the others go on.
    """
    monkeypatch.setattr(units, "COPIES", 10**6)
    monkeypatch.setattr(units, "_LEAST_CHANGE", 2**20)
    source.execute(TABLE)
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given = settings(source, both)
    caught_up(given)
    notes: list[str] = []
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    # The old row and the new one come together, and each alone fits.
    source.execute("UPDATE t SET v = repeat('0123', 150000) WHERE id = 1")
    source.execute("UPDATE t SET v = repeat('4567', 150000) WHERE id = 1")
    source.execute("INSERT INTO u VALUES (1)")
    caught_up(given, notes)
    (said,) = [note for note in notes if note.startswith("public.t is compared")]
    assert "a change of it has 1,200,1" in said
    assert "[run] memory leaves room for 1,048,576" in said
    proven(source, given, "t", "u")
    source.execute("UPDATE t SET v = repeat('89ab', 400000) WHERE id = 2")
    source.execute("INSERT INTO u VALUES (2)")
    result = stream.stream(given, until_caught_up=True)
    failed = {table.table: table.error for table in result.tables}
    assert failed["public.u"] is None
    assert failed["public.t"] is not None
    assert 'The row {"id" : "2"} of table public.t has 1,600,0' in failed["public.t"].message
    assert rows(source, "u").height == 2
    source.execute("UPDATE t SET v = 'small' WHERE id = 2")
    caught_up(given)
    proven(source, given, "t", "u")


LOOSE: Mapping[str, Any] = {"t": {"pattern": "streaming", "key": ["id"]}}


def test_rows_that_share_a_key_for_good_are_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the config's key is not unique any more the table is left as it was, and that is said;
    it follows again once the key is unique.
    """
    monkeypatch.setattr(session, "_FIRST_REST", 0.5)
    source.execute("CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    given = settings(source, LOOSE)
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("INSERT INTO t VALUES (2, 'c'); DELETE FROM t WHERE v = 'b'")
        until(lambda: sorted(rows(source)["v"]) == ["a", "c"])
        assert not [step.note for step in steps if step.note]
        source.execute("INSERT INTO t VALUES (1, 'twice')")
        until(lambda: any("public.t: tried again" in step.note for step in steps), 60)
        assert any("share the key id" in step.note for step in steps), [s.note for s in steps]
        assert any("the same value of the key id" in step.note for step in steps)
        assert sorted(rows(source)["v"]) == ["a", "c"]
        source.execute("UPDATE t SET id = 3 WHERE v = 'twice'")
        until(lambda: any("is followed again" in step.note for step in steps), 60)
        source.execute("UPDATE t SET id = 4 - id")
        until(lambda: rows(source).sort("v")["id"].to_list() == [3, 2, 1])
    proven(source, given)


@pytest.mark.parametrize("running", [True, False])
def test_a_key_that_is_not_enforced_any_more(
    source: Source, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """The stream does not tell: the table is compared as soon as that is seen, be it by the next
    stream.
    """
    monkeypatch.setattr(session, "_LOOK_EVERY", 0.2 if running else 60.0)
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


def test_a_partition_that_tells_its_rows_otherwise(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows may share a key and not all old rows come whole, the table is refused."""
    monkeypatch.setattr(session, "_LOOK_EVERY", 0.2)
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
        until(lambda: any(said in step.note for step in steps), told=lambda: steps)


def test_records_map_a_position_to_versions(source: Source) -> None:
    """Read at the versions of one record, two tables show one moment."""
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


def test_an_idle_slot_is_moved_on(source: Source) -> None:
    """What others do in the database is not kept for a stream whose tables rest."""
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
    assert _state(source).version == 0


def test_a_budget_for_the_log_is_watched(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that makes the server keep more than the budget is told of, long before it is lost."""
    monkeypatch.setattr(session, "_GUARD_EVERY", 0.0)
    source.execute(TABLE)
    given = source.settings(tables=STREAMED, stream={"interval": 0, "wal_budget": "1KB"})
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        until(lambda: any("wal_budget" in step.note for step in steps))


def test_what_a_role_may_not_do_is_said_with_the_mend(source: Source) -> None:
    """Without the right to replicate nothing begins, and the DBA gets the SQL."""
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
    """A run leaves streamed tables alone, and a stream all others; each says so where asked."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = settings(source)
    assert [table.table for table in pipeline.run(given).tables] == ["public.u"]
    with pytest.raises(ConfigError, match=r"public\.t streamed"):
        pipeline.run(given, ["t"])
    with pytest.raises(ConfigError, match=r"public\.u streamed"):
        stream.stream(given, ["u"], until_caught_up=True)
    with pytest.raises(ConfigError, match="any table"):
        stream.stream(source.settings(), until_caught_up=True)
    assert [t.table for t in stream.stream(given, ["t"], until_caught_up=True).tables] == [
        "public.t"
    ]


def test_drop_leaves_nothing_at_the_source(source: Source) -> None:
    """Slot and publication go, the tables stay, and dropping twice is no error."""
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


COMMAND = [sys.executable, "-m", "bronze", "stream"]


def config_file(source: Source, tmp_path: Path) -> Path:
    """A bronze.toml that streams the table."""
    path = tmp_path / "bronze.toml"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n'
        f'[lake]\nroot = "{source.lake}"\n[run]\nworkers = 2\n[stream]\ninterval = 0\n'
        '[tables.t]\npattern = "streaming"\n'
    )
    return path


def test_sigterm_finishes_the_batch_and_leaves(source: Source, tmp_path: Path) -> None:
    """The command ends well, and what it has landed is recorded."""
    source.execute(TABLE)
    path = config_file(source, tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "-c", str(path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    until(lambda: (source.table("t") / "_delta_log").exists())
    source.execute("INSERT INTO t VALUES (1)")
    until(lambda: rows(source).height == 1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 0
    assert json.loads(out)["changes"] == 1
    assert [t.inserted for t in caught_up(settings(source)).tables] == []


@pytest.mark.soak
def test_killed_in_the_middle_nothing_comes_twice(source: Source, tmp_path: Path) -> None:
    """What was landed and not recorded, or recorded and not confirmed, is sent again, and left out
    by each table.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
    path, given = config_file(source, tmp_path), settings(source)
    command = [*COMMAND, "--until-caught-up", "-c", str(path)]

    def killed(point: str) -> None:
        env = {**os.environ, "BRONZE_FAILPOINT": point}
        done = subprocess.run(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        assert done.returncode == -signal.SIGKILL, point

    killed("committed:1")
    source.execute("UPDATE t SET v = v || '+' WHERE id <= 20")
    source.execute("INSERT INTO t SELECT g, 'w' FROM generate_series(51, 60) g")
    killed("committed:2")
    source.execute("UPDATE t SET v = v || '-' WHERE id > 40")
    killed("recorded:2")
    source.execute("DELETE FROM t WHERE id > 55")
    caught_up(given)
    proven(source, given)


def test_help_names_what_there_is() -> None:
    """The command tells of its options."""
    told = CliRunner().invoke(app, ["stream", "--help"]).stdout
    assert "--until-caught-up" in told
    assert "--drop" in told


def test_check_says_what_keeps_a_table_from_being_streamed(source: Source) -> None:
    """The same sentences as the stream's, before it begins."""
    source.execute(TABLE)
    assert check.check(settings(source)).problems == ()
    source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    (problem,) = check.check(settings(source)).problems
    assert "REPLICA IDENTITY" in problem.hint
    assert source.execute("SELECT * FROM pg_publication") == []


def test_all_tables_refused_is_an_error(source: Source) -> None:
    """Where no table can be streamed, the first reason is the error."""
    source.execute(TABLE)
    source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    with pytest.raises(TableRefused, match="t"):
        stream.stream(settings(source), until_caught_up=True)
