"""Random values of every kind of the type contract, as text that PostgreSQL reads.

`expected` says, from PostgreSQL's own text of a value alone, what the Bronze table must hold.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.support.features import has, known

Texts = st.SearchStrategy[str]

SETUP = """
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"', '');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN price AS numeric(12,2);
CREATE DOMAIN prices AS numeric(12,2)[];
CREATE DOMAIN couple AS pair;
"""


class _Rejected:
    def __repr__(self) -> str:
        return "REJECTED"


REJECTED = _Rejected()
"""Stands for a value that lands as NULL and is kept as text in the books."""


@dataclass(frozen=True)
class Declared:
    """A PostgreSQL type, the kind that the contract makes of it, and texts of its values."""

    type: str
    kind: str
    texts: Texts

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.type)


# No zero byte and no lone surrogate: PostgreSQL has neither. Short alphabets make collisions.
_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.text(st.sampled_from("ab'\"\\,{}() \n\t\u2028\x85é日🚀\U0010ffff")) | st.text(
    _CHARACTERS
)


def _either(values: Texts, *special: str) -> Texts:
    return st.one_of(values, st.sampled_from(special))


def _integers(bits: int) -> Texts:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return st.integers(low, high).map(str)


def _floats(width: Any) -> Texts:
    return _either(st.floats(width=width, allow_nan=False).map(repr), "NaN", "-0", "-Infinity")


def _numerics(precision: int, scale: int) -> Texts:
    most = 10**precision - 1
    unscaled = st.integers(-most, most) | st.integers(-min(most, 20), min(most, 20))
    return _either(unscaled.map(lambda n: f"{n}e{-scale}"), "NaN")


def _json(allow: Texts) -> Texts:
    scalars = st.none() | st.booleans() | st.integers() | allow
    nested = st.recursive(
        scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(allow, v, max_size=3)
    )
    return nested.map(lambda v: json.dumps(v, ensure_ascii=False))


def _interval(months: int, days: int, microseconds: int) -> str:
    return f"{months} mons {days} days {microseconds} microseconds"


_DATES = _either(
    st.dates().map(str), "infinity", "-infinity", "4713-01-01 BC", "10000-01-01", "5874897-12-31"
)
_TIMESTAMPS = _either(
    st.datetimes().map(str), "infinity", "-infinity", "0001-12-31 23:59:59.999999 BC", "294276-1-1"
)
_ZONED = _either(
    st.builds("{}{:+03d}".format, st.datetimes(), st.integers(-14, 14)), "infinity", "-infinity"
)
_TIMES = st.times().map(str)
_INTERVALS = _either(
    st.builds(_interval, _i := st.integers(-(10**6), 10**6), _i, _i),
    "-1 day +00:00:01",
    *(["infinity"] if has("infinite intervals") else []),
)
_ADDRESSES = st.ip_addresses()
_NETWORKS = st.builds(
    lambda a, bits: str(ipaddress.ip_network((a, bits % (a.max_prefixlen + 1)), strict=False)),
    _ADDRESSES,
    st.integers(0, 128),
)
_BYTES = st.binary(max_size=9).map(lambda b: "\\x" + b.hex())
_MONEY = st.builds("{}.{:02}".format, st.integers(-(10**15), 10**15), st.integers(0, 99))
_MOODS = st.sampled_from(["sad", 'it\'s "ok"', ""])
_WHOLE = st.integers(-(2**31), 2**31 - 1).map(str)


def _quoted(text: str | None) -> str:
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _arrays(elements: Texts) -> Texts:
    cells = st.lists(st.none() | elements, max_size=4)
    plain = cells.map(lambda row: "{" + ",".join(map(_quoted, row)) + "}")
    two = st.lists(elements, min_size=2, max_size=2)
    deep = two.map(lambda row: "{{" + "},{".join(map(_quoted, row)) + "}}")
    shifted = two.map(lambda row: "[0:1]={" + ",".join(map(_quoted, row)) + "}")
    return st.one_of(plain, plain, plain, deep, shifted)


def _pair(number: str | None, text: str | None) -> str:
    return f"({number or ''},{_quoted(text) if text is not None else ''})"


_PAIRS = st.builds(_pair, st.none() | _WHOLE, st.none() | words)
_HSTORES = st.dictionaries(words, st.none() | words, max_size=3).map(
    lambda d: ",".join(f"{_quoted(k)}=>{_quoted(v)}" for k, v in d.items())
)
_BITS = st.text("01", max_size=9)

SCALARS: tuple[Declared, ...] = (
    Declared("smallint", "short", _integers(16)),
    Declared("integer", "int", _integers(32)),
    Declared("bigint", "long", _integers(64)),
    Declared("oid", "long", st.integers(0, 2**32 - 1).map(str)),
    Declared("real", "float", _floats(32)),
    Declared("float8", "double", _floats(64)),
    Declared("numeric(12,2)", "decimal(12,2)", _numerics(12, 2)),
    Declared("numeric(18,18)", "decimal(18,18)", _numerics(18, 18)),
    Declared("numeric(18,0)", "decimal(18,0)", _numerics(18, 0)),
    Declared("numeric(19,3)", "decimal(19,3)", _numerics(19, 3)),
    Declared("numeric(38,10)", "decimal(38,10)", _numerics(38, 10)),
    Declared("numeric(38,38)", "decimal(38,38)", _numerics(38, 38)),
    Declared("numeric(5,-2)", "decimal(7,0)", _numerics(5, -2)),
    Declared("numeric(3,5)", "decimal(5,5)", _numerics(3, 5)),
    Declared("numeric(40,2)", "string", _numerics(40, 2)),
    Declared("numeric", "string", _either(_numerics(60, 30), "Infinity", "1e-300")),
    Declared("boolean", "boolean", st.sampled_from(["t", "f"])),
    Declared("bytea", "binary", _BYTES),
    Declared("text", "string", words),
    Declared("varchar(5)", "string", words),
    Declared("char(5)", "string", words),
    Declared('"char"', "string", st.sampled_from(["", "a", " ", "\\377"])),
    Declared("name", "string", words),
    Declared("citext", "string", words),
    Declared("mood", "string", _MOODS),
    Declared("uuid", "string", st.uuids().map(str)),
    Declared("json", "string", _json(words)),
    Declared("jsonb", "string", _json(words)),
    Declared("date", "date", _DATES),
    Declared("timestamp", "timestamp_ntz", _TIMESTAMPS),
    Declared("timestamptz", "timestamp", _ZONED),
    Declared("time", "string", _either(_TIMES, "24:00")),
    Declared("timetz", "string", st.builds("{}{:+03d}".format, _TIMES, st.integers(-15, 15))),
    Declared("interval", "string", _INTERVALS),
    Declared("money", "string", _MONEY),
    Declared("inet", "string", _ADDRESSES.map(str)),
    Declared("cidr", "string", _NETWORKS),
    Declared("bit(3)", "string", st.text("01", min_size=3, max_size=3)),
    Declared("varbit", "string", _BITS),
    Declared("int4range", "string", st.sampled_from(["[1,5)", "empty", "(,)", "(,3]"])),
    Declared("pair", "string", _PAIRS),
    Declared("couple", "string", _PAIRS),
    Declared("hstore", "string", _HSTORES),
    Declared("ltree", "string", st.sampled_from(["", "a", "a.b"])),
    Declared("xid", "string", st.integers(0, 2**32 - 1).map(str)),
    Declared("positive", "int", st.integers(1, 2**31 - 1).map(str)),
    Declared("price", "decimal(12,2)", _numerics(12, 2)),
)

ARRAYS: tuple[Declared, ...] = (
    Declared("smallint[]", "array<short>", _arrays(_integers(16))),
    Declared("int[]", "array<int>", _arrays(_WHOLE)),
    Declared("bigint[]", "array<long>", _arrays(_integers(64))),
    Declared("real[]", "array<float>", _arrays(_floats(32))),
    Declared("float8[]", "array<double>", _arrays(_floats(64))),
    Declared("numeric[]", "array<string>", _arrays(_numerics(30, 5))),
    Declared("numeric(12,2)[]", "array<decimal(12,2)>", _arrays(_numerics(12, 2))),
    Declared("numeric(30,3)[]", "array<decimal(30,3)>", _arrays(_numerics(30, 3))),
    Declared("boolean[]", "array<boolean>", _arrays(st.sampled_from(["t", "f"]))),
    Declared("bytea[]", "array<binary>", _arrays(_BYTES)),
    Declared("text[]", "array<string>", _arrays(words)),
    Declared("char(3)[]", "array<string>", _arrays(words)),
    Declared("mood[]", "array<string>", _arrays(_MOODS)),
    Declared("uuid[]", "array<string>", _arrays(st.uuids().map(str))),
    Declared("jsonb[]", "array<string>", _arrays(_json(words))),
    Declared("date[]", "array<date>", _arrays(_DATES)),
    Declared("timestamp[]", "array<timestamp_ntz>", _arrays(_TIMESTAMPS)),
    Declared("timestamptz[]", "array<timestamp>", _arrays(_ZONED)),
    Declared("interval[]", "array<string>", _arrays(_INTERVALS)),
    Declared("pair[]", "array<string>", _arrays(_PAIRS)),
    Declared("positive[]", "array<int>", _arrays(st.integers(1, 9).map(str))),
    Declared("prices", "array<decimal(12,2)>", _arrays(_numerics(12, 2))),
)

EVERY = tuple(declared for declared in SCALARS + ARRAYS if known(declared.type))

# Names that our own SQL uses, that SQL reserves, and that files and logs have to quote.
NAMES = (
    *("e", "o", "x", "r", "s", "u", "w", "v0", "c1", "rejected", "select", "Order", "a.b"),
    *('quo"te', "apo's", "back`tick", "100%", "ünï", "日本", "a:b"),
)


@dataclass(frozen=True)
class Sample:
    """A table: its columns in order, and their values as text, row by row."""

    columns: tuple[tuple[str, Declared], ...]
    rows: tuple[tuple[str | None, ...], ...]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Tables of 1 to 20 columns of any types, of 0 to 8 rows."""
    types = draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=len(NAMES)))
    cells = st.tuples(*(st.none() | declared.texts for declared in types))
    rows = draw(st.lists(cells, max_size=8))
    return Sample(tuple(zip(NAMES, types, strict=False)), tuple(rows))


