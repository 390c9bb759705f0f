"""Tables with column privileges, and tables of which the config loads some columns."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.api import check
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.model.results import Failure
from bronze.verify import verify
from tests.acceptance.test_bad_input import failures, seen_by
from tests.acceptance.test_bad_source import under_way
from tests.conftest import Source
from tests.support.content import differences
from tests.support.proxy import GATE, closed_gate, until

SECRET = b"kept-to-itself"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may connect, replicate and see who is connected, and nothing more. Its databases
    must be gone before it.
    """
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE granted LOGIN REPLICATION IN ROLE pg_read_all_stats")
        yield "granted"
        admin.execute("DROP ROLE granted")


def problems(given: Settings) -> dict[str, Failure]:
    """The problems that `bronze check` reports, by table."""
    report = check.check(given)
    return {t.table.partition(".")[2]: t.problem for t in report.tables if t.problem}


def landed(given: Settings) -> None:
    """Checks, runs and proves all tables of a config."""
    assert problems(given) == {}
    assert failures(pipeline.run(given)) == {}
    assert differences(given) == {}
    proof = verify.verify(given)
    assert [(t.table, t.error, t.notes) for t in proof.tables if t.status != "equal"] == []


def leaked(source: Source) -> list[str]:
    """The files of the lake that hold the secret."""
    files = (path for path in source.lake.rglob("*") if path.is_file())
    return [path.name for path in files if SECRET in path.read_bytes()]


def columns(source: Source, table: str) -> list[str]:
    """The source's columns that a Bronze table has."""
    names = pl.read_delta(str(source.table(table))).columns
    return names[: names.index("load_timestamp")]


@pytest.mark.soak
def test_granted_columns_are_loaded_without_the_others(role: str, source: Source) -> None:
    """Of each kind of table, by each pattern, with privileges on these columns only."""
    fill = f"SELECT g, 'p' || g, '{SECRET.decode()}', now() FROM generate_series(1, 3000) g"
    named = (
        "id int PRIMARY KEY, pub text, secret text CHECK (secret <> ''), at timestamptz NOT NULL"
    )
    only: dict[str, Any] = {"columns": ["id", "pub", "at"]}
    own: dict[str, Any] = {
        "dropped": {"protect": {"secret": "drop"}},
        "chosen": only,
        "parted": only,
        "viewed": only | {"key": ["id"]},
        "stored": only | {"key": ["id"]},
        "cursored": {"columns": ["id", "pub"], "pattern": "batch", "cursor": "at"},
        "xmined": {**only, "pattern": "batch", "cluster_by": ["pub"]},
        "keyless": {"columns": ["pub"]},
        "kept": {**only, "pattern": "batch", "cursor": "at", "history": True},
    }
    for name in ("dropped", "chosen", "cursored", "xmined", "kept"):
        source.execute(f"CREATE TABLE {name} ({named}); INSERT INTO {name} {fill}")
    source.execute(f"""
        CREATE TABLE parted ({named}) PARTITION BY RANGE (id);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (500);
        CREATE TABLE parted_2 PARTITION OF parted DEFAULT; INSERT INTO parted {fill};
        CREATE VIEW viewed AS SELECT * FROM chosen;
        CREATE MATERIALIZED VIEW stored AS SELECT * FROM chosen;
        CREATE TABLE keyless (pub text, secret text);
        INSERT INTO keyless SELECT pub, secret FROM chosen; ANALYZE;
    """)
    for name in own:
        rest = "" if name == "keyless" else ", id, at"
        source.execute(f"GRANT SELECT (pub{rest}) ON {name} TO {role}")
    source.execute(f"GRANT SELECT (xmin) ON xmined TO {role}")
    source.execute(f"GRANT SELECT (ctid) ON chosen TO {role}")
    given = seen_by(role, source).settings(tables=own)
    landed(given)
    for name in own:
        if name not in ("viewed", "stored", "keyless"):
            source.execute(f"""
                UPDATE {name} SET pub = 'new', at = now() WHERE id % 1000 = 0;
                DELETE FROM {name} WHERE id % 1000 = 1;
                INSERT INTO {name} VALUES (3001, 'more', '{SECRET.decode()}', now())
            """)
    source.execute("DELETE FROM keyless WHERE pub = 'p7'")
    landed(given)
    assert columns(source, "cursored") == ["id", "pub"]
    assert columns(source, "dropped") == ["id", "pub", "at"]
    assert leaked(source) == []
    notes = {t.table: " ".join(t.notes) for t in check.check(given).tables}
    assert 'GRANT SELECT (ctid) ON "public"."dropped"' in notes["public.dropped"]
    assert "ctid" not in notes["public.chosen"]


