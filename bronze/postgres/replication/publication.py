"""The publication, which names the tables whose changes are streamed.

The server looks a publication up as it was at the position that it decodes: one that is made, or
gets a table, after the slot was made lacks the changes before, and nothing says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import errors as pg
from psycopg import sql

from bronze.errors import SourceBusy, SourceRefused, TableRefused
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import quoted

GENERATED = 180000
"""The version from which on stored generated columns can be published."""

_SCHEMAS = 150000
_PUBLISH = "insert, update, delete, truncate"
_ATTEMPTS = 5


@dataclass(frozen=True)
class _Index:
    """An index that PostgreSQL takes for a replica identity."""

    name: str
    primary: bool
    chosen: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A table that holds rows, or the root of some. ``virtual`` and ``stored`` are generated."""

    label: str
    name: str
    kind: str
    persistence: str
    replica: str
    owned: bool
    columns: tuple[str, ...]
    virtual: frozenset[str]
    stored: frozenset[str]
    indexes: tuple[_Index, ...]

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns whose old values are in the log with an update or a delete."""
        if self.replica == "f":
            return self.columns
        named = (i.columns for i in self.indexes if (i.primary, i.chosen)[self.replica == "i"])
        return () if self.replica == "n" else next(named, ())


@dataclass(frozen=True)
class Published:
    """A publication as it is. ``filtered`` and ``attributes`` are those of its tables, by oid."""

    oid: int
    owned: bool
    everything: bool
    publishes: bool
    by_root: bool
    generated: bool
    listed: frozenset[int]
    filtered: frozenset[int]
    attributes: Mapping[int, frozenset[str]]


Parts = Mapping[int, Part]


def publish(connection: Connection, publication: str, relations: Sequence[Relation]) -> None:
    """Makes the publication; or adds the tables and sets the options that it lacks.

    Takes nothing out of one that is there. Others may make or change the same one meanwhile.

    Args:
        connection: in autocommit mode.
        publication: its name.
        relations: tables and partitioned tables.

    Raises:
        SourceRefused: the role may not; the hint is the SQL for one who may.
        SourceBusy: others kept changing the publication.
        TableRefused: a table is gone.
        psycopg.Error: a table is locked, or the connection was cut.
    """
    for _ in range(_ATTEMPTS):
        parts = parts_of(connection, relations)
        _refuse_gone(relations, parts)
        published = find(connection, publication)
        version = connection.info.server_version
        todo = mending(publication, published, relations, parts, version)
        try:
            with connection.transaction():
                for statement in todo:
                    connection.execute(sql.SQL(statement))
        except (pg.DuplicateObject, pg.UniqueViolation, pg.UndefinedObject, pg.InternalError):
            # Somebody was faster ("tuple concurrently updated" is an InternalError).
            continue
        except pg.InsufficientPrivilege as error:
            raise SourceRefused(
                f"Publication {publication} cannot be made or changed: permission denied.",
                hint=f"Have somebody who may run this: {'; '.join(todo)}",
                sqlstate=error.sqlstate or "",
            ) from error
        return
    raise SourceBusy(
        f"Publication {publication} is being changed by somebody else all the time.",
        hint="Run again when they are done.",
    )


def _refuse_gone(relations: Sequence[Relation], parts: Parts) -> None:
    for relation in relations:
        if relation.oid not in parts:
            raise TableRefused(
                f"Table {relation.label} cannot be published: it does not exist any more.",
                hint="It was dropped; see `bronze check`.",
                table=relation.label,
            )


def unpublish(connection: Connection, publication: str) -> None:
    """Drops the publication, if it is there.

    Raises:
        SourceRefused: it belongs to another role.
        psycopg.Error
    """
    statement = f"DROP PUBLICATION IF EXISTS {quoted(publication)}"
    try:
        connection.execute(sql.SQL(statement))
    except pg.InsufficientPrivilege as error:
        raise SourceRefused(
            f"Publication {publication} cannot be dropped: permission denied.",
            hint=f"Have its owner run this: {statement}",
            sqlstate=error.sqlstate or "",
        ) from error


def carried(connection: Connection, relation: Relation, publication: str) -> frozenset[str]:
    """The names of the table's columns that a stream has, whatever a column list leaves out now.

    Virtual generated columns are never among them, stored ones only with PostgreSQL 18 and
    ``publish_generated_columns = stored``, or a column list that names them.

    Raises:
        psycopg.Error
    """
    part = parts_of(connection, [relation]).get(relation.oid)
    if part is None:
        return frozenset()
    published = find(connection, publication)
    listed = published.attributes.get(relation.oid, frozenset()) if published else frozenset()
    stored = connection.info.server_version >= GENERATED and (not published or published.generated)
    return (
        frozenset(part.columns) - part.virtual - (frozenset() if stored else part.stored - listed)
    )


def coverage(
    connection: Connection, publication: str, relations: Sequence[Relation]
) -> Mapping[int, str]:
    """By each table's oid a fingerprint of how the server's log and the publication tell of it.

    It is another one once the publication, the table's place in it, or a replica identity has been
    changed, though it be what it was by now: what was committed in between may never be sent.
    Tables that are not published have none.

    Raises:
        psycopg.Error
    """
    version = connection.info.server_version
    marks = dict(_rows(connection, _marks(version), {"name": publication}))
    parts = parts_of(connection, relations)
    found = {}
    for relation in relations:
        if relation.oid in marks and relation.oid in parts:
            known = sorted(
                (leaf.label, leaf.replica, leaf.identity) for leaf in leaves(relation, parts)
            )
            told = json.dumps([marks[relation.oid], known])
            found[relation.oid] = hashlib.sha256(told.encode()).hexdigest()[:16]
    return found


def identity(
    connection: Connection, relations: Sequence[Relation]
) -> Mapping[str, tuple[str, ...]]:
    """By each table's label the columns whose old values come with an update or a delete.

    All columns for REPLICA IDENTITY FULL, none for NOTHING or a DEFAULT without a primary key. For
    a partitioned table they are those that all its partitions have in common, for what is logged
    is up to each partition; that the stream calls an old row whole is up to the root alone.

    Raises:
        psycopg.Error
    """
    parts = parts_of(connection, relations)
    return {r.label: _common(r, parts) for r in relations if r.oid in parts}


def telling(
    connection: Connection, targets: Sequence[tuple[Relation, Sequence[str]]]
) -> Mapping[int, tuple[str, ...]]:
    """By each table's oid the columns by which a stream tells its rows apart at any moment.

    Args:
        connection: to the source.
        targets: the tables, each with the columns of its key.

    Raises:
        psycopg.Error
    """
    parts = parts_of(connection, [relation for relation, _ in targets])
    return {r.oid: apart(r, parts, key) for r, key in targets if r.oid in parts}


def apart(relation: Relation, parts: Parts, key: Sequence[str]) -> tuple[str, ...]:
    """The columns by which a stream tells a table's rows apart at any moment; none if it cannot.

    That is the key where PostgreSQL keeps it unique. Rows that may share a key, be it within a
    transaction alone, are known by the old rows that are logged: by unique columns in these, or
    by all columns (REPLICA IDENTITY FULL), for then rows that are alike are of equal worth.
    """
    if relation.enforces(key):
        return tuple(key)
    logged = _common(relation, parts)
    whole = all(leaf.replica == "f" for leaf in leaves(relation, parts))
    if set(key) <= set(logged) and (whole or relation.enforces(logged)):
        return logged
    return ()


_PARTS = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, pg_has_role(c.relowner, 'USAGE'), a.columns, a.virtual, a.stored
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}') AS columns,
           coalesce(array_agg(attname::text) FILTER (WHERE attgenerated = 'v'), '{}') AS virtual,
           coalesce(array_agg(attname::text) FILTER (WHERE attgenerated = 's'), '{}') AS stored
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
) a
WHERE c.oid = ANY(%(oids)s::oid[])
"""


