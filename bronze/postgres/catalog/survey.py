"""What a database looks like: how big its relations are, how they change, what is personal in them.

Of rows a small sample is looked at, and what leaves this module about their values is only the
kind of data that they look like. What counts as personal is a guess, for a person to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql

from bronze.model.stamp import Method
from bronze.postgres.catalog.pii import PersonalKind, kind_by_content, kind_by_name, words
from bronze.postgres.catalog.relations import Attribute, Relation, relations
from bronze.postgres.catalog.types import SourceType, output
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import quoted

Sign = Literal["name", "content"]

SMALL = 10 * 10**6
"""The bytes up to which reading all of a table is cheaper than knowing what changed in it."""

_HEAVY_SHARE = 0.2
_HEAVY_LEAST = 1_000

_SAMPLE_ROWS = 200
_SAMPLE_CHARACTERS = 1_000
_SAMPLE_PAGES = 5
_SAMPLED_TYPES = frozenset({"text", "varchar", "bpchar", "name", "json", "jsonb", "inet"})
# A view can be a long query, and a table can be locked: the survey waits for neither.
_PATIENCE = "SET LOCAL statement_timeout = '3s'; SET LOCAL lock_timeout = '1s'"

_MOMENTS = {"timestamptz": 0, "timestamp": 1, "date": 2}
_UPDATED = re.compile(
    r"(last)?(updat|modif|chang|edited|touched|mtime)"
    r"|geander|geaender|ander|aender|aktualis|actualiz|aggiorn|gewijz"
)
_CREATED = re.compile(
    r"creat|insert|added|registr|recorded|logged|occurred|ctime|erstell|angelegt|erfasst|cree|creado"
)
_FUTURE = frozenset({"next", "due", "planned", "expected", "scheduled"})
_PLAIN = frozenset(
    {"at", "on", "in", "date", "time", "datetime", "timestamp", "ts", "dt", "tz", "utc", "last"}
    | {"row", "record", "rec", "sys", "system", "when", "datum", "am", "um", "fecha", "de", "le"}
)


@dataclass(frozen=True)
class Cursor:
    """A column that seems to say when a row was written.

    ``sees`` is what it moves with: ``updates`` (and new rows), or new rows alone (``inserts``).
    ``whole`` is false for a name that speaks of a part of the row, such as price_changed_at.
    """

    column: str
    sees: Literal["updates", "inserts"]
    whole: bool
    not_null: bool
    indexed: bool


@dataclass(frozen=True)
class Personal:
    """A column that seems to hold personal data, and what speaks for it."""

    column: str
    kind: PersonalKind
    signs: tuple[Sign, ...]


@dataclass(frozen=True)
class Activity:
    """Rows written since PostgreSQL's statistics began, partitions included."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Survey:
    """One relation.

    ``rows`` is an estimate (-1: unknown), ``size`` the bytes of heap and TOAST, ``cursors`` are
    the likely ones, best first, ``sampled`` says whether rows could be looked at, ``extension``
    names the extension that it belongs to ("": none), ``hot`` says that its rows change much.
    ``pattern`` is the proposed one, ``cursor`` the column that it goes by ("": none) and
    ``reason`` why, as part of a sentence.
    """

    relation: Relation
    rows: int
    size: int
    cursors: tuple[Cursor, ...]
    personal: tuple[Personal, ...]
    sampled: bool
    activity: Activity
    extension: str
    hot: bool
    pattern: Method
    cursor: str
    reason: str


_ACTIVITY = """
WITH RECURSIVE tree(root, oid) AS (
    SELECT o, o FROM unnest(%(oids)s::oid[]) AS o
  UNION
    SELECT tree.root, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT tree.root::int8, coalesce(sum(s.n_live_tup), 0)::int8, coalesce(sum(s.n_tup_ins), 0)::int8,
       coalesce(sum(s.n_tup_upd), 0)::int8, coalesce(sum(s.n_tup_del), 0)::int8
FROM tree JOIN pg_stat_user_tables s ON s.relid = tree.oid
GROUP BY tree.root
"""

_INDEXED = """
SELECT i.indrelid::int8, array_agg(DISTINCT a.attname::text)
FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = ANY(%(oids)s::oid[]) AND i.indisvalid AND i.indpred IS NULL
GROUP BY i.indrelid
"""

