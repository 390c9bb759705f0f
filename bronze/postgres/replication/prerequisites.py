"""The prerequisites of streaming: of the server, the role, the publication and the tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.postgres.catalog.relations import TABLEOID, Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication.publication import (
    GENERATED_COLUMNS_VERSION,
    Part,
    Parts,
    Published,
    find,
    identifying_columns,
    leaves,
    parts_of,
    publishing_statements,
)
from bronze.postgres.statement import quoted

_OLDEST_VERSION = 140000
_NONE_LEFT_OUT: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True)
class MissingPrerequisite:
    """A prerequisite that is not met.

    ``what`` is a sentence about it, ``mend`` the SQL or the sentence that says how to meet it,
    ``table`` the label of the table that it is about ("": the server or the publication).
    """

    what: str
    mend: str
    table: str = ""


def missing_prerequisites(
    connection: Connection,
    relations: Sequence[Relation],
    keys: Mapping[str, Sequence[str]],
    publication: str,
    slot: str,
    out: Mapping[str, Collection[str]] = _NONE_LEFT_OUT,
) -> tuple[MissingPrerequisite, ...]:
    """The prerequisites for streaming ``relations`` that are not met; empty if all are.

    Those that `bronze.postgres.replication.publication.publish` meets by itself are not among them.
    Changes nothing, and needs no privileges beyond CONNECT.

    Args:
        connection: of the role that is to stream, to the server that is to be streamed.
        relations: the tables.
        keys: the key of each table, by its label, in the column names of the source.
        publication: the publication's name, whether it exists or not.
        slot: the replication slot's name, whether it exists or not.
        out: by a table's label the columns that are not loaded, which need not be published.

    Raises:
        psycopg.Error
    """
    server = _server(connection, slot)
    if server.version < _OLDEST_VERSION:
        return (_too_old(server),)
    parts = parts_of(connection, relations)
    problems = _server_problems(server)
    existing = [r for r in relations if r.oid in parts]
    for relation in existing:
        problems += _table_problems(relation, parts, tuple(keys.get(relation.label, ())), server)
    streamable = [r for r in existing if not _logging_problems(r, parts)]
    return (
        *problems,
        *_publication_problems(connection, publication, streamable, parts, server, out),
    )


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


# The role that logs in needs REPLICATION, whatever SET ROLE says. On Amazon RDS roles cannot have
# the attribute: they need membership in rds_replication.
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


def _too_old(server: _Server) -> MissingPrerequisite:
    major, minor = divmod(server.version, 10000)
    return MissingPrerequisite(
        f"The server is PostgreSQL {major}.{minor}; streaming needs 14 or later.",
        "Upgrade the server, or load these tables in batches.",
    )


def _server_problems(server: _Server) -> list[MissingPrerequisite]:
    problems = []
    if server.standby:
        problems.append(
            MissingPrerequisite(
                "The server is a standby, on which publications cannot be created.",
                "Connect to the primary.",
            )
        )
    if server.wal_level != "logical":
        problems.append(
            MissingPrerequisite(
                f"The server's wal_level is {server.wal_level}; its log has no row changes.",
                "ALTER SYSTEM SET wal_level = logical; -- then restart the server; hosted ones"
                " have a parameter for it (rds.logical_replication, cloudsql.logical_decoding)",
            )
        )
    if server.encoding != "UTF8":
        problems.append(
            MissingPrerequisite(
                f"The connection's client_encoding is {server.encoding}, not UTF8.",
                "Connect to the server directly, not through the pooler that changes it.",
            )
        )
    if not server.replication:
        role = quoted(server.login)
        grant = f"GRANT rds_replication TO {role}" if server.hosted else f"ALTER ROLE {role}"
        problems.append(
            MissingPrerequisite(
                f"Role {server.login} does not have the privilege REPLICATION.",
                grant if server.hosted else f"{grant} REPLICATION",
            )
        )
    return problems + _limit_problems(server)


def _limit_problems(server: _Server) -> list[MissingPrerequisite]:
    # A table sync needs a second slot and walsender for a time.
    limits = (
        ("max_replication_slots", server.slots, server.slots_used, server.slot_there),
        ("max_wal_senders", server.senders, server.senders_used, server.slot_active),
    )
    problems = []
    for name, most, used, ours in limits:
        need = used + 2 - ours
        if need > most:
            problems.append(
                MissingPrerequisite(
                    f"The server's {name} is {most}, of which {used} are in use;"
                    f" {need - used} must be free.",
                    f"ALTER SYSTEM SET {name} = {need}; -- then restart the server",
                )
            )
    return problems


_NOT_LOGGED = {
    "v": ("is a view", "Stream the tables that it shows, or load it in batches."),
    "m": ("is a materialized view", "Stream the tables that it shows, or load it in batches."),
    "f": ("is a foreign table", "Stream it from its own server, or load it in batches."),
}


def _logging_problems(relation: Relation, parts: Parts) -> list[MissingPrerequisite]:
    """Why the changes of the table are not logged, or not under its name."""
    if relation.kind == "table" and len(relation.parts) > 1:
        members = ", ".join(parts[o].label for o in relation.parts if o in parts)
        what = (
            f"Table {relation.label} has inheritance children, whose changes are streamed under"
            " their own names."
        )
        mend = f"Load it in batches, or stream these tables one by one: {members}."
        return [MissingPrerequisite(what, mend, relation.label)]
    problems = []
    for leaf in leaves(relation, parts):
        where = f"Table {relation.label}"
        where += "" if leaf is parts[relation.oid] else f": its partition {leaf.label}"
        if leaf.kind in _NOT_LOGGED:
            what, mend = _NOT_LOGGED[leaf.kind]
            problems.append(
                MissingPrerequisite(f"{where} {what}: its changes are not logged.", mend)
            )
        elif leaf.persistence == "u":
            what = f"{where} is unlogged: its changes are not in the server's log."
            problems.append(MissingPrerequisite(what, f"ALTER TABLE {leaf.name} SET LOGGED"))
        elif leaf.persistence == "t":
            what = f"{where} is temporary: other sessions cannot read it."
            problems.append(MissingPrerequisite(what, "Make it a permanent table."))
    return [MissingPrerequisite(w.what, w.mend, relation.label) for w in problems]


def _table_problems(
    relation: Relation, parts: Parts, key: tuple[str, ...], server: _Server
) -> list[MissingPrerequisite]:
    problems = _logging_problems(relation, parts)
    if problems:
        return problems
    if TABLEOID in key:
        what = f"Table {relation.label}: its key contains {TABLEOID}, which is not streamed."
        return [MissingPrerequisite(what, "Choose a key of plain columns.", relation.label)]
    problems = [] if relation.readable else [_unreadable(relation, server)]
    for leaf in leaves(relation, parts):
        problems += _identity_problems(relation, leaf, key, server)
    if key and not problems and not identifying_columns(relation, parts, key):
        problems += _partition_key_problems(relation, parts, key)
    generated = [c for c in key if c in _unpublishable(parts[relation.oid], server.version)]
    if generated:
        what = (
            f"Table {relation.label}: the key's {_columns(generated)} {_are(generated)} generated,"
            " and the server does not stream such columns."
        )
        problems.append(MissingPrerequisite(what, "Choose a key of plain columns.", relation.label))
    return problems


def _unreadable(relation: Relation, server: _Server) -> MissingPrerequisite:
    role = quoted(server.role)
    return MissingPrerequisite(
        f"Role {server.role} may not read table {relation.label}.",
        f"GRANT USAGE ON SCHEMA {quoted(relation.schema)} TO {role};"
        f" GRANT SELECT ON TABLE {quoted(relation.schema, relation.name)} TO {role};",
        relation.label,
    )


def _identity_problems(
    relation: Relation, leaf: Part, key: tuple[str, ...], server: _Server
) -> list[MissingPrerequisite]:
    where = f"Table {relation.label}"
    where += "" if leaf.label == relation.label else f": its partition {leaf.label}"
    missing = [column for column in key if column not in leaf.identity]
    if not leaf.identity:
        why = ", as a DEFERRABLE key cannot be one" if relation.deferrable else ""
        what = (
            f"{where} has no replica identity{why}: once published, its UPDATEs and DELETEs fail."
        )
    elif leaf.replica == "f" and leaf.virtual and server.version >= GENERATED_COLUMNS_VERSION:
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
    return [
        MissingPrerequisite(what, _identity_with_key(leaf, key, server.version), relation.label)
    ]


def _partition_key_problems(
    relation: Relation, parts: Parts, key: tuple[str, ...]
) -> list[MissingPrerequisite]:
    """The problem of a key in which rows of several partitions may be equal."""
    partial = [leaf for leaf in leaves(relation, parts) if leaf.replica != "f"]
    what = (
        f"Table {relation.label}: rows of several partitions may share the key {', '.join(key)},"
        f" and the replica identity of its partition {partial[0].label} does not distinguish them."
    )
    mend = "; ".join(f"ALTER TABLE {leaf.name} REPLICA IDENTITY FULL" for leaf in partial)
    return [MissingPrerequisite(what, mend, relation.label)]


def _identity_with_key(leaf: Part, key: tuple[str, ...], version: int) -> str:
    """The SQL that sets the smallest replica identity with the key."""
    for index in leaf.indexes:
        if set(key) <= set(index.columns):
            kind = "DEFAULT" if index.primary else f"USING INDEX {quoted(index.name)}"
            return f"ALTER TABLE {leaf.name} REPLICA IDENTITY {kind}"
    if leaf.virtual and version >= GENERATED_COLUMNS_VERSION:
        # FULL includes virtual columns, with which PostgreSQL refuses UPDATE and DELETE.
        named = ", ".join(quoted(column) for column in key) or "…"
        return (
            f"CREATE UNIQUE INDEX ON {leaf.name} ({named}); -- over NOT NULL columns; then"
            f" ALTER TABLE {leaf.name} REPLICA IDENTITY USING INDEX …"
        )
    return f"ALTER TABLE {leaf.name} REPLICA IDENTITY FULL"


def _unpublishable(part: Part, version: int) -> frozenset[str]:
    """The columns that a publication of this server cannot contain."""
    return part.virtual | (part.stored if version < GENERATED_COLUMNS_VERSION else frozenset())


def _columns(names: Sequence[str]) -> str:
    return f"column{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def _publication_problems(
    connection: Connection,
    publication: str,
    relations: Sequence[Relation],
    parts: Parts,
    server: _Server,
    out: Mapping[str, Collection[str]],
) -> list[MissingPrerequisite]:
    published = find(connection, publication)
    problems = []
    statements = publishing_statements(publication, published, relations, parts, server.version)
    if relations and statements and not _may_publish(published, relations, parts, server):
        if published is None:
            fault, act = "does not exist", "create"
        else:
            fault, act = "lacks tables or options", "change"
        what = f"Publication {publication} {fault}, and role {server.role} may not {act} it."
        problems.append(MissingPrerequisite(what, "; ".join(statements)))
    if published:
        for relation in relations:
            left_out = out.get(relation.label, ())
            problems += _omission_problems(
                publication, published, relation, parts, server.version, left_out
            )
    return problems


def _may_publish(
    published: Published | None, relations: Sequence[Relation], parts: Parts, server: _Server
) -> bool:
    if published is None:
        return server.create and all(parts[r.oid].owned for r in relations)
    missing = (
        [] if published.everything else [r for r in relations if r.oid not in published.listed]
    )
    return published.owned and all(parts[r.oid].owned for r in missing)


def _omission_problems(
    publication: str,
    published: Published,
    relation: Relation,
    parts: Parts,
    version: int,
    left_out: Collection[str],
) -> list[MissingPrerequisite]:
    """The rows and columns of a table that an existing publication leaves out.

    `publish` does not add them: they may be left out on purpose.
    """
    part = parts[relation.oid]
    attributes = published.attributes.get(relation.oid)
    if attributes is None:
        return []
    # Without a column list these alone are missing, until `publish` sets the option.
    absent = part.stored if not published.generated else frozenset()
    published_columns = attributes | _unpublishable(part, version) | absent
    missing = [c for c in part.columns if c not in published_columns and c not in left_out]
    omissions = []
    if relation.oid in published.filtered:
        omissions.append("some rows (WHERE)")
    if missing:
        omissions.append(f"the {_columns(missing)} (column list)")
    if not omissions:
        return []
    name = quoted(publication)
    # Columns that the config leaves out should not be published by the mend either.
    listed = [
        c for c in part.columns if c not in left_out and c not in _unpublishable(part, version)
    ]
    names = f" ({', '.join(map(quoted, listed))})" if left_out else ""
    return [
        MissingPrerequisite(
            f"Publication {publication} leaves {' and '.join(omissions)} of table {relation.label}"
            " out.",
            f"ALTER PUBLICATION {name} DROP TABLE ONLY {part.name};"
            f" ALTER PUBLICATION {name} ADD TABLE ONLY {part.name}{names}",
            relation.label,
        )
    ]
