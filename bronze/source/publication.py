"""What must be true before changes can be streamed, and the publication that names the tables.

The server looks a publication up as it was at the position that it decodes: one that is made, or
gets a table, after the slot was made lacks the changes before, and nothing says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import errors as pg
from psycopg import sql

from bronze.errors import SourceBusy, SourceRefused, TableRefused
from bronze.source.catalog import Relation
from bronze.source.connect import Connection
from bronze.source.statement import quoted

_OLDEST, _GENERATED = 140000, 180000
_PUBLISH = "insert, update, delete, truncate"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Wanting:
    """Something that is missing: a sentence, and the SQL or the sentence that mends it.

    ``table`` is the label of the table that it is about; empty where it is about the server.
    """

    what: str
    mend: str
    table: str = ""


@dataclass(frozen=True)
class _Index:
    """An index that PostgreSQL takes for a replica identity."""

    name: str
    primary: bool
    chosen: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
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
class _Published:
    """A publication as it is. ``filtered`` and ``attributes`` are those of its tables, by oid."""

    owned: bool
    everything: bool
    publishes: bool
    by_root: bool
    generated: bool
    listed: frozenset[int]
    filtered: frozenset[int]
    attributes: Mapping[int, frozenset[str]]


Parts = Mapping[int, _Part]


def wanting(
    connection: Connection,
    relations: Sequence[Relation],
    keys: Mapping[str, Sequence[str]],
    publication: str,
    slot: str,
) -> tuple[Wanting, ...]:
    """Everything that keeps the changes of ``relations`` from being streamed; empty if nothing.

    What `publish` can mend by itself is not wanting. Changes nothing, and needs no rights beyond
    connecting.

    Args:
        connection: logged in as the role that is to stream, to the server that is to be streamed.
        relations: the tables.
        keys: by a table's label the source names of the columns by which its rows are known.
        publication: the publication's name, whether it is there or not.
        slot: the replication slot's name, whether it is there or not.

    Raises:
        psycopg.Error
    """
    server = _server(connection, slot)
    if server.version < _OLDEST:
        return (_too_old(server),)
    parts = _parts(connection, relations)
    found = [*_of_server(server)]
    streamed = [r for r in relations if r.oid in parts]
    for relation in streamed:
        found += _of_table(relation, parts, tuple(keys.get(relation.label, ())), server)
    fit = [r for r in streamed if not _unfit(r, parts)]
    return (*found, *_of_publication(connection, publication, fit, parts, server))


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
    parts = _parts(connection, relations)
    return {r.label: _identity(r, parts) for r in relations if r.oid in parts}


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
        parts = _parts(connection, relations)
        _refuse_gone(relations, parts)
        published = _published(connection, publication)
        version = connection.info.server_version
        todo = _todo(publication, published, relations, parts, version)
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
    """The names of the table's columns that the stream has; none if it is not published.

    Virtual generated columns are never among them, stored ones only with PostgreSQL 18 and
    ``publish_generated_columns = stored``, or a column list that names them.

    Raises:
        psycopg.Error
    """
    published = _published(connection, publication)
    if published is None or relation.oid not in published.attributes:
        return frozenset()
    return published.attributes[relation.oid]


@dataclass(frozen=True)
class _Server:
    version: int
    wal_level: str
    standby: bool
    encoding: str
    role: str
    login: str
    replication: bool
    hosted: bool
    create: bool
    database: str
    slots: int
    slots_used: int
    slot_there: bool
    slot_active: bool
    senders: int
    senders_used: int


# REPLICATION is asked of the role that logs in, whatever SET ROLE says. On Amazon RDS nobody is
# given the attribute: membership in rds_replication stands for it.
_SERVER = """
WITH hosted AS (SELECT oid FROM pg_roles WHERE rolname = 'rds_replication')
SELECT current_setting('server_version_num')::int4,
       current_setting('wal_level'), pg_is_in_recovery(), current_setting('client_encoding'),
       current_user::text, session_user::text,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = session_user)
           OR coalesce((SELECT pg_has_role(session_user, oid, 'USAGE') FROM hosted), false),
       EXISTS (SELECT FROM hosted),
       has_database_privilege(current_database(), 'CREATE'), current_database()::text,
       current_setting('max_replication_slots')::int4,
       (SELECT count(*) FROM pg_replication_slots),
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s),
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s AND active),
       current_setting('max_wal_senders')::int4,
       (SELECT count(*) FROM pg_stat_replication)