def expected(kind: str, text: str | None) -> Any:
    """What Bronze must hold for a value of which PostgreSQL writes ``text``, or `REJECTED`."""
    if text is None:
        return None
    if kind.startswith("array<"):
        if not text.startswith("{") or text.startswith("{{"):
            return REJECTED
        inner = kind.removeprefix("array<").removesuffix(">")
        values = [expected(inner, element) for element in _elements(text)]
        return REJECTED if REJECTED in values else values
    if kind.startswith("decimal"):
        return REJECTED if text == "NaN" else Decimal(text)
    return _PARSED.get(kind, str)(text)


def _elements(text: str) -> list[str | None]:
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|([^,{}]+)', text, re.DOTALL)
    return [
        None if bare == "NULL" else bare or re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        for quoted, bare in found
    ]


def _moment(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        beyond = "infinity" in text or text.endswith("BC") or text.index("-") > 4
        return REJECTED if beyond else parse(text)

    return parsed


_PARSED: dict[str, Callable[[str], Any]] = {
    "short": int,
    "int": int,
    "long": int,
    "float": lambda text: float(np.float32(text)),
    "double": float,
    "boolean": lambda text: text == "t",
    "binary": lambda text: bytes.fromhex(text.removeprefix("\\x")),
    "date": _moment(dt.date.fromisoformat),
    "timestamp": _moment(dt.datetime.fromisoformat),
    "timestamp_ntz": _moment(dt.datetime.fromisoformat),
}
