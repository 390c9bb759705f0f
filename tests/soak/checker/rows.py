"""Operations on rows: statements of every kind, alone, in transactions, and late."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import psycopg

from tests.soak.checker import tables
from tests.soak.checker.tables import Column
from tests.soak.checker.world import Open, World

_SPAN = 120
"""The number of different keys: few, so that keys are used again."""

LATE = 5
"""The most open transactions: the server has room for as many prepared ones."""


def seed_of(columns: list[Column]) -> str:
    """SQL of a number that a row's key gives."""
    return f"seed({', '.join(f'{c.quoted}::text' for c in columns if c.key) or '1::text'})"


def some_of(columns: list[Column], dice: Random) -> str:
    """SQL of a condition that some rows of a table meet, by their keys."""
    share, salt = dice.choice([1, 2, 4, 8, 16]), dice.randrange(2**31)
    return f"{tables.number(seed_of(columns), salt)} % {share} = 0"


def insert(world: World, table: str, at: int | None = None) -> str:
    """SQL that inserts rows with keys that are not there; from ``at`` on if it is given."""
    dice, columns = world.dice, world.columns(table)
    low = dice.randrange(_SPAN) if at is None else at
    high = low + dice.choice([0, 0, 1, 5, 20])
    given = [c for c in columns if not c.generated and c.name != "updated_at"]
    made = {
        c.name: tables.key_value(c, "g", dice) if c.key else tables.value(c, "g", dice)
        for c in given
    }
    if table == "parts":
        found = world.ask(
            "SELECT right(inhrelid::regclass::text, 1)::int FROM pg_inherits"
            " WHERE inhparent = 'parts'::regclass ORDER BY 1"
        )
        made["d"] = f"(ARRAY[{', '.join(str(d) for (d,) in found)}])[1 + g % {max(1, len(found))}]"
    same = " AND ".join(f"o.{c.quoted} = {made[c.name]}" for c in given if c.key)
    fresh = f" WHERE NOT EXISTS (SELECT FROM {table} o WHERE {same})" if same else ""
    names = ", ".join(c.quoted for c in given)
    values = ", ".join(made[c.name] for c in given)
    every = f"generate_series({low}, {high}) g"
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM {every}{fresh}"


def update(world: World, table: str) -> str:
    """SQL that changes one or two columns of some rows; now and then to what they are."""
    dice, columns = world.dice, world.columns(table)
    plain = world.plain(table)
    if not plain:
        return f"UPDATE {table} SET {columns[0].quoted} = {columns[0].quoted}"
    chosen = dice.sample(plain, min(len(plain), dice.choice([1, 1, 2])))
    same = dice.random() < 0.1
    seed = seed_of(columns)
    sets = [f"{c.quoted} = {c.quoted if same else tables.value(c, seed, dice)}" for c in chosen]
    return f"UPDATE {table} SET {', '.join(sets)} WHERE {some_of(columns, dice)}"


def delete(world: World, table: str) -> str:
    """SQL that deletes some rows."""
    return f"DELETE FROM {table} WHERE {some_of(world.columns(table), world.dice)}"


def rekey(world: World, table: str) -> list[str]:
    """SQL that gives rows other keys: swaps, chains and cycles where the table lets them."""
    dice, columns = world.dice, world.columns(table)
    keys = [c for c in columns if c.key]
    if not keys:
        return [update(world, table)]
    key = keys[-1] if table == "parts" and dice.random() < 0.3 else keys[0]
    name, condition = key.quoted, some_of(columns, dice)
    if key.base not in ("integer", "bigint", "smallint", "numeric"):
        made = tables.key_value(key, f"{seed_of(columns)} & 1023", dice)
        return [f"UPDATE {table} SET {name} = {made} WHERE {condition}"]
    a, b = dice.randrange(_SPAN), dice.randrange(_SPAN)
    if table == "whole" and world.swaps:
        return dice.choice(
            [
                [f"UPDATE {table} SET {name} = {name} + 1"],
                [f"UPDATE {table} SET {name} = {name} - 1 WHERE {name} > {a}"],
                [
                    f"UPDATE {table} SET {name} = CASE {name} WHEN {a} THEN {b} ELSE {a} END"
                    f" WHERE {name} IN ({a}, {b})"
                ],
                [f"UPDATE {table} SET {name} = 120 - {name} WHERE {name} BETWEEN 0 AND 120"],
            ]
        )
    if key.name == "d":
        return [f"UPDATE {table} SET d = 1 + (d % 2) WHERE {condition}"]
    return dice.choice(
        [
            [f"UPDATE {table} SET {name} = -{name} - 1 WHERE {condition}"],
            [f"UPDATE {table} SET {name} = {name} + {dice.choice([200, -200])} WHERE {condition}"],
            [
                f"UPDATE {table} SET {name} = -999 WHERE {name} = {a}",
                f"UPDATE {table} SET {name} = {a} WHERE {name} = {b}",
                f"UPDATE {table} SET {name} = {b} WHERE {name} = -999",
            ],
            [
                f"DELETE FROM {table} WHERE {name} = {a}",
                f"UPDATE {table} SET {name} = {a} WHERE {name} = {b}",
            ],
        ]
    )