"""


def _server(connection: Connection, slot: str) -> _Server:
    row: Any = connection.execute(_SERVER, {"slot": slot}).fetchone()
    return _Server(*row)


def _too_old(server: _Server) -> Wanting:
    major, minor = divmod(server.version, 10000)
    return Wanting(
        f"The server is PostgreSQL {major}.{minor}; changes are streamed from 14 on.",
        "Upgrade the server, or load these tables in batches.",
    )


def _of_server(server: _Server) -> list[Wanting]:
    found = []
    if server.standby:
        found.append(
            Wanting(
                "The server is a standby, on which no publication can be made and no snapshot be"
                " exported.",
                "Connect to the primary.",
            )
        )
    if server.wal_level != "logical":
        found.append(
            Wanting(
                f"The server's wal_level is {server.wal_level}; its log holds no changes of rows.",
                "ALTER SYSTEM SET wal_level = logical; -- then restart the server; hosted ones"
                " have a parameter for it (rds.logical_replication, cloudsql.logical_decoding)",
            )
        )
    if server.encoding != "UTF8":
        found.append(
            Wanting(
                f"The connection's client_encoding is {server.encoding}, not UTF8.",
                "Connect past the pooler that changes it.",
            )
        )
    if not server.replication:
        role = quoted(server.login)
        grant = f"GRANT rds_replication TO {role}" if server.hosted else f"ALTER ROLE {role}"
        found.append(
            Wanting(
                f"Role {server.login} may not replicate.",
                grant if server.hosted else f"{grant} REPLICATION",
            )
        )
    return found + _of_limits(server)


def _of_limits(server: _Server) -> list[Wanting]:
    # While tables are copied, a second slot and walsender are there for a time.
    limits = (
        ("max_replication_slots", server.slots, server.slots_used, server.slot_there),
        ("max_wal_senders", server.senders, server.senders_used, server.slot_active),
    )
    found = []
    for name, most, used, ours in limits:
        need = used + 2 - ours
        if need > most:
            found.append(
                Wanting(
                    f"The server's {name} is {most}, of which {used} are in use;"
                    f" {need - used} must be free.",
                    f"ALTER SYSTEM SET {name} = {need}; -- then restart the server",
                )
            )
    return found


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


def _parts(connection: Connection, relations: Sequence[Relation]) -> Parts:
    """The tables, their partitions and heirs, by oid; what is gone is left out."""
    oids = {"oids": sorted({oid for r in relations for oid in (r.oid, *r.parts)})}
    indexes: dict[Any, list[_Index]] = {}
    for oid, name, primary, chosen, columns in _rows(connection, _INDEXES, oids):
        indexes.setdefault(oid, []).append(_Index(name, primary, chosen, tuple(columns)))
    found = (_part(row, indexes.get(row[0], [])) for row in _rows(connection, _PARTS, oids))
    return dict(found)


def _part(row: Any, indexes: Sequence[_Index]) -> tuple[int, _Part]:
    oid, schema, name, kind, persistence, replica, owned, columns, virtual, stored = row
    return oid, _Part(
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


def _leaves(relation: Relation, parts: Parts) -> list[_Part]:
    """The parts whose changes are logged; the table itself where it has none."""
    inner = [parts[oid] for oid in relation.parts if oid in parts and parts[oid].kind != "p"]
    return inner or [parts[relation.oid]]


def _identity(relation: Relation, parts: Parts) -> tuple[str, ...]:
    first, *others = (leaf.identity for leaf in _leaves(relation, parts))
    return tuple(column for column in first if all(column in other for other in others))


_UNFIT = {
    "v": ("is a view", "Stream the tables that it shows, or load it in batches."),
    "m": ("is a materialized view", "Stream the tables that it shows, or load it in batches."),
    "f": ("is a foreign table", "Stream it from where it is, or load it in batches."),
}


def _unfit(relation: Relation, parts: Parts) -> list[Wanting]:
    """Why the table's changes are not in the log, or not as its own."""
    if relation.kind == "table" and len(relation.parts) > 1:
        heirs = ", ".join(parts[o].label for o in relation.parts if o in parts)
        what = f"Table {relation.label} has heirs (INHERITS), whose rows are streamed as their own."
        mend = f"Load it in batches, or stream each of these as a table by itself: {heirs}."
        return [Wanting(what, mend, relation.label)]
    found = []
    for leaf in _leaves(relation, parts):
        where = f"Table {relation.label}"
        where += "" if leaf is parts[relation.oid] else f": its partition {leaf.label}"
        if leaf.kind in _UNFIT:
            what, mend = _UNFIT[leaf.kind]
            found.append(Wanting(f"{where} {what}: its changes are not logged.", mend))
        elif leaf.persistence == "u":
            what = f"{where} is unlogged: its changes are not in the server's log."
            found.append(Wanting(what, f"ALTER TABLE {leaf.name} SET LOGGED"))
        elif leaf.persistence == "t":
            what = f"{where} is temporary: others cannot see it."
            found.append(Wanting(what, "Make it a permanent table."))
    return [Wanting(w.what, w.mend, relation.label) for w in found]


