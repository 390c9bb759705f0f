"""Values that somebody gives as text, read as PostgreSQL reads them: by the type of a column.

What is equal by a type may have several texts (``Ann`` and ``ann`` in citext, 42.5 and 42.50 in a
numeric without precision, a day and 24 hours as intervals): PostgreSQL is asked which are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import psycopg
from psycopg import errors as pg

from bronze.model.columns import Column
from bronze.postgres.catalog.operators import ComparisonOperators
from bronze.postgres.catalog.relations import Attribute
from bronze.postgres.catalog.types import TypeOptions, column_contract, output_text
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy.rows_reader import decode, dtype
from bronze.postgres.statement import quoted

_TYPES = """
WITH RECURSIVE used(number, type, typmod, coll) AS (
    SELECT attnum, atttypid, atttypmod, attcollation FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT used.number, t.typbasetype, t.typtypmod, used.coll
    FROM used JOIN pg_type t ON t.oid = used.type WHERE t.typtype = 'd'
)
SELECT used.number, format_type(t.oid, -1), format_type(t.oid, used.typmod), used.typmod >= 0,
    CASE WHEN c.collisdeterministic IS FALSE
        THEN format(' COLLATE %%I.%%I', cn.nspname, c.collname) ELSE '' END,
    t.typtype = 'e' OR e.typtype = 'e',
    EXISTS (
        SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
        WHERE o.opcdefault AND m.amname IN ('btree', 'hash')
            AND o.opcintype IN (t.oid, CASE t.typtype
                WHEN 'e' THEN 'anyenum'::regtype WHEN 'r' THEN 'anyrange'::regtype END)
    ) OR t.typname IN ('varchar', '_varchar') OR e.oid IS NOT NULL AND EXISTS (
        SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
        WHERE o.opcdefault AND m.amname IN ('btree', 'hash')
            AND o.opcintype IN (e.oid, CASE e.typtype WHEN 'e' THEN 'anyenum'::regtype END))
FROM used JOIN pg_type t ON t.oid = used.type LEFT JOIN pg_collation c ON c.oid = used.coll
LEFT JOIN pg_namespace cn ON cn.oid = c.collnamespace
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE t.typtype <> 'd'
"""
# Values of these that are equal have the same text, or, as Delta has them, are equal.
_ONE_TEXT: tuple[str, ...] = (
    "bool",
    "int2",
    "int4",
    "int8",
    "oid",
    "float4",
    "float8",
    "name",
    "text",
    "varchar",
)
_ONE_TEXT += ("uuid", "bytea", "date", "timestamp", "timestamptz")
_AT_ONCE = 100_000
# From this version on PostgreSQL says of a text whether a type reads it, without an error.
_CAN_TELL = 160_000


class NoValue(Exception):
    """A text is no value of a column's type."""


@dataclass(frozen=True)
class Read:
    """A text as a value: what Bronze has for it, None where Delta cannot hold it; PostgreSQL's own
    text of it; and whether other texts may be equal.
    """

    value: pl.Series | None
    text: str
    exact: bool


@dataclass(frozen=True)
class Typed:
    """A column of the source's, by whose type texts are read, as SQL for queries with parameters.

    The type comes without a ``limit`` and with it: a length, or digits. ``exact`` says that equal
    values have equal texts, ``equal`` is the operator by which they are, None where there is none.
    """

    attribute: Attribute
    unlimited: str
    limited: str
    has_limit: bool
    collation: str
    exact: bool
    equal: str | None

    def condition(self) -> str:
        """The SQL condition that the column has a value, which is the query's parameter."""
        name = _escaped(quoted(self.attribute.name))
        if self.equal is None:
            return f"({output_text(name)}) = ({output_text(f'%s::{self.unlimited}')})"
        return f"{name} {self.equal} %s::{self.unlimited}"

    @property
    def parameters(self) -> int:
        """How often the value is given to `condition`."""
        return 1 if self.equal is not None else 2


