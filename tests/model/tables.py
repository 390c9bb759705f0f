"""The tables of the checker: one of each kind, streamed and in batches, in one database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from tests.features import has

STREAMED = ("plain", "whole", "parts")
"""Those that are streamed."""

BATCHED = ("marked", "dated", "fresh")
"""Those that runs take."""

TABLES = (*STREAMED, *BATCHED)

TYPES = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('glad', 'calm', 'sad');
CREATE TYPE address AS (street text, number int);
CREATE DOMAIN posint AS int CHECK (VALUE >= 0);
"""

FUNCTIONS = """
CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.updated_at = now(); RETURN NEW; END';
CREATE FUNCTION num(seed int8, salt int) RETURNS int IMMUTABLE LANGUAGE sql AS
    'SELECT (hashint8extended(seed, salt) & 2147483647)::int4';
CREATE FUNCTION seed(VARIADIC text[]) RETURNS int8 IMMUTABLE LANGUAGE sql AS
    'SELECT hashtextextended(array_to_string($1, chr(47)), 0)';
CREATE FUNCTION large(n int) RETURNS text IMMUTABLE LANGUAGE sql AS
    'SELECT repeat(md5(n::text), 90)';
CREATE FUNCTION words(n int) RETURNS text IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE n % 7 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'é''"\' WHEN 3 THEN large(n)
           ELSE 'v' || n % 50 END
$$;
CREATE FUNCTION fits(v text, kind text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('SELECT %L::%s', v, kind); RETURN true;
EXCEPTION WHEN data_exception THEN RETURN false; END
$$;
"""

MADE: Mapping[str, str] = {
    "plain": """
CREATE TABLE plain (id int PRIMARY KEY, n int, big text, other text, price numeric(10,2),
    at timestamptz, doc json);
ALTER TABLE plain ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
""",
    "whole": """
CREATE TABLE whole (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, tag uuid, name citext,
    code char(6), m mood, big text);
ALTER TABLE whole REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
"""
    # Older servers do not send it.
    + (
        "ALTER TABLE whole ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED;"
        if has("generated columns in publications")
        else ""
    ),
    "parts": """
CREATE TABLE parts (id int, d int, v text, n numeric(8,1), b bytea, PRIMARY KEY (id, d))
    PARTITION BY LIST (d);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
CREATE TABLE parts_3 PARTITION OF parts FOR VALUES IN (3);
""",
    "marked": """
CREATE TABLE marked (u uuid, k text, m mood, home address, p posint, code char(6), doc json,
    big text, PRIMARY KEY (u, k));
""",
    "dated": """
CREATE TABLE dated (id bigint PRIMARY KEY, v text, x double precision, day date, list int[],
    updated_at timestamptz NOT NULL DEFAULT now());
CREATE TRIGGER stamped BEFORE INSERT OR UPDATE ON dated FOR EACH ROW EXECUTE FUNCTION stamped();
""",
    "fresh": """
CREATE TABLE fresh (name citext PRIMARY KEY, n int, v varchar(20), ok bool, doc jsonb,
    half numeric GENERATED ALWAYS AS (n / 2.0) STORED);
"""
    + (
        "ALTER TABLE fresh ADD plus int GENERATED ALWAYS AS (n + 1) VIRTUAL;"
        if has("virtual generated columns")
        else ""
    ),
}
"""The SQL that makes each of them."""

FIXED: Mapping[str, frozenset[str]] = {
    "plain": frozenset(),
    "whole": frozenset({"id"}),
    "parts": frozenset({"id", "d"}),
    "marked": frozenset(),
    "dated": frozenset({"updated_at"}),
    "fresh": frozenset(),
}
"""Columns that the config or the checker itself names, which keep their names."""


def config(dice: Random) -> dict[str, dict[str, Any]]:
    """What the config has of each table of its own: the patterns are given, the rest is drawn."""
    deletes = ["mark", "remove"]
    drawn: dict[str, dict[str, Any]] = {
        "plain": {"pattern": "streaming", "on_delete": dice.choice(deletes)},
        "whole": {"pattern": "streaming", "on_delete": dice.choice(deletes), "key": ["id"]},
        "parts": {"pattern": "streaming", "on_delete": dice.choice(deletes)},
        "marked": {"pattern": "batch", "cursor": "xmin"},
        "dated": {"pattern": "micro_batch", "cursor": "updated_at", "deletes": "detect"},
        "fresh": {"pattern": "full_refresh"},
    }
    for name in BATCHED:
        how = dice.choice(["mark", "remove", "history"])
        drawn[name] |= {"history": True} if how == "history" else {"on_delete": how}
    return drawn


