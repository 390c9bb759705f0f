"""How many bytes rows have, asked before they are read.

The pages of a table do not tell: values that are stored out of line, or compressed, take much more
room with us than there. PostgreSQL knows their sizes without reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from bronze.errors import TableRefused
from bronze.model.locations import Origin
from bronze.model.units import Weighing
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection, connect, explain
from bronze.postgres.statement import quoted

# Types of a fixed size; values of all others may be large.
_SMALL = frozenset(
    (
        "int2",
        "int4",
        "int8",
        "oid",
        "float4",
        "float8",
        "numeric",
        "bool",
        "name",
        "uuid",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "money",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "bit",
        "varbit",
        "pg_lsn",
        "xid",
        "xid8",
        "tid",
        "char",
        "point",
        "line",
        "lseg",
        "box",
        "circle",
    )
)
# Of these the size is known even where they are compressed.
_MEASURED = ("text", "varchar", "bpchar", "bytea")
# Compressed values of other types are looked at where they are larger than this (bytes), and else
# counted as so many times what they take.
_LOOKED_AT = 16 * 2**10
_GROWTH = 8
# A table of fewer pages cannot hide much.
_FEW_PAGES = 16
_SAMPLED_PAGES = 24


@dataclass(frozen=True)
class Part:
    """A condition; ``heavy`` says that what it is true for is one row, larger than a slice."""

    where: str
    heavy: bool = False


def weight(relation: Relation, names: Sequence[str]) -> str:
    """The SQL of the bytes of a row's values that may be large, "" where none may."""
    sizes = []
    for attribute in relation.attributes:
        value = quoted(attribute.name)
        if attribute.name not in names or attribute.type.name in _SMALL:
            continue
        if attribute.type.name in _MEASURED and not attribute.type.cast:
            sizes.append(f"coalesce(octet_length({value}), 0)::int8")
            continue
        stored = f"pg_column_size({value})::int8"
        sizes.append(
            f"coalesce(CASE WHEN pg_column_compression({value}) IS NULL THEN {stored}"
            f" WHEN pg_column_size({value}) <= {_LOOKED_AT} THEN {stored} * {_GROWTH}"
            f" ELSE octet_length({value}::text) END, 0)"
        )
    return " + ".join(sizes)


def needed(connection: Connection, relation: Relation, names: Sequence[str]) -> bool:
    """Whether a table has values out of line, or (as a few of its pages show) compressed ones."""
    if relation.toast:
        return True
    if sum(relation.heaps) < _FEW_PAGES or relation.kind == "partitioned":
        return False
    columns = [
        quoted(attribute.name)
        for attribute in relation.attributes
        if attribute.name in names and attribute.type.name not in _SMALL
    ]
    if not columns:
        return False
    share = min(100.0, 100 * _SAMPLED_PAGES / sum(relation.heaps))
    packed = " OR ".join(f"pg_column_compression({column}) IS NOT NULL" for column in columns)
    row: Any = connection.execute(
        f"SELECT EXISTS (SELECT FROM {quoted(relation.schema, relation.name)}"  # noqa: S608
        f" TABLESAMPLE SYSTEM ({share}) WHERE {packed})"
    ).fetchone()
    return bool(row[0])


def parts(
    origin: Origin, session: Sequence[str], given: Weighing, wheres: Sequence[str], table: str
) -> list[Part]:
    """Conditions that together are true for the same rows, each for as many as fit in a slice.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        given: how rows are weighed.
        wheres: the conditions that are divided, each of which is a range of pages.
        table: the table's label, for errors.

    Raises:
        TableRefused: a row is too large for the memory.
        SourceError: and its kinds.
    """
    with _explained(origin, table), connect(origin) as connection:
        for statement in session:
            connection.execute(statement)
        found = [part for where in wheres for part in _divided(connection, given, where, table)]
        connection.execute("ROLLBACK")
    return found


def _divided(connection: Connection, given: Weighing, where: str, table: str) -> Iterator[Part]:
    rows = f"SELECT tableoid AS t, ctid AS c, {given.weight} AS w FROM {given.table} WHERE {where}"  # noqa: S608
    row: Any = connection.execute(f"SELECT sum(w), max(w) FROM ({rows}) AS r").fetchone()  # noqa: S608
    whole, most = (int(size or 0) for size in row)
    if whole <= given.size:
        yield Part(where)
        return
    if most > given.heaviest:
        raise _refused(connection, given, where, table)
    running = f"(sum(w) OVER (PARTITION BY t ORDER BY c) - w)::int8 / {given.size}"
    groups: Any = connection.execute(
        "SELECT t::int8, min(c)::text, max(c)::text, max(w) FROM"  # noqa: S608
        f" (SELECT t, c, w, {running} AS bucket FROM ({rows} OFFSET 0) AS r) AS s"
        f" GROUP BY t, bucket, w > {given.size} ORDER BY t, min(c)"
    ).fetchall()
    for oid, low, high, heaviest in groups:
        yield Part(
            f"{where} AND tableoid = {oid} AND ctid >= '{low}'::tid AND ctid <= '{high}'::tid",
            heaviest > given.size,
        )


def _refused(connection: Connection, given: Weighing, where: str, table: str) -> TableRefused:
    row: Any = connection.execute(
        f"SELECT w, k FROM (SELECT {given.weight} AS w, {given.key} AS k FROM {given.table}"  # noqa: S608
        f" WHERE {where} OFFSET 0) AS r ORDER BY w DESC LIMIT 1"
    ).fetchone()
    size, key = row
    return too_large(table, key, int(size), given.heaviest, given.copies, given.rest)


def too_large(
    table: str, key: str, size: int, heaviest: int, copies: int, rest: int
) -> TableRefused:
    """The error for a row that does not fit into the memory."""
    enough = -(-(size * copies + rest) // 10**6)
    return TableRefused(
        f"The row {key} of table {table} has {size:,} bytes of values, and [run] memory leaves room"
        f" for {heaviest:,} in a row.",
        hint=f'Raise [run] memory to "{enough}MB"; or leave the large column out:'
        ' protect = { column = "drop" }.',
        table=table,
    )


@contextmanager
def _explained(origin: Origin, table: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise explain(error, origin, table) from error