def typed(
    connection: Connection,
    oid: int,
    attributes: Sequence[Attribute],
    known: dict[str, ComparisonOperators],
) -> dict[str, Typed]:
    """The columns of a table, by name.

    Args:
        connection: to the source.
        oid: the table's.
        attributes: its columns.
        known: as `bronze.postgres.catalog.operators.comparison_operators` finds it.

    Raises:
        psycopg.Error
    """
    rows: list[Any] = connection.execute(_TYPES, [oid]).fetchall()
    found = {row[0]: row[1:] for row in rows}
    columns = {}
    for one in attributes:
        if one.number not in found:
            continue
        unlimited, limited, has_limit, collation, enum, equals = found[one.number]
        plain = one.type.element or one.type
        decimal = plain.name == "numeric" and plain.typmod >= 0
        exact = not collation and (plain.name in _ONE_TEXT or decimal or enum)
        equal = known[one.name].equal if one.name in known else "="
        columns[one.name] = Typed(
            attribute=one,
            unlimited=_escaped(unlimited),
            limited=_escaped(limited),
            has_limit=has_limit,
            collation=_escaped(collation),
            exact=exact or not equals,
            equal=_escaped(equal) if equals else None,
        )
    return columns


def read(connection: Connection, column: Typed, text: str, choices: TypeOptions) -> Read:
    """A text as PostgreSQL reads it.

    Raises:
        NoValue: it is none, or does not fit.
        psycopg.Error
    """
    kind = replace(column.attribute.type, cast=False)
    made = column_contract(column.attribute.name, column.attribute.name, "v", kind, choices)
    same = "true"
    if column.has_limit:
        same = f"u {column.equal} v" if column.equal else f"{output_text('u')} = {output_text('v')}"
    query = (
        f"SELECT {made.select}, ({made.reject or 'false'}) IS TRUE, {output_text('v')}, {same}"  # noqa: S608
        f" FROM (SELECT u, u::{column.limited} AS v FROM (SELECT %s::{column.unlimited} AS u)"
        " AS given) AS given"
    )
    try:
        row: Any = connection.execute(query.encode(), [text]).fetchone()
    except psycopg.DataError:
        raise NoValue from None
    value, rejected, written, fits = row
    if not fits:
        raise NoValue
    exact = column.exact
    if rejected:
        return Read(None, written, exact)
    series = decode(pl.Series([value], dtype=_travelling(made)), made.kind, made.wire)
    return Read(series, written, exact)


def _travelling(column: Column) -> Any:
    if column.wire == "texts":
        return pl.List(pl.String)
    return {"unscaled": pl.Int64, "text": pl.String}.get(column.wire) or dtype(column.kind)


def equal(
    connection: Connection, column: Typed, text: str, others: Collection[str], refused: set[str]
) -> list[str]:
    """Which texts are equal to one, by a column's type; what is no value of it is equal to none.

    Args:
        connection: to the source.
        column: the column.
        text: the one.
        others: the texts.
        refused: texts that are known not to be values of the type; those found here are added.

    Raises:
        psycopg.Error
    """
    if column.equal is None:
        return [other for other in others if other == text]
    some, found = [other for other in others if other not in refused], list[str]()
    for start in range(0, len(some), _AT_ONCE):
        found += _equal(connection, column, text, some[start : start + _AT_ONCE], refused)
    return found


def _equal(
    connection: Connection, column: Typed, text: str, others: list[str], refused: set[str]
) -> list[str]:
    value = f"t::{column.unlimited}{column.collation}"
    is_equal = f"{value} {column.equal} %s::{column.unlimited}"
    asked: list[Any] = [others, text]
    if connection.info.server_version >= _CAN_TELL:
        # The types of some extensions raise an error all the same.
        is_equal = f"CASE WHEN pg_input_is_valid(t, %s) THEN {is_equal} END"
        asked.insert(1, column.unlimited.replace("%%", "%"))
    query = f"SELECT t FROM unnest(%s::text[]) AS t WHERE {is_equal}"  # noqa: S608
    try:
        rows: list[Any] = connection.execute(query.encode(), asked).fetchall()
        return [str(row[0]) for row in rows]
    except (psycopg.DataError, pg.CheckViolation):
        if len(others) == 1:
            refused.add(others[0])
            return []
        half = len(others) // 2
        return [
            *_equal(connection, column, text, others[:half], refused),
            *_equal(connection, column, text, others[half:], refused),
        ]


def written(elements: Sequence[str | None], delimiter: str) -> str:
    """PostgreSQL's text of an array of such elements."""
    return "{" + delimiter.join(map(_element, elements)) + "}"


def _element(text: str | None) -> str:
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")