def work(world: World, table: str) -> list[str]:
    """Some statements on rows."""
    made: Callable[[], list[str]] = world.dice.choice(
        [
            lambda: [insert(world, table)],
            lambda: [insert(world, table)],
            lambda: [update(world, table)],
            lambda: [update(world, table)],
            lambda: [delete(world, table)],
            lambda: rekey(world, table),
        ]
    )
    return made()


def alone(world: World, table: str) -> str:
    """Statements on rows, each committed."""
    return world.execute(*work(world, table), patient=False)


def alone_rekeyed(world: World, table: str) -> str:
    """Rows get other keys."""
    return world.execute(*rekey(world, table), patient=False)


def together(world: World, table: str, more: tuple[str, ...] = ()) -> str:
    """A transaction on several tables with savepoints, some of which are rolled back.

    Args:
        world: the world.
        table: one of the tables.
        more: statements to do somewhere within it.
    """
    dice = world.dice
    statements = ["BEGIN"]
    others = [table, *dice.sample(world.there(), dice.randint(0, 2))]
    for number in range(dice.randint(1, 5)):
        one = dice.choice(others)
        parts = work(world, one)
        if dice.random() < 0.2:
            parts = [f"TRUNCATE {one}", *parts]
        how = dice.random()
        if how < 0.25:
            parts = [f"SAVEPOINT s{number}", *parts, f"ROLLBACK TO s{number}"]
        elif how < 0.5:
            parts = [f"SAVEPOINT s{number}", *parts, f"RELEASE s{number}"]
        elif how < 0.6:
            parts = [f"SAVEPOINT s{number}", *parts, f"ROLLBACK TO s{number}", *work(world, one)]
        statements += parts
    at = dice.randint(1, len(statements))
    statements[at:at] = more
    world.release(frozenset(others))
    return world.execute(*statements, dice.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))


def open_late(world: World, table: str) -> str:
    """A transaction that stays open, or is prepared, and ends later, one way or the other."""
    dice = world.dice
    if len(world.open) >= LATE:
        world.finish(world.open[0], dice.random() < 0.7)
    name = f"late_{world.next()}"
    connection = psycopg.connect(world.source.dsn, autocommit=True)
    # Keys that nobody else waits for.
    at = 1000 + 30 * world.next()
    changed = update(world, table) if dice.random() < 0.5 else delete(world, table)
    parts = ["BEGIN", insert(world, table, at), "SAVEPOINT a", changed]
    parts += dice.choice([[], ["ROLLBACK TO a"], [insert(world, table, at)]])
    prepares = dice.random() < 0.4
    why = world.run(connection, *parts, *([f"PREPARE TRANSACTION '{name}'"] if prepares else []))
    if why or prepares:
        connection.close()
    if not why:
        world.open.append(Open(name, frozenset({table}), None if prepares else connection))
        world.say(f"-- {name} stays {'prepared' if prepares else 'open'}")
    return why


def end_late(world: World, table: str) -> str:
    """A transaction that was open ends."""
    if not world.open:
        return "none is open"
    world.finish(world.dice.choice(world.open), world.dice.random() < 0.7)
    return ""


def truncate(world: World, table: str) -> str:
    """A table is emptied at once, or two."""
    chosen = {table, world.dice.choice(world.there())} if world.dice.random() < 0.3 else {table}
    world.release(frozenset(chosen))
    return world.execute(f"TRUNCATE {', '.join(sorted(chosen))}")
