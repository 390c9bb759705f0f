"""The relations of the source with their columns, types, keys and sizes, read from the catalog."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bronze.model.locations import TableName
from bronze.postgres.catalog.definition import Definition, definitions
from bronze.postgres.catalog.types import SourceType, valid_text
from bronze.postgres.connection.connect import Connection, one_snapshot

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
    """A column. ``number`` is its attnum, which a renaming does not change; ``readable`` says that
    the role may read it.
    """

    name: str
    type: SourceType
    not_null: bool
    comment: str = ""
    number: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Relation:
    """A table, a partitioned table, a view, a materialized view or a foreign table.

    Attributes:
        keys: its unique indexes over NOT NULL columns that PostgreSQL enforces at any moment, the
            primary key first.
        heaps: the sizes, in pages, of the heaps that a SELECT scans: its own, and those of its
            partitions or children. Empty where there is no heap, or one without ctid ranges.
        page: the size of a page in bytes.
        toast: the bytes in TOAST tables.
        rows: the planner's estimate (-1: never analysed).
        readable: whether the role may read some column.
        rewritten: whether its storage was replaced after the transaction's snapshot, to which it
            is therefore empty.
        parts: the oids of it and of all its partitions or children.
        whole: whether SELECT is granted on the table, and not on columns alone.
        system: which of ctid and xmin the role may read.
        secured: whether row-level security hides rows from the role.
        definition: see `bronze.postgres.catalog.definition`.
        deferrable: the columns of a DEFERRABLE key, in which rows may be equal within a
            transaction; it is not one of ``keys``.
        keyless: why none of its unique indexes is a key; "" if one is, or there is no index.
        encoding: the database's.
        leaves: the FROM of each of many heaps, in the order of ``heaps``, if the role may read each
            by itself; otherwise none.
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
    leaves: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``schema.name``, for messages and results."""
        return TableName(self.schema, self.name).label

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key, else the first of its keys, else a deferrable one, else ()."""
        return self.keys[0] if self.keys else self.deferrable

    def enforces(self, names: Sequence[str]) -> bool:
        """Whether PostgreSQL enforces at any moment that these columns are unique.

        It does not across inheritance children, which have indexes of their own.
        """
        return self._unique(names, self.keys)

    def enforces_at_last(self, names: Sequence[str]) -> bool:
        """Whether PostgreSQL enforces when a transaction commits that these columns are unique."""
        return self._unique(names, (*self.keys, self.deferrable))

    def _unique(self, names: Sequence[str], keys: Sequence[tuple[str, ...]]) -> bool:
        alone = self.kind == "partitioned" or (self.kind == "table" and len(self.heaps) == 1)
        return alone and any(set(key) <= set(names) for key in keys if key)


_READABLE = """has_schema_privilege(n.oid, 'USAGE')
           AND has_any_column_privilege(c.oid, 'SELECT')"""

_LISTED = "n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p', 'm', 'v', 'f')"
_ALONE = "NOT c.relispartition AND c.relpersistence <> 't'"

_NAMES = f"""
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, {_READABLE},
       has_table_privilege(c.oid, 'SELECT')
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_LISTED} AND {_ALONE}
ORDER BY n.nspname, c.relname
"""  # noqa: S608 - made of constants

# Measured: a range of the parent takes 0.1 ms longer for each heap, and 40 ms to read.
_MANY_HEAPS = 16

_RELATIONS = f"""
WITH RECURSIVE tree(root, oid) AS (
    SELECT c.oid, c.oid FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_LISTED}
  UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
), sizes AS (
    SELECT tree.root,
           bool_and(c.relkind = 'p' OR am.amname = 'heap') AS ranged,
           -- Reading the true size takes a lock: only where the transaction already has one.
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
           array_agg(c.oid::int8) AS parts,
           -- In the order of the heaps: all aggregates see the same one.
           CASE WHEN count(*) FILTER (WHERE c.relkind IN ('r', 'm')) > {_MANY_HEAPS}
                     AND bool_and(has_table_privilege(c.oid, 'SELECT')
                                  AND has_schema_privilege(c.relnamespace, 'USAGE')
                                  AND NOT c.relrowsecurity)
                THEN array_agg(format('ONLY %%I.%%I', n.nspname, c.relname))
                    FILTER (WHERE c.relkind IN ('r', 'm')) END AS leaves
    FROM tree JOIN pg_class c ON c.oid = tree.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_class t ON t.oid = c.reltoastrelid LEFT JOIN pg_am am ON am.oid = c.relam
    GROUP BY tree.root
)
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text,
       coalesce(CASE WHEN s.ranged THEN s.heaps END, '{{}}') AS heaps,
       coalesce(s.toast, 0), coalesce(s.rows, -1),
       current_setting('block_size')::int4 AS page,
       {_READABLE} AS readable,
       {valid_text("obj_description(c.oid, 'pg_class')")},
       coalesce(s.rewritten, true) AS rewritten, s.parts,
       has_table_privilege(c.oid, 'SELECT'),
       -- A view has no such columns: there the function returns NULL.
       ARRAY(SELECT x.name FROM (VALUES ('ctid', -1), ('xmin', -2)) AS x(name, number)
             WHERE has_column_privilege(c.oid, x.number::int2, 'SELECT')),
       row_security_active(c.oid), current_setting('server_encoding'),
       coalesce(CASE WHEN s.ranged THEN s.leaves END, '{{}}') AS leaves
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN sizes s ON s.root = c.oid
WHERE {_ALONE}
ORDER BY n.nspname, c.relname
"""  # noqa: S608 - made of constants

