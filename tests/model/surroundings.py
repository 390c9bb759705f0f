"""Operations on what is around tables: publication, slot, settings, and what hinders bronze."""

from __future__ import annotations

from contextlib import suppress

import psycopg
from psycopg import sql

from tests.features import has
from tests.model import rows, tables
from tests.model.world import SLOT, World

_EVERY = "publish = 'insert, update, delete, truncate'"
_SETTINGS = (
    ("datestyle", "German"),
    ("intervalstyle", "sql_standard"),
    ("bytea_output", "escape"),
    ("timezone", "Asia/Kolkata"),
    ("extra_float_digits", "-5"),
    ("xmloption", "document"),
)


def _only(table: str) -> str:
    return f"TABLE ONLY {table}"


def unpublished(world: World, table: str) -> str:
    """A table leaves the publication, and comes back or not; rows change in between."""
    statements = [f"ALTER PUBLICATION {SLOT} DROP {_only(table)}", *rows.work(world, table)]
    if world.dice.random() < 0.6:
        statements.append(f"ALTER PUBLICATION {SLOT} ADD {_only(table)}")
    world.release(frozenset({table}))
    return world.execute(*statements)


def publication_lost(world: World, table: str) -> str:
    """The publication is dropped, and made again or not."""
    statements = [f"DROP PUBLICATION {SLOT}", *rows.work(world, table)]
    if world.dice.random() < 0.6:
        members = ", ".join(t for t in tables.STREAMED if t in world.there())
        options = "publish_via_partition_root = true"
        if has("generated columns in publications"):
            options += ", publish_generated_columns = stored"
        statements.append(f"CREATE PUBLICATION {SLOT} FOR TABLE {members} WITH ({options})")
    world.release(frozenset(tables.STREAMED))
    return world.execute(*statements)


def published_less(world: World, table: str) -> str:
    """The publication brings fewer kinds of changes for a while, or until bronze mends it."""
    less = world.dice.choice(["insert", "insert, update, delete", "update, truncate"])
    options = world.dice.choice(
        [f"publish = '{less}'", "publish_generated_columns = none", f"publish = '{less}'"]
    )
    back = "publish_generated_columns = stored" if "generated" in options else _EVERY
    if world.dice.random() < 0.2:
        options, back = "publish_via_partition_root = false", "publish_via_partition_root = true"
    statements = [f"ALTER PUBLICATION {SLOT} SET ({options})", *rows.work(world, table)]
    if world.dice.random() < 0.7:
        statements.append(f"ALTER PUBLICATION {SLOT} SET ({back})")
    return world.execute(*statements)


def filtered(world: World, table: str) -> str:
    """The publication leaves rows or columns of a table out, and then no more."""
    named = [c.quoted for c in world.columns(table) if c.key]
    if not named:
        return "no key"
    how = f" WHERE ({named[0]} IS NULL)" if world.dice.random() < 0.5 else f" ({', '.join(named)})"
    drop, add = f"ALTER PUBLICATION {SLOT} DROP {_only(table)}", f"ADD {_only(table)}"
    do = [drop, f"ALTER PUBLICATION {SLOT} {add}{how}"]
    undo = [drop, f"ALTER PUBLICATION {SLOT} {add}"]
    if world.dice.random() < 0.4:
        world.release(frozenset({table}))
        why = world.execute(*do, *rows.work(world, table))
        return world.execute(*undo) or why
    return world.hinder(f"{table} is published in part", frozenset({table}), do, undo)


def slot_lost(world: World, table: str) -> str:
    """The slot is dropped, or moved on, whoever streams from it."""
    dropped = world.dice.random() < 0.5
    query = (
        f"SELECT pg_drop_replication_slot('{SLOT}')"
        if dropped
        else f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())"
    )
    world.say(f"{query};")
    sessions = f"FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
    ending = f"SELECT pg_terminate_backend(active_pid) {sessions}"
    with psycopg.connect(world.source.dsn, autocommit=True) as connection:
        for _ in range(200):
            connection.execute(ending)
            with suppress(psycopg.errors.ObjectInUse):
                try:
                    connection.execute(sql.SQL(query))
                except psycopg.errors.UndefinedObject:
                    return "there is none"
                except psycopg.errors.ObjectNotInPrerequisiteState:
                    return "it cannot be moved"
                return ""
    return "it is in use all the time"


def setting(world: World, table: str) -> str:
    """A setting by which values are written changes for all new sessions, or is reset."""
    name, value = world.dice.choice(_SETTINGS)
    (database,) = world.ask("SELECT current_database()")[0]
    what = f"SET {name} = '{value}'" if world.dice.random() < 0.6 else f"RESET {name}"
    return world.execute(f"ALTER DATABASE {database} {what}")