# What PostgreSQL takes for a replica identity: no other index counts, even if it was chosen once.
_INDEXES = """
SELECT i.indrelid::int8, c.relname, i.indisprimary, i.indisreplident, k.columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY u.o) AS columns, bool_and(a.attnotnull) AS filled
    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(attnum, o)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
    WHERE u.o <= i.indnkeyatts
) k
WHERE i.indrelid = ANY(%(oids)s::oid[]) AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL AND k.filled
ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, c.relname
"""


def parts_of(connection: Connection, relations: Sequence[Relation]) -> Parts:
    """The tables, their partitions and heirs, by oid; what is gone is left out."""
    oids = {"oids": sorted({oid for r in relations for oid in (r.oid, *r.parts)})}
    indexes: dict[Any, list[_Index]] = {}
    for oid, name, primary, chosen, columns in _rows(connection, _INDEXES, oids):
        indexes.setdefault(oid, []).append(_Index(name, primary, chosen, tuple(columns)))
    found = (_part(row, indexes.get(row[0], [])) for row in _rows(connection, _PARTS, oids))
    return dict(found)


def _part(row: Any, indexes: Sequence[_Index]) -> tuple[int, Part]:
    oid, schema, name, kind, persistence, replica, owned, columns, virtual, stored = row
    return oid, Part(
        label=f"{schema}.{name}",
        name=quoted(schema, name),
        kind=kind,
        persistence=persistence,
        replica=replica,
        owned=owned,
        columns=tuple(columns),
        virtual=frozenset(virtual),
        stored=frozenset(stored),
        indexes=tuple(indexes),
    )


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments).fetchall()


def leaves(relation: Relation, parts: Parts) -> list[Part]:
    """The parts whose changes are logged; the table itself where it has none."""
    inner = [parts[oid] for oid in relation.parts if oid in parts and parts[oid].kind != "p"]
    return inner or [parts[relation.oid]]


