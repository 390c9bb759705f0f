"""PostgreSQL's texts are parsed into exactly what a load reads for the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import Mismatch
from bronze.model.columns import Column, DeltaType
from bronze.postgres import statement
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.catalog.types import SourceType, TypeOptions, column_contract, recast_column
from bronze.postgres.connection import connect
from bronze.postgres.copy import rows_reader
from bronze.postgres.replication.text_values import TextColumn, parse_texts, text_column
from bronze.tables import selection
from tests.acceptance.test_exact import CASES
from tests.acceptance.test_exact import SETUP as EXACT
from tests.conftest import Source
from tests.integration.postgres.catalog.test_types import ARRAYS, EXTENSIONS, OWN, TABLES
from tests.integration.rows.test_encoding import IN_DATABASE, fill
from tests.support.features import known
from tests.support.strategies import EVERY, SETUP, Sample, samples

Frames = tuple[pl.DataFrame, pl.Series]
Widened = Callable[[Column], Column]


@pytest.fixture
def own(source: Source) -> Source:
    """A database with the types of `tests.support.strategies`."""
    source.execute(SETUP)
    return source


def output(connection: connect.Connection, table: str) -> pl.DataFrame:
    """The rows of a table as texts of their types' output functions."""
    result = connection.pgconn.exec_(f"SELECT * FROM {table}".encode())
    cells = {
        str(column): pl.Series(
            [_decoded(result.get_value(row, column)) for row in range(result.ntuples)],
            dtype=pl.String,
        )
        for column in range(result.nfields)
    }
    return pl.DataFrame(cells or None, height=result.ntuples)


def _decoded(cell: bytes | None) -> str | None:
    return None if cell is None else cell.decode()


def both(
    source: Source, widened: Widened = lambda column: column, name: str = "t", **chosen: Any
) -> tuple[Frames, Frames]:
    """A table's rows and rejected values as a load reads them, and parsed from PostgreSQL's texts.

    ``widened`` replaces a column; ``chosen`` is the table's section in the config.
    """
    config = source.settings(tables={name: chosen}) if chosen else source.settings()
    origin = config.origin("test")
    with connect.connect(origin) as connection:
        found = [("test", relation) for relation in relations(connection, ["public"])]
        (target,) = selection.select_targets(config, found, [name])
        texts = output(connection, statement.quoted("public", name))
    columns = [widened(column) for column in selection.contract_columns(target)]
    select = statement.select(columns, statement.quoted("public", name))
    parts = list(rows_reader.read_rows(origin, (), select, ["true"], columns, name))
    own = target.settings
    choices = TypeOptions(own.decimals, own.arrays, own.timestamps)
    parsed = parse_texts(texts, _texts(columns, target.relation, choices))
    empty = parsed[0].clear(), parsed[1].clear()
    frames, rejected = zip(*parts, strict=True) if parts else ((empty[0],), (empty[1],))
    return (pl.concat(frames), pl.concat(rejected)), parsed


def _texts(columns: Sequence[Column], relation: Relation, choices: TypeOptions) -> list[TextColumn]:
    pairs = zip(columns, relation.attributes, strict=True)
    return [text_column(column, attribute.type, choices) for column, attribute in pairs]


def prove(
    source: Source,
    widened: Widened = lambda column: column,
    kinds: Mapping[str, str] = MappingProxyType({}),
    **chosen: Any,
) -> Frames:
    """Asserts that the texts of the table ``t`` are parsed into what a load reads, to the bit.

    ``kinds`` are the columns' types, for the message of a failure.
    """
    (frame, rejected), parsed = both(source, widened, **chosen)
    assert parsed[0].schema == frame.schema
    # NaN is NaN there, and -0.0 is not 0.0.
    pairs = {
        f"{name} {kinds.get(name, '')}": (repr(parsed[0][name].to_list()), repr(column.to_list()))
        for name, column in zip(frame.columns, frame, strict=True)
    }
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == {}
    assert (parsed[1].name, parsed[1].dtype) == (rejected.name, rejected.dtype)
    assert parsed[1].to_list() == rejected.to_list()
    return parsed


