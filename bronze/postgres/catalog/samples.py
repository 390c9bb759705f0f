"""Small samples of the rows of relations, in which the survey looks for personal data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from bronze.postgres.catalog.relations import Attribute, Relation
from bronze.postgres.catalog.types import SourceType, output_text
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import quoted

Sample = Mapping[str, Sequence[str]]
"""Sampled values by column."""

_SAMPLE_ROWS = 200
_SAMPLE_CHARACTERS = 1_000
_SAMPLE_PAGES = 5
# It bounds the memory: each has up to a sample's rows and characters.
_VALUES_PER_STATEMENT = 40
_SAMPLED_TYPES = frozenset({"text", "varchar", "bpchar", "name", "json", "jsonb", "inet"})
# A view can be a long query, and a table can be locked: the survey does not wait for them.
_TIMEOUTS = "SET LOCAL statement_timeout = '3s'; SET LOCAL lock_timeout = '1s'"


def samples(
    connection: Connection, wanted: Sequence[tuple[Relation, int]]
) -> dict[int, Sample | None]:
    """The samples of relations, given with their numbers of rows, by oid; None where one cannot be
    read, or not in time.
    """
    samples: dict[int, Sample | None] = {}
    group: list[tuple[Relation, int]] = []
    values = 0
    for relation, rows in wanted:
        names = _sampled_columns(relation)
        if not relation.readable or not names:
            samples[relation.oid] = {} if relation.readable else None
        elif relation.kind in ("view", "foreign table"):
            samples[relation.oid] = _sample(connection, relation, rows)
        else:
            if values + len(names) > _VALUES_PER_STATEMENT:
                samples |= _sample_together(connection, group)
                group, values = [], 0
            group.append((relation, rows))
            values += len(names)
    return samples | _sample_together(connection, group)


def _sample_together(
    connection: Connection, group: Sequence[tuple[Relation, int]]
) -> dict[int, Sample | None]:
    """The samples of tables, by one statement where that succeeds, else each by its own."""
    selects = [
        f"(SELECT {number}, ARRAY[{_sampled_values(relation)}]"
        f" {_sampled_rows(relation, _tablesample(relation, rows))})"
        for number, (relation, rows) in enumerate(group)
    ]
    found: list[list[Any]] = [[] for _ in group]
    if len(group) > 1:
        for number, row in _fetch(connection, " UNION ALL ".join(selects)) or ():
            found[number].append(row)
    # Where a sample of pages had no row, another one may have.
    return {
        relation.oid: _by_column(relation, rows) if rows else _sample(connection, relation, count)
        for (relation, count), rows in zip(group, found, strict=True)
    }


def _sample(connection: Connection, relation: Relation, rows: int) -> Sample | None:
    """The sample of one relation; None if it cannot be read, or not in time."""
    values, clause = _sampled_values(relation), _tablesample(relation, rows)
    sample = _fetch(connection, f"SELECT {values} {_sampled_rows(relation, clause)}")
    if clause and sample == []:
        sample = _fetch(connection, f"SELECT {values} {_sampled_rows(relation, '')}")
    return None if sample is None else _by_column(relation, sample)


def _fetch(connection: Connection, query: str) -> list[Any] | None:
    """The rows of a query; None if it fails, or takes too long."""
    try:
        with connection.transaction():
            connection.execute(f"SET TRANSACTION READ ONLY; {_TIMEOUTS}".encode())
            return connection.execute(sql.SQL(query)).fetchall()
    except psycopg.Error:
        if connection.closed:
            raise
        return None


def _by_column(relation: Relation, rows: Sequence[Sequence[Any]]) -> Sample:
    return {
        name: [row[i] for row in rows if row[i] is not None]
        for i, name in enumerate(_sampled_columns(relation))
    }


def _sampled_columns(relation: Relation) -> list[str]:
    return [
        a.name for a in relation.attributes if a.readable and _can_be_sampled(element_type(a).name)
    ]


def _can_be_sampled(name: str) -> bool:
    return name in _SAMPLED_TYPES or name.endswith(".citext")


def _sampled_values(relation: Relation) -> str:
    """The SQL of the sampled values of a row."""
    values = map(output_text, map(quoted, _sampled_columns(relation)))
    return ", ".join(f"left({value}, {_SAMPLE_CHARACTERS})" for value in values)


def _sampled_rows(relation: Relation, clause: str) -> str:
    """The SQL of the sampled rows."""
    return f"FROM {quoted(relation.schema, relation.name)}{clause} LIMIT {_SAMPLE_ROWS}"


def _tablesample(relation: Relation, rows: int) -> str:
    """The TABLESAMPLE clause for about twice the rows of a sample; "" to read all pages."""
    pages = sum(relation.heaps)
    if relation.kind in ("view", "foreign table") or pages <= _SAMPLE_PAGES:
        return ""
    by_rows = 2 * _SAMPLE_ROWS / rows if rows > 0 else 0
    percent = 100 * min(1, max(by_rows, _SAMPLE_PAGES / pages))
    return f" TABLESAMPLE SYSTEM ({percent:.6f})"


def element_type(attribute: Attribute) -> SourceType:
    """The type of a column, or of the elements of its arrays."""
    return attribute.type.element or attribute.type
