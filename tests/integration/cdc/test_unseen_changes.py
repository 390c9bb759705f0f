"""Changes of a table that the stream does not send: its rows are compared, or it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from bronze.cdc import apply_loop, apply_table, new_slot, resync, stream
from bronze.errors import TableRefused
from bronze.ingest import pipeline
from bronze.model.events import BatchApplied, CheckpointMade
from bronze.model.results import TableResult
from bronze.postgres.replication.receiver import Receiver
from tests.conftest import Source
from tests.support.content import differences
from tests.support.features import has, since
from tests.support.streams import (
    STREAMED,
    TABLE,
    caught_up,
    proven,
    rows,
    settings,
    streaming,
    until,
)


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream checks the catalog all the time, and retries a failed table at once."""
    monkeypatch.setattr(apply_loop, "_CATALOG_INTERVAL", 0.1)
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.2)


@dataclass(frozen=True)
class Change:
    """SQL that creates a table ``{t}`` with rows, and SQL that changes it without a row in the
    stream. The latter may need a ``feature`` that older servers lack.
    """

    create: str
    change: str
    own: Mapping[str, Any] = field(default_factory=dict)
    feature: str = ""


# --- changes that the stream does not send, or only with the next row ---------------------------

PLAIN = "CREATE TABLE {t} (id int PRIMARY KEY, v int); INSERT INTO {t} VALUES (1, 1), (2, 2)"
KEYED = (
    "CREATE TABLE {t} (id int, u int NOT NULL DEFAULT 0, PRIMARY KEY (id));"
    "INSERT INTO {t} VALUES (1), (2)"
)
MOOD = (
    "CREATE TYPE {t}_mood AS ENUM ('sad', 'glad');"
    "CREATE TABLE {t} (id int PRIMARY KEY, v {t}_mood); INSERT INTO {t} VALUES (1, 'sad')"
)
MOODS = (
    "CREATE TYPE {t}_mood AS ENUM ('sad', 'glad'); CREATE DOMAIN {t}_feeling AS {t}_mood;"
    "CREATE TABLE {t} (v {t}_feeling PRIMARY KEY, w {t}_mood[]);"
    "INSERT INTO {t} VALUES ('sad', '{{glad}}')"
)
PAIR = (
    "CREATE TYPE {t}_pair AS (a int, b int);"
    "CREATE TABLE {t} (id int PRIMARY KEY, v {t}_pair); INSERT INTO {t} VALUES (1, (1, 2))"
)
STORED = (
    "CREATE TABLE {t} (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED);"
    "INSERT INTO {t} VALUES (1, 1)"
)
PARTED = (
    "CREATE TABLE {t} (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
    "CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES FROM (1) TO (10);"
    "CREATE TABLE {t}_2 (LIKE {t} INCLUDING ALL);"
    "INSERT INTO {t} VALUES (1, 1); INSERT INTO {t}_2 VALUES (11, 11)"
)
UNSEEN = {
    "retyped": Change(PLAIN, "ALTER TABLE {t} ALTER v TYPE int USING v * 100"),
    "expression": Change(
        # Older servers do not stream the column.
        STORED,
        "ALTER TABLE {t} ALTER w SET EXPRESSION AS (v * 3)",
        feature="generated columns in publications",
    ),
    "label": Change(MOOD, "ALTER TYPE {t}_mood RENAME VALUE 'sad' TO 'blue'"),
    "label of a key": Change(
        MOODS,
        "ALTER TYPE {t}_mood RENAME VALUE 'sad' TO 'blue';UPDATE {t} SET w = NULL",
    ),
    "attribute": Change(PAIR, "ALTER TYPE {t}_pair ADD ATTRIBUTE c text"),
    "column added": Change(PLAIN, "ALTER TABLE {t} ADD w int DEFAULT 7"),
    "column renamed": Change(PLAIN, "ALTER TABLE {t} RENAME v TO w"),
    "case of a name": Change(PLAIN, 'ALTER TABLE {t} RENAME v TO "V"'),
    "column recreated": Change(
        PLAIN, "ALTER TABLE {t} DROP v; ALTER TABLE {t} ADD v int DEFAULT 9"
    ),
    "key grown": Change(
        KEYED,
        "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey, ADD PRIMARY KEY (id, u);"
        "INSERT INTO {t} VALUES (1, 1)",
    ),
    "cidr": Change(
        "CREATE TABLE {t} (id int PRIMARY KEY, v cidr); INSERT INTO {t} VALUES (1, '10.0.0.1/32')",
        "ALTER TABLE {t} ALTER v TYPE inet",
    ),
    "attached": Change(
        PARTED, "ALTER TABLE {t} ATTACH PARTITION {t}_2 FOR VALUES FROM (10) TO (20)"
    ),
    "truncated": Change(PARTED, "TRUNCATE {t}_1"),
    "names": Change(
        "CREATE TABLE {t}_other (); CREATE TABLE {t} (id int PRIMARY KEY, v regclass);"
        "INSERT INTO {t} VALUES (1, '{t}_other')",
        "ALTER TABLE {t}_other RENAME TO {t}_another",
    ),
}