@IN_DATABASE
@given(sample=samples())
def test_random_rows_are_parsed(own: Source, sample: Sample) -> None:
    """Values of any types, with NULL and rejected values."""
    fill(own, sample)
    prove(own)


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=6)
@given(sample=samples())
def test_random_rows_follow_the_type_options(own: Source, sample: Sample) -> None:
    """Decimals, arrays as text, timestamps as UTC."""
    fill(own, sample)
    unbounded = [name for name, declared in sample.columns if declared.type == "numeric"]
    decimals = dict.fromkeys(unbounded, "decimal(20,3)")
    prove(own, decimals=decimals, timestamps="timestamp")
    prove(own, arrays="string")


@settings(IN_DATABASE, max_examples=2)
@given(rows=st.lists(st.tuples(*(st.none() | kind.texts for kind in EVERY)), min_size=9))
def test_rows_of_all_types_are_parsed(own: Source, rows: list[tuple[str | None, ...]]) -> None:
    """With a column of every type."""
    columns = tuple((f"c{i}", kind) for i, kind in enumerate(EVERY))
    fill(own, Sample(columns, tuple(rows)))
    prove(own)


def test_special_values_are_parsed(source: Source) -> None:
    """The smallest, largest and special values of each type of the contract."""
    source.execute(EXACT)
    columns = {f"c{i}": kind for i, (kind, _) in enumerate(CASES)}
    rows = list(zip_longest(*(["NULL", *(value for value, _ in values)] for _, values in CASES)))
    source.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(map(' '.join, columns.items()))});"
        + "".join(
            f"INSERT INTO t VALUES ({i}, {', '.join(value or 'NULL' for value in row)});"
            for i, row in enumerate(rows)
        )
    )
    assert prove(source, kinds=columns)[0].height == len(rows)


CHOICES: Sequence[dict[str, Any]] = (
    {},
    {"timestamps": "timestamp"},
    {"arrays": "string"},
)
ODD = 'q\\"\n\x01é'