_EXTENSIONS = """
SELECT d.objid::int8, e.extname::text
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
  AND d.deptype = 'e' AND d.objid = ANY(%(oids)s::oid[])
"""


def sized(connection: Connection, schemas: Sequence[str]) -> tuple[Relation, ...]:
    """The relations of ``schemas`` with their true sizes, or those of their last VACUUM.

    The true sizes take a lock on each, which may be somebody else's for long.
    """
    found = relations(connection, schemas)
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '1s'")
            return relations(connection, schemas, [relation.oid for relation in found])
    except psycopg.errors.LockNotAvailable:
        return found


def look(connection: Connection, relations: Sequence[Relation]) -> tuple[Survey, ...]:
    """A survey of each relation, in their order.

    Up to 200 rows of each are looked at, in a read-only transaction of a few seconds at most; a
    relation that does not answer in that time, or not at all, is surveyed without.

    Args:
        connection: in autocommit mode, as `bronze.postgres.connection.connect.connect` makes them.
        relations: from `bronze.postgres.catalog.relations.relations`.

    Raises:
        psycopg.Error: the connection failed.
    """
    oids = {"oids": [relation.oid for relation in relations]}
    activity = {row[0]: row[1:] for row in _rows(connection, _ACTIVITY, oids)}
    indexed = dict(_rows(connection, _INDEXED, oids))
    extensions = dict(_rows(connection, _EXTENSIONS, oids))
    return tuple(
        _survey(
            connection,
            relation,
            activity.get(relation.oid, (0, 0, 0, 0)),
            frozenset(indexed.get(relation.oid, ())),
            extensions.get(relation.oid, ""),
        )
        for relation in relations
    )


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments).fetchall()


def _survey(
    connection: Connection,
    relation: Relation,
    counts: tuple[int, int, int, int],
    indexed: frozenset[str],
    extension: str,
) -> Survey:
    activity = Activity(*counts[1:])
    rows = _estimate(relation, counts[0])
    size = sum(relation.heaps) * relation.page + relation.toast
    cursors = _cursors(relation, indexed)
    sample = None if extension else _sample(connection, relation, rows)
    hot = _is_hot(activity, rows)
    pattern, cursor, reason = _pattern(relation, size, activity, cursors, hot)
    return Survey(
        relation=relation,
        rows=rows,
        size=size,
        cursors=cursors,
        personal=_personal(relation, sample or {}),
        sampled=sample is not None,
        activity=activity,
        extension=extension,
        hot=hot,
        pattern=pattern,
        cursor=cursor,
        reason=reason,
    )


def _estimate(relation: Relation, live: int) -> int:
    if relation.rows > 0:
        return relation.rows
    if live > 0:
        return live
    empty = relation.kind in ("table", "partitioned") and not sum(relation.heaps)
    return 0 if empty else -1


def _is_hot(activity: Activity, rows: int) -> bool:
    changes = activity.updated + activity.deleted
    return changes >= max(_HEAVY_LEAST, _HEAVY_SHARE * rows)


def _cursors(relation: Relation, indexed: frozenset[str]) -> tuple[Cursor, ...]:
    found = []
    for place, attribute in enumerate(relation.attributes):
        moment = _MOMENTS.get(attribute.type.name)
        cursor = _cursor(relation, attribute, attribute.name in indexed)
        if moment is not None and cursor:
            later = (not cursor.whole, cursor.sees != "updates")
            rank = (*later, not cursor.not_null, not cursor.indexed, moment, place)
            found.append((rank, cursor))
    return tuple(cursor for _, cursor in sorted(found, key=lambda pair: pair[0]))


def _cursor(relation: Relation, attribute: Attribute, indexed: bool) -> Cursor | None:
    parts = words(attribute.name)
    for sees, pattern in (("updates", _UPDATED), ("inserts", _CREATED)):
        rest = [part for part in parts if not pattern.match(part)]
        if len(rest) < len(parts) and not _FUTURE.intersection(parts):
            own = {form for word in words(relation.name) for form in (word, word.removesuffix("s"))}
            whole = _PLAIN.union(own).issuperset(rest)
            return Cursor(attribute.name, sees, whole, attribute.not_null, indexed)  # type: ignore[arg-type]
    return None


