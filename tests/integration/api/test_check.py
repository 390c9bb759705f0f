"""`bronze check` reports the errors that a run or a stream would have."""

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
    """A role that may only connect and replicate. Its databases have to be dropped before it."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE checked LOGIN REPLICATION")
        yield "checked"
        admin.execute("DROP ROLE checked")


def problems(settings: Settings) -> dict[str, Failure]:
    """The problem of each table that has one, by check."""
    report = check.check(settings)
    return {t.table.partition(".")[2]: t.problem for t in report.tables if t.problem}


KEYED = "id int PRIMARY KEY, a text, at timestamp, arr int[]"


def refused(settings: Settings, expected: set[str]) -> dict[str, Failure]:
    """The problems of the tables that a run refuses, which check and the run report alike."""
    reported = problems(settings)
    assert failures(pipeline.run(settings)) == reported
    assert reported.keys() == expected
    return reported


@pytest.mark.soak
def test_check_reports_tables_that_the_role_may_not_read(role: str, source: Source) -> None:
    """Missing privileges, policies, unpopulated views, unreachable foreign servers, and locks."""
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
    settings = seen_by(role, source).settings(
        source={"schema": ["public", "shut"], "lock_timeout": "1s"}
    )
    with psycopg.connect(source.dsn) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        reported = refused(
            settings,
            {
                *("unmapped", "unanswered", "hidden", "locked", "partly", "secured", "securing"),
                *("half", "empty", "calling", "inside"),
            },
        )
    assert all(failure.hint for failure in reported.values()), reported
    assert "row-level security" in reported["secured"].message
    assert "row-level security" in reported["securing"].message
    assert "REFRESH" in reported["empty"].hint
    assert "USER MAPPING" in reported["unmapped"].hint
    assert "lock_timeout" in reported["locked"].message
    applied = source.settings(source={"row_security": "apply"})
    assert "secured" not in problems(applied)


def test_check_reports_settings_that_do_not_fit_the_table(source: Source) -> None:
    """Impossible keys, cursors, names, columns, partitions, rules and protections."""

    def rule(**more: Any) -> dict[str, Any]:
        return {"rules": [{"name": "r", "column": "a", **more}]}

    batch = {"pattern": "batch"}
    missing_table = {"references": {"table": "nowhere", "columns": "id"}}
    tables: dict[str, dict[str, Any]] = {
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
        "decimal_liquid": {"cluster_by": ["price"], "liquid": True},
        "masked_key": {"protect": {"id": "mask"}},
        "dropped_key": {"protect": {"id": "drop"}},
        "text_partition": {"partition_by": "a"},
        "no_partition": {"partition_by": "gone"},
        "no_rule_column": {"rules": [{"name": "r", "column": "gone", "not_null": True}]},
        "unfit_rule": {"rules": [{"name": "r", "expression": "a + id > at"}]},
        "ranged_text": rule(range={"min": 0}),
        "nowhere": rule(**missing_table),
        "mismatched": rule(references={"table": "fine", "columns": "id"}),
        "keyless_rule": {"rules": [{"name": "r", "unique": True}]},
        "fine": {**batch, "history": True, "partition_by": "at"},
    }
    for name in tables:
        columns = KEYED.replace(" PRIMARY KEY", "") if "keyless" in name else KEYED
        columns += ", price numeric(9, 2)" if name == "decimal_liquid" else ""
        if name.startswith("view"):
            source.execute(f"CREATE VIEW {name} AS SELECT 1 AS id")
        else:
            source.execute(f"CREATE TABLE {name} ({columns}); INSERT INTO {name} VALUES (1, 'a')")
    failures = refused(source.settings(tables=tables), tables.keys() - {"fine"})
    (message,) = [f.message for name, f in failures.items() if name.endswith("decimal_liquid")]
    assert "cannot have liquid clustering by price" in message


def test_check_reports_conflicts_with_existing_bronze_tables(source: Source) -> None:
    """Changed types and partitions, a target that another table has, and histories that cannot be
    started or rewritten.
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
    expected = {"retyped", "parted", "begun", "anew", "kept", "other", "unlocked"}
    refused(source.settings(tables=after), expected)