def test_unreadable_columns_are_named_with_two_remedies(role: str, source: Source) -> None:
    """Check and run name the columns. With the line that they propose for the config the other
    columns load, with the GRANT all of them do.
    """
    granted = {"few": "id, a", "most": "id, a, b, c", "keyed": "a"}
    for name, names in granted.items():
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a int, b int, c int, secret int)")
        source.execute(f"INSERT INTO {name} SELECT g, g, g, g, g FROM generate_series(1, 9) g")
        source.execute(f"GRANT SELECT ({names}) ON {name} TO {role}")
    reader = seen_by(role, source)
    refused = problems(reader.settings())
    assert failures(pipeline.run(reader.settings())) == refused
    closed = {
        "few": "Columns b, c, secret",
        "most": "Column secret",
        "keyed": "Columns id, b, c, secret",
    }
    for name, said in closed.items():
        message = f"{said} of table public.{name} cannot be read: permission denied."
        assert (refused[name].message, refused[name].sqlstate) == (message, "42501")
    assert "id is part of the key" in refused["keyed"].hint
    own: dict[str, Any] = {"keyed": {"columns": ["a"], "key": ["a"]}}
    for name in ("few", "most"):
        line = refused[name].hint.partition("out: ")[2].removesuffix(".")
        table, _, rest = line.partition(" ")
        own |= tomllib.loads(f"{table}\n{rest}")["tables"]
    assert own["few"] == {"columns": ["id", "a"]}
    assert own["most"] == {"protect": {"secret": "drop"}}
    landed(reader.settings(tables=own))
    source.execute(f"GRANT SELECT (b, c, secret, id) ON few, most, keyed TO {role}")
    landed(reader.settings())


def test_privileges_on_cursors_and_rules_are_checked(role: str, source: Source) -> None:
    """Check and run refuse a table with an unreadable cursor, xmin included, or with a rule on
    an unreadable table.
    """
    for name in ("xmined", "cursored", "referring", "other"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, at timestamptz, o int)")
    source.execute(f"GRANT SELECT (id) ON xmined, cursored, referring TO {role}")
    source.execute(f"""
        CREATE TABLE linked (id int PRIMARY KEY, o int);
        ALTER TABLE linked ADD FOREIGN KEY (o) REFERENCES other NOT VALID;
        GRANT SELECT (id) ON linked TO {role}
    """)
    rule = {"name": "r", "column": "id", "references": {"table": "other", "columns": "id"}}
    own = {
        "xmined": {"columns": ["id"], "pattern": "batch"},
        "cursored": {"columns": ["id"], "pattern": "batch", "cursor": "at"},
        "linked": {"columns": ["id"]},
        "referring": {"columns": ["id"], "rules": [rule]},
    }
    reader = seen_by(role, source)
    given = reader.settings(tables=own, source={"exclude": ["other"]})
    refused = problems(given)
    assert refused.keys() == own.keys() - {"linked"}
    assert failures(pipeline.run(given)) == refused
    assert 'GRANT SELECT (xmin) ON "public"."xmined"' in refused["xmined"].hint
    assert 'GRANT SELECT ("at") ON "public"."cursored"' in refused["cursored"].hint
    assert "permission denied for table other" in refused["referring"].message
    source.execute(f"""
        GRANT SELECT (xmin) ON xmined TO {role}; GRANT SELECT (at) ON cursored TO {role};
        GRANT SELECT (id) ON other TO {role}
    """)
    landed(given)


def test_a_table_with_column_privileges_is_locked(role: str, source: Source) -> None:
    """The lock is taken before the snapshot, and held until the last row is read."""
    source.execute(f"""
        {GATE}; CREATE TABLE t AS SELECT generate_series(1, 50) AS id, 'x' AS secret;
        CREATE VIEW gated AS SELECT gate(id) AS id FROM generate_series(1, 50) AS id;
        GRANT SELECT (id) ON t TO {role}; GRANT SELECT ON gated TO {role}
    """)
    reader = seen_by(role, source)
    own = {"t": {"columns": ["id"]}}
    only = {"lock_timeout": "10m", "tables": ["t", "gated"]}
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with under_way(reader, tables=own, source=only) as run:
            until(lambda: other.execute(WAITING).fetchone() == (1,))
            other.execute("TRUNCATE t; INSERT INTO t VALUES (7, 'y')")
            other.commit()
            assert failures(run.result(30)) == {}
    assert pl.read_delta(str(source.table("t")))["id"].to_list() == [7]
    with (
        closed_gate(source.dsn) as gate,
        under_way(reader, "gated", "t", tables=own, source=only) as run,
    ):
        gate.reached()
        with psycopg.connect(source.dsn, autocommit=True) as other:
            other.execute("SET lock_timeout = 200")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("TRUNCATE t")
        gate.open()
        assert failures(run.result(30)) == {}


