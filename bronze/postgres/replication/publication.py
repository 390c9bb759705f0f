"""The publication, which lists the tables whose changes are streamed.

The server reads the publication as it was at the position that it decodes. For a publication that
was created, or got a table, after the slot, earlier changes are silently missing.
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
from bronze.model.locations import TableName
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import quoted

GENERATED_COLUMNS_VERSION = 180000
"""The first version that can publish stored generated columns."""

_SCHEMAS = 150000
# The catalog's own tables have lower oids.
_FIRST_NORMAL_OID = 16384
_PUBLISHED_CHANGES = "insert, update, delete, truncate"
_ATTEMPTS = 5


@dataclass(frozen=True)
class _Index:
    """An index that PostgreSQL accepts as replica identity."""

    name: str
    primary: bool
    chosen: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A table, a partition or an inheritance child.

    ``label`` is its name for messages, ``name`` the one for SQL. ``kind``, ``persistence`` and
    ``replica`` are relkind, relpersistence and relreplident of pg_class, ``owned`` says that the
    role owns it, ``virtual`` and ``stored`` are its generated columns, ``indexes`` those that can
    be its replica identity.
    """

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
        """The columns of its replica identity: their old values are logged."""
        if self.replica == "f":
            return self.columns
        identities = (i.columns for i in self.indexes if (i.primary, i.chosen)[self.replica == "i"])
        return () if self.replica == "n" else next(identities, ())