def _pattern(
    relation: Relation,
    size: int,
    activity: Activity,
    cursors: Sequence[Cursor],
    hot: bool,
) -> tuple[Method, str, str]:
    """The proposed pattern, its cursor column, and the reason."""
    if relation.kind not in ("table", "partitioned"):
        return "full_refresh", "", f"a {relation.kind} has no key"
    if not relation.key:
        return "full_refresh", "", "it has no key"
    if size <= SMALL:
        return "full_refresh", "", "it is small"
    changes = activity.updated + activity.deleted
    # A stream cannot tell rows apart by a deferrable key.
    if hot and not relation.deferrable:
        return "streaming", "", f"{changes:,} updates and deletes were counted"
    best = next((cursor for cursor in cursors if cursor.whole), None)
    if best is None:
        return "full_refresh", "", "no column says when a row was written"
    if best.sees == "updates":
        pattern: Method = "micro_batch" if changes else "batch"
        return pattern, best.column, f"it says which rows are new or changed{_doubts(best)}"
    if changes:
        return "full_refresh", "", "rows are changed too, and a column says only which are new"
    return "batch", best.column, f"only inserts were counted; it says which are new{_doubts(best)}"


def _doubts(cursor: Cursor) -> str:
    found = [] if cursor.not_null else ["may be NULL"]
    found += [] if cursor.indexed else ["is not indexed"]
    return f", but {' and '.join(found)}" if found else ""


def by_names(relation: Relation) -> tuple[Personal, ...]:
    """The columns of a relation whose names alone say that they hold personal data."""
    return _personal(relation, {})


def _personal(relation: Relation, sample: Mapping[str, Sequence[str]]) -> tuple[Personal, ...]:
    found = []
    for attribute in relation.attributes:
        base = _base(attribute).name
        named = kind_by_name(relation.name, attribute.name, base)
        seen = kind_by_content(sample.get(attribute.name, ()))
        kind = named or seen
        if kind:
            signs: dict[Sign, object] = {"name": named, "content": seen}
            spoken = tuple(sign for sign, there in signs.items() if there)
            found.append(Personal(attribute.name, kind, spoken))
    return tuple(found)


def _base(attribute: Attribute) -> SourceType:
    return attribute.type.element or attribute.type


def _sample(connection: Connection, relation: Relation, rows: int) -> dict[str, list[str]] | None:
    """Values of the columns that can be looked at, None when the relation does not answer."""
    names = [a.name for a in relation.attributes if a.readable and _is_sampled(_base(a).name)]
    if not relation.readable:
        return None
    if not names:
        return {}
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute(_PATIENCE)
            share = _share(relation, rows)
            found = _fetch(connection, relation, names, share)
            if share and not found:
                found = _fetch(connection, relation, names, "")
    except psycopg.Error:
        if connection.closed:
            raise
        return None
    return {name: [row[i] for row in found if row[i] is not None] for i, name in enumerate(names)}


def _is_sampled(name: str) -> bool:
    return name in _SAMPLED_TYPES or name.endswith(".citext")


def _share(relation: Relation, rows: int) -> str:
    """The TABLESAMPLE clause that yields about twice the rows wanted; "" where all are few."""
    pages = sum(relation.heaps)
    if relation.kind in ("view", "foreign table") or pages <= _SAMPLE_PAGES:
        return ""
    by_rows = 2 * _SAMPLE_ROWS / rows if rows > 0 else 0
    percent = 100 * min(1, max(by_rows, _SAMPLE_PAGES / pages))
    return f" TABLESAMPLE SYSTEM ({percent:.6f})"


def _fetch(
    connection: Connection, relation: Relation, names: Sequence[str], share: str
) -> list[Any]:
    values = [f"left({output(quoted(name))}, {_SAMPLE_CHARACTERS})" for name in names]
    name = quoted(relation.schema, relation.name)
    query = f"SELECT {', '.join(values)} FROM {name}{share} LIMIT {_SAMPLE_ROWS}"  # noqa: S608
    return connection.execute(sql.SQL(query)).fetchall()
