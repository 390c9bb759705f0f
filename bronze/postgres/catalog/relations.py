"""What is in the source: tables, columns, types, keys and sizes, found by looking."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bronze.postgres.catalog.definition import Definition, definitions
from bronze.postgres.catalog.types import SourceType, readable
from bronze.postgres.connection.connect import Connection

RelationKind = Literal["table", "partitioned", "materialized view", "view", "foreign table"]

_KINDS: Mapping[str, RelationKind] = {
    "r": "table",
    "p": "partitioned",
    "m": "materialized view",
    "v": "view",
    "f": "foreign table",
}


@dataclass(frozen=True)
class Attribute:
    """A column as PostgreSQL has it. ``number`` is its attnum, which a renaming leaves as it is,
    ``readable`` says that the role may read it.
    """

    name: str
    type: SourceType
    not_null: bool
    comment: str = ""
    number: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Relation:
    """A table, or what can be read like one.

    ``heaps`` are the sizes in pages of the heaps that a SELECT from it scans (its partitions',
    its heirs', or its own; empty where there is no heap or one that has no ctid ranges),
    ``page`` the size of a page in bytes, ``toast`` the bytes stored out of line, ``rows`` the
    planner's estimate (-1: never analysed), ``width`` its estimate of a row's bytes.
    ``keys`` are the keys that PostgreSQL keeps unique at any moment, over NOT NULL columns: the
    primary key first. One that is ``deferrable``, which rows may share within a transaction, is
    none of them; ``keyless`` is why what looks like a key is none at all.
    ``parts`` are the oids of it and of all its partitions or heirs. ``rewritten`` says that its
    storage was replaced after the transaction's snapshot, which therefore shows it empty.
    ``readable`` says that the role may read some column, ``whole`` that SELECT on the table is
    granted and not on columns alone, ``system`` which of ctid and xmin may be read. ``secured``
    says that row-level security hides rows from the role.
    ``definition`` is as `bronze.postgres.catalog.definition` has it.
    """

    oid: int
    schema: str
    name: str
    kind: RelationKind
    attributes: tuple[Attribute, ...]
    keys: tuple[tuple[str, ...], ...]
    heaps: tuple[int, ...]
    page: int
    toast: int
    rows: int
    readable: bool
    comment: str = ""
    rewritten: bool = False
    parts: tuple[int, ...] = ()
    whole: bool = True
    system: frozenset[str] = frozenset({"ctid", "xmin"})
    secured: bool = False
    definition: Definition = field(default_factory=dict, repr=False, hash=False)
    deferrable: tuple[str, ...] = ()
    keyless: str = ""
    encoding: str = "UTF8"

    @property
    def label(self) -> str:
        """``schema.name``, for people and results."""
        return f"{self.schema}.{self.name}"

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key, or else the first of its keys, or else nothing."""
        return self.keys[0] if self.keys else self.deferrable

    def enforces(self, names: Sequence[str]) -> bool:
        """Whether PostgreSQL sees to it that no two rows ever have the same values in these
        columns; heirs have keys of their own.
        """
        return self._unique(names, self.keys)

    def enforces_at_last(self, names: Sequence[str]) -> bool:
        """Whether it sees to that once a transaction is committed."""
        return self._unique(names, (*self.keys, self.deferrable))

    def _unique(self, names: Sequence[str], keys: Sequence[tuple[str, ...]]) -> bool:
        alone = self.kind == "partitioned" or (self.kind == "table" and len(self.heaps) == 1)
        return alone and any(set(key) <= set(names) for key in keys if key)


_RELATIONS = f"""
WITH RECURSIVE tree(root, oid) AS (
    SELECT c.oid, c.oid FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p', 'm', 'v', 'f')
  UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
), sizes AS (
    SELECT tree.root,
           bool_and(c.relkind = 'p' OR am.amname = 'heap') AS ranged,
           -- The true size takes a lock: it is asked for only where we hold one already.
           array_agg(CASE WHEN tree.root = ANY(%(locked)s::oid[])
                          THEN pg_relation_size(c.oid) / current_setting('block_size')::int8
                          ELSE c.relpages END)
               FILTER (WHERE c.relkind IN ('r', 'm')) AS heaps,
           sum(CASE WHEN tree.root = ANY(%(locked)s::oid[])
                    THEN coalesce(pg_relation_size(t.oid), 0)
                    ELSE coalesce(t.relpages, 0) * current_setting('block_size')::int8 END)
               ::int8 AS toast,
           CASE WHEN bool_or(c.reltuples >= 0 AND c.relkind <> 'p')
                THEN sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind <> 'p') END
               ::int8 AS rows,
           bool_or(c.relfilenode <> 0 AND c.relfilenode <> pg_relation_filenode(c.oid))
               AS rewritten,
           array_agg(c.oid::int8) AS parts
    FROM tree JOIN pg_class c ON c.oid = tree.oid
    LEFT JOIN pg_class t ON t.oid = c.reltoastrelid LEFT JOIN pg_am am ON am.oid = c.relam
    GROUP BY tree.root
)
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text,
       coalesce(CASE WHEN s.ranged THEN s.heaps END, '{{}}') AS heaps,
       coalesce(s.toast, 0), coalesce(s.rows, -1),
       current_setting('block_size')::int4 AS page,
       has_schema_privilege(n.oid, 'USAGE')
           AND has_any_column_privilege(c.oid, 'SELECT') AS readable,
       {readable("obj_description(c.oid, 'pg_class')")},
       coalesce(s.rewritten, true) AS rewritten, s.parts,
       has_table_privilege(c.oid, 'SELECT'),
       -- Nobody has these columns in a view: there the answer is NULL.
       ARRAY(SELECT x.name FROM (VALUES ('ctid', -1), ('xmin', -2)) AS x(name, number)
             WHERE has_column_privilege(c.oid, x.number::int2, 'SELECT')),
       row_security_active(c.oid)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN sizes s ON s.root = c.oid
WHERE NOT c.relispartition AND c.relpersistence <> 't'
ORDER BY n.nspname, c.relname
"""  # noqa: S608 - of constants

_ATTRIBUTES = f"""
SELECT a.attrelid::int8, a.attname, a.atttypid::int8, a.atttypmod,
       format_type(a.atttypid, a.atttypmod), a.attnotnull,
       {readable("col_description(a.attrelid, a.attnum)")},
       a.attnum, has_column_privilege(a.attrelid, a.attnum, 'SELECT')
FROM pg_attribute a
WHERE a.attrelid = ANY(%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""  # noqa: S608 - of constants

_TYPES = """
WITH RECURSIVE used(oid) AS (
    SELECT DISTINCT a.atttypid FROM pg_attribute a
    WHERE a.attrelid = ANY(%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
  UNION
    SELECT next.oid FROM used
    JOIN pg_type t ON t.oid = used.oid
    CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS next(oid)
    WHERE next.oid <> 0
)
SELECT t.oid::int8,
       CASE WHEN n.nspname = 'pg_catalog' THEN t.typname ELSE n.nspname || '.' || t.typname END,
       t.typtype::text, t.typbasetype::int8, t.typtypmod,
       CASE WHEN t.typlen = -1 THEN t.typelem::int8 ELSE 0 END, t.typdelim::text
FROM used JOIN pg_type t ON t.oid = used.oid JOIN pg_namespace n ON n.oid = t.typnamespace
"""

_UNIQUE = """
SELECT i.indrelid::int8, c.relname, i.indisprimary, i.indimmediate, i.indisvalid,
       i.indpred IS NOT NULL, i.indexprs IS NOT NULL, k.columns, k.nullable
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(a.attname::text ORDER BY u.o), '{}') AS columns,
           coalesce(array_agg(a.attname::text ORDER BY u.o) FILTER (WHERE NOT a.attnotnull), '{}')
               AS nullable
    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(attnum, o)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
    WHERE u.o <= i.indnkeyatts
) k
WHERE i.indrelid = ANY(%(oids)s::oid[]) AND i.indisunique
ORDER BY i.indrelid, i.indimmediate DESC, i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""


