"""Operations on tables: their columns, types, keys, storage and partitions."""

from __future__ import annotations

from tests.soak.checker import rows, tables
from tests.soak.checker.tables import Column
from tests.soak.checker.world import World

_NEW = ("int", "text", "numeric(8,2)", "date", "mood", "bool", "citext", "jsonb", "address")
_WIDER = {
    "smallint": ["integer"],
    "integer": ["bigint"],
    "real": ["double precision"],
    "numeric(10,2)": ["numeric(12,2)", "numeric(14,4)"],
    "numeric(8,2)": ["numeric(12,2)"],
    "numeric(8,1)": ["numeric(10,1)", "numeric(8,1)"],
    "numeric(12,2)": ["numeric(14,4)"],
    "character varying(20)": ["character varying(40)", "text"],
    "character(6)": ["character(9)", "text", "character varying(20)"],
    "json": ["jsonb"],
    "jsonb": ["json"],
    "citext": ["text"],
    "text": ["citext"],
    "date": [],
}
_NARROWER = {
    "bigint": ("integer", "({c} % 1000)::int"),
    "double precision": ("real", "{c}::real"),
    "numeric(12,2)": ("numeric(10,2)", "{c} % 1000"),
    "numeric(14,4)": ("numeric(10,2)", "{c} % 1000"),
}
_ANEW = {
    "integer": "{c} % 1000 * 2 + 1",
    "bigint": "{c} % 1000 * 2 + 1",
    "text": "{c} || '.'",
    "citext": "{c} || '.'",
    "date": "{c} + 1",
    "boolean": "NOT {c}",
    "numeric(10,2)": "{c} / 2",
    "numeric(8,1)": "{c} / 2",
    "double precision": "{c} / 2",
    "uuid": "md5({c}::text)::uuid",
    "bytea": "{c} || '\\x00'",
}
_STORAGE = ("VACUUM FULL {t}", "VACUUM FREEZE {t}", "ANALYZE {t}", "CLUSTER {t} USING {i}")


def change(world: World, table: str, *statements: str) -> str:
    """Runs statements that lock the table."""
    world.release(frozenset({table}))
    return world.execute(*statements)


def _named(world: World, table: str) -> Column | None:
    plain = world.plain(table)
    return world.dice.choice(plain) if plain else None


def add_column(world: World, table: str) -> str:
    """A column comes, alone, or with a default of one or of many values."""
    dice = world.dice
    new, kind = f"c{world.next()}", dice.choice(_NEW)
    made = Column(new, kind, "e" if kind == "mood" else "c", False, "", False, 2, 0)
    if kind not in ("mood", "address"):
        made = Column(new, kind.replace("int", "integer"), "b", False, "", False, 0, 0)
    how = dice.random()
    default = ""
    if how < 0.4:
        default = f" DEFAULT {tables.value(made, str(world.next()), dice)}"
    elif how < 0.5:
        kind, default = "timestamptz", " DEFAULT clock_timestamp()"
    elif how < 0.6:
        kind, default = "int", " GENERATED ALWAYS AS (7) STORED"
    return change(world, table, f"ALTER TABLE {table} ADD {new} {kind}{default}")


def drop_column(world: World, table: str) -> str:
    """A column goes, where enough are left."""
    plain = world.plain(table)
    if len(plain) < 3:
        return "too few columns"
    return change(world, table, f"ALTER TABLE {table} DROP {world.dice.choice(plain).quoted}")


def rename_column(world: World, table: str) -> str:
    """A column gets another name, with or without rows that come afterwards."""
    column = _named(world, table)
    if column is None:
        return "no column"
    new = f"r{world.next()}"
    return change(world, table, f"ALTER TABLE {table} RENAME {column.quoted} TO {new}")


def rename_case(world: World, table: str) -> str:
    """A column's name changes its case alone."""
    column = _named(world, table)
    if column is None or column.name.swapcase() == column.name:
        return "no column"
    new = column.name.swapcase()
    return change(world, table, f'ALTER TABLE {table} RENAME {column.quoted} TO "{new}"')


def rename_key(world: World, table: str) -> str:
    """A column of the key gets another name."""
    fixed = tables.FIXED[table]
    keys = [c for c in world.columns(table) if c.key and c.name not in fixed]
    if not keys:
        return "no column"
    new = f"k{world.next()}"
    return change(
        world, table, f"ALTER TABLE {table} RENAME {world.dice.choice(keys).quoted} TO {new}"
    )


def swap_names(world: World, table: str) -> str:
    """Two columns of one type change their names."""
    plain = world.plain(table)
    pairs = [(a, b) for a in plain for b in plain if a.name < b.name and a.type == b.type]
    if not pairs:
        return "no columns"
    a, b = world.dice.choice(pairs)
    return change(
        world,
        table,
        "BEGIN",
        f"ALTER TABLE {table} RENAME {a.quoted} TO aside",
        f"ALTER TABLE {table} RENAME {b.quoted} TO {a.quoted}",
        f"ALTER TABLE {table} RENAME aside TO {b.quoted}",
        "COMMIT",
    )


