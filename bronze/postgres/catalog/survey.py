"""A survey of the source: size, activity, cursor columns and personal data of each relation.

Personal data is detected by the names of columns and in a small sample of rows. Sampled values do
not leave this package, only the kind of data that they seem to be: a guess, for a person to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from bronze.model.stamp import IngestionMethod
from bronze.postgres.catalog import samples
from bronze.postgres.catalog.pii import PersonalKind, kind_by_content, kind_by_name, words
from bronze.postgres.catalog.relations import Attribute, Relation, relations
from bronze.postgres.catalog.samples import Sample
from bronze.postgres.connection.connect import Connection

Sign = Literal["name", "content"]

SMALL_BYTES = 10 * 10**6
"""The bytes up to which a full refresh of a table is cheaper than finding its changes."""

_HOT_SHARE = 0.2
_HOT_CHANGES = 1_000

_TIME_TYPES = {"timestamptz": 0, "timestamp": 1, "date": 2}
_UPDATED = re.compile(
    r"(last)?(updat|modif|chang|edited|touched|mtime)"
    r"|geander|geaender|ander|aender|aktualis|actualiz|aggiorn|gewijz"
)
_CREATED = re.compile(
    r"creat|insert|added|registr|recorded|logged|occurred|ctime|erstell|angelegt|erfasst|cree|creado"
)
_FUTURE = frozenset({"next", "due", "planned", "expected", "scheduled"})
_NEUTRAL = frozenset(
    {"at", "on", "in", "date", "time", "datetime", "timestamp", "ts", "dt", "tz", "utc", "last"}
    | {"row", "record", "rec", "sys", "system", "when", "datum", "am", "um", "fecha", "de", "le"}
)


@dataclass(frozen=True)
class Cursor:
    """A column that seems to contain the time at which a row was written.

    ``sees`` is ``updates`` if it changes with updates and inserts, ``inserts`` if with inserts
    alone. ``whole`` is false for a name about a part of the row, such as price_changed_at.
    """

    column: str
    sees: Literal["updates", "inserts"]
    whole: bool
    not_null: bool
    indexed: bool


@dataclass(frozen=True)
class Personal:
    """A column that seems to contain personal data; ``signs`` are the evidence."""

    column: str
    kind: PersonalKind
    signs: tuple[Sign, ...]


@dataclass(frozen=True)
class Activity:
    """Rows written since PostgreSQL's statistics were reset, partitions included."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Survey:
    """The survey of one relation.

    ``rows`` is an estimate (-1: unknown), ``size`` the bytes of heap and TOAST, ``cursors`` are
    the likely cursor columns, best first, ``sampled`` says whether a sample of rows was read,
    ``extension`` is the extension that owns the relation ("": none), ``hot`` says that many of its
    rows are updated or deleted. ``pattern`` is the proposed load pattern, ``cursor`` its cursor
    column ("": none) and ``reason`` why it is proposed, as a clause.
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
    pattern: IngestionMethod
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


def relations_with_sizes(connection: Connection, schemas: Sequence[str]) -> tuple[Relation, ...]:
    """The relations of ``schemas`` with exact sizes, or with those of their last VACUUM.

    Exact sizes take a lock on each relation: without it after a second, the estimates are used.

    Raises:
        psycopg.Error
    """
    estimated = relations(connection, schemas)
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '1s'")
            return relations(connection, schemas, [relation.oid for relation in estimated])
    except psycopg.errors.LockNotAvailable:
        return estimated


def survey_relations(connection: Connection, relations: Sequence[Relation]) -> tuple[Survey, ...]:
    """Surveys relations, in their order.

    Samples up to 200 rows of each, of several at once, in read-only transactions of a few seconds
    at most. A relation that cannot be read in that time is surveyed without a sample.

    Args:
        connection: in autocommit mode, from `bronze.postgres.connection.connect.connect`.
        relations: from `bronze.postgres.catalog.relations.relations`.

    Raises:
        psycopg.Error: the connection failed.
    """
    oids = {"oids": [relation.oid for relation in relations]}
    activity = {row[0]: row[1:] for row in _rows(connection, _ACTIVITY, oids)}
    indexed = dict(_rows(connection, _INDEXED, oids))
    extensions = dict(_rows(connection, _EXTENSIONS, oids))
    counts = {r.oid: activity.get(r.oid, (0, 0, 0, 0)) for r in relations}
    sampled = [(r, _estimate(r, counts[r.oid][0])) for r in relations if r.oid not in extensions]
    sample_of = samples.samples(connection, sampled)
    return tuple(
        _survey(
            relation,
            counts[relation.oid],
            frozenset(indexed.get(relation.oid, ())),
            extensions.get(relation.oid, ""),
            sample_of.get(relation.oid),
        )
        for relation in relations
    )


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments).fetchall()


def _survey(
    relation: Relation,
    counts: tuple[int, int, int, int],
    indexed: frozenset[str],
    extension: str,
    sample: Sample | None,
) -> Survey:
    activity = Activity(*counts[1:])
    rows = _estimate(relation, counts[0])
    size = sum(relation.heaps) * relation.page + relation.toast
    cursors = _cursors(relation, indexed)
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
    return changes >= max(_HOT_CHANGES, _HOT_SHARE * rows)


def _cursors(relation: Relation, indexed: frozenset[str]) -> tuple[Cursor, ...]:
    ranked = []
    for place, attribute in enumerate(relation.attributes):
        type_rank = _TIME_TYPES.get(attribute.type.name)
        cursor = _cursor(relation, attribute, attribute.name in indexed)
        if type_rank is not None and cursor:
            meaning = (not cursor.whole, cursor.sees != "updates")
            rank = (*meaning, not cursor.not_null, not cursor.indexed, type_rank, place)
            ranked.append((rank, cursor))
    return tuple(cursor for _, cursor in sorted(ranked, key=lambda pair: pair[0]))


def _cursor(relation: Relation, attribute: Attribute, indexed: bool) -> Cursor | None:
    parts = words(attribute.name)
    for sees, pattern in (("updates", _UPDATED), ("inserts", _CREATED)):
        rest = [part for part in parts if not pattern.match(part)]
        if len(rest) < len(parts) and not _FUTURE.intersection(parts):
            table_words = {
                form for word in words(relation.name) for form in (word, word.removesuffix("s"))
            }
            whole = _NEUTRAL.union(table_words).issuperset(rest)
            return Cursor(attribute.name, sees, whole, attribute.not_null, indexed)  # type: ignore[arg-type]
    return None


def _pattern(
    relation: Relation,
    size: int,
    activity: Activity,
    cursors: Sequence[Cursor],
    hot: bool,
) -> tuple[IngestionMethod, str, str]:
    """The proposed load pattern, its cursor column ("": none), and the reason as a clause."""
    if relation.kind not in ("table", "partitioned"):
        return "full_refresh", "", f"a {relation.kind} has no key"
    if not relation.key:
        return "full_refresh", "", "it has no key"
    if size <= SMALL_BYTES:
        return "full_refresh", "", "it is small"
    changes = activity.updated + activity.deleted
    # A deferrable key does not identify rows within a transaction, as a stream needs.
    if hot and not relation.deferrable:
        return "streaming", "", f"{changes:,} updates and deletes were counted"
    best = next((cursor for cursor in cursors if cursor.whole), None)
    if best is None:
        return "full_refresh", "", "no column shows when a row was written"
    if best.sees == "updates":
        pattern: IngestionMethod = "micro_batch" if changes else "batch"
        return pattern, best.column, f"it shows which rows are new or changed{_weaknesses(best)}"
    if changes:
        return (
            "full_refresh",
            "",
            "rows are updated or deleted, but no column shows which",
        )
    return (
        "batch",
        best.column,
        f"only inserts were counted; it shows which rows are new{_weaknesses(best)}",
    )


def _weaknesses(cursor: Cursor) -> str:
    weaknesses = [] if cursor.not_null else ["may be NULL"]
    weaknesses += [] if cursor.indexed else ["is not indexed"]
    return f", but {' and '.join(weaknesses)}" if weaknesses else ""


def personal_by_name(relation: Relation) -> tuple[Personal, ...]:
    """The columns of a relation that seem to contain personal data, by their names alone."""
    return _personal(relation, {})


def _personal(relation: Relation, sample: Sample) -> tuple[Personal, ...]:
    personal = []
    for attribute in relation.attributes:
        by_name = kind_by_name(relation.name, attribute.name, samples.element_type(attribute).name)
        by_content = kind_by_content(sample.get(attribute.name, ()))
        kinds: dict[Sign, PersonalKind | None] = {"name": by_name, "content": by_content}
        if kind := by_name or by_content:
            signs = tuple(sign for sign, found in kinds.items() if found)
            personal.append(Personal(attribute.name, kind, signs))
    return tuple(personal)
