"""Every type and special value of the column contract, from PostgreSQL to Delta and back."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import polars as pl
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.ingest import pipeline
from bronze.model.results import RunResult
from bronze.postgres import statement
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import row_hash
from bronze.tables import selection
from tests.conftest import Source
from tests.support.features import has, known

SETUP = """
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN price AS numeric(12,2);
CREATE DOMAIN prices AS numeric(12,2)[];
"""

UTC = dt.UTC
NAN = float("nan")

# type, then values as SQL, each with what Bronze must hold (REJECTED: NULL, and the text kept)
REJECTED = object()
CASES: list[tuple[str, list[tuple[str, Any]]]] = [
    ("smallint", [("-32768", -32768), ("32767", 32767)]),
    ("integer", [("-2147483648", -2147483648), ("2147483647", 2147483647)]),
    ("bigint", [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)]),
    ("oid", [("4294967295", 4294967295)]),
    ("real", [("1e-45", 1.401298464324817e-45), ("'NaN'", NAN), ("'-Infinity'", -float("inf"))]),
    ("float8", [("5e-324", 5e-324), ("'NaN'", NAN), ("'Infinity'", float("inf")), ("'-0'", -0.0)]),
    (
        "numeric(12,2)",
        [
            ("9999999999.99", Decimal("9999999999.99")),
            ("-0.01", Decimal("-0.01")),
            ("'NaN'", REJECTED),
        ],
    ),
    ("numeric(18,18)", [("0.999999999999999999", Decimal("0.999999999999999999"))]),
    (
        "numeric(38,10)",
        [
            (
                "-9999999999999999999999999999.9999999999",
                Decimal("-9999999999999999999999999999.9999999999"),
            ),
            ("'NaN'", REJECTED),
        ],
    ),
    ("numeric(5,-2)", [("1234567", Decimal(1234600))]),
    ("numeric(3,5)", [("0.00123", Decimal("0.00123"))]),
    ("numeric(40,2)", [("1.5", "1.50"), ("'NaN'", "NaN")]),
    (
        "numeric",
        [
            ("1.10", "1.10"),
            *([("'Infinity'", "Infinity")] if has("infinite numerics") else []),
            ("1e-400", f"0.{'0' * 399}1"),
            (
                "123456789012345678901234567890123456789012345",
                "123456789012345678901234567890123456789012345",
            ),
        ],
    ),
    ("boolean", [("true", True), ("false", False)]),
    ("bytea", [("'\\x00ff'", b"\x00\xff"), ("''", b"")]),
    ("text", [("''", ""), ("E'a\\n\\t\\\\\"'", 'a\n\t\\"'), ("'日本 🚀 ﷽'", "日本 🚀 ﷽")]),
    ("varchar(5)", [("'ab  '", "ab  ")]),
    ("char(5)", [("'ab'", "ab   "), ("''", "     ")]),
    ('"char"', [("'x'", "x"), ("''", "")]),
    ("name", [("'n'", "n")]),
    ("citext", [("'AbC'", "AbC")]),
    ("mood", [("'it''s \"ok\"'", 'it\'s "ok"')]),
    ("uuid", [("'00000000-0000-0000-0000-0000000000ff'", "00000000-0000-0000-0000-0000000000ff")]),
    ("json", [('\'{"b": 1, "a":1.10, "a":  2}\'', '{"b": 1, "a":1.10, "a":  2}')]),
    ("jsonb", [("'{\"b\": 12345678901234567890.10}'", '{"b": 12345678901234567890.10}')]),
    (
        "date",
        [
            ("'0001-01-01'", dt.date(1, 1, 1)),
            ("'9999-12-31'", dt.date(9999, 12, 31)),
            ("'1969-12-31'", dt.date(1969, 12, 31)),
            ("'infinity'", REJECTED),
            ("'-infinity'", REJECTED),
            ("'0001-01-01 BC'", REJECTED),
            ("'10000-01-01'", REJECTED),
        ],
    ),
    (
        "timestamp",
        [
            ("'0001-01-01'", dt.datetime(1, 1, 1)),
            ("'9999-12-31 23:59:59.999999'", dt.datetime(9999, 12, 31, 23, 59, 59, 999999)),
            ("'1969-12-31 23:59:59.999999'", dt.datetime(1969, 12, 31, 23, 59, 59, 999999)),
            ("'infinity'", REJECTED),
            ("'294276-12-31'", REJECTED),
            ("'4713-01-01 BC'", REJECTED),
        ],
    ),
    (
        "timestamptz",
        [
            ("'2024-03-31 02:30:00.000001+02'", dt.datetime(2024, 3, 31, 0, 30, 0, 1, UTC)),
            ("'-infinity'", REJECTED),
            ("'294276-12-31'", REJECTED),
        ],
    ),
    ("time", [("'24:00'", "24:00:00"), ("'00:00:00.000001'", "00:00:00.000001")]),
    ("timetz", [("'23:59:59.5-15:59'", "23:59:59.5-15:59")]),
    ("interval", [("'-1 year 2 mons -3 days 04:05:06.7'", "-10 mons -3 days +04:05:06.7")]),
    ("money", [("'-1234.5'", "-$1,234.50")]),
    ("inet", [("'1.2.3.4'", "1.2.3.4"), ("'::1/64'", "::1/64")]),
    ("cidr", [("'10.0.0.0/8'", "10.0.0.0/8")]),
    ("macaddr", [("'08:00:2b:01:02:03'", "08:00:2b:01:02:03")]),
    ("macaddr8", [("'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05")]),
    ("bit(3)", [("B'101'", "101")]),
    ("varbit", [("B'10'", "10"), ("B''", "")]),
    ("int4range", [("'[1,5)'", "[1,5)"), ("'empty'", "empty")]),
    ("tstzrange", [("'[2024-01-01 00:00+00,)'", '["2024-01-01 00:00:00+00",)')]),
    ("int4multirange", [("'{[1,3),[5,7)}'", "{[1,3),[5,7)}")]),
    ("tsvector", [("'a:1 b'", "'a':1 'b'"), ("''", "")]),
    ("tsquery", [("'a & b'", "'a' & 'b'")]),
    ("point", [("'(1,2.5)'", "(1,2.5)")]),
    ("box", [("'(1,1),(0,0)'", "(1,1),(0,0)")]),
    ("polygon", [("'((0,0),(1,1))'", "((0,0),(1,1))")]),
    ("pair", [("ROW(1, 'a,b\"')::pair", '(1,"a,b""")')]),
    ("hstore", [("'a=>1,b=>NULL'", '"a"=>"1", "b"=>NULL'), ("''", "")]),
    ("ltree", [("'a.b'", "a.b")]),
    ("pg_lsn", [("'16/B374D848'", "16/B374D848")]),
    ("xid", [("'4294967295'", "4294967295")]),
    ("xid8", [("'18446744073709551615'", "18446744073709551615")]),
    ("tid", [("'(4294967295,1)'", "(4294967295,1)")]),
    ("jsonpath", [("'$.a'", '$."a"')]),
    ("int2vector", [("'1 2'", "1 2")]),
    ("positive", [("7", 7)]),
    ("price", [("1.5", Decimal("1.50")), ("'NaN'", REJECTED)]),
    (
        "int[]",
        [
            ("'{1,NULL,-3}'", [1, None, -3]),
            ("'{}'", []),
            ("'{{1,2},{3,4}}'", REJECTED),
            ("'[0:1]={1,2}'", REJECTED),
        ],
    ),
    ("bigint[]", [("'{9223372036854775807}'", [2**63 - 1])]),
    ("smallint[]", [("'{-32768}'", [-32768])]),
    ("boolean[]", [("'{t,f,NULL}'", [True, False, None])]),
    ("real[]", [("'{1e-45,NaN,-Infinity}'", [1.401298464324817e-45, NAN, -float("inf")])]),
    ("float8[]", [("'{5e-324,-0,1e300}'", [5e-324, -0.0, 1e300])]),
    ("text[]", [('\'{"","a,b",NULL,"NULL","é\\\\"}\'', ["", "a,b", None, "NULL", "é\\"])]),
    ("char(3)[]", [("'{a}'", ["a  "])]),
    ("numeric[]", [("'{1.10,NaN}'", ["1.10", "NaN"])]),
    ("numeric(12,2)[]", [("'{1.1,NULL}'", [Decimal("1.10"), None]), ("'{NaN}'", REJECTED)]),
    ("numeric(30,3)[]", [("'{1.1}'", [Decimal("1.100")])]),
    (
        "date[]",
        [
            ("'{0001-01-01,2024-02-29}'", [dt.date(1, 1, 1), dt.date(2024, 2, 29)]),
            ("'{infinity}'", REJECTED),
        ],
    ),
    ("timestamp[]", [("'{0001-01-01 00:00:00.000001}'", [dt.datetime(1, 1, 1, 0, 0, 0, 1)])]),
    (
        "timestamptz[]",
        [
            ("'{2024-01-01 00:00:00+02}'", [dt.datetime(2023, 12, 31, 22, tzinfo=UTC)]),
            ("'{-infinity}'", REJECTED),
        ],
    ),
    ("bytea[]", [("ARRAY['\\x00ff','']::bytea[]", [b"\x00\xff", b""])]),
    (
        "uuid[]",
        [("'{00000000-0000-0000-0000-0000000000ff}'", ["00000000-0000-0000-0000-0000000000ff"])],
    ),
    ("jsonb[]", [("ARRAY['{\"a\": 1.10}']::jsonb[]", ['{"a": 1.10}'])]),
    ("mood[]", [("'{sad}'", ["sad"])]),
    ("inet[]", [("'{1.2.3.4}'", ["1.2.3.4"])]),
    ("interval[]", [("'{1 day}'", ["1 day"])]),
    ("positive[]", [("'{1}'", [1])]),
    ("prices", [("'{1.5}'", [Decimal("1.50")])]),
    ("pair[]", [("ARRAY[ROW(1,'x')::pair]", ["(1,x)"])]),
]
CASES = [(kind, values) for kind, values in CASES if known(kind)]


