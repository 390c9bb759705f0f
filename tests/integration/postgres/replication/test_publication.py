"""The publication: it is made whole, whoever else is at it, and gone when it is dropped."""

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
    tables,
    wanted,
)
from tests.support.features import has
from tests.support.proxy import until


def test_publish_makes_it_whole(source: Source, connection: Connection) -> None:
    """All kinds of changes, by the root, stored generated columns too; again changes nothing."""
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


def test_publish_adds_what_is_lacking(source: Source, connection: Connection) -> None:
    """Tables and options are added; what else is in the publication stays in it."""
    source.execute(PARTITIONED)
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    source.execute("CREATE PUBLICATION p FOR TABLE b, r WITH (publish = 'insert')")
    assert wanted(connection, "a", "r") == ()
    publication.publish(connection, "p", tables(connection, "a", "r"))
    row = source.execute("SELECT pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication")
    assert row == [(True, True, True, True)]
    members = source.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    assert members == [("a",), ("b",), ("r",)]


def test_generated_columns_are_carried_if_stored(source: Source, connection: Connection) -> None:
    """Stored ones with the option, where there is one, and publishing sets it; virtual ones never.

    Of a table that is not published yet they are those that will be. PostgreSQL 15 alone counts
    stored ones among the columns of a publication, and sends none.
    """
    source.execute(WITH_GENERATED)
    (relation,) = tables(connection)
    stored = {"s"} if has("generated columns in publications") else set()
    assert publication.carried(connection, relation, "p") == {"id", *stored}
    source.execute("CREATE PUBLICATION p FOR TABLE a")
    assert publication.carried(connection, relation, "p") == {"id"}
    assert wanted(connection) == ()
    publication.publish(connection, "p", [relation])
    assert publication.carried(connection, relation, "p") == {"id", *stored}


def test_two_may_make_the_same_publication(source: Source, connection: Connection) -> None:
    """The one that waits for the other's transaction then adds what the other has left out."""
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


def test_a_table_that_is_gone_is_not_published(source: Source, connection: Connection) -> None:
    """The error names it; nothing is wanting of it, for it is nobody's any more."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    relations = tables(connection)
    source.execute("DROP TABLE a")
    with pytest.raises(TableRefused, match=r"public\.a cannot be published"):
        publication.publish(connection, "p", relations)
    assert publication.identity(connection, relations) == {}


def test_unpublishing_leaves_no_publication(
    source: Source, connection: Connection, login: str
) -> None:
    """Only its owner can; where there is none, nothing happens."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    publication.publish(connection, "p", tables(connection))
    with logged_in(source, login) as mine:
        with pytest.raises(SourceRefused, match="cannot be dropped") as caught:
            publication.unpublish(mine, "p")
        assert 'DROP PUBLICATION IF EXISTS "p"' in caught.value.hint
    publication.unpublish(connection, "p")
    publication.unpublish(connection, "p")
    assert source.execute("SELECT count(*) FROM pg_publication") == [(0,)]


def test_one_that_is_dropped_as_it_is_looked_at_is_not_there(
    source: Source, connection: Connection
) -> None:
    """What is seen of it in the catalog may be gone before it is asked for its tables; the
    transaction in which that is found out goes on.
    """
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert publication.find(connection, "p")
    source.execute("DROP PUBLICATION p")
    assert publication.find(connection, "p") is None
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.execute("ROLLBACK")