def _common(relation: Relation, parts: Parts) -> tuple[str, ...]:
    first, *others = (leaf.identity for leaf in leaves(relation, parts))
    return tuple(column for column in first if all(column in other for other in others))


# Newer servers know more columns: by way of JSON those that are missing are NULL.
_PUBLICATION = """
SELECT p.oid::int8, pg_has_role(p.pubowner, 'USAGE'), p.puballtables,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
       coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
FROM pg_publication p WHERE p.pubname = %(name)s
"""


# 14 names no columns, and 15 generated ones too, which no server before 18 sends.
_MEMBERS = """
SELECT c.oid::int8, to_jsonb(t) ->> 'rowfilter' IS NOT NULL, ARRAY(
    SELECT attname::text FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
      AND (attgenerated = '' OR %(generated)s)
      AND coalesce(to_jsonb(t) -> 'attnames' ? attname::text, true))
FROM pg_publication_tables t
JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %(name)s
"""


def _marks(version: int) -> str:
    """The query for the rows of the catalog that put tables into a publication.

    Options that are changed and changed back leave another xmin; a table that is taken out and put
    in again has another row.
    """
    schemas = "pg_publication_namespace"
    if version < _SCHEMAS:
        schemas = "(SELECT NULL::oid oid, NULL::oid pnpubid, NULL::oid pnnspid, NULL::xid xmin)"
    return f"""
    SELECT c.oid::int8, concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin, n.oid, n.xmin)
    FROM pg_publication p CROSS JOIN pg_class c
    LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
    LEFT JOIN {schemas} n ON n.pnpubid = p.oid AND n.pnnspid = c.relnamespace
    WHERE p.pubname = %(name)s AND c.relkind IN ('r', 'p')
      AND (p.puballtables OR r.oid IS NOT NULL OR n.oid IS NOT NULL)
    """  # noqa: S608 - no word of it is from outside


def find(connection: Connection, publication: str) -> Published | None:
    """The publication as it is, None where it is not there.

    Raises:
        psycopg.Error
    """
    found = _rows(connection, _PUBLICATION, {"name": publication})
    if not found:
        return None
    oid, owned, everything, publishes, by_root, generated = found[0]
    version = connection.info.server_version
    wanted = {"name": publication, "generated": version >= GENERATED}
    try:
        # One's own transaction, if there is one, goes on.
        with connection.transaction():
            members = _rows(connection, _MEMBERS, wanted)
    except pg.UndefinedObject:
        # It is dropped just now: the view shows it still, and asks for what it has.
        return None
    marks = _rows(connection, _marks(version), {"name": publication})
    return Published(
        oid=oid,
        owned=owned,
        everything=everything,
        publishes=publishes,
        by_root=by_root,
        generated=generated,
        # Where changes keep their partitions' names, a root is not among the members.
        listed=frozenset(row[0] for row in (*members, *marks)),
        filtered=frozenset(row[0] for row in members if row[1]),
        attributes={row[0]: frozenset(row[2]) for row in members},
    )


def number(connection: Connection, publication: str) -> int | None:
    """The publication's oid, None where it is not there.

    Raises:
        psycopg.Error
    """
    found = _rows(connection, _PUBLICATION, {"name": publication})
    return found[0][0] if found else None


def mending(
    publication: str,
    published: Published | None,
    relations: Sequence[Relation],
    parts: Parts,
    version: int,
) -> list[str]:
    """The statements that make the publication what it should be."""
    name = quoted(publication)
    if published is None:
        options = ["publish_via_partition_root = true"]
        options += ["publish_generated_columns = stored"] if version >= GENERATED else []
        tables = f" FOR TABLE {_tables(relations, parts)}" if relations else ""
        return [f"CREATE PUBLICATION {name}{tables} WITH ({', '.join(options)})"]
    lacking = _options(published, relations, parts, version)
    missing = [r for r in relations if not published.everything and r.oid not in published.listed]
    todo = [f"ALTER PUBLICATION {name} SET ({', '.join(lacking)})"] if lacking else []
    if missing:
        todo.append(f"ALTER PUBLICATION {name} ADD TABLE {_tables(missing, parts)}")
    return todo


def _options(
    published: Published, relations: Sequence[Relation], parts: Parts, version: int
) -> list[str]:
    lacking = []
    if not published.publishes:
        lacking.append(f"publish = '{_PUBLISH}'")
    if not published.by_root and any(r.kind == "partitioned" for r in relations):
        lacking.append("publish_via_partition_root = true")
    unlisted = (
        parts[r.oid].stored - published.attributes.get(r.oid, frozenset()) for r in relations
    )
    if version >= GENERATED and not published.generated and any(unlisted):
        lacking.append("publish_generated_columns = stored")
    return lacking


def _tables(relations: Sequence[Relation], parts: Parts) -> str:
    # Without ONLY a table's heirs would come along.
    return ", ".join(f"ONLY {parts[r.oid].name}" for r in relations)