NASTY: Mapping[str, Sequence[str]] = {
    "float4": ["1e-45", "1.1754944e-38", "3.4028235e38", "16777216", "0.1", "1e15", "-0"],
    "float8": ["2.2250738585072014e-308", "1.7976931348623157e308", "9007199254740993", "1e22"],
    "numeric(38,0)": ["9" * 38, "-" + "9" * 38, "0"],
    "numeric(38,38)": ["0." + "9" * 38, "-0." + "0" * 37 + "1", "NaN"],
    "numeric(19,0)": ["9" * 19, "-" + "9" * 19],
    "numeric(2,-36)": ["99" + "0" * 36, "1e36"],
    "numeric(2,-37)": ["99" + "0" * 37, "NaN"],
    "numeric(1,38)": ["1e-38", "-9e-38"],
    "numeric(39,1)": ["NaN", "1.5"],
    "date": ["0001-01-01 BC", "9999-12-31", "10000-01-01", "99999-01-01", "5874897-12-31"],
    "timestamp": ["9999-12-31 23:59:59.9999999", "12345-01-01 00:00", "0044-03-15 12:00:00.5 BC"],
    "timestamptz": [
        "9999-12-31 23:59:59.999999-01",
        "0001-01-01 00:30+01",
        "0044-03-15 12:00:00.000001+00 BC",
        "2016-12-31 23:59:60+00",
        "infinity",
    ],
    "date[]": ["{0001-01-01 BC,NULL}", "{10000-01-01}", "{NULL,NULL}", "[-1:0]={NULL,NULL}"],
    "timestamp[]": ['{"2024-01-01 00:00:00.1",NULL}', "{-infinity}", "{12345-01-01}"],
    "numeric(5,2)[]": ["{NULL,NaN}", "{1,2}", "{{NaN}}", "[2:2]={1}", "{{{1}}}"],
    "numeric[]": ["{NaN,Infinity,-Infinity,1e-30}", "{{1,2}}"],
    "float8[]": ["{NaN,-0,1e-320}", "{{NaN}}"],
    "text[]": [
        '{null,NULL,"NULL","null",nULL}',
        r'{"\\","\"","{","}",",",";"," ","","\\\"x"}',
        '{" a","a ","a b","\n","\r\n","\t","\x0b","\x0c","\x85","\u00a0","\u2028","é"}',
        '{"[0:1]={a}","{}","{{"}',
        "[0:0]={x}",
        "[1:2][3:3]={{a},{b}}",
        "{{{NULL}}}",
        '{"\x01\x1f\x7f"}',
        '{{"\x01\x1f\x7f\b\f\n\r\t\\"\\\\/é\U0001f680"}}',
    ],
    "char(3)[]": ['{a,NULL,"  ",""}'],
    "bytea[]": [r'{"\\x00ff","\\x",NULL}', r'{{"\\x00"}}'],
    "bool[]": ["{t,f,NULL}", "{{t}}"],
    "oid[]": ["{0,4294967295,NULL}"],
    "name[]": ['{"a b",NULL}'],
    "box[]": ["{(1,1),(0,0);(2,2),(1,1)}", "{}", "{NULL;(1,1),(0,0)}", "{{(1,1),(0,0)}}"],
    "boxes": ["{(1,1),(0,0);(2,2),(1,1)}", "{NULL}"],
    "boxes[]": ['{"{(1,1),(0,0);(2,2),(1,1)}";NULL}', "{}"],
    "public.box[]": ["{a,b,NULL}", "{b}"],
    "odd[]": ["{a,b|NULL|c:d;e}", '{"a|b"|"NULL"|"{x}"}', "{}", "{{a|b}|{c|d}}", "[0:0]={a,b}"],
    "odds": ["{a,b|NULL}", "{{a|b}}"],
    "odds[]": ['{"{a|b}"|NULL}', '{"{\\"a|b\\"|c}"}'],
    "strange[]": ["{a,b|NULL}"],
    "point[]": ['{"(1,2)",NULL}'],
    "int2vector": ["1 2", ""],
    "int2vector[]": ['{"1 2",NULL}', '{""}', "{1}"],
    "money[]": ['{"$1,234.50",NULL,-$1}'],
    "json[]": [r'{"{\"a\": \"\\\\\\\"\"}",NULL,"null"}'],
    "int4range[]": ['{"[1,5)",empty}'],
    "pair[]": [r'{"(1,\"a,\\\"\\\"b\")","(,)",NULL}', '{{"(1,)"}}', '[0:0]={"(,)"}'],
    "couple[]": ['{"(1,x)",NULL}'],
    "smalls[]": ['{"{1,2}",NULL,"{}","{{1},{2}}"}'],
    "days": ["{infinity}", "{2024-01-01}"],
    "day": ["infinity", "2024-01-01"],
    "moment": ["infinity", "2024-01-01 00:00:00.5+02"],
    "flag": ["t", "f"],
    "raw": [r"\x00ff"],
    '"char"[]': ['{a,"",NULL,"\\\\377"}'],
    "mood[]": ['{"NULL",NULL,"a,b","{"}'],
    "hstore[]": [r'{"\"a\"=>\"1\", \"b\"=>NULL"}'],
}
NASTY = {kind: values for kind, values in NASTY.items() if known(kind)}


