"""The sizes of rows, known before they are read.

The number of a table's pages does not tell: values that are compressed or stored out of line
(TOAST) need much more memory when they are read. PostgreSQL knows their sizes without reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.errors import TableRefused
from bronze.model.locations import Origin
from bronze.model.units import RowSizeLimits
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.connection.read_connections import read_connection
from bronze.postgres.connection.translation import source_errors
from bronze.postgres.statement import quoted

# Types whose values are never large.
_SMALL_TYPES = frozenset(
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
# Types whose uncompressed size is known without decompressing a value.
_KNOWN_LENGTH = ("text", "varchar", "bpchar", "bytea")
# Compressed values of other types are decompressed if they are larger than this (bytes); the size
# of smaller ones is estimated as this multiple of their compressed size.
_DECOMPRESSED_FROM = 16 * 2**10
_COMPRESSION_RATIO = 8
# The values of fewer pages need little memory even if they are compressed.
_MIN_PAGES = 16
_SAMPLED_PAGES = 24


@dataclass(frozen=True)
class Part:
    """The condition of a part of a split. A ``heavy`` part is one row, larger than a split."""

    where: str
    heavy: bool = False


def row_size_expression(relation: Relation, names: Sequence[str]) -> str:
    """The SQL of the size (bytes) of a row's values that may be large; "" if there are none."""
    sizes = []
    for attribute in relation.attributes:
        value = quoted(attribute.name)
        if attribute.name not in names or attribute.type.name in _SMALL_TYPES:
            continue
        if attribute.type.name in _KNOWN_LENGTH and not attribute.type.cast:
            sizes.append(f"coalesce(octet_length({value}), 0)::int8")
            continue
        stored = f"pg_column_size({value})::int8"
        sizes.append(
            f"coalesce(CASE WHEN pg_column_compression({value}) IS NULL THEN {stored}"
            f" WHEN pg_column_size({value}) <= {_DECOMPRESSED_FROM}"
            f" THEN {stored} * {_COMPRESSION_RATIO}"
            f" ELSE octet_length({value}::text) END, 0)"
        )
    return " + ".join(sizes)


def has_large_values(relation: Relation, names: Sequence[str]) -> bool | None:
    """Whether a table has values out of line, or compressed ones; None if only a sample of its
    pages tells (`samples_large_values`).
    """
    if relation.toast:
        return True
    small = sum(relation.heaps) < _MIN_PAGES or relation.kind == "partitioned"
    return False if small or not _columns_of_any_size(relation, names) else None


def _columns_of_any_size(relation: Relation, names: Sequence[str]) -> list[str]:
    return [
        quoted(attribute.name)
        for attribute in relation.attributes
        if attribute.name in names and attribute.type.name not in _SMALL_TYPES
    ]


def samples_large_values(connection: Connection, relation: Relation, names: Sequence[str]) -> bool:
    """Whether a sample of a table's pages has compressed values."""
    columns = _columns_of_any_size(relation, names)
    share = min(100.0, 100 * _SAMPLED_PAGES / sum(relation.heaps))
    compressed = " OR ".join(f"pg_column_compression({column}) IS NOT NULL" for column in columns)
    row: Any = connection.execute(
        f"SELECT EXISTS (SELECT FROM {quoted(relation.schema, relation.name)}"  # noqa: S608
        f" TABLESAMPLE SYSTEM ({share}) WHERE {compressed})"
    ).fetchone()
    return bool(row[0])


def divide_splits(
    origin: Origin,
    session: Sequence[str],
    weighing: RowSizeLimits,
    wheres: Sequence[str],
    table: str,
) -> list[Part]:
    """Divides splits by the sizes of their rows: parts that hold the same rows and fit in memory.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        weighing: how the sizes of rows are determined.
        wheres: the conditions of the splits, each of which is a range of pages.
        table: the table's label, for errors.

    Raises:
        TableRefused: a row is too large for the memory.
        SourceError: or a subclass.
    """
    with source_errors(origin, table), read_connection(origin, session) as connection:
        return [part for where in wheres for part in _divide(connection, weighing, where, table)]


def _divide(
    connection: Connection, weighing: RowSizeLimits, where: str, table: str
) -> Iterator[Part]:
    rows = (
        f"SELECT tableoid AS t, ctid AS c, {weighing.weight} AS w"  # noqa: S608 - quoted names
        f" FROM {weighing.table} WHERE {where}"
    )
    row: Any = connection.execute(f"SELECT sum(w), max(w) FROM ({rows}) AS r").fetchone()  # noqa: S608
    total, largest = (int(size or 0) for size in row)
    if total <= weighing.size:
        yield Part(where)
        return
    if largest > weighing.heaviest:
        raise _largest_row_error(connection, weighing, where, table)
    bucket = f"(sum(w) OVER (PARTITION BY t ORDER BY c) - w)::int8 / {weighing.size}"
    groups: Any = connection.execute(
        "SELECT t::int8, min(c)::text, max(c)::text, max(w) FROM"  # noqa: S608
        f" (SELECT t, c, w, {bucket} AS bucket FROM ({rows} OFFSET 0) AS r) AS s"
        f" GROUP BY t, bucket, w > {weighing.size} ORDER BY t, min(c)"
    ).fetchall()
    for oid, low, high, heaviest in groups:
        yield Part(
            f"{where} AND tableoid = {oid} AND ctid >= '{low}'::tid AND ctid <= '{high}'::tid",
            heaviest > weighing.size,
        )


def _largest_row_error(
    connection: Connection, weighing: RowSizeLimits, where: str, table: str
) -> TableRefused:
    row: Any = connection.execute(
        f"SELECT w, k FROM (SELECT {weighing.weight} AS w, {weighing.key} AS k"  # noqa: S608
        f" FROM {weighing.table} WHERE {where} OFFSET 0) AS r ORDER BY w DESC LIMIT 1"
    ).fetchone()
    size, key = row
    return row_too_large_error(
        table, key, int(size), weighing.heaviest, weighing.copies, weighing.rest
    )


def row_too_large_error(
    table: str, key: str, size: int, heaviest: int, copies: int, rest: int
) -> TableRefused:
    """The error for a row that is too large for the memory."""
    megabytes = -(-(size * copies + rest) // 10**6)
    return TableRefused(
        f"The row {key} of table {table} has {size:,} bytes of values; [run] memory allows"
        f" {heaviest:,} per row.",
        hint=f'Raise [run] memory to "{megabytes}MB"; or leave the large column out:'
        ' protect = { column = "drop" }.',
        table=table,
    )