def each(changes: Mapping[str, Change]) -> dict[str, Change]:
    """The changes that the server knows, by the names of their tables."""
    return {
        f"t_{number}": replace(
            one,
            create=one.create.format(t=f"t_{number}"),
            change=one.change.format(t=f"t_{number}"),
        )
        for number, one in enumerate(changes.values())
        if not one.feature or has(one.feature)
    }


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("running", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_unseen_changes_reach_a_stream(source: Source, running: bool) -> None:
    """All tables equal the source after a check of the catalog, or at the next start."""
    changes = each(UNSEEN)
    for one in changes.values():
        source.execute(one.create)
    streamed = {name: {"pattern": "streaming"} for name in changes}
    given = source.settings(
        source={"tables": list(streamed)}, tables=streamed, stream={"interval": 0}
    )
    if running:
        with streaming(given) as steps:
            until(lambda: any(isinstance(step, CheckpointMade | BatchApplied) for step in steps))
            for one in changes.values():
                source.execute(one.change)
            until(lambda: differences(given) == {}, told=lambda: (differences(given), steps))
        # It may have been stopped before its checkpoint.
        caught_up(given)
    else:
        caught_up(given)
        for one in changes.values():
            source.execute(one.change)
        caught_up(given)
    # With another key the change data feed pairs other rows.
    proven(
        source, given, *(t for t, one in changes.items() if "PRIMARY KEY (id, u)" not in one.change)
    )
    quiet = list[str]()
    caught_up(given, quiet)
    assert quiet == []


@pytest.mark.soak
@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize(
    ("running", "step"),
    [
        (False, 3),
        (False, 1),
        (True, 1),
    ],
)
def test_changes_while_the_publication_was_different_are_resynced(
    source: Source, running: bool, step: int
) -> None:
    """The server does not send what was committed meanwhile: the tables are resynced, even if the
    publication was changed back. Each change is tried, or each third.
    """
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    filtered = [
        (
            "ALTER PUBLICATION {p} SET TABLE t WHERE (id < 0), u",
            "ALTER PUBLICATION {p} SET TABLE t, u",
        )
    ]
    listed = [
        ("ALTER PUBLICATION {p} SET TABLE t (id, at), u", "ALTER PUBLICATION {p} SET TABLE t, u")
    ]
    changes = [
        ("ALTER PUBLICATION {p} DROP TABLE t", "ALTER PUBLICATION {p} ADD TABLE t"),
        ("ALTER PUBLICATION {p} DROP TABLE t", "SELECT 1"),
        *(filtered if has("row filters of publications") else []),
        *(listed if has("column lists of publications") else []),
        (
            "ALTER PUBLICATION {p} SET (publish = 'insert')",
            "ALTER PUBLICATION {p} SET (publish = 'insert, update, delete, truncate')",
        ),
        ("DROP PUBLICATION {p}", "CREATE PUBLICATION {p} FOR TABLE t, u"),
        ("DROP PUBLICATION {p}", "SELECT 1"),
    ][::step]
    caught_up(given)
    ((name,),) = source.execute("SELECT pubname FROM pg_publication")

    def change(number: int, broken: str, mended: str) -> None:
        source.execute(broken.format(p=name))
        with psycopg.connect(source.dsn) as connection:
            connection.execute("DELETE FROM t WHERE id = %s", [number - 1])
            connection.execute("INSERT INTO t VALUES (%s, 'x')", [number])
            connection.execute("INSERT INTO u VALUES (%s)", [number])
        source.execute(mended.format(p=name))

    if running:
        with streaming(given) as steps:
            until(lambda: any(isinstance(step, CheckpointMade | BatchApplied) for step in steps))
            for number, (broken, mended) in enumerate(changes):
                change(number, broken, mended)
                until(lambda: differences(given) == {}, told=lambda: (broken, steps))  # noqa: B023
        # It may have been stopped before its checkpoint.
        caught_up(given)
    else:
        for number, (broken, mended) in enumerate(changes):
            change(number, broken, mended)
            caught_up(given)
            assert differences(given) == {}, broken
    proven(source, given, "t", "u")
    quiet = list[str]()
    caught_up(given, quiet)
    assert quiet == []


@pytest.mark.soak
@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(
            "ALTER PUBLICATION {p} SET TABLE t WHERE (id < 0), u",
            "some rows",
            marks=since("row filters of publications"),
        ),
        pytest.param(
            "ALTER PUBLICATION {p} SET TABLE t (id, at), u",
            "column list",
            marks=since("column lists of publications"),
        ),
    ],
)
def test_a_table_is_refused_while_its_publication_is_incomplete(
    source: Source, broken: str, said: str
) -> None:
    """Its Bronze table stays as it was, with all its columns, and the others follow. Once all rows
    and columns are published again, it is resynced and follows.
    """
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    source.execute("INSERT INTO t VALUES (1, 'a', 1)")
    given = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    caught_up(given)
    ((name,),) = source.execute("SELECT pubname FROM pg_publication")
    before = rows(source).drop("update_timestamp", "batch_id")
    with streaming(given) as steps:
        until(lambda: any(isinstance(step, CheckpointMade | BatchApplied) for step in steps))
        source.execute(broken.format(p=name))
        source.execute("INSERT INTO t VALUES (2, 'b', 2)")
        until(lambda: any(said in step.message for step in steps), told=lambda: steps)
        source.execute("INSERT INTO u VALUES (1)")
        until(lambda: rows(source, "u").height == 1)
        assert rows(source).drop("update_timestamp", "batch_id").equals(before)
    result = stream.stream(given, until_caught_up=True)
    assert [one.table for one in result.tables if one.error] == ["public.t"]
    assert rows(source).drop("update_timestamp", "batch_id").equals(before)
    with streaming(given) as steps:
        until(lambda: any(said in step.message for step in steps), told=lambda: steps)
        source.execute(f"ALTER PUBLICATION {name} SET TABLE t, u")
        until(lambda: differences(given) == {}, told=lambda: steps)
    proven(source, given, "t", "u")


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("ALTER TABLE t RENAME TO s", "renamed to public.s"),
        ("DROP TABLE t", "was dropped"),
        ("CREATE SCHEMA other; ALTER TABLE t SET SCHEMA other", "another schema"),
    ],
)
def test_a_renamed_moved_or_dropped_table_is_reported(source: Source, gone: str, said: str) -> None:
    """By a running stream, without a change of its rows; the others follow."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    with streaming(given) as steps:
        until(lambda: any(isinstance(step, CheckpointMade | BatchApplied) for step in steps))
        source.execute(gone)
        until(lambda: any(said in step.message for step in steps), told=lambda: steps)
        source.execute("INSERT INTO u VALUES (1)")
        until(lambda: rows(source, "u").height == 1)


@pytest.mark.usefixtures("watchful")
def test_tables_that_are_created_while_a_stream_runs_are_followed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is missing at the start is reported, and followed once it is created. So is one
    that is dropped and created again, without waiting for its retry.
    """
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 3600.0)
    for statement in (TABLE, "CREATE TABLE u (id int PRIMARY KEY)", "INSERT INTO u VALUES (1)"):
        source.execute(statement)
    given = settings(source, {name: {"pattern": "streaming"} for name in ("t", "u", "v")})
    caught_up(given)
    source.execute("DROP TABLE u")
    with streaming(given) as steps:

        def said(what: str) -> None:
            until(lambda: any(what in step.message for step in steps), told=lambda: steps)

        for name in ("u", "v"):
            said(f"There is no table {name} in the source")
            source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
            said(f"public.{name} has come since the stream began")
            source.execute(f"INSERT INTO {name} VALUES (7)")
            until(lambda n=name: exists(source, n) and 7 in rows(source, n)["id"])  # type: ignore[misc]
        source.execute("DROP TABLE v")
        said("public.v was dropped")
        source.execute("CREATE TABLE v (id int PRIMARY KEY)")
        until(lambda: rows(source, "v").is_empty(), told=lambda: steps)
    proven(source, given, "t", "u", "v")