@pytest.mark.parametrize("chosen", CHOICES, ids=["plain", "zoned", "as strings"])
def test_values_with_difficult_texts_are_parsed(source: Source, chosen: dict[str, Any]) -> None:
    """Texts that are easily misread, in columns whose names JSON must escape."""
    source.execute(
        """
        CREATE EXTENSION hstore;
        CREATE TYPE mood AS ENUM ('NULL', 'a,b', '{');
        CREATE TYPE public.box AS ENUM ('a', 'b');
        CREATE TYPE pair AS (a int, b text);
        CREATE DOMAIN couple AS pair;
        CREATE TYPE odd;
        CREATE FUNCTION odd_in(cstring) RETURNS odd AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
        CREATE FUNCTION odd_out(odd) RETURNS cstring AS 'textout' LANGUAGE internal
            IMMUTABLE STRICT;
        CREATE TYPE odd (INPUT = odd_in, OUTPUT = odd_out, LIKE = text, DELIMITER = '|');
        CREATE DOMAIN odds AS odd[]; CREATE DOMAIN strange AS odd;
        CREATE DOMAIN smalls AS int[]; CREATE DOMAIN boxes AS box[];
        CREATE DOMAIN day AS date; CREATE DOMAIN days AS day[];
        CREATE DOMAIN moment AS timestamptz(3);
        CREATE DOMAIN flag AS bool; CREATE DOMAIN raw AS bytea;
        """
    )
    columns = {f"{ODD}{i}": kind for i, kind in enumerate(NASTY)}
    beside = {f"w{i}": kind for i, kind in enumerate(NASTY)}
    cells = {**columns, **beside}
    defined = ", ".join(f"{statement.quoted(name)} {kind}" for name, kind in cells.items())
    source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {defined})")
    rows = list(zip_longest(*([*values, None] for values in NASTY.values())))
    firsts = [values[0] for values in NASTY.values()]
    marks = ", ".join(f"%s::text::{kind}" for kind in cells.values())
    with psycopg.connect(source.dsn) as connection:
        for i, row in enumerate(rows):
            other = firsts if i % 2 else [None] * len(firsts)
            connection.execute(f"INSERT INTO t SELECT %s, {marks}", [i, *row, *other])
    renamed = {f"v{i}": kind for i, kind in enumerate(NASTY)}
    rename = dict(zip(columns, renamed, strict=True))
    frame = prove(source, kinds={**renamed, **beside}, rename=rename, **chosen)[0]
    assert frame.height == len(rows)


def test_floats_of_random_bits_are_exact(source: Source) -> None:
    """Each has the bits that it has in PostgreSQL; NaN is NaN, whatever its sign."""
    bits = np.random.default_rng(7)
    doubles = bits.integers(0, 2**64, 4000, np.uint64).view(np.float64)
    singles = bits.integers(0, 2**32, 4000, np.uint32).view(np.float32)
    tiny = bits.integers(0, 2**20, 4000, np.uint64).view(np.float64)
    source.execute("CREATE TABLE t (d float8, s float4, tiny float8, list float4[])")
    with (
        psycopg.connect(source.dsn) as connection,
        connection.cursor().copy("COPY t FROM STDIN") as copy,
    ):
        for d, s, small in zip(doubles, singles, tiny, strict=True):
            copy.write_row([repr(float(d)), str(s), repr(float(small)), f"{{{s},NULL}}"])
    source.execute("INSERT INTO t (d) SELECT v - v FROM (SELECT 'inf'::float8 AS v) AS x")
    prove(source)


CHOSEN = {
    "decimal(10,2)": ["1.10", "1.1000", "1.101", "-99999999.99", "1e8", "NaN", "Infinity", "0"],
    "decimal(38,10)": ["9999999999999999999999999999.9999999999", "1e28", "1e-10", "1e-11"],
    "decimal(18,0)": ["999999999999999999", "1e18", "0.5", "1.0", "-1e18", "-Infinity"],
    "decimal(3,3)": ["0.999", "1", "-0.001", "-0.0010", "0.0001", "0.000", "-1.0"],
    "decimal(38,38)": ["0." + "9" * 38, "1e-39", "1e-38", "1e131000", "1e-16000"],
}


def test_configured_decimals_reject_values_that_do_not_fit(source: Source) -> None:
    """Numerics without precision that fit are exact."""
    source.execute("CREATE DOMAIN amount AS numeric")
    cases = [
        (kind, choice, values)
        for kind in ("numeric", "amount")
        for choice, values in CHOSEN.items()
    ]
    columns = {f"n{i}": f"{kind} {choice}" for i, (kind, choice, _) in enumerate(cases)}
    defined = ", ".join(f"{name} {kind.split()[0]}" for name, kind in columns.items())
    source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {defined}, w numeric)")
    rows = list(zip_longest(*([*values, "1." + "0" * 900] for *_, values in cases)))
    marks = ", ".join(["%s::text::numeric"] * len(cases))
    with psycopg.connect(source.dsn) as connection:
        for i, row in enumerate([*rows, [None] * len(cases)]):
            connection.execute(f"INSERT INTO t VALUES (%s, {marks}, %s)", [i, *row, i])
    decimals = {name: choice for name, (_, choice, _) in zip(columns, cases, strict=True)}
    frame, rejected = prove(source, kinds=columns, decimals=decimals)
    lines = [line for text in rejected.drop_nulls() for line in text.splitlines()]
    counts = {name: sum(f'"{name}"' in line for line in lines) for name in columns}
    filled = {name: frame[name].count() for name in columns}
    wrong = {
        columns[name]: (counts[name], filled[name])
        for name, (*_, values) in zip(columns, cases, strict=True)
        if not (0 < counts[name] < len(values) and counts[name] + filled[name] == len(values) + 1)
    }
    assert wrong == {}