@dataclass(frozen=True)
class Published:
    """A publication.

    ``owned`` says that the role owns it, ``everything`` that it is FOR ALL TABLES, ``publishes``
    that it publishes all kinds of changes; ``by_root`` and ``generated`` are its options for
    partitions and generated columns. By oid: ``listed`` are its tables, ``filtered`` those with a
    WHERE, ``attributes`` the published columns of each.
    """

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
    """Creates the publication, or adds the missing tables and options to an existing one.

    Removes nothing from it. Other sessions may create or change it at the same time.

    Args:
        connection: in autocommit mode.
        publication: its name.
        relations: tables and partitioned tables.

    Raises:
        SourceRefused: the role does not have the privileges; the hint is the SQL to run.
        SourceBusy: other sessions kept changing the publication.
        TableRefused: a table was dropped.
        psycopg.Error: a table is locked, or the connection was lost.
    """
    for _ in range(_ATTEMPTS):
        parts = parts_of(connection, relations)
        _refuse_gone(relations, parts)
        published = find(connection, publication)
        version = connection.info.server_version
        statements = publishing_statements(publication, published, relations, parts, version)
        try:
            with connection.transaction():
                for statement in statements:
                    connection.execute(sql.SQL(statement))
        except (pg.DuplicateObject, pg.UniqueViolation, pg.UndefinedObject, pg.InternalError):
            # Another session was faster ("tuple concurrently updated" is an InternalError).
            continue
        except pg.InsufficientPrivilege as error:
            raise SourceRefused(
                f"Publication {publication} cannot be created or changed: permission denied.",
                hint=f"Ask the owner or a superuser to run: {'; '.join(statements)}",
                sqlstate=error.sqlstate or "",
            ) from error
        return
    raise SourceBusy(
        f"Publication {publication} is being changed by other sessions all the time.",
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
    """Drops the publication, if it exists.

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
            hint=f"Ask its owner to run: {statement}",
            sqlstate=error.sqlstate or "",
        ) from error


def streamed_columns(
    connection: Connection, relations: Sequence[Relation], publication: str
) -> Mapping[int, frozenset[str]]:
    """By each table's oid the columns that a stream can contain; a column list's omissions are
    ignored. Tables that were dropped are not among them.

    Virtual generated columns are never among them; stored ones only from PostgreSQL 18 on, with
    ``publish_generated_columns = stored`` or a column list that names them.

    Raises:
        psycopg.Error
    """
    parts = parts_of(connection, relations)
    published = find(connection, publication)
    stored = connection.info.server_version >= GENERATED_COLUMNS_VERSION and (
        not published or published.generated
    )
    columns = {}
    for oid in (relation.oid for relation in relations if relation.oid in parts):
        part = parts[oid]
        listed = published.attributes.get(oid, frozenset()) if published else frozenset()
        unsent = part.virtual if stored else part.virtual | (part.stored - listed)
        columns[oid] = frozenset(part.columns) - unsent
    return columns


def fingerprints_of(
    connection: Connection, publication: str, relations: Sequence[Relation]
) -> Mapping[int, str]:
    """By each table's oid a fingerprint of its publication and replica identity.

    It changes with the publication, the table's membership or a replica identity, even if they
    were changed back since: changes committed in between may never be sent. Tables that are not
    published have no fingerprint.

    Raises:
        psycopg.Error
    """
    version = connection.info.server_version
    version_marks = dict(_rows(connection, _version_marks(version), {"name": publication}))
    parts = parts_of(connection, relations)
    fingerprints = {}
    for relation in relations:
        if relation.oid in version_marks and relation.oid in parts:
            identities = sorted(
                (leaf.label, leaf.replica, leaf.identity) for leaf in leaves(relation, parts)
            )
            text = json.dumps([version_marks[relation.oid], identities])
            fingerprints[relation.oid] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return fingerprints


def replica_identities(
    connection: Connection, relations: Sequence[Relation]
) -> Mapping[str, tuple[str, ...]]:
    """The columns of each table's replica identity, by its label.

    All columns for REPLICA IDENTITY FULL, none for NOTHING or a DEFAULT without a primary key. For
    a partitioned table, those that the replica identities of all its partitions contain: each
    partition logs by its own. (Whether the stream marks old rows as full depends on the root.)

    Raises:
        psycopg.Error
    """
    parts = parts_of(connection, relations)
    return {r.label: _common_identity(r, parts) for r in relations if r.oid in parts}


def identifying_columns_by_table(
    connection: Connection, targets: Sequence[tuple[Relation, Sequence[str]]]
) -> Mapping[int, tuple[str, ...]]:
    """By each table's oid the columns by which a stream identifies its rows (see
    `identifying_columns`).

    Args:
        connection: to the source.
        targets: the tables, each with the columns of its key.

    Raises:
        psycopg.Error
    """
    parts = parts_of(connection, [relation for relation, _ in targets])
    return {r.oid: identifying_columns(r, parts, key) for r, key in targets if r.oid in parts}


def identifying_columns(relation: Relation, parts: Parts, key: Sequence[str]) -> tuple[str, ...]:
    """The columns by which a stream identifies a table's rows at any moment; () if it cannot.

    That is the key, if PostgreSQL enforces that it is unique. If rows may have equal keys, even
    within a transaction only, it is the replica identity: one that is unique, or all columns
    (REPLICA IDENTITY FULL), as equal rows are interchangeable.
    """
    if relation.enforces(key):
        return tuple(key)
    logged = _common_identity(relation, parts)
    full = all(leaf.replica == "f" for leaf in leaves(relation, parts))
    if set(key) <= set(logged) and (full or relation.enforces(logged)):
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


# The indexes that PostgreSQL accepts as replica identity. An index that no longer qualifies is not
# used, even if it was chosen.
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
    """The tables, their partitions and inheritance children by oid, without dropped ones."""
    oids = {"oids": sorted({oid for r in relations for oid in (r.oid, *r.parts)})}
    indexes: dict[Any, list[_Index]] = {}
    for oid, name, primary, chosen, columns in _rows(connection, _INDEXES, oids):
        indexes.setdefault(oid, []).append(_Index(name, primary, chosen, tuple(columns)))
    return dict(_part(row, indexes.get(row[0], [])) for row in _rows(connection, _PARTS, oids))


def _part(row: Any, indexes: Sequence[_Index]) -> tuple[int, Part]:
    oid, schema, name, kind, persistence, replica, owned, columns, virtual, stored = row
    return oid, Part(
        label=TableName(schema, name).label,
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
    """The parts whose changes are logged: the partitions, or else the table itself."""
    members = [parts[oid] for oid in relation.parts if oid in parts and parts[oid].kind != "p"]
    return members or [parts[relation.oid]]


def _common_identity(relation: Relation, parts: Parts) -> tuple[str, ...]:
    first, *others = (leaf.identity for leaf in leaves(relation, parts))
    return tuple(column for column in first if all(column in other for other in others))


# Older servers lack some columns: read through JSON, a missing column is NULL.
_PUBLICATION = """
SELECT p.oid::int8, pg_has_role(p.pubowner, 'USAGE'), p.puballtables,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
       coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