def same(left: Any, right: Any) -> bool:
    """Equality to the bit: NaN is NaN, and -0.0 is not 0.0."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dt.datetime) and left.tzinfo:
        left = left.astimezone(UTC)
    return repr(left) == repr(right) and type(left) is type(right)


def land(source: Source, **sections: Any) -> RunResult:
    """Runs without an error."""
    result = pipeline.run(source.settings(**sections))
    assert [t.error for t in result.tables if t.error] == []
    return result


def hashes_in_source(source: Source, settings: Settings, *tables: str) -> dict[str, set[str]]:
    """The row hashes of tables as PostgreSQL computes them."""
    with connect.connect(settings.origin("test")) as connection:
        found = [("test", r) for r in relations(connection, ["public"])]
        queries = {
            target.relation.name: row_hash.row_hash_query(
                selection.contract_columns(target),
                statement.quoted("public", target.relation.name),
                "true",
            )
            for target in selection.select_targets(settings, found, tables)
        }
        return {
            name: {str(row[0]) for row in connection.execute(query)}
            for name, query in queries.items()
        }


def test_each_value_is_exact_or_a_rejected_value(source: Source) -> None:
    """Each value of each type equals the source's, or is NULL with its text in rejected_values.

    Each has a row of its own, so that no two rows may share a hash.
    """
    columns = {f"c{i}": kind for i, (kind, _) in enumerate(CASES)}
    cells = [
        (column, value, wanted)
        for column, (_, values) in zip(columns, CASES, strict=True)
        for value, wanted in values
    ]
    source.execute(
        f"{SETUP};CREATE TABLE t (id int PRIMARY KEY, {', '.join(map(' '.join, columns.items()))});"
        + "".join(
            f"INSERT INTO t (id, {column}) VALUES ({i}, {value});"
            for i, (column, value, _) in enumerate(cells)
        )
        + "INSERT INTO t VALUES (-1)"
    )
    (result,) = land(source).tables
    frame = pl.read_delta(str(source.table("t"))).sort("id")
    nothing, *rows = frame.select("id", *columns).rows(named=True)
    assert nothing == {"id": -1, **dict.fromkeys(columns)}
    wrong = {}
    for i, (column, value, wanted) in enumerate(cells):
        expected = {"id": i, **dict.fromkeys(columns)}
        expected[column] = None if wanted is REJECTED else wanted
        if bad := [key for key in expected if not same(rows[i][key], expected[key])]:
            wrong[f"{columns[column]}: {value}"] = {key: rows[i][key] for key in bad}
    assert wrong == {}
    texts = {
        (i, column): source.execute(f"SELECT {column}::text FROM t WHERE id = {i}")[0][0]
        for i, (column, _, wanted) in enumerate(cells)
        if wanted is REJECTED
    }
    book = pl.read_delta(str(source.lake / "governance" / "rejected_values"))
    assert result.rejected == len(book) == len(texts)
    assert texts == {
        (json.loads(row["row_key"])["id"], row["column_name"]): row["source_text"]
        for row in book.to_dicts()
    }
    assert {"t": set(frame["row_hash"])} == hashes_in_source(source, source.settings(), "t")
    alike = frame.filter(pl.col("row_hash").is_duplicated())["id"]
    assert {i: cells[i] for i in alike} == {}


def test_deltalake_reads_the_schema_of_the_contract(source: Source) -> None:
    """The columns of the contract, then the metadata columns."""
    source.execute(
        "CREATE TABLE t (id bigint PRIMARY KEY, at timestamp, tags text[], n numeric(9,3))"
    )
    land(source)
    fields = [(f.name, f.type) for f in DeltaTable(str(source.table("t"))).schema().fields]
    assert [str(kind) for _, kind in fields[:4]] == [
        'PrimitiveType("long")',
        'PrimitiveType("timestamp_ntz")',
        'ArrayType(PrimitiveType("string"), contains_null=True)',
        'PrimitiveType("decimal(9,3)")',
    ]
    assert [name for name, _ in fields[4:]] == [
        "load_timestamp",
        "update_timestamp",
        "source_system",
        "record_status",
        "data_quality_score",
        "batch_id",
        "ingestion_method",
        "data_lineage",
        "checksum",
        "row_hash",
    ]