def _of_table(
    relation: Relation, parts: Parts, key: tuple[str, ...], server: _Server
) -> list[Wanting]:
    unfit = _unfit(relation, parts)
    if unfit:
        return unfit
    found = [] if relation.readable else [_unreadable(relation, server)]
    for leaf in _leaves(relation, parts):
        found += _of_identity(relation, leaf, key, server)
    lost = [c for c in key if c in _never(parts[relation.oid], server.version)]
    if lost:
        what = (
            f"Table {relation.label}: the key's {_columns(lost)} {_are(lost)} generated, and the"
            " server streams no such values."
        )
        found.append(Wanting(what, "Choose a key of plain columns.", relation.label))
    return found


def _unreadable(relation: Relation, server: _Server) -> Wanting:
    role = quoted(server.role)
    return Wanting(
        f"Table {relation.label} may not be read by role {server.role}.",
        f"GRANT USAGE ON SCHEMA {quoted(relation.schema)} TO {role};"
        f" GRANT SELECT ON TABLE {quoted(relation.schema, relation.name)} TO {role}",
        relation.label,
    )


def _of_identity(
    relation: Relation, leaf: _Part, key: tuple[str, ...], server: _Server
) -> list[Wanting]:
    where = f"Table {relation.label}"
    where += "" if leaf.label == relation.label else f": its partition {leaf.label}"
    missing = [column for column in key if column not in leaf.identity]
    if not leaf.identity:
        what = f"{where} has no replica identity: once published, its UPDATEs and DELETEs fail."
    elif leaf.replica == "f" and leaf.virtual and server.version >= _GENERATED:
        what = (
            f"{where} has REPLICA IDENTITY FULL and the virtual generated"
            f" {_columns(sorted(leaf.virtual))}: once published, its UPDATEs and DELETEs fail."
        )
    elif missing:
        what = (
            f"{where}: the key's {_columns(missing)} {_are(missing)} not in its replica identity."
        )
    else:
        return []
    return [Wanting(what, _better(leaf, key, server.version), relation.label)]


def _better(leaf: _Part, key: tuple[str, ...], version: int) -> str:
    """The SQL of a replica identity that has the key, the smallest that there is."""
    for index in leaf.indexes:
        if set(key) <= set(index.columns):
            kind = "DEFAULT" if index.primary else f"USING INDEX {quoted(index.name)}"
            return f"ALTER TABLE {leaf.name} REPLICA IDENTITY {kind}"
    if leaf.virtual and version >= _GENERATED:
        # FULL would take in the virtual columns, which PostgreSQL then refuses.
        named = ", ".join(quoted(column) for column in key) or "…"
        return (
            f"CREATE UNIQUE INDEX ON {leaf.name} ({named}); -- over NOT NULL columns; then"
            f" ALTER TABLE {leaf.name} REPLICA IDENTITY USING INDEX …"
        )
    return f"ALTER TABLE {leaf.name} REPLICA IDENTITY FULL"


def _never(part: _Part, version: int) -> frozenset[str]:
    """The columns that no publication of this server can have."""
    return part.virtual | (part.stored if version < _GENERATED else frozenset())


def _columns(names: Sequence[str]) -> str:
    return f"column{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


# Newer servers know more columns: by way of JSON those that are missing are NULL.
_PUBLICATION = """
SELECT p.oid::int8, pg_has_role(p.pubowner, 'USAGE'), p.puballtables,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
       coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
FROM pg_publication p WHERE p.pubname = %(name)s
"""
_MEMBERS = """
SELECT c.oid::int8, to_jsonb(t) ->> 'rowfilter' IS NOT NULL, coalesce(
    (SELECT array_agg(value) FROM jsonb_array_elements_text(to_jsonb(t) -> 'attnames')),
    (SELECT array_agg(attname::text) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''), '{}')
FROM pg_publication_tables t
JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %(name)s
"""
_LISTED = "SELECT prrelid::int8 FROM pg_publication_rel WHERE prpubid = %(oid)s::oid"


