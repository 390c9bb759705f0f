"""What the catalog says of a table, and its rows as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql


@dataclass(frozen=True)
class Column:
    """A column; ``type`` is pg_type's name, such as int4 or numeric.

    ``precision`` and ``scale`` are a numeric's, 0 if it was declared without.
    """

    name: str
    type: str
    precision: int
    scale: int


def columns(connection: psycopg.Connection, schema: str, table: str) -> list[Column]:
    """The columns in their order."""
    rows = connection.execute(
        "SELECT column_name, udt_name, coalesce(numeric_precision, 0), coalesce(numeric_scale, 0)"
        " FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        " ORDER BY ordinal_position",
        (schema, table),
    )
    return [
        Column(name, kind, *((precision, scale) if kind == "numeric" else (0, 0)))
        for name, kind, precision, scale in rows
    ]


def key(connection: psycopg.Connection, schema: str, table: str) -> str:
    """The name of the primary key's first column."""
    row = connection.execute(
        "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid"
        " AND attnum = indkey[0] WHERE indisprimary AND indrelid = format('%%I.%%I', %s::text,"
        " %s::text)::regclass",
        (schema, table),
    ).fetchone()
    assert row is not None
    return str(row[0])


def export(
    connection: psycopg.Connection,
    schema: str,
    table: str,
    expressions: Callable[[Column], str],
    file: Path,
) -> None:
    """Writes all rows to a CSV file: NULL is empty, the empty text is quoted."""
    found = columns(connection, schema, table)
    values = ", ".join(
        f"{expressions(column).format(quoted(column.name))} AS {quoted(column.name)}"
        for column in found
    )
    query = (
        f"COPY (SELECT {values} FROM {quoted(schema)}.{quoted(table)})"
        " TO STDOUT (FORMAT csv, HEADER)"
    )
    with connection.cursor() as cursor, cursor.copy(query.encode()) as rows, file.open("wb") as to:
        for block in rows:
            to.write(block)


def quoted(name: str) -> str:
    """A name as SQL."""
    return sql.Identifier(name).as_string(None)
