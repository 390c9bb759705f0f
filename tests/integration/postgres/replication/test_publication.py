"""The publication: created and completed, also while other sessions change it, and dropped."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg import sql

from bronze.errors import SourceRefused, TableRefused
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication import publication
from tests.conftest import Source
from tests.integration.postgres.replication.test_prerequisites import (
    PARTITIONED,
    WITH_GENERATED,
    logged_in,
    problems_of,
    tables,
)
from tests.support.features import has
from tests.support.proxy import until


def test_publish_creates_a_complete_publication(source: Source, connection: Connection) -> None:
    """All kinds of changes, via the root, with stored generated columns; and again, no change."""
    source.execute(PARTITIONED)
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    stored = has("generated columns in publications")
    for _ in range(2):
        publication.publish(connection, "p", tables(connection))
        row = source.execute(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables,"
            " to_jsonb(p) ->> 'pubgencols' FROM pg_publication p"
        )
        assert row == [(True, True, True, True, True, False, "s" if stored else None)]
        members = source.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
        assert members == [("a",), ("r",)]


def test_publish_adds_missing_tables_and_options(source: Source, connection: Connection) -> None:
    """Other tables of the publication stay in it."""
    source.execute(PARTITIONED)
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    source.execute("CREATE PUBLICATION p FOR TABLE b, r WITH (publish = 'insert')")
    assert problems_of(connection, "a", "r") == ()
    publication.publish(connection, "p", tables(connection, "a", "r"))
    row = source.execute("SELECT pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication")
    assert row == [(True, True, True, True)]
    members = source.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    assert members == [("a",), ("b",), ("r",)]


def test_stored_generated_columns_are_streamed(source: Source, connection: Connection) -> None:
    """With the option, which `publish` sets, from PostgreSQL 18 on; virtual ones never are.

    For a table that is not published yet, the columns are those that will be streamed. PostgreSQL
    15 lists stored columns as published, but does not send them.
    """
    source.execute(WITH_GENERATED)
    (relation,) = tables(connection)

    def streamed() -> frozenset[str]:
        return publication.streamed_columns(connection, [relation], "p")[relation.oid]

    stored = {"s"} if has("generated columns in publications") else set()
    assert streamed() == {"id", *stored}
    source.execute("CREATE PUBLICATION p FOR TABLE a")
    assert streamed() == {"id"}
    assert problems_of(connection) == ()
    publication.publish(connection, "p", [relation])
    assert streamed() == {"id", *stored}


def test_two_sessions_may_publish_at_the_same_time(source: Source, connection: Connection) -> None:
    """The one that waits for the other's transaction adds what is missing after it."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    relations = tables(connection, "a", "b")
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            publication.publish(connection, "p", relations)
        except BaseException as error:
            failures.append(error)

    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = %s)"
    for statement in ("CREATE PUBLICATION p FOR TABLE a", "ALTER PUBLICATION p ADD TABLE b"):
        with psycopg.connect(source.dsn) as other:
            other.execute(sql.SQL(statement))
            thread = threading.Thread(target=publish)
            thread.start()
            until(lambda: source.execute(waiting, connection.info.backend_pid)[0][0])
            other.commit()
            thread.join(30)
        assert failures == []
        members = source.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
        assert members == [("a",), ("b",)]
        source.execute("ALTER PUBLICATION p DROP TABLE b")


def test_a_dropped_table_is_not_published(source: Source, connection: Connection) -> None:
    """The error names it; it has no replica identity."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    relations = tables(connection)
    source.execute("DROP TABLE a")
    with pytest.raises(TableRefused, match=r"public\.a cannot be published"):
        publication.publish(connection, "p", relations)
    assert publication.replica_identities(connection, relations) == {}


def test_unpublish_drops_the_publication(
    source: Source, connection: Connection, login: str
) -> None:
    """Only its owner can; without a publication nothing happens."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    publication.publish(connection, "p", tables(connection))
    with logged_in(source, login) as limited:
        with pytest.raises(SourceRefused, match="cannot be dropped") as caught:
            publication.unpublish(limited, "p")
        assert 'DROP PUBLICATION IF EXISTS "p"' in caught.value.hint
    publication.unpublish(connection, "p")
    publication.unpublish(connection, "p")
    assert source.execute("SELECT count(*) FROM pg_publication") == [(0,)]


def test_a_publication_is_read_as_the_snapshot_has_it(
    source: Source, connection: Connection
) -> None:
    """One that was dropped since is still there in an older snapshot, and not in a new one."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    before = publication.find(connection, "p")
    assert before is not None
    source.execute("DROP PUBLICATION p")
    assert publication.find(connection, "p") == before
    connection.execute("ROLLBACK")
    assert publication.find(connection, "p") is None


_TABLES = """
CREATE SCHEMA other;
CREATE TABLE a (id int PRIMARY KEY, b text, c int GENERATED ALWAYS AS (id * 2) STORED, gone int);
ALTER TABLE a DROP COLUMN gone;
CREATE TABLE other.b (id int PRIMARY KEY, x int);
CREATE UNLOGGED TABLE other.unlogged (id int);
CREATE TABLE parent (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE part PARTITION OF parent FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
    PARTITION BY LIST (id);
CREATE TABLE leaf PARTITION OF part FOR VALUES IN (1);
CREATE TABLE leaf2 PARTITION OF parent DEFAULT;
CREATE TABLE heir () INHERITS (a);
"""
_FORMS = ("FOR ALL TABLES", "FOR TABLE a, other.b", "FOR TABLE ONLY a", "FOR TABLE parent", "")
_LATER_FORMS = (
    "FOR TABLE parent, leaf",
    "FOR TABLE part, a",
    "FOR TABLE leaf2",
    "FOR TABLE a (id, b), other.b WHERE (id > 3)",
    "FOR TABLES IN SCHEMA other",
    "FOR TABLES IN SCHEMA public, TABLE other.b",
)
_VIEW = """
    SELECT c.oid::int8, coalesce((to_jsonb(t) ->> 'rowfilter') IS NOT NULL, false), ARRAY(
        SELECT attname::text FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
          AND (attgenerated = '' OR current_setting('server_version_num')::int >= 180000)
          AND coalesce(to_jsonb(t) -> 'attnames' ? attname::text, true))
    FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE pubname = 'p'
"""


@pytest.mark.parametrize("by_root", [True, False])
def test_members_are_those_of_postgresqls_view(
    source: Source, connection: Connection, by_root: bool
) -> None:
    """Whatever tables a publication has, and while all of them are locked, which the view waits
    for.
    """
    source.execute(_TABLES)
    by = f"publish_via_partition_root = {by_root}"
    stored = (
        [f"{by}, publish_generated_columns = stored"]
        if has("generated columns in publications")
        else []
    )
    for form in (*_FORMS, *(_LATER_FORMS if has("schemas in publications") else ())):
        for options in (by, *stored):
            source.execute(f"CREATE PUBLICATION p {form} WITH ({options})")
            expected = source.execute(_VIEW)
            with psycopg.connect(source.dsn) as other:
                other.execute("LOCK TABLE a, other.b, parent IN ACCESS EXCLUSIVE MODE")
                published = publication.find(connection, "p")
            assert published is not None
            assert published.attributes == {oid: frozenset(names) for oid, _, names in expected}
            assert published.filtered == {oid for oid, filtered, _ in expected if filtered}
            source.execute("DROP PUBLICATION p")
