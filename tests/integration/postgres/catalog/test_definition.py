"""A definition changes with whatever changes values without changing rows, and only then."""

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
    """What a statement changes in the definition of a relation."""
    before = relation(source, name).definition
    source.execute(statement)
    return definition.definition_change(before, relation(source, name).definition, storage=storage)


@pytest.fixture
def typed_table(source: Source) -> Source:
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


def test_statements_that_change_no_value_leave_the_definition(typed_table: Source) -> None:
    """Rows, indexes, privileges, comments, defaults, statistics, new enum labels, longer varchars,
    other tables and types.
    """
    before = relation(typed_table).definition
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
        typed_table.execute(statement)
        assert (
            definition.definition_change(before, relation(typed_table).definition, storage=True)
            == ""
        ), statement


@pytest.mark.parametrize(
    ("statement", "clause"),
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
def test_statements_that_change_values_are_reported(
    typed_table: Source, statement: str, clause: str
) -> None:
    """In a clause that says what has changed."""
    assert clause in changed(typed_table, statement, storage=False)


def test_a_rewrite_is_a_change_only_with_storage(typed_table: Source) -> None:
    """To an incremental load by xmin, every row of a rewritten table is new."""
    assert changed(typed_table, "VACUUM FULL t", storage=False) == ""
    assert changed(typed_table, "VACUUM FULL t") == "its storage was rewritten"
    typed_table.execute("INSERT INTO t (v) VALUES ('a')")
    assert changed(typed_table, "TRUNCATE t") == "its storage was rewritten"


def test_options_of_a_foreign_table_are_part_of_its_definition(source: Source) -> None:
    """Those of the table and those of its server."""
    source.execute(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE t (v text) SERVER files OPTIONS (filename '/one')"
    )
    assert "foreign" in changed(source, "ALTER FOREIGN TABLE t OPTIONS (SET filename '/two')")


def test_object_names_matter_to_columns_that_show_them(source: Source) -> None:
    """The text of a regclass is the current name of its table."""
    source.execute("CREATE TABLE t (v regclass[]); CREATE TABLE u (v int); CREATE TABLE s ()")
    assert "names" in changed(source, "ALTER TABLE s RENAME TO r")
    assert changed(source, "ALTER TABLE r RENAME TO s", name="u") == ""


def test_a_definition_is_read_from_the_snapshot(typed_table: Source) -> None:
    """It is that of the transaction's snapshot, whatever others commit meanwhile."""
    with connect.connect(typed_table.settings().origin("test")) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        table = relation(typed_table)
        trees = {table.oid: table.parts}
        before = definition.definitions(connection, trees)
        with psycopg.connect(typed_table.dsn, autocommit=True) as other:
            other.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
        assert definition.definitions(connection, trees) == before
        connection.execute("ROLLBACK")
        assert definition.definitions(connection, trees) != before
