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


def test_a_publication_that_is_dropped_while_it_is_read_does_not_exist(
    source: Source, connection: Connection
) -> None:
    """An old snapshot may still show it when its tables cannot be read any more; the transaction
    goes on.
    """
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert publication.find(connection, "p")
    source.execute("DROP PUBLICATION p")
    assert publication.find(connection, "p") is None
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.execute("ROLLBACK")