WIDER = [
    ("int2", DeltaType("long"), ["-32768", "32767"]),
    ("int2", DeltaType("int"), ["-1"]),
    ("int4", DeltaType("long"), ["-2147483648"]),
    ("float4", DeltaType("double"), ["0.1", "1e-45", "3.4028235e38", "NaN", "-0", "-Infinity"]),
    ("numeric(5,2)", DeltaType("decimal", 12, 4), ["999.99", "-0.01", "NaN"]),
    ("numeric(5,2)", DeltaType("decimal", 38, 30), ["999.99", "-0.01", "NaN"]),
    ("numeric(5,-2)", DeltaType("decimal", 20, 1), ["1234567"]),
    ("numeric(3,5)", DeltaType("decimal", 7, 6), ["0.00123"]),
]
WIDER = [(kind, wider, values) for kind, wider, values in WIDER if known(kind)]


def test_columns_that_are_wider_in_the_bronze_table_are_cast_exactly(source: Source) -> None:
    """A value becomes what a cast in PostgreSQL makes of it."""
    columns = {f"c{i}": f"{type_} {kind}" for i, (type_, kind, _) in enumerate(WIDER)}
    wider = {name: kind for name, (_, kind, _) in zip(columns, WIDER, strict=True)}
    defined = ", ".join(f"{name} {type_}" for name, (type_, *_) in zip(columns, WIDER, strict=True))
    source.execute(f"CREATE TABLE t ({defined})")
    marks = ", ".join(f"%s::text::{type_}" for type_, *_ in WIDER)
    for row in zip_longest(*([*values, None] for *_, values in WIDER)):
        source.execute(f"INSERT INTO t VALUES ({marks})", *row)

    def widened(column: Column) -> Column:
        return recast_column(column, statement.quoted(column.name), wider[column.name])

    schema = prove(source, widened, columns)[0].schema
    assert schema == {name: rows_reader.dtype(kind) for name, kind in wider.items()}


def test_a_configured_decimal_that_was_widened_is_not_rounded(
    source: Source,
) -> None:
    """A numeric that does not fit the table's decimal is rejected."""
    number = SourceType("numeric", -1, "numeric")
    choices = TypeOptions({"n": (5, 2)})
    column = column_contract("n", "n", '"n"', number, choices)
    wide = recast_column(column, '"n"', DeltaType("decimal", 8, 4))
    texts = pl.DataFrame({"n": ["1.5", "1.2345", "1.23456", "10000", "NaN"]})
    frame, rejected = parse_texts(texts, [text_column(wide, number, choices)])
    assert [str(value) for value in frame["n"]] == ["1.5000", "1.2345", "None", "None", "None"]
    assert rejected.is_null().to_list() == [True, True, False, False, False]


@pytest.mark.soak
def test_every_type_of_the_catalog_is_parsed(source: Source) -> None:
    """With NULL, empty arrays and NULL in arrays."""
    for name in EXTENSIONS:
        source.execute(f"CREATE EXTENSION {name}")
    source.execute(OWN)
    source.execute(TABLES)
    columns = 0
    for name, arrays in source.execute(ARRAYS):
        source.execute(f"INSERT INTO {name} SELECT generate_series(1, 3)")
        for key, value in ((2, "{}"), (3, "{NULL}")):
            cells = ", ".join(f"{column} = '{value}'" for column in arrays)
            source.execute(f"UPDATE {name} SET {cells} WHERE id = {key}")
        (frame, rejected), parsed = both(source, name=name)
        assert parsed[0].schema == frame.schema
        assert parsed[0].equals(frame)
        assert parsed[1].equals(rejected)
        columns += frame.width
    assert columns > 500