def exists(source: Source, name: str) -> bool:
    """Whether there is a Bronze table."""
    return (source.table(name) / "_delta_log" / f"{0:020}.json").exists()


def test_tables_dropped_or_locked_before_they_are_published_are_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others follow."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE v (id int PRIMARY KEY)")
    tables = {name: {"pattern": "streaming"} for name in ("t", "u", "v")}
    given = source.settings(tables=tables, source={"lock_timeout": 1})
    caught_up(given)
    ((name,),) = source.execute("SELECT pubname FROM pg_publication")
    source.execute(f"ALTER PUBLICATION {name} DROP TABLE v; INSERT INTO t VALUES (1, 'a', 1)")
    with psycopg.connect(source.dsn) as other:

        def late(*given: Any) -> Any:
            source.execute("DROP TABLE IF EXISTS u")
            other.execute("LOCK TABLE v")
            return new_slot.publish(*given)

        monkeypatch.setattr(stream, "publish", late)
        result = stream.stream(given, until_caught_up=True)
    said = {one.table: one.error.message for one in result.tables if one.error}
    assert said.keys() == {"public.u", "public.v"}
    assert "public.u cannot be published: it does not exist any more" in said["public.u"]
    assert "public.v is locked by another session for longer than lock_timeout" in said["public.v"]
    assert rows(source)["id"].to_list() == [1]