# What may be refused, until it is undone


def unfit_type(world: World, table: str) -> str:
    """A column gets a type that its column in Bronze cannot hold."""
    fit = [c for c in world.plain(table) if c.base in ("integer", "bigint", "date", "numeric")]
    if not fit:
        return "no column"
    column = world.dice.choice(fit)
    alter = f"ALTER TABLE {table} ALTER {column.quoted} TYPE"
    name, kind = column.quoted, column.type
    # Rows that came meanwhile may hold any text.
    valid = f"CASE WHEN fits({name}, '{kind}') THEN {name}::{kind} END"
    undo = f"{alter} {kind} USING {valid}"
    do = f"{alter} text USING {column.quoted}::text"
    return world.hinder(f"{table}.{column.name} is text", frozenset({table}), [do], [undo])


def without_key(world: World, table: str) -> str:
    """The table has no primary key for a while."""
    keys = [c.quoted for c in world.columns(table) if c.key]
    name = world.constraint(table)
    if not keys or not name or table == "whole":
        return "no key"
    same = " AND ".join(f"a.{key} = b.{key}" for key in keys)
    later = "(a.tableoid, a.ctid) < (b.tableoid, b.ctid)"
    undo = [
        f"DELETE FROM {table} WHERE {' OR '.join(f'{key} IS NULL' for key in keys)}",
        f"DELETE FROM {table} a USING {table} b WHERE {same} AND {later}",
        f"ALTER TABLE {table} ADD PRIMARY KEY ({', '.join(keys)})",
    ]
    if table in tables.STREAMED:
        # DELETE needs a replica identity there.
        leaves = [table, *(f"{table}_{d}" for d in range(1, 5))]
        full, default = (
            [f"ALTER TABLE IF EXISTS {leaf} REPLICA IDENTITY {kind}" for leaf in leaves]
            for kind in ("FULL", "DEFAULT")
        )
        undo = [*full, *undo, *default]
    do = [f"ALTER TABLE {table} DROP CONSTRAINT {name}"]
    return world.hinder(f"{table} has no key", frozenset({table}), do, undo)


def without_identity(world: World, table: str) -> str:
    """The table tells the old keys of rows no more."""
    if table == "parts":
        return "its partitions have identities of their own"
    back = "FULL" if table == "whole" else "DEFAULT"
    do = [f"ALTER TABLE {table} REPLICA IDENTITY NOTHING"]
    undo = [f"ALTER TABLE {table} REPLICA IDENTITY {back}"]
    return world.hinder(f"{table} has no identity", frozenset({table}), do, undo)


def renamed_away(world: World, table: str) -> str:
    """The table has another name for a while."""
    do = [f"ALTER TABLE {table} RENAME TO {table}_away"]
    undo = [f"ALTER TABLE {table}_away RENAME TO {table}"]
    return world.hinder(f"{table} is {table}_away", frozenset({table}), do, undo)


def dropped(world: World, table: str) -> str:
    """The table is gone for a while; then another one of its name comes."""
    undo = [s for s in tables.MADE[table].split(";") if s.strip()]
    undo.append(f"ALTER PUBLICATION {SLOT} ADD TABLE {table}") if table in tables.STREAMED else None
    return world.hinder(f"{table} is gone", frozenset({table}), [f"DROP TABLE {table}"], undo)


def odd_column(world: World, table: str) -> str:
    """A column comes that cannot be in Bronze, by its name."""
    name = world.dice.choice(['"a b"', '"checksum"', '"row_hash"', '"ID"', '"a;b"', '"V"'])
    do, undo = [f"ALTER TABLE {table} ADD {name} int"], [f"ALTER TABLE {table} DROP {name}"]
    return world.hinder(f"{table} has {name}", frozenset({table}), do, undo)


def cursor_gone(world: World, table: str) -> str:
    """The cursor column has another name for a while, or another type."""
    if table != "dated":
        return "it has no cursor column"
    do = [
        "ALTER TABLE dated DISABLE TRIGGER stamped",
        "ALTER TABLE dated RENAME updated_at TO then",
    ]
    undo = [
        "ALTER TABLE dated RENAME then TO updated_at",
        "ALTER TABLE dated ENABLE TRIGGER stamped",
    ]
    undo.insert(1, "UPDATE dated SET updated_at = now()")
    return world.hinder("dated has no cursor", frozenset({table}), do, undo)