@pytest.mark.soak
def test_a_row_of_hundreds_of_rejected_values_is_parsed(source: Source) -> None:
    """They are in the order of the columns."""
    kinds = ("date", "numeric(3,1)", "int[]")
    values = ("infinity", "NaN", "{{1}}")
    columns = ", ".join(f"c{i} {kinds[i % 3]}" for i in range(300))
    source.execute(f"CREATE TABLE t ({columns})")
    cells = ", ".join(f"'{values[i % 3]}'" for i in range(300))
    source.execute(f"INSERT INTO t VALUES ({cells})")
    source.execute("INSERT INTO t DEFAULT VALUES")
    rejected = prove(source)[1].to_list()
    assert [text and text.count("\n") for text in rejected] == [300, None]


def test_rows_without_columns_are_counted(source: Source) -> None:
    """None has a rejected value."""
    frame, rejected = parse_texts(pl.DataFrame(height=3), [])
    assert (frame.shape, rejected.to_list()) == ((3, 0), [None] * 3)


def _of(name: str, typmod: int = -1, **chosen: Any) -> TextColumn:
    """A column ``v`` of a type; that of an array begins with an underscore."""
    base = SourceType(name.removeprefix("_"), typmod, name)
    source = SourceType(name, typmod, name, element=base) if name.startswith("_") else base
    choices = TypeOptions(**{"decimals": {}, **chosen})
    return text_column(column_contract("v", "v", '"v"', source, choices), source, choices)


FOREIGN = [
    *(("int2", value) for value in ("32768", "", "1.0", "x", "1 ")),
    *(("float8", value) for value in ("", "1,5", "x")),
    *(("bool", value) for value in ("true", "", "T")),
    *(("bytea", value) for value in ("00ff", "\\x0", "\\xgg", "")),
    *(("date", value) for value in ("", "2024-02-30", "01/02/2024", "2024-1-1", "Infinity")),
    *(("date", value) for value in ("2024-01-01 00:00:00", "infinity ", "2024-01-01\n")),
    *(("timestamp", value) for value in ("2024-01-01", "2024-01-01 24:00:00", "infinity BC")),
    *(("timestamp", value) for value in ("2024-01-01 00:00:00+00", "2024-01-01 00:00:00.1234567")),
    *(("timestamptz", value) for value in ("2024-01-01 00:00:00+02", "2024-01-01 00:00:00-00")),
    *(("numeric(5,2)", value) for value in ("1.555", "1000", "", "-", ".", "1e2", "Infinity")),
    *(
        ("_int4", value)
        for value in ("1", "{1", "{1,,2}", "{1,}", "{x}", "{{1}", "[0:1]", "", "{}}")
    ),
    *(("_int4", value) for value in ("{}}", '{"1}', '{"a"b}', "{a\\}", "{1;2}")),
    *(("_date", value) for value in ("{2024-02-30}", "{infinity,x}")),
]


@pytest.mark.parametrize(("type_", "value"), FOREIGN)
def test_texts_that_postgresql_does_not_write_are_refused(type_: str, value: str) -> None:
    """The error names the column, and does not contain the value."""
    typmod = (5 << 16 | 2) + 4 if "(" in type_ else -1
    column = _of(type_.partition("(")[0], typmod)
    texts = pl.DataFrame({"v": [None, value]}, schema={"v": pl.String})
    with pytest.raises(Mismatch, match="Column v has a text") as raised:
        parse_texts(texts, [column])
    assert raised.value.__suppress_context__
    if len(value) > 2:
        assert value not in str(raised.value)


@pytest.mark.parametrize("value", ["", "1.5x", "1e3", ".", "-", "inf", "nan"])
def test_texts_that_are_not_numbers_are_refused(value: str) -> None:
    """Only a number that does not fit the configured decimal is a rejected value."""
    column = _of("numeric", decimals={"v": (5, 2)})
    with pytest.raises(Mismatch):
        parse_texts(pl.DataFrame({"v": [value]}), [column])
