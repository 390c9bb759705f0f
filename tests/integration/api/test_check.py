"""What `bronze check` says of tables is what a run, a stream and a proof then say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from bronze.api import check
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.errors import BronzeError, ConfigError, SourceRefused
from bronze.ingest import pipeline
from bronze.model.results import Failure
from tests.acceptance.test_bad_input import failures, seen_by
from tests.conftest import Source


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may connect and replicate, and nothing more. Its databases must be gone before
    it.
    """
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE checked LOGIN REPLICATION")
        yield "checked"
        admin.execute("DROP ROLE checked")


def problems(given: Settings) -> dict[str, Failure]:
    """What check says stands in the way of each table."""
    report = check.check(given)
    return {t.table.partition(".")[2]: t.problem for t in report.tables if t.problem}


KEYED = "id int PRIMARY KEY, a text, at timestamp, arr int[]"


def refused(source: Source, given: Settings, expected: set[str]) -> dict[str, Failure]:
    """What check and a run say alike of the tables that a run refuses."""
    said = problems(given)
    assert failures(pipeline.run(given)) == said
    assert said.keys() == expected
    return said


def test_what_the_role_may_not_read_is_known_before(role: str, source: Source) -> None:
    """Rights, policies, views that were never populated, servers that are not there, and locks."""
    source.execute(f"""
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
        CREATE FOREIGN TABLE unmapped (id int) SERVER away;
        CREATE SERVER lost FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
        CREATE FOREIGN TABLE unanswered (id int) SERVER lost;
        CREATE USER MAPPING FOR {role} SERVER lost OPTIONS (password_required 'false');
        CREATE TABLE fine ({KEYED}); CREATE TABLE hidden ({KEYED}); CREATE TABLE locked ({KEYED});
        CREATE TABLE partly ({KEYED}); CREATE TABLE secured ({KEYED});
        ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON secured USING (id < 4);
        CREATE VIEW securing WITH (security_invoker) AS SELECT id FROM secured;
        CREATE VIEW half WITH (security_invoker) AS SELECT * FROM partly;
        CREATE MATERIALIZED VIEW empty AS SELECT 1 AS id WITH NO DATA;
        CREATE FUNCTION closed() RETURNS int LANGUAGE sql AS 'SELECT 1';
        REVOKE EXECUTE ON FUNCTION closed FROM PUBLIC;
        CREATE VIEW calling AS SELECT closed() AS id;
        CREATE SCHEMA shut; CREATE TABLE shut.inside ({KEYED});
        GRANT SELECT ON ALL TABLES IN SCHEMA public, shut TO {role};
        REVOKE SELECT ON hidden, partly FROM {role};
        GRANT SELECT (id) ON partly TO {role}
    """)
    given = seen_by(role, source).settings(
        source={"schema": ["public", "shut"], "lock_timeout": "1s"}
    )
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        said = refused(
            source,
            given,
            {
                *("unmapped", "unanswered", "hidden", "locked", "partly", "secured", "securing"),
                *("half", "empty", "calling", "inside"),
            },
        )
    assert all(failure.hint for failure in said.values()), said
    assert "row-level security" in said["secured"].message
    assert "row-level security" in said["securing"].message
    assert "REFRESH" in said["empty"].hint
    assert "USER MAPPING" in said["unmapped"].hint
    assert "lock_timeout" in said["locked"].message
    applied = source.settings(source={"row_security": "apply"})
    assert "secured" not in problems(applied)