@pytest.mark.soak
@pytest.mark.parametrize("listed", [True, False])
def test_a_stream_loads_and_applies_granted_columns(
    role: str, source: Source, listed: bool
) -> None:
    """Whether the publication has the other columns or not."""
    source.execute(f"""
        CREATE TABLE t (id int PRIMARY KEY, pub text, secret text, later text,
                        virtual int GENERATED ALWAYS AS (id) VIRTUAL);
        INSERT INTO t SELECT g, 'p', '{SECRET.decode()}', 'l' FROM generate_series(1, 500) g;
        GRANT SELECT (id, pub) ON t TO {role};
        CREATE PUBLICATION bronze_test FOR TABLE ONLY t {"(id, pub)" if listed else ""}
    """)
    reader = seen_by(role, source)
    refused = problems(reader.settings(tables={"t": {"pattern": "streaming"}}))
    assert "secret" in refused["t"].message

    def config(*names: str) -> Settings:
        others = {"secret", "later", "virtual"} - {*names}
        dropped = {"protect": dict.fromkeys(others, "drop")}
        own = {"pattern": "streaming", **(dropped if listed else {"columns": names})}
        return reader.settings(tables={"t": own}, stream={"interval": 0})

    def followed(given: Settings) -> int:
        (done,) = stream.stream(given, until_caught_up=True).tables
        assert done.error is None
        return done.rows_read

    given = config("id", "pub")
    assert problems(given) == {}
    assert followed(given) == 500
    source.execute("UPDATE t SET pub = 'q', secret = secret || id WHERE id < 9")
    assert followed(given) == 8
    assert differences(given) == {}
    assert columns(source, "t") == ["id", "pub"]
    source.execute(f"GRANT SELECT (later) ON t TO {role}")
    more = config("id", "pub", "later")
    if listed:
        assert "leaves the column later" in problems(more)["t"].message
        source.execute("ALTER PUBLICATION bronze_test SET TABLE ONLY t (id, pub, later)")
    assert problems(more) == {}
    assert followed(more) == 500
    source.execute("UPDATE t SET later = 'm' WHERE id > 400")
    assert followed(more) == 100
    assert differences(more) == {}
    assert columns(source, "t") == ["id", "pub", "later"]
    assert leaked(source) == []


@pytest.mark.soak
def test_columns_are_added_and_dropped_by_the_config(source: Source) -> None:
    """A column that is listed later is filled, one that is no longer listed is dropped, and columns
    that the source adds or renames are not loaded.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    source.execute("INSERT INTO t SELECT g, 'a' || g, 'b' || g FROM generate_series(1, 9) g")

    def config(**own: Any) -> Settings:
        return source.settings(tables={"t": own})

    landed(config(columns=["id", "a"]))
    source.execute("ALTER TABLE t ADD c text DEFAULT 'c'")
    landed(config(columns=["id", "a"]))
    assert columns(source, "t") == ["id", "a"]
    landed(config(columns=["id", "a", "c"]))
    assert columns(source, "t") == ["id", "a", "c"]
    landed(config(columns=["id", "c"]))
    assert columns(source, "t") == ["id", "c"]
    source.execute("ALTER TABLE t RENAME c TO d")
    assert "has no column c" in problems(config(columns=["id", "c"]))["t"].message
    landed(config(columns=["id", "a"]))
    assert pl.read_delta(str(source.table("t")))["c"].null_count() == 9
    # A name that a column gave up belongs to the one that takes it.
    landed(config(columns=["id", "d"], rename={"d": "a"}))
    assert pipeline.run(config(columns=["id", "d"], rename={"d": "a"})).tables[0].updated == 0


def test_settings_of_columns_that_are_not_loaded_are_refused(source: Source) -> None:
    """A key, a cluster column or a rule of such a column; a column that is both listed and dropped
    is an error of the config.
    """
    for name in ("keyed", "clustered", "ruled", "partitioned"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, a text, at date)")
    own: dict[str, Any] = {
        "keyed": {"columns": ["a"]},
        "clustered": {"columns": ["id"], "cluster_by": ["a"]},
        "ruled": {"columns": ["id"], "rules": [{"name": "r", "column": "a", "not_null": True}]},
        "partitioned": {"columns": ["id"], "partition_by": "at"},
    }
    given = source.settings(tables=own)
    refused = problems(given)
    assert refused.keys() == own.keys()
    assert failures(pipeline.run(given)) == refused
    assert 'columns = ["a", "id"]' in refused["keyed"].hint
    with pytest.raises(ConfigError, match="a is listed in columns"):
        source.settings(tables={"t": {"columns": ["a"], "protect": {"a": "drop"}}})