def test_check_reports_tables_that_cannot_be_streamed(source: Source) -> None:
    """Tables without a key or a replica identity, unlogged tables, views, publications with a row
    filter or a column list, and settings that a run would refuse too.
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
    tables: dict[str, dict[str, Any]] = {
        name: {"pattern": "streaming"}
        for name in (
            *("fine", "keyless", "unlogged", "shown", "nothing", "whole", "virtual", "filtered"),
            *("listed", "named", "masked", "parent"),
        )
    }
    tables["named"]["rename"] = {"gone": "x"}
    tables["masked"]["protect"] = {"id": "mask"}
    only = {"tables": list(tables)}
    settings = source.settings(tables=tables, source=only, stream={"interval": 0})
    reported = problems(settings)
    done = stream.stream(settings, until_caught_up=True)
    assert {t.table.partition(".")[2]: t.error for t in done.tables if t.error} == reported
    assert reported.keys() == tables.keys() - {"fine"}


@pytest.mark.parametrize("cause", ["publication", "slot", "role"])
def test_check_reports_why_a_source_cannot_be_streamed(
    role: str, source: Source, cause: str
) -> None:
    """A publication that is not bronze's, a slot of another plugin, and a role without REPLICATION
    have the same errors in a check and in a stream.
    """
    source.execute(f"CREATE TABLE t ({KEYED}); GRANT SELECT ON t TO {role}")
    reader = seen_by(role, source)
    if cause == "publication":
        source.execute("CREATE PUBLICATION bronze_test")
    elif cause == "slot":
        reader = source
        source.execute("SELECT pg_create_logical_replication_slot('bronze_test', 'test_decoding')")
    else:
        source.execute(f"ALTER ROLE {role} NOREPLICATION")
    settings = reader.settings(tables={"t": {"pattern": "streaming"}})
    with pytest.raises(BronzeError) as caught:
        stream.stream(settings, until_caught_up=True)
    assert check.check(settings).problems == (caught.value.failure(),)
    assert isinstance(caught.value, ConfigError if cause == "slot" else SourceRefused)


def test_check_lists_changes_that_are_not_seen_by_design(role: str, source: Source) -> None:
    """The limits of each table depend on its kind, pattern and columns; an ordinary table has
    none.
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
    tables: dict[str, Any] = {
        "xmined": {"pattern": "batch"},
        "cursored": {"pattern": "batch", "cursor": "at", "overlap": "1h", "deletes": "ignore"},
        "seldom": {"pattern": "batch", "deletes": "1d"},
        "followed": {"pattern": "streaming"},
        "chosen": {"columns": ["id", "a"]},
    }
    settings = seen_by(role, source).settings(tables=tables, source={"row_security": "apply"})
    limits = {t.table.removeprefix("public."): t.limits for t in check.check(settings).tables}
    expected: dict[str, tuple[str, ...]] = {
        "seen": (),
        "xmined": (),
        "cursored": ("leave at alone, or set it to an earlier time", "deleted rows are not seen"),
        "seldom": ("deleted rows are detected every 86,400 seconds",),
        "shown": ("functions that it calls",),
        "stored": ("last REFRESH",),
        "away": ("another server",),
        "followed": ("the write-ahead log does not have these generated columns: v",),
        "chosen": ("leaves these columns out: arr, at",),
        "secured": ("row-level security hides",),
    }
    assert limits.keys() == expected.keys()
    for name, parts in expected.items():
        assert len(limits[name]) == len(parts), name
        for part, limit in zip(parts, limits[name], strict=True):
            assert part in limit, name


def test_check_reports_how_each_table_is_loaded(source: Source) -> None:
    """Pattern, cursor and why, deletes, key and its origin, schedule and SLA; and what `bronze
    init` would propose where the config names no pattern.
    """
    source.execute("""
        CREATE TABLE timed (id int PRIMARY KEY, updated_at timestamptz);
        CREATE TABLE plain (id int, a text);
        CREATE TABLE kept (id int PRIMARY KEY);
        CREATE TABLE followed (id int PRIMARY KEY);
        CREATE TABLE large (id int PRIMARY KEY, updated_at timestamptz NOT NULL, filler text);
        INSERT INTO large SELECT i, now(), repeat('x', 1900) FROM generate_series(1, 6000) i;
        ANALYZE large
    """)
    settings = source.settings(
        tables={
            "timed": {
                "pattern": "micro_batch", "cursor": "updated_at", "overlap": "90s", "sla": "30m",
                "deletes": "1d", "priority": 1,
            },
            "plain": {"pattern": "batch", "key": ["id"], "schedule": "daily 02:00"},
            "kept": {"history": True},
            "followed": {"pattern": "streaming"},
        }
    )  # fmt: skip
    found = {t.table.rpartition(".")[2]: t.load for t in check.check(settings).tables}
    timed, plain, kept, followed, large = (
        found[name] for name in ("timed", "plain", "kept", "followed", "large")
    )
    assert timed
    assert plain
    assert kept
    assert followed
    assert large
    assert (timed.pattern, timed.cursor, timed.sla, timed.priority, timed.schedule) == (
        "micro_batch", "updated_at", 1800, 1, "hourly",
    )  # fmt: skip
    assert timed.cursor_note == (
        "of the config; by its name it changes with each update; not indexed; may be NULL; overlap"
        " of 90 seconds"
    )
    assert timed.deletes == "marked as DELETED, looked for every 1 day"
    assert timed.key_note == "unique in PostgreSQL"
    assert plain.cursor == "xmin"
    assert plain.cursor_note.startswith("the default")
    assert plain.key_note == "of the config, which PostgreSQL does not enforce to be unique"
    assert (plain.schedule, plain.sla, plain.proposal) == ("daily 02:00 UTC", None, "")
    assert (kept.pattern, kept.cursor) == ("full_refresh", "")
    assert kept.deletes == "their last version is closed"
    assert (followed.schedule, followed.cursor) == ("continuous", "")
    assert large.proposal.startswith("batch with the cursor updated_at: it shows which rows")