@dataclass(frozen=True)
class Column:
    """A column as the catalog has it now. ``kind`` is its type's, as pg_type.typtype;
    ``parts`` counts the attributes of a composite, ``limit`` the characters of char and varchar.
    """

    name: str
    type: str
    kind: Literal["b", "c", "d", "e", "p", "r", "m"]
    not_null: bool
    generated: str
    key: bool
    parts: int
    limit: int

    @property
    def quoted(self) -> str:
        """Its name in SQL."""
        return '"' + self.name.replace('"', '""') + '"'

    @property
    def base(self) -> str:
        """Its type without modifiers."""
        return self.type.split("(")[0]


COLUMNS = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), t.typtype::text, a.attnotnull,
       a.attgenerated::text, coalesce(a.attnum = ANY(i.indkey), false),
       (SELECT count(*)::int FROM pg_attribute x
        WHERE x.attrelid = t.typrelid AND t.typrelid <> 0 AND NOT x.attisdropped),
       greatest(a.atttypmod - 4, 0)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
"""The catalog's columns of a table, as `Column` has them."""

_VALUES: Mapping[str, str] = {
    "smallint": "({n} % 3000)::int2",
    "integer": "({n} % 100000)",
    "bigint": "({n}::int8 * 1000003)",
    "real": "({n} % 1000 / 8.0)::float4",
    "double precision": "({n} / 7.0)::float8",
    "numeric": "({n} % 1000000 / 100.0)",
    "boolean": "({n} % 2 = 0)",
    "text": "words({n})",
    "citext": "words({n})",
    "character varying": "left(words({n}), {limit})",
    "character": "left('c' || {n} % 40, {limit})",
    "uuid": "md5(({n} % 500)::text)::uuid",
    "bytea": "decode(md5({n}::text), 'hex')",
    "date": "(date '2020-01-01' + {n} % 3000)",
    "timestamp with time zone": "(timestamptz '2020-01-01' + {n} % 100000 * interval '1 min')",
    "timestamp without time zone": "(timestamp '2020-01-01' + {n} % 100000 * interval '1 min')",
    "json": """('{{"a": ' || {n} || ',"b" :[1]}}')::json""",
    "jsonb": """('{{"b":[1.50], "a": ' || {n} || '}}')::jsonb""",
    "integer[]": "ARRAY[{n} % 10, NULL, 3]",
    "interval": "make_interval(mins => {n} % 1000)",
    "inet": "('10.0.0.' || {n} % 255)::inet",
}
_KEYS: Mapping[str, str] = {
    "smallint": "{g}::int2",
    "integer": "{g}::int4",
    "bigint": "{g}::int8",
    "numeric": "{g}::numeric",
    "text": "'k' || {g}",
    "citext": "CASE {g} % 2 WHEN 0 THEN 'k' ELSE 'K' END || {g}",
    "character varying": "'k' || {g}",
    "uuid": "md5({g}::text)::uuid",
}


def number(seed: str, salt: int) -> str:
    """SQL of a number from 0 to 2^31 - 1, made of ``seed`` (SQL of an int8) and ``salt``."""
    return f"num({seed}, {salt})"


def value(column: Column, seed: str, dice: Random) -> str:
    """SQL of a value for a column, which is another one for another ``seed`` (SQL of an int8)."""
    n = number(seed, dice.randrange(2**31))
    if column.kind == "e":
        every = f"enum_range(NULL::{column.type})"
        return f"({every})[1 + {n} % array_length({every}, 1)]"
    if column.kind == "c":
        rest = "," * (column.parts - 2)
        return f"('(street ' || {n} % 9 || ',' || {n} % 100 || '{rest})')::{column.type}"
    if column.kind == "d":
        return f"({n} % 100000)::{column.type}"
    made = _VALUES.get(column.base, "NULL").format(n=n, limit=column.limit or 9)
    if not column.not_null and dice.random() < 0.2:
        made = f"CASE WHEN {n} % 5 > 0 THEN {made} END"
    return f"coalesce({made}, '')" if column.not_null and "words" in made else made


def key_value(column: Column, seed: str, dice: Random) -> str:
    """SQL of a value for a column of a key: the same one for the same ``seed``."""
    made = _KEYS.get(column.base)
    return made.format(g=f"({seed})") if made else value(column, seed, dice)
