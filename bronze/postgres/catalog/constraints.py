"""The constraints of a table that PostgreSQL guarantees for all its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.types import valid_text
from bronze.postgres.connection.connect import Connection


@dataclass(frozen=True)
class Check:
    """A CHECK constraint; ``text`` is its condition as ``pg_get_expr`` returns it."""

    name: str
    text: str


@dataclass(frozen=True)
class Reference:
    """A foreign key: ``columns`` refer to the columns ``others`` of ``schema.table``.

    ``proven`` says that PostgreSQL guarantees it for every row, ``readable`` that the role may read
    the referenced columns.
    """

    name: str
    columns: tuple[str, ...]
    schema: str
    table: str
    others: tuple[str, ...]
    proven: bool
    readable: bool


@dataclass(frozen=True)
class Constraints:
    """The constraints of a relation.

    ``not_null`` are its columns without NULL. ``unique`` are the sets of columns in which no two
    rows have the same values (rows with NULL aside). ``enums`` are its enum columns with the labels
    of their types, ``folding`` its columns with a nondeterministic collation, under which
    different texts are equal.
    """

    not_null: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    checks: tuple[Check, ...] = ()
    references: tuple[Reference, ...] = ()
    enums: tuple[tuple[str, tuple[str, ...]], ...] = ()
    folding: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConstraintRows:
    """What the catalog has of the constraints of a relation."""

    constraints: Sequence[Any] = ()
    unique: Sequence[Any] = ()
    columns: Sequence[Any] = ()


# The first column of each query is the oid of the relation.
# A NOT VALID or NOT ENFORCED constraint guarantees nothing, a NO INHERIT one nothing of children.
_CONSTRAINTS = f"""
SELECT c.conrelid::int8, c.conname, c.contype::text,
       c.convalidated AND coalesce((to_jsonb(c)->>'conenforced')::bool, true),
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, o)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum ORDER BY k.o),
       n.nspname, f.relname,
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(attnum, o)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum
             ORDER BY k.o),
       CASE WHEN c.contype = 'c' THEN {valid_text("pg_get_expr(c.conbin, c.conrelid)")} END,
       c.connoinherit,
       c.confrelid = 0 OR (has_schema_privilege(n.oid, 'USAGE')
           AND (SELECT bool_and(has_column_privilege(f.oid, k.attnum, 'SELECT'))
                FROM unnest(c.confkey) AS k(attnum)))
FROM pg_constraint c
LEFT JOIN pg_class f ON f.oid = c.confrelid LEFT JOIN pg_namespace n ON n.oid = f.relnamespace
WHERE c.conrelid = ANY(%(oids)s::oid[]) AND c.contype IN ('c', 'f', 'n')
ORDER BY c.conrelid, c.conname
"""  # noqa: S608 - made of constants

_UNIQUE = """
SELECT i.indrelid::int8,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, o)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.o <= i.indnkeyatts ORDER BY k.o)
FROM pg_index i
WHERE i.indrelid = ANY(%(oids)s::oid[]) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
  AND i.indexprs IS NULL
ORDER BY i.indexrelid
"""

_COLUMNS = f"""
SELECT a.attrelid::int8, a.attname::text,
       CASE WHEN t.typtype = 'e' THEN ARRAY(SELECT {valid_text("e.enumlabel::text")} FROM pg_enum e
            WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) END,
       NOT coalesce(c.collisdeterministic, true)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = ANY(%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
  AND (t.typtype = 'e' OR NOT c.collisdeterministic)
ORDER BY a.attrelid, a.attnum
"""  # noqa: S608 - made of constants


def constraint_rows(
    connection: Connection, relations: Sequence[Relation]
) -> Mapping[int, ConstraintRows]:
    """What the catalog has of the constraints of relations, by oid; asked for all of them at once.

    Some versions of PostgreSQL lock a relation to show its conditions. So the transaction has a
    lock on each, or the relations are asked about one by one.

    Raises:
        psycopg.Error
    """
    oids = {"oids": [r.oid for r in relations if r.kind in ("table", "partitioned")]}
    asked = [_rows_by_oid(connection, query, oids) for query in (_CONSTRAINTS, _UNIQUE, _COLUMNS)]
    return {
        relation.oid: ConstraintRows(*(rows.get(relation.oid, ()) for rows in asked))
        for relation in relations
    }


def _rows_by_oid(
    connection: Connection, query: Any, oids: Mapping[str, Any]
) -> Mapping[int, Sequence[Any]]:
    rows: dict[Any, list[Any]] = {}
    for oid, *row in connection.execute(query, oids):
        rows.setdefault(oid, []).append(row)
    return rows


def constraints(relation: Relation, known: ConstraintRows) -> Constraints:
    """The constraints of a relation; views and foreign tables have none."""
    if relation.kind not in ("table", "partitioned"):
        return Constraints()
    rows, unique, columns = known.constraints, known.unique, known.columns
    alone = relation.kind == "partitioned" or len(relation.parts) <= 1
    unproven = {
        row[3][0] for row in rows if row[1] == "n" and not (row[2] and (alone or not row[8]))
    }
    return Constraints(
        not_null=tuple(
            a.name for a in relation.attributes if a.not_null and a.name not in unproven
        ),
        # Inheritance children have unique indexes and foreign keys of their own.
        unique=tuple(tuple(row[0]) for row in unique) if alone else (),
        checks=tuple(
            Check(row[0], row[7] or "") for row in rows if row[1] == "c" and (alone or not row[8])
        ),
        references=_references(rows, alone),
        enums=tuple(
            (name, tuple(label for label in labels if label is not None))
            for name, labels, _ in columns
            if labels is not None
        ),
        folding=tuple(name for name, _, folding in columns if folding),
    )


def _references(rows: Sequence[Any], alone: bool) -> tuple[Reference, ...]:
    return tuple(
        Reference(name, tuple(columns), schema, table, tuple(others), valid and alone, readable)
        for name, kind, valid, columns, schema, table, others, _, _, readable in rows
        if kind == "f"
    )