_ATTRIBUTES = f"""
SELECT a.attrelid::int8, a.attname, a.atttypid::int8, a.atttypmod,
       format_type(a.atttypid, a.atttypmod), a.attnotnull,
       {valid_text("col_description(a.attrelid, a.attnum)")},
       a.attnum, has_column_privilege(a.attrelid, a.attnum, 'SELECT')
FROM pg_attribute a
WHERE a.attrelid = ANY(%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""  # noqa: S608 - made of constants

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
    """A unique index. ``columns`` are its key columns, without expressions."""

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
        """Why the index is not a key, as a predicate; "" if it is one."""
        if not self.valid:
            return "is not valid (REINDEX it; if that fails, it names the duplicate values)"
        if self.partial:
            return "is partial: its WHERE excludes rows"
        if self.computed:
            return "is over an expression"
        if self.nullable:
            return f"is over {', '.join(self.nullable)}, which may be NULL"
        return ""


def list_relations(connection: Connection, schemas: Sequence[str]) -> tuple[Relation, ...]:
    """The relations as of `relations`, with their name, kind and privileges alone: without columns,
    keys, sizes and definitions.

    Raises:
        psycopg.Error
    """
    return tuple(
        Relation(oid, schema, name, _KINDS[kind], (), (), (), 0, 0, -1, readable, whole=whole)
        for oid, schema, name, kind, readable, whole in _rows(
            connection, _NAMES, {"schemas": list(schemas)}
        )
    )


def relations(
    connection: Connection, schemas: Sequence[str], locked: Sequence[int] = ()
) -> tuple[Relation, ...]:
    """The relations of ``schemas``, sorted by schema and name; partitions belong to their parents.

    Needs no privileges beyond CONNECT; relations that the role may not read have ``readable``
    false. Sizes are exact for the oids in ``locked``, on which the transaction must hold a lock,
    and those of the last VACUUM or ANALYZE for the others.

    Raises:
        psycopg.Error
    """
    # Each statement of its own would see what others commit meanwhile, such as a new type.
    with one_snapshot(connection):
        return _relations(connection, schemas, locked)


def _relations(
    connection: Connection, schemas: Sequence[str], locked: Sequence[int]
) -> tuple[Relation, ...]:
    arguments = {"schemas": list(schemas), "locked": list(locked)}
    rows = _rows(connection, _RELATIONS, arguments)
    oids = {"oids": [row[0] for row in rows]}
    types = {row[0]: row[1:] for row in connection.execute(_TYPES, oids)}
    unique: dict[Any, list[_Unique]] = {}
    for row in _rows(connection, _UNIQUE, oids):
        unique.setdefault(row[0], []).append(_Unique(*row[1:]))
    attributes: dict[Any, list[Attribute]] = {}
    for oid, name, type_oid, typmod, declared, not_null, comment, number, granted in _rows(
        connection, _ATTRIBUTES, oids
    ):
        kind = _source_type(types, type_oid, typmod, declared)
        attributes.setdefault(oid, []).append(
            Attribute(name, kind, not_null, comment or "", number, granted)
        )
    views = [row[0] for row in rows if _KINDS[row[3]] == "view"]
    definition_of = definitions(connection, {row[0]: row[11] for row in rows}, views)
    return tuple(
        _relation(row, attributes.get(row[0], ()), unique.get(row[0], ()), definition_of[row[0]])
        for row in rows
    )


def _relation(
    row: Any,
    attributes: Sequence[Attribute],
    unique: Sequence[_Unique],
    definition: Definition,
) -> Relation:
    oid, schema, name, kind, heaps, toast, rows, page, readable, comment, *rest = row
    rewritten, parts, whole, system, secured, encoding, leaves = rest
    keys = [index for index in unique if not index.fault]
    deferrable = [tuple(index.columns) for index in keys if not index.immediate]
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
        definition={**definition, "parts": _digest(sorted(parts))},
        deferrable=deferrable[0] if deferrable else (),
        keyless="" if keys else faults,
        encoding=encoding,
        leaves=tuple(leaves),
    )


def _digest(oids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(oids).encode()).hexdigest()[:16]


TABLEOID = "tableoid"
# The attnum of this system column.
_TABLEOID = -6


def with_tableoid(relation: Relation) -> Relation:
    """The relation with tableoid as a column; unchanged where rows have no tableoid.

    tableoid is the oid of the table that contains the row: it distinguishes equal rows of a
    table and its inheritance children.
    """
    if relation.kind not in ("table", "partitioned", "materialized view", "foreign table"):
        return relation
    oid = SourceType("oid", -1, "oid")
    column = Attribute(TABLEOID, oid, True, number=_TABLEOID, readable=relation.whole)
    return replace(relation, attributes=(*relation.attributes, column))


def schemas(connection: Connection) -> tuple[str, ...]:
    """The names of all schemas except PostgreSQL's own."""
    query = """
        SELECT nspname FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%' ORDER BY 1
    """
    return tuple(str(row[0]) for row in connection.execute(query))


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments).fetchall()


def _source_type(types: Mapping[Any, Any], oid: int, typmod: int, declared: str) -> SourceType:
    name, typtype, base, base_typmod, element, delimiter = types[oid]
    domain = False
    while typtype == "d":
        # The modifier of a domain is that of its base type.
        domain, typmod = True, base_typmod
        name, typtype, base, base_typmod, element, _ = types[base]
    inner = _source_type(types, element, typmod, f"{declared} element") if element else None
    composite = typtype == "c"
    return SourceType(
        name, typmod, declared, inner, domain, composite, delimiter, enum=typtype == "e"
    )