FROM pg_publication p WHERE p.pubname = %(name)s
"""


def _members(version: int) -> str:
    """The query for the tables that a publication has: its lists of columns and filters of rows.

    It has the rows of the view pg_publication_tables, which itself waits for locks on the tables.
    Without publish_via_partition_root these are partitions, not their root. A server before 18
    sends no generated columns.
    """
    schemas = "SELECT NULL::oid, NULL::oid WHERE false"
    options = "NULL::int2vector AS prattrs, NULL::pg_node_tree AS prqual"
    if version >= _SCHEMAS:
        schemas = "SELECT pnpubid, pnnspid FROM pg_publication_namespace"
        options = "prattrs, prqual"
    listed = "a.attnum = ANY(r.prattrs)"
    if version < GENERATED_COLUMNS_VERSION:
        listed += " AND a.attgenerated = ''"
    return f"""
    WITH RECURSIVE own AS (
        SELECT p.oid, p.puballtables, p.pubviaroot,
               coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) AS generated
        FROM pg_publication p WHERE p.pubname = %(name)s
    ), schemas(publication, schema) AS ({schemas}
    ), named AS (
        SELECT r.prrelid AS oid FROM own JOIN pg_publication_rel r ON r.prpubid = own.oid
        UNION SELECT c.oid FROM own JOIN pg_class c ON c.relkind IN ('r', 'p')
            AND c.relpersistence = 'p' AND c.oid >= {_FIRST_NORMAL_OID}
        WHERE own.puballtables OR c.relnamespace IN (
            SELECT schema FROM schemas WHERE publication = own.oid)
    ), below AS (
        SELECT oid AS root, oid FROM named
        UNION SELECT b.root, i.inhrelid FROM below b
        JOIN pg_class c ON c.oid = b.oid AND c.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = b.oid
    ), members AS (
        SELECT DISTINCT b.oid, own.oid AS publication, own.generated
        FROM own, below b JOIN pg_class k ON k.oid = b.oid
        WHERE CASE WHEN own.pubviaroot
            THEN NOT EXISTS (SELECT FROM below o WHERE o.oid = b.oid AND o.root <> o.oid)
            ELSE k.relkind <> 'p' END
    )
    SELECT c.oid::int8, r.prqual IS NOT NULL, ARRAY(
        SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND CASE WHEN r.prattrs IS NOT NULL THEN {listed}
              ELSE a.attgenerated = '' OR (c.generated AND a.attgenerated = 's') END)
    FROM members c LEFT JOIN (SELECT prpubid, prrelid, {options} FROM pg_publication_rel) r
        ON r.prpubid = c.publication AND r.prrelid = c.oid
    """  # noqa: S608 - made of constants


def _version_marks(version: int) -> str:
    """The query for a version mark of each table's membership in a publication.

    The mark consists of oids and xmins of catalog rows: options that are changed and changed back
    have another xmin, a table that is dropped and added again has another row.
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
    """  # noqa: S608 - made of constants


def find(connection: Connection, publication: str) -> Published | None:
    """The publication, None if it does not exist.

    Raises:
        psycopg.Error
    """
    rows = _rows(connection, _PUBLICATION, {"name": publication})
    if not rows:
        return None
    oid, owned, everything, publishes, by_root, generated = rows[0]
    version = connection.info.server_version
    members = _rows(connection, _members(version), {"name": publication})
    version_marks = _rows(connection, _version_marks(version), {"name": publication})
    return Published(
        oid=oid,
        owned=owned,
        everything=everything,
        publishes=publishes,
        by_root=by_root,
        generated=generated,
        # Without publish_via_partition_root the view lists partitions, not their root.
        listed=frozenset(row[0] for row in (*members, *version_marks)),
        filtered=frozenset(row[0] for row in members if row[1]),
        attributes={row[0]: frozenset(row[2]) for row in members},
    )


def oid_of(connection: Connection, publication: str) -> int | None:
    """The publication's oid, None if it does not exist.

    Raises:
        psycopg.Error
    """
    rows = _rows(connection, _PUBLICATION, {"name": publication})
    return rows[0][0] if rows else None


def publishing_statements(
    publication: str,
    published: Published | None,
    relations: Sequence[Relation],
    parts: Parts,
    version: int,
) -> list[str]:
    """The SQL statements that create the publication, or complete an existing one."""
    name = quoted(publication)
    if published is None:
        options = ["publish_via_partition_root = true"]
        options += (
            ["publish_generated_columns = stored"] if version >= GENERATED_COLUMNS_VERSION else []
        )
        tables = f" FOR TABLE {_tables(relations, parts)}" if relations else ""
        return [f"CREATE PUBLICATION {name}{tables} WITH ({', '.join(options)})"]
    options = _missing_options(published, relations, parts, version)
    missing = [r for r in relations if not published.everything and r.oid not in published.listed]
    statements = [f"ALTER PUBLICATION {name} SET ({', '.join(options)})"] if options else []
    if missing:
        statements.append(f"ALTER PUBLICATION {name} ADD TABLE {_tables(missing, parts)}")
    return statements


def _missing_options(
    published: Published, relations: Sequence[Relation], parts: Parts, version: int
) -> list[str]:
    options = []
    if not published.publishes:
        options.append(f"publish = '{_PUBLISHED_CHANGES}'")
    if not published.by_root and any(r.kind == "partitioned" for r in relations):
        options.append("publish_via_partition_root = true")
    unlisted = (
        parts[r.oid].stored - published.attributes.get(r.oid, frozenset()) for r in relations
    )
    if version >= GENERATED_COLUMNS_VERSION and not published.generated and any(unlisted):
        options.append("publish_generated_columns = stored")
    return options


def _tables(relations: Sequence[Relation], parts: Parts) -> str:
    # Without ONLY, inheritance children would be added, too.
    return ", ".join(f"ONLY {parts[r.oid].name}" for r in relations)