def drop_and_add(world: World, table: str) -> str:
    """A column goes, and another one of its name and type comes."""
    column = _named(world, table)
    if column is None:
        return "no column"
    made = tables.value(column, str(world.next()), world.dice)
    default = "" if world.dice.random() < 0.5 else f" DEFAULT {made}"
    return change(
        world,
        table,
        f"ALTER TABLE {table} DROP {column.quoted}",
        f"ALTER TABLE {table} ADD {column.quoted} {column.type}{default}",
    )


def widen(world: World, table: str) -> str:
    """A column's type becomes a wider one, or another that is the same in Bronze."""
    found = [c for c in world.columns(table) if _WIDER.get(c.type) and not c.generated]
    if not found:
        return "no column"
    column = world.dice.choice(found)
    kind = world.dice.choice(_WIDER[column.type])
    using = f" USING {column.quoted}::{kind}"
    return change(world, table, f"ALTER TABLE {table} ALTER {column.quoted} TYPE {kind}{using}")


def narrow(world: World, table: str) -> str:
    """A column's type becomes a narrower one."""
    found = [c for c in world.plain(table) if c.type in _NARROWER]
    if not found:
        return "no column"
    column = world.dice.choice(found)
    kind, using = _NARROWER[column.type]
    using = using.format(c=column.quoted)
    return change(
        world, table, f"ALTER TABLE {table} ALTER {column.quoted} TYPE {kind} USING {using}"
    )


def values_anew(world: World, table: str) -> str:
    """ALTER TYPE to the same type, which rewrites all values of a column."""
    found = [c for c in world.plain(table) if c.type in _ANEW]
    if not found:
        return "no column"
    column = world.dice.choice(found)
    using = _ANEW[column.type].format(c=column.quoted)
    return change(
        world, table, f"ALTER TABLE {table} ALTER {column.quoted} TYPE {column.type} USING {using}"
    )


def expression_anew(world: World, table: str) -> str:
    """A generated column is made by another expression."""
    found = [c for c in world.columns(table) if c.generated and c.name != "aside"]
    if not found:
        return "no column"
    column, number = world.dice.choice(found), world.next()
    base = {"whole": "id", "fresh": "n"}.get(table, str(number))
    held = {c.name for c in world.columns(table)}
    made = f"{base} * 3 + {number}" if base in held else str(number)
    return change(
        world, table, f"ALTER TABLE {table} ALTER {column.quoted} SET EXPRESSION AS ({made})"
    )


def column_and_rows(world: World, table: str) -> str:
    """Rows and columns change in one transaction."""
    column, new = _named(world, table), f"c{world.next()}"
    more = [f"ALTER TABLE {table} ADD {new} int DEFAULT {world.next()}"]
    if column and world.dice.random() < 0.5:
        more = [f"ALTER TABLE {table} RENAME {column.quoted} TO {new}"]
    return rows.together(world, table, tuple(more))


def label(world: World, table: str) -> str:
    """A label of the enum gets another name, or one comes."""
    labels = [row[0] for row in world.ask("SELECT unnest(enum_range(NULL::mood))::text")]
    if len(labels) < 6 and world.dice.random() < 0.5:
        where = f"BEFORE '{labels[0]}'" if world.dice.random() < 0.5 else ""
        return world.execute(f"ALTER TYPE mood ADD VALUE 'm{world.next()}' {where}")
    old = world.dice.choice(labels)
    return world.execute(f"ALTER TYPE mood RENAME VALUE '{old}' TO 'm{world.next()}'")


def attribute(world: World, table: str) -> str:
    """The composite type gets an attribute, or loses one, or one gets another name."""
    dice = world.dice
    found = world.ask(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'address'::regclass"
        " AND NOT attisdropped ORDER BY attnum"
    )
    world.release()
    names = [row[0] for row in found]
    if len(names) > 2 and dice.random() < 0.3:
        return world.execute(f"ALTER TYPE address DROP ATTRIBUTE {names[-1]}")
    if len(names) > 4 or dice.random() < 0.3:
        new = f"a{world.next()}"
        return world.execute(f"ALTER TYPE address RENAME ATTRIBUTE {names[-1]} TO {new}")
    return world.execute(f"ALTER TYPE address ADD ATTRIBUTE a{world.next()} text")


def key(world: World, table: str) -> str:
    """The primary key gets a column more, or other columns, or its first ones again."""
    if table in ("whole", "parts"):
        return "its key is the config's, or that of its partitions"
    name = world.constraint(table)
    columns = world.columns(table)
    keys = [c.quoted for c in columns if c.key]
    fit = [c for c in world.plain(table) if c.base in ("integer", "bigint", "text", "uuid", "date")]
    if not name or not fit:
        return "no key"
    more = world.dice.choice(fit).quoted
    now = keys[:1] if len(keys) > 2 else [*keys, more]
    if len(keys) > 1 and world.dice.random() < 0.4:
        now = keys[1:]
    statements = [f"ALTER TABLE {table} DROP CONSTRAINT {name}"]
    statements += [f"DELETE FROM {table} WHERE {more} IS NULL"] if more in now else []
    statements += [f"ALTER TABLE {table} ADD PRIMARY KEY ({', '.join(now)})"]
    return change(world, table, "BEGIN", *statements, "COMMIT")