def test_what_the_config_asks_for_in_vain_is_known_before(source: Source) -> None:
    """Keys, cursors, names, columns, rules and protections that cannot be."""

    def rule(**more: Any) -> dict[str, Any]:
        return {"rules": [{"name": "r", "column": "a", **more}]}

    batch = {"pattern": "batch"}
    elsewhere = {"references": {"table": "nowhere", "columns": "id"}}
    own: dict[str, dict[str, Any]] = {
        "keyless_batch": batch,
        "keyless_history": {"history": True},
        "view_xmin": {**batch, "key": ["id"]},
        "no_cursor": {**batch, "cursor": "gone"},
        "text_cursor": {**batch, "cursor": "a"},
        "zoneless_cursor": {**batch, "cursor": "at"},
        "no_column": {"rename": {"gone": "x"}},
        "odd_name": {"rename": {"a": "a b"}},
        "taken_name": {"rename": {"a": "batch_id"}},
        "no_cluster": {"cluster_by": ["gone"]},
        "masked_cluster": {"cluster_by": ["a"], "protect": {"a": "mask"}},
        "masked_key": {"protect": {"id": "mask"}},
        "dropped_key": {"protect": {"id": "drop"}},
        "text_partition": {"partition_by": "a"},
        "no_partition": {"partition_by": "gone"},
        "no_rule_column": {"rules": [{"name": "r", "column": "gone", "not_null": True}]},
        "unfit_rule": {"rules": [{"name": "r", "expression": "a + id > at"}]},
        "ranged_text": rule(range={"min": 0}),
        "nowhere": rule(**elsewhere),
        "mismatched": rule(references={"table": "fine", "columns": "id"}),
        "keyless_rule": {"rules": [{"name": "r", "unique": True}]},
        "fine": {**batch, "history": True, "partition_by": "at"},
    }
    for name in own:
        kind = KEYED.replace(" PRIMARY KEY", "") if "keyless" in name else KEYED
        if name.startswith("view"):
            source.execute(f"CREATE VIEW {name} AS SELECT 1 AS id")
        else:
            source.execute(f"CREATE TABLE {name} ({kind}); INSERT INTO {name} VALUES (1, 'a')")
    refused(source, source.settings(tables=own), own.keys() - {"fine"})


def test_what_the_lake_stands_against_is_known_before(source: Source) -> None:
    """Another type, another partition, another table's place, histories that cannot begin or be
    written anew.
    """
    names = ("retyped", "parted", "begun", "anew", "kept", "turned", "unlocked")
    before = {
        "anew": {"history": True},
        "kept": {"pattern": "batch", "deletes": "ignore"},
        "unlocked": {"history": True, "protect": {"a": "tokenize"}},
    }
    for name in (*names, "fine"):
        source.execute(f"CREATE TABLE {name} ({KEYED}); INSERT INTO {name} VALUES (1, 'a')")
    assert failures(pipeline.run(source.settings(tables=before))) == {}
    source.execute("ALTER TABLE retyped ALTER a TYPE bytea USING NULL; CREATE TABLE other (id int)")
    after = {
        "parted": {"partition_by": "at"},
        "begun": {"history": True},
        "anew": {"history": True, "protect": {"a": "mask"}},
        "kept": {"pattern": "batch", "deletes": "ignore", "protect": {"a": "mask"}},
        "turned": {"target": "bz_moved"},
        "other": {"target": "bz_turned"},
        "unlocked": {"history": True, "protect": {"a": "tokenize"}},
    }
    shutil.rmtree(source.lake / "governance" / "keys")
    given = source.settings(tables=after)
    expected = {"retyped", "parted", "begun", "anew", "kept", "other", "unlocked"}
    refused(source, given, expected)


def test_what_cannot_be_streamed_is_known_before(source: Source) -> None:
    """Tables without a key or a replica identity, unlogged ones, views, parts of a publication
    that leaves rows or columns out, and rules and names that a run would refuse too.
    """
    source.execute(f"""
        CREATE TABLE fine ({KEYED}); CREATE TABLE keyless (id int);
        CREATE UNLOGGED TABLE unlogged ({KEYED}); CREATE VIEW shown AS SELECT * FROM fine;
        CREATE TABLE nothing ({KEYED}); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE whole (id int, a text); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE virtual (id int, v int GENERATED ALWAYS AS (id + 1) VIRTUAL);
        ALTER TABLE virtual REPLICA IDENTITY FULL;
        CREATE TABLE filtered ({KEYED}); CREATE TABLE listed ({KEYED});
        CREATE TABLE named ({KEYED}); CREATE TABLE masked ({KEYED}); CREATE TABLE parent ({KEYED});
        CREATE TABLE heir () INHERITS (parent);
        CREATE PUBLICATION bronze_test FOR TABLE filtered WHERE (id > 0), listed (id, a)
    """)
    own: dict[str, dict[str, Any]] = {
        name: {"pattern": "streaming"}
        for name in (
            *("fine", "keyless", "unlogged", "shown", "nothing", "whole", "virtual", "filtered"),
            *("listed", "named", "masked", "parent"),
        )
    }
    own["named"]["rename"] = {"gone": "x"}
    own["masked"]["protect"] = {"id": "mask"}
    only = {"tables": list(own)}
    given = source.settings(tables=own, source=only, stream={"interval": 0})
    said = problems(given)
    done = stream.stream(given, until_caught_up=True)
    assert {t.table.partition(".")[2]: t.error for t in done.tables if t.error} == said
    assert said.keys() == own.keys() - {"fine"}


