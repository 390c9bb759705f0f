"""What must be true before changes can be streamed: of the server, its role, and the tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.postgres.catalog.relations import TABLEOID, Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.publication import (
    GENERATED,
    Part,
    Parts,
    Published,
    apart,
    find,
    leaves,
    mending,
    parts_of,
)
from bronze.postgres.statement import quoted

_OLDEST = 140000
_NONE_OUT: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True)
class Wanting:
    """Something that is missing: a sentence, and the SQL or the sentence that mends it.

    ``table`` is the label of the table that it is about; empty where it is about the server.
    """

    what: str
    mend: str
    table: str = ""


def wanting(
    connection: Connection,
    relations: Sequence[Relation],
    keys: Mapping[str, Sequence[str]],
    publication: str,
    slot: str,
    out: Mapping[str, Collection[str]] = _NONE_OUT,
) -> tuple[Wanting, ...]:
    """Everything that keeps the changes of ``relations`` from being streamed; empty if nothing.

    What `bronze.postgres.replication.publication.publish` can mend by itself is not wanting.
    Changes nothing, and needs no rights beyond connecting.

    Args:
        connection: logged in as the role that is to stream, to the server that is to be streamed.
        relations: the tables.
        keys: by a table's label the source names of the columns by which its rows are known.
        publication: the publication's name, whether it is there or not.
        slot: the replication slot's name, whether it is there or not.
        out: by a table's label the columns that are not taken, which need not be published.

    Raises:
        psycopg.Error
    """
    server = _server(connection, slot)
    if server.version < _OLDEST:
        return (_too_old(server),)
    parts = parts_of(connection, relations)
    found = [*_of_server(server)]
    streamed = [r for r in relations if r.oid in parts]
    for relation in streamed:
        found += _of_table(relation, parts, tuple(keys.get(relation.label, ())), server)
    fit = [r for r in streamed if not _unfit(r, parts)]
    return (*found, *_of_publication(connection, publication, fit, parts, server, out))


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
    for leaf in leaves(relation, parts):
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
    if TABLEOID in key:
        what = f"Table {relation.label}: {TABLEOID}, of which its key is made, is in no stream."
        return [Wanting(what, "Choose a key of plain columns.", relation.label)]
    found = [] if relation.readable else [_unreadable(relation, server)]
    for leaf in leaves(relation, parts):
        found += _of_identity(relation, leaf, key, server)
    if key and not found and not apart(relation, parts, key):
        found += _ambiguous(relation, parts, key)
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
    relation: Relation, leaf: Part, key: tuple[str, ...], server: _Server
) -> list[Wanting]:
    where = f"Table {relation.label}"
    where += "" if leaf.label == relation.label else f": its partition {leaf.label}"
    missing = [column for column in key if column not in leaf.identity]
    if not leaf.identity:
        why = ", as a DEFERRABLE key is none" if relation.deferrable else ""
        what = (
            f"{where} has no replica identity{why}: once published, its UPDATEs and DELETEs fail."
        )
    elif leaf.replica == "f" and leaf.virtual and server.version >= GENERATED:
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


def _ambiguous(relation: Relation, parts: Parts, key: tuple[str, ...]) -> list[Wanting]:
    """What a key lacks that rows of several partitions may share."""
    partial = [leaf for leaf in leaves(relation, parts) if leaf.replica != "f"]
    what = (
        f"Table {relation.label}: rows of several partitions may share the key {', '.join(key)},"
        f" and the old rows that its partition {partial[0].label} logs do not tell them apart."
    )
    mend = "; ".join(f"ALTER TABLE {leaf.name} REPLICA IDENTITY FULL" for leaf in partial)
    return [Wanting(what, mend, relation.label)]


def _better(leaf: Part, key: tuple[str, ...], version: int) -> str:
    """The SQL of a replica identity that has the key, the smallest that there is."""
    for index in leaf.indexes:
        if set(key) <= set(index.columns):
            kind = "DEFAULT" if index.primary else f"USING INDEX {quoted(index.name)}"
            return f"ALTER TABLE {leaf.name} REPLICA IDENTITY {kind}"
    if leaf.virtual and version >= GENERATED:
        # FULL would take in the virtual columns, which PostgreSQL then refuses.
        named = ", ".join(quoted(column) for column in key) or "…"
        return (
            f"CREATE UNIQUE INDEX ON {leaf.name} ({named}); -- over NOT NULL columns; then"
            f" ALTER TABLE {leaf.name} REPLICA IDENTITY USING INDEX …"
        )
    return f"ALTER TABLE {leaf.name} REPLICA IDENTITY FULL"


def _never(part: Part, version: int) -> frozenset[str]:
    """The columns that no publication of this server can have."""
    return part.virtual | (part.stored if version < GENERATED else frozenset())


def _columns(names: Sequence[str]) -> str:
    return f"column{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def _of_publication(
    connection: Connection,
    publication: str,
    relations: Sequence[Relation],
    parts: Parts,
    server: _Server,
    out: Mapping[str, Collection[str]],
) -> list[Wanting]:
    published = find(connection, publication)
    found = []
    todo = mending(publication, published, relations, parts, server.version)
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
            unwanted = out.get(relation.label, ())
            found += _of_member(publication, published, relation, parts, server.version, unwanted)
    return found


def _allowed(
    published: Published | None, relations: Sequence[Relation], parts: Parts, server: _Server
) -> bool:
    if published is None:
        return server.create and all(parts[r.oid].owned for r in relations)
    missing = (
        [] if published.everything else [r for r in relations if r.oid not in published.listed]
    )
    return published.owned and all(parts[r.oid].owned for r in missing)


def _of_member(
    publication: str,
    published: Published,
    relation: Relation,
    parts: Parts,
    version: int,
    unwanted: Collection[str],
) -> list[Wanting]:
    """What a publication that somebody made leaves out of a table; only they can know why."""
    part = parts[relation.oid]
    attributes = published.attributes.get(relation.oid)
    if attributes is None:
        return []
    # With the option, which `publish` sets, all but these are there if there is no column list.
    absent = part.stored if not published.generated else frozenset()
    given = attributes | _never(part, version) | absent
    left = [c for c in part.columns if c not in given and c not in unwanted]
    what = []
    if relation.oid in published.filtered:
        what.append("some rows (WHERE)")
    if left:
        what.append(f"the {_columns(left)} (column list)")
    if not what:
        return []
    name = quoted(publication)
    # Whoever has columns left out may not want them to travel either.
    listed = [c for c in part.columns if c not in unwanted and c not in _never(part, version)]
    names = f" ({', '.join(map(quoted, listed))})" if unwanted else ""
    return [
        Wanting(
            f"Publication {publication} leaves {' and '.join(what)} of table {relation.label} out.",
            f"ALTER PUBLICATION {name} DROP TABLE ONLY {part.name};"
            f" ALTER PUBLICATION {name} ADD TABLE ONLY {part.name}{names}",
            relation.label,
        )
    ]