def identity(world: World, table: str) -> str:
    """The replica identity becomes FULL, and now and then DEFAULT again at once."""
    if table not in ("plain", "parts"):
        return "its replica identity stays"
    leaves = ["parts_1", "parts_2", "parts_3", "parts"] if table == "parts" else [table]
    kind = world.dice.choice(["FULL", "DEFAULT"])
    statements = [f"ALTER TABLE IF EXISTS {leaf} REPLICA IDENTITY {kind}" for leaf in leaves]
    if world.dice.random() < 0.5:
        back = "DEFAULT" if kind == "FULL" else "FULL"
        statements += rows.work(world, table)
        statements += [f"ALTER TABLE IF EXISTS {leaf} REPLICA IDENTITY {back}" for leaf in leaves]
    return change(world, table, *statements)


def storage(world: World, table: str) -> str:
    """PostgreSQL rewrites the table, or vacuums it."""
    index = world.ask(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = to_regclass(%s)"
        " AND indisprimary",
        table,
    )
    chosen = world.dice.choice(_STORAGE)
    if not index or (table == "parts" and "CLUSTER" in chosen):
        chosen = _STORAGE[0]
    if table in tables.BATCHED and world.dice.random() < 0.3:
        return change(
            world, table, f"ALTER TABLE {table} SET UNLOGGED", f"ALTER TABLE {table} SET LOGGED"
        )
    return change(world, table, chosen.format(t=table, i=index[0][0] if index else ""))


def made_anew(world: World, table: str) -> str:
    """The table is dropped, and another one of its name comes, with rows."""
    how = world.dice.choice(["", "BEGIN"])
    statements = [f"DROP TABLE {table}", *tables.MADE[table].split(";")]
    made = [s for s in statements if s.strip()]
    why = change(world, table, *([how] if how else []), *made, *(["COMMIT"] if how else []))
    return why or world.execute(rows.insert(world, table))


def renamed_and_back(world: World, table: str) -> str:
    """The table has another name for a moment, in which its rows may change."""
    other = f"{table}_aside"
    changed = rows.update(world, table).replace(f"UPDATE {table}", f"UPDATE {other}")
    return change(
        world,
        table,
        f"ALTER TABLE {table} RENAME TO {other}",
        *([changed] if world.dice.random() < 0.5 else []),
        f"ALTER TABLE {other} RENAME TO {table}",
    )


def exchanged(world: World, table: str) -> str:
    """A copy of the table with other rows takes its place, in one transaction."""
    if table in ("parts", "whole"):
        return "it is not exchanged"
    new, old = f"{table}_new", f"{table}_old"
    statements = [
        f"CREATE TABLE {new} (LIKE {table} INCLUDING ALL)",
        rows.insert(world, table).replace(f"INSERT INTO {table} ", f"INSERT INTO {new} "),
        "BEGIN",
        f"ALTER TABLE {table} RENAME TO {old}",
        f"ALTER TABLE {new} RENAME TO {table}",
        f"DROP TABLE {old}",
        "COMMIT",
    ]
    if table == "dated":
        trigger = "CREATE TRIGGER stamped BEFORE INSERT OR UPDATE ON dated_new FOR EACH ROW"
        statements.insert(1, f"{trigger} EXECUTE FUNCTION stamped()")
    return change(world, table, *statements)


def partition(world: World, table: str) -> str:
    """A partition is emptied, goes, comes, or comes back with other rows."""
    dice = world.dice
    found = world.ask(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = to_regclass('parts') ORDER BY 1"
    )
    names = [row[0] for row in found]
    missing = [d for d in (1, 2, 3, 4) if f"parts_{d}" not in names]
    if len(names) < 3 or (missing and dice.random() < 0.4):
        d = dice.choice(missing)
        # It may be there, detached, with the columns of then.
        made = f"CREATE TABLE parts_{d} (LIKE parts INCLUDING ALL)"
        filled = f"INSERT INTO parts_{d} (id, d) SELECT g, {d} FROM generate_series(1, 9) g"
        return change(
            world,
            "parts",
            f"DROP TABLE IF EXISTS parts_{d}",
            made,
            *([filled] if dice.random() < 0.7 else []),
            f"ALTER TABLE parts ATTACH PARTITION parts_{d} FOR VALUES IN ({d})",
        )
    if not names:
        return "no partition"
    one = dice.choice(names)
    d = one[-1]
    emptied = [f"TRUNCATE {one}"]
    gone = [f"ALTER TABLE parts DETACH PARTITION {one}"]
    back = [
        *gone,
        f"UPDATE {one} SET id = id + 300",
        f"ALTER TABLE parts ATTACH PARTITION {one} FOR VALUES IN ({d})",
    ]
    dropped = [f"DROP TABLE {one}"]
    return change(world, "parts", *dice.choice([emptied, gone, back, dropped]))