@dataclass(frozen=True)
class _Unique:
    """A unique index. ``columns`` are those of its key but expressions."""

    name: str
    primary: bool
    immediate: bool
    valid: bool
    partial: bool
    computed: bool
    columns: Sequence[str]
    nullable: Sequence[str]

    @property
    def fault(self) -> str:
        """Why no rows can be told apart by it, "" where they can."""
        if not self.valid:
            return "is not valid (REINDEX makes it so, or says which rows are alike)"
        if self.partial:
            return "is partial: it says nothing of the rows that its WHERE leaves out"
        if self.computed:
            return "is over an expression"
        if self.nullable:
            return f"is over {', '.join(self.nullable)}, which may be NULL"
        return ""


def relations(
    connection: Connection, schemas: Sequence[str], locked: Sequence[int] = ()
) -> tuple[Relation, ...]:
    """All that can be read like a table in ``schemas``; partitions belong to their parents.

    Sorted by schema and name. Needs no rights beyond connecting; what the role may not read is
    listed with ``readable`` false. Sizes are true for the oids in ``locked``, on which the
    transaction must hold a lock, and as of the last VACUUM or ANALYZE for the others.
    """
    wanted = {"schemas": list(schemas), "locked": list(locked)}
    found = _rows(connection, _RELATIONS, wanted)
    oids = {"oids": [row[0] for row in found]}
    types = {row[0]: row[1:] for row in connection.execute(_TYPES, oids)}
    unique: dict[Any, list[_Unique]] = {}
    for row in _rows(connection, _UNIQUE, oids):
        unique.setdefault(row[0], []).append(_Unique(*row[1:]))
    attributes: dict[Any, list[Attribute]] = {}
    for oid, name, type_oid, typmod, declared, not_null, comment, number, granted in _rows(
        connection, _ATTRIBUTES, oids
    ):
        kind = _resolve(types, type_oid, typmod, declared)
        attributes.setdefault(oid, []).append(
            Attribute(name, kind, not_null, comment or "", number, granted)
        )
    known = definitions(connection, oids["oids"])
    encoding = str(connection.execute("SHOW server_encoding").fetchone()[0])  # type: ignore[index]
    return tuple(
        _relation(row, attributes.get(row[0], ()), unique.get(row[0], ()), known, encoding)
        for row in found
    )