@pytest.mark.parametrize("back", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_change_of_the_replica_identity_is_resynced(source: Source, back: bool) -> None:
    """It changes which old values are sent: the table is resynced, even if the identity was changed
    back.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, email text NOT NULL UNIQUE)")
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    given = settings(source)
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("INSERT INTO t VALUES (3, 'c')")
        until(lambda: rows(source).height == 3)
        source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_email_key")
        source.execute("UPDATE t SET id = 20 WHERE id = 2")
        if back:
            source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
        source.execute("INSERT INTO t VALUES (4, 'd')")
        until(lambda: sorted(rows(source)["id"]) == [1, 3, 4, 20], told=lambda: rows(source))
    proven(source, given, "t")


def test_a_failed_table_is_resynced_after_a_lost_confirmation(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that failed in a batch with a checkpoint, which the server did not hear of, is not
    considered complete by later streams.
    """
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    source.execute("INSERT INTO t VALUES (1, 'a')")
    given = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    caught_up(given)
    source.execute("INSERT INTO t VALUES (2, 'b')")
    original = apply_table._apply

    def failing(settings: Any, following: Any, *others: Any) -> Any:
        if following.label == "public.t":
            raise TableRefused("It cannot be.", table="public.t")
        return (yield from original(settings, following, *others))

    with monkeypatch.context() as patch:
        patch.setattr(apply_table, "_apply", failing)
        with monkeypatch.context() as unconfirmed:
            unconfirmed.setattr(Receiver, "confirm", lambda *_: None)
            stream.stream(given, until_caught_up=True)
        stream.stream(given, until_caught_up=True)
    caught_up(given)
    proven(source, given, "t", "u")


def test_a_stream_stops_while_its_slot_waits(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new slot waits for open transactions: a notice says so, and a stop does not wait."""
    monkeypatch.setattr(new_slot, "_NOTICE_AFTER", 0.2)
    source.execute(TABLE)
    given = settings(source)
    with psycopg.connect(source.dsn) as other:
        other.execute("INSERT INTO t VALUES (9, 'x')")
        with streaming(given) as steps:
            until(lambda: any("still open" in step.message for step in steps))
        assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
    caught_up(given)
    proven(source, given, "t")


def test_a_table_that_is_altered_and_then_recreated_is_followed(source: Source) -> None:
    """Both in one batch: the new table is resynced and followed."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = source.settings(tables=STREAMED, stream={"interval": 1})
    with streaming(given) as steps:
        until(lambda: steps)
        for statement in (
            "INSERT INTO t VALUES (2)",
            "ALTER TABLE t ADD COLUMN w int",
            "INSERT INTO t VALUES (3, 1)",
            "DROP TABLE t",
            "CREATE TABLE t (id int PRIMARY KEY)",
            "INSERT INTO t VALUES (9)",
        ):
            source.execute(statement)
        until(lambda: rows(source)["id"].to_list() == [9], told=lambda: steps)
    proven(source, given, "t")


# --- changes that a cursor does not show --------------------------------------------------------

XMIN = {"pattern": "batch"}
CURSOR = {"pattern": "batch", "cursor": "at"}
AT = "at timestamptz NOT NULL DEFAULT '2020-01-01'"
BEFORE = {
    "label": Change(MOOD, UNSEEN["label"].change, XMIN),
    "label of a key": Change(MOODS, UNSEEN["label of a key"].change, XMIN),
    "attribute": Change(PAIR, UNSEEN["attribute"].change, XMIN),
    "cidr": Change(UNSEEN["cidr"].create, UNSEEN["cidr"].change, XMIN),
    "names": Change(UNSEEN["names"].create, UNSEEN["names"].change, XMIN),
    "virtual": Change(
        "CREATE TABLE {t} (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) VIRTUAL);"
        "INSERT INTO {t} VALUES (1, 1)",
        "ALTER TABLE {t} ALTER w SET EXPRESSION AS (v * 3)",
        XMIN,
        "virtual generated columns",
    ),
    "json": Change(
        f"CREATE TABLE {{t}} (id int PRIMARY KEY, v json, {AT});"
        """INSERT INTO {t} VALUES (1, '{{"b": 1,  "a": 2}}')""",
        "ALTER TABLE {t} ALTER v TYPE jsonb",
        CURSOR,
    ),
    "char": Change(
        f"CREATE TABLE {{t}} (id int PRIMARY KEY, v char(5), {AT});"
        "INSERT INTO {t} VALUES (1, 'a')",
        "ALTER TABLE {t} ALTER v TYPE text",
        CURSOR,
    ),
    "stored": Change(
        STORED.replace("v int,", f"v int, {AT},"),
        "ALTER TABLE {t} ALTER w SET EXPRESSION AS (v * 3)",
        CURSOR,
        "SET EXPRESSION",
    ),
    "retyped": Change(
        PLAIN.replace("v int", f"v int, {AT}"),
        "ALTER TABLE {t} ALTER v TYPE int USING v * 100",
        CURSOR,
    ),
    "view": Change(
        f"CREATE TABLE {{t}}_of (id int, v int, {AT}); INSERT INTO {{t}}_of VALUES (1, 1);"
        "CREATE VIEW {t} AS SELECT id, v, at FROM {t}_of",
        "CREATE OR REPLACE VIEW {t} AS SELECT id, v * 2 AS v, at FROM {t}_of",
        {**CURSOR, "key": ["id"]},
    ),
    "view of a view": Change(
        f"CREATE TABLE {{t}}_of (id int, v int, {AT}); INSERT INTO {{t}}_of VALUES (1, 1);"
        "CREATE VIEW {t}_in AS SELECT id, v, at FROM {t}_of;"
        "CREATE VIEW {t} AS SELECT * FROM {t}_in",
        "CREATE OR REPLACE VIEW {t}_in AS SELECT id, v + 1 AS v, at FROM {t}_of",
        {**CURSOR, "key": ["id"]},
    ),
    "function of a view": Change(
        f"CREATE TABLE {{t}}_of (id int, v int, {AT}); INSERT INTO {{t}}_of VALUES (1, 1);"
        "CREATE FUNCTION {t}_f(int) RETURNS int LANGUAGE sql AS 'SELECT $1';"
        "CREATE VIEW {t} AS SELECT id, {t}_f(v) AS v, at FROM {t}_of",
        "CREATE OR REPLACE FUNCTION {t}_f(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 5'",
        {**CURSOR, "key": ["id"]},
    ),
    "enum behind a view": Change(
        "CREATE TYPE {t}_mood AS ENUM ('sad');"
        f"CREATE TABLE {{t}}_of (id int, v {{t}}_mood, {AT});"
        "INSERT INTO {t}_of VALUES (1, 'sad');"
        "CREATE VIEW {t} AS SELECT id, v::text AS v, at FROM {t}_of",
        "ALTER TYPE {t}_mood RENAME VALUE 'sad' TO 'blue'",
        {**CURSOR, "key": ["id"]},
    ),
}


@pytest.mark.soak
def test_unseen_changes_reach_a_batch_run(source: Source) -> None:
    """The next run compares all rows and says why; the one after it reads only changes."""
    changes = each(BEFORE)
    for one in changes.values():
        source.execute(one.create)
    own = {name: dict(one.own) for name, one in changes.items()}
    given = source.settings(source={"tables": list(own)}, tables=own)

    def run() -> tuple[TableResult, ...]:
        result = pipeline.run(given)
        assert [one.error for one in result.tables if one.error] == []
        return result.tables

    run()
    for one in changes.values():
        source.execute(one.change)
    noted = {one.table: " ".join(one.notes) for one in run()}
    assert differences(given) == {}
    assert [name for name, note in noted.items() if "all rows are compared" not in note] == []
    assert [one.notes for one in run() if one.notes] == []