def _published(connection: Connection, publication: str) -> _Published | None:
    found = _rows(connection, _PUBLICATION, {"name": publication})
    if not found:
        return None
    oid, owned, everything, publishes, by_root, generated = found[0]
    members = _rows(connection, _MEMBERS, {"name": publication})
    named = _rows(connection, _LISTED, {"oid": oid})
    return _Published(
        owned=owned,
        everything=everything,
        publishes=publishes,
        by_root=by_root,
        generated=generated,
        # Where changes keep their partitions' names, a root is not among the members.
        listed=frozenset(row[0] for row in (*members, *named)),
        filtered=frozenset(row[0] for row in members if row[1]),
        attributes={row[0]: frozenset(row[2]) for row in members},
    )


def _todo(
    publication: str,
    published: _Published | None,
    relations: Sequence[Relation],
    parts: Parts,
    version: int,
) -> list[str]:
    """The statements that make the publication what it should be."""
    name = quoted(publication)
    if published is None:
        options = ["publish_via_partition_root = true"]
        options += ["publish_generated_columns = stored"] if version >= _GENERATED else []
        tables = f" FOR TABLE {_tables(relations, parts)}" if relations else ""
        return [f"CREATE PUBLICATION {name}{tables} WITH ({', '.join(options)})"]
    lacking = _options(published, relations, parts, version)
    missing = [r for r in relations if not published.everything and r.oid not in published.listed]
    todo = [f"ALTER PUBLICATION {name} SET ({', '.join(lacking)})"] if lacking else []
    if missing:
        todo.append(f"ALTER PUBLICATION {name} ADD TABLE {_tables(missing, parts)}")
    return todo


def _options(
    published: _Published, relations: Sequence[Relation], parts: Parts, version: int
) -> list[str]:
    lacking = []
    if not published.publishes:
        lacking.append(f"publish = '{_PUBLISH}'")
    if not published.by_root and any(r.kind == "partitioned" for r in relations):
        lacking.append("publish_via_partition_root = true")
    unlisted = (
        parts[r.oid].stored - published.attributes.get(r.oid, frozenset()) for r in relations
    )
    if version >= _GENERATED and not published.generated and any(unlisted):
        lacking.append("publish_generated_columns = stored")
    return lacking


def _tables(relations: Sequence[Relation], parts: Parts) -> str:
    # Without ONLY a table's heirs would come along.
    return ", ".join(f"ONLY {parts[r.oid].name}" for r in relations)


def _of_publication(
    connection: Connection,
    publication: str,
    relations: Sequence[Relation],
    parts: Parts,
    server: _Server,
) -> list[Wanting]:
    published = _published(connection, publication)
    found = []
    todo = _todo(publication, published, relations, parts, server.version)
    if relations and todo and not _allowed(published, relations, parts, server):
        what = (
            f"Publication {publication} is not there"
            if published is None
            else (f"Publication {publication} lacks tables or options")
        )
        what += f", and role {server.role} may not mend that."
        found.append(Wanting(what, "; ".join(todo)))
    if published:
        for relation in relations:
            found += _of_member(publication, published, relation, parts, server.version)
    return found


def _allowed(
    published: _Published | None, relations: Sequence[Relation], parts: Parts, server: _Server
) -> bool:
    if published is None:
        return server.create and all(parts[r.oid].owned for r in relations)
    missing = (
        [] if published.everything else [r for r in relations if r.oid not in published.listed]
    )
    return published.owned and all(parts[r.oid].owned for r in missing)


def _of_member(
    publication: str, published: _Published, relation: Relation, parts: Parts, version: int
) -> list[Wanting]:
    """What a publication that somebody made leaves out of a table; only they can know why."""
    part = parts[relation.oid]
    attributes = published.attributes.get(relation.oid)
    if attributes is None:
        return []
    # With the option, which `publish` sets, all but these are there if there is no column list.
    absent = part.stored if not published.generated else frozenset()
    left = [c for c in part.columns if c not in attributes | _never(part, version) | absent]
    what = []
    if relation.oid in published.filtered:
        what.append("some rows (WHERE)")
    if left:
        what.append(f"the {_columns(left)} (column list)")
    if not what:
        return []
    name = quoted(publication)
    return [
        Wanting(
            f"Publication {publication} leaves {' and '.join(what)} of table {relation.label} out.",
            f"ALTER PUBLICATION {name} DROP TABLE ONLY {part.name};"
            f" ALTER PUBLICATION {name} ADD TABLE ONLY {part.name}",
            relation.label,
        )
    ]