def _relation(
    row: Any,
    attributes: Sequence[Attribute],
    unique: Sequence[_Unique],
    known: Mapping[int, Mapping[str, str]],
    encoding: str,
) -> Relation:
    oid, schema, name, kind, heaps, toast, rows, page, readable, comment, *rest = row
    rewritten, parts, whole, system, secured = rest
    keys = [index for index in unique if not index.fault]
    later = [tuple(index.columns) for index in keys if not index.immediate]
    faults = "; ".join(f"its unique index {index.name} {index.fault}" for index in unique)
    return Relation(
        oid=oid,
        schema=schema,
        name=name,
        kind=_KINDS[kind],
        attributes=tuple(attributes),
        keys=tuple(tuple(index.columns) for index in keys if index.immediate),
        heaps=tuple(heaps),
        page=page,
        toast=toast,
        rows=rows,
        readable=readable,
        comment=comment or "",
        rewritten=rewritten,
        parts=tuple(parts),
        whole=whole,
        system=frozenset(system),
        secured=secured,
        definition={**known[oid], "parts": _digest(sorted(parts))},
        deferrable=later[0] if later else (),
        keyless="" if keys else faults,
        encoding=encoding,
    )


def _digest(oids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(oids).encode()).hexdigest()[:16]


TABLEOID = "tableoid"
# The attnum of this system column.
_TABLEOID = -6


def with_tableoid(relation: Relation) -> Relation:
    """The relation with the oid of the table that a row is in as a column of its own, by which the
    rows of tables that inherit from one another can be told apart; the same where it has none.
    """
    if relation.kind not in ("table", "partitioned", "materialized view", "foreign table"):
        return relation
    oid = SourceType("oid", -1, "oid")
    column = Attribute(TABLEOID, oid, True, number=_TABLEOID, readable=relation.whole)
    return replace(relation, attributes=(*relation.attributes, column))


def schemas(connection: Connection) -> tuple[str, ...]:
    """The names of all schemas but PostgreSQL's own."""
    query = """
        SELECT nspname FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%' ORDER BY 1
    """
    return tuple(str(row[0]) for row in connection.execute(query))


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments).fetchall()


def _resolve(types: Mapping[Any, Any], oid: int, typmod: int, declared: str) -> SourceType:
    name, typtype, base, base_typmod, element, delimiter = types[oid]
    domain = False
    while typtype == "d":
        # A domain's own modifier lies on its base type.
        domain, typmod = True, base_typmod
        name, typtype, base, base_typmod, element, _ = types[base]
    inner = _resolve(types, element, typmod, f"{declared} element") if element else None
    composite = typtype == "c"
    return SourceType(
        name, typmod, declared, inner, domain, composite, delimiter, enum=typtype == "e"
    )
