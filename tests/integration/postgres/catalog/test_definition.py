"""Definitions: what changes values without a row changes a definition, and nothing else does."""

from __future__ import annotations

import psycopg
import pytest

from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection import connect
from tests.conftest import Source
from tests.support.features import since


def relation(source: Source, name: str = "t") -> Relation:
    """A relation as it is now."""
    with connect.connect(source.settings().origin("test")) as connection:
        return next(r for r in relations(connection, ["public"]) if r.name == name)


def changed(source: Source, statement: str, *, storage: bool = True, name: str = "t") -> str:
    """What a statement changes of a relation."""
    before = relation(source, name).definition
    source.execute(statement)
    return definition.changed(before, relation(source, name).definition, storage=storage)


@pytest.fixture
def made(source: Source) -> Source:
    """A database with a table of many types."""
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN feeling AS mood;"
        "CREATE TYPE inner_pair AS (a mood, b int); CREATE TYPE pair AS (a inner_pair, b int);"
        "CREATE TYPE spans AS RANGE (subtype = int4);"
        "CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';"
        "CREATE FUNCTION four(int) RETURNS int IMMUTABLE RETURN twice(twice($1));"
        "CREATE TABLE t (id serial PRIMARY KEY, v varchar(10), m feeling[], p pair, s spans,"
        " n numeric(8,2), g int GENERATED ALWAYS AS (four(1)) STORED)"
    )
    return source


def test_what_changes_no_value_is_no_change(made: Source) -> None:
    """Rows, indexes, rights, comments, defaults, statistics, new labels, longer texts, others'
    tables and types.
    """
    before = relation(made).definition
    for statement in (
        "INSERT INTO t (v) SELECT 'a' FROM generate_series(1, 100)",
        "DELETE FROM t WHERE id < 50",
        "VACUUM ANALYZE t",
        "CREATE INDEX ON t (v)",
        "CREATE ROLE definition_reader; GRANT SELECT ON t TO definition_reader",
        "DROP OWNED BY definition_reader; DROP ROLE definition_reader",
        "COMMENT ON TABLE t IS 'a table'",
        "ALTER TABLE t ALTER v SET DEFAULT 'x', ALTER v SET NOT NULL",
        "ALTER TABLE t ADD CHECK (id > 0)",
        "ALTER TABLE t ALTER v TYPE varchar(20)",
        "ALTER TABLE t ALTER v TYPE text",
        "ALTER TABLE t ALTER n TYPE numeric(10,2)",
        "ALTER TYPE mood ADD VALUE 'calm' BEFORE 'glad'",
        "CREATE TYPE other AS ENUM ('a'); CREATE TABLE u (id int PRIMARY KEY, o other)",
        "ALTER TYPE other RENAME VALUE 'a' TO 'b'",
    ):
        made.execute(statement)
        assert definition.changed(before, relation(made).definition, storage=True) == "", statement


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "labels"),
        ("ALTER TYPE inner_pair ADD ATTRIBUTE c int", "type"),
        ("ALTER TABLE t ADD c int DEFAULT 5", "columns"),
        ("ALTER TABLE t DROP v", "columns"),
        pytest.param(
            "ALTER TABLE t ALTER g SET EXPRESSION AS (id)",
            "columns",
            marks=since("SET EXPRESSION"),
        ),
        (
            "CREATE OR REPLACE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql"
            " AS 'SELECT 3'",
            "function",
        ),
        (
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id > 1)",
            "security",
        ),
        ("CREATE TABLE u () INHERITS (t)", "partitions"),
    ],
)
def test_what_changes_values_is_told(made: Source, statement: str, said: str) -> None:
    """In one clause that says what it was."""
    assert said in changed(made, statement, storage=False)


def test_a_rewrite_counts_where_it_is_asked_for(made: Source) -> None:
    """Whoever looks for new row versions finds those of a rewrite."""
    assert changed(made, "VACUUM FULL t", storage=False) == ""
    assert changed(made, "VACUUM FULL t") == "it was rewritten"
    made.execute("INSERT INTO t (v) VALUES ('a')")
    assert changed(made, "TRUNCATE t") == "it was rewritten"


def test_a_foreign_table_is_known_by_where_it_leads(source: Source) -> None:
    """Its own options and its server's."""
    source.execute(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE t (v text) SERVER files OPTIONS (filename '/one')"
    )
    assert "foreign" in changed(source, "ALTER FOREIGN TABLE t OPTIONS (SET filename '/two')")


def test_names_count_for_columns_that_show_them(source: Source) -> None:
    """A regclass is shown by the name that its table has now."""
    source.execute("CREATE TABLE t (v regclass[]); CREATE TABLE u (v int); CREATE TABLE s ()")
    assert "names" in changed(source, "ALTER TABLE s RENAME TO r")
    assert changed(source, "ALTER TABLE r RENAME TO s", name="u") == ""


def test_a_definition_is_one_of_the_snapshot(made: Source) -> None:
    """It is what the reads of a transaction see, whatever others have done since it began."""
    with connect.connect(made.settings().origin("test")) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        before = definition.definitions(connection, [relation(made).oid])
        with psycopg.connect(made.dsn, autocommit=True) as other:
            other.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
        assert definition.definitions(connection, [relation(made).oid]) == before
        connection.execute("ROLLBACK")
        assert definition.definitions(connection, [relation(made).oid]) != before