@pytest.mark.parametrize("why", ["publication", "slot", "role"])
def test_what_keeps_a_source_from_being_streamed_is_known_before(
    role: str, source: Source, why: str
) -> None:
    """A publication of somebody else, a slot of another plugin, and a role that may not replicate
    are said as the stream says them.
    """
    source.execute(f"CREATE TABLE t ({KEYED}); GRANT SELECT ON t TO {role}")
    reader = seen_by(role, source)
    if why == "publication":
        source.execute("CREATE PUBLICATION bronze_test")
    elif why == "slot":
        reader = source
        source.execute("SELECT pg_create_logical_replication_slot('bronze_test', 'test_decoding')")
    else:
        source.execute(f"ALTER ROLE {role} NOREPLICATION")
    given = reader.settings(tables={"t": {"pattern": "streaming"}})
    with pytest.raises(BronzeError) as caught:
        stream.stream(given, until_caught_up=True)
    assert check.check(given).problems == (caught.value.failure(),)
    assert isinstance(caught.value, ConfigError if why == "slot" else SourceRefused)


def test_what_by_design_is_not_seen_is_said(role: str, source: Source) -> None:
    """Of each table check says the limits of its kind, its pattern and its columns, and of a table
    of which everything is seen none.
    """
    source.execute(f"""
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
        CREATE TABLE seen ({KEYED}); CREATE TABLE xmined ({KEYED});
        CREATE TABLE cursored (id int PRIMARY KEY, at timestamptz);
        CREATE TABLE seldom (id int PRIMARY KEY); CREATE VIEW shown AS SELECT 1 AS id;
        CREATE MATERIALIZED VIEW stored AS SELECT 1 AS id;
        CREATE FOREIGN TABLE away (id int) SERVER s;
        CREATE TABLE followed (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id) VIRTUAL);
        CREATE TABLE chosen ({KEYED}); CREATE TABLE secured (id int);
        ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}
    """)
    own: dict[str, Any] = {
        "xmined": {"pattern": "batch"},
        "cursored": {"pattern": "batch", "cursor": "at", "overlap": "1h", "deletes": "ignore"},
        "seldom": {"pattern": "batch", "deletes": "1d"},
        "followed": {"pattern": "streaming"},
        "chosen": {"columns": ["id", "a"]},
    }
    given = seen_by(role, source).settings(tables=own, source={"row_security": "apply"})
    limits = {t.table.removeprefix("public."): t.limits for t in check.check(given).tables}
    said: dict[str, tuple[str, ...]] = {
        "seen": (),
        "xmined": (),
        "cursored": ("leave at alone, or set it to an earlier time", "deleted rows are not seen"),
        "seldom": ("deleted rows are looked for every 86,400 seconds",),
        "shown": ("functions that it calls",),
        "stored": ("last REFRESH",),
        "away": ("another server",),
        "followed": ("the server's log has no generated columns such as these: v",),
        "chosen": ("leaves these columns out: arr, at",),
        "secured": ("row-level security hides",),
    }
    assert limits.keys() == said.keys()
    for name, parts in said.items():
        assert len(limits[name]) == len(parts), name
        for part, limit in zip(parts, limits[name], strict=True):
            assert part in limit, name
