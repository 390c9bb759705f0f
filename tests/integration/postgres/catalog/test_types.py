"""The column contract covers every type, and follows the type options of the config."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.ingest import pipeline
from bronze.model.results import TableResult
from tests.acceptance.test_exact import hashes_in_source, same
from tests.conftest import Source
from tests.support.features import has

EXTENSIONS = ("hstore", "citext", "ltree", "cube", "isn", "seg", "intarray")
OWN = """
CREATE SCHEMA "odd schema";
CREATE TYPE "odd schema"."Mood" AS ENUM ('sad', 'o"k');
CREATE TYPE pair AS (a int, b "odd schema"."Mood");
CREATE TYPE nested AS (p pair, list pair[]);
CREATE TYPE empty AS ();
CREATE TYPE span AS RANGE (subtype = float8);
CREATE DOMAIN small AS int CHECK (value < 10);
CREATE DOMAIN smaller AS small CHECK (value < 5);
CREATE DOMAIN couple AS pair;
CREATE DOMAIN spans AS span;
CREATE DOMAIN smalls AS smaller[];
CREATE DOMAIN many AS smalls;
CREATE DOMAIN moment AS timestamptz(3);
CREATE DOMAIN price AS numeric(12,2);
CREATE DOMAIN word AS varchar(7);
"""

# Every type that a column can have; a composite type may hold a pseudo-type, and then it has none.
TABLES = """
DO $$
DECLARE kind record; number int := 0;
BEGIN
  FOR kind IN
    SELECT format('%I.%I', n.nspname, t.typname) AS name
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.typtype <> 'p' AND t.typisdefined AND n.nspname NOT LIKE 'pg\\_toast%'
      AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typtype = 'p')
    ORDER BY 1
  LOOP
    IF number % 150 = 0 THEN
      EXECUTE format('CREATE TABLE IF NOT EXISTS t%s (id int PRIMARY KEY)', number / 150);
    END IF;
    BEGIN
      EXECUTE format('ALTER TABLE t%s ADD COLUMN c%s %s DEFAULT NULL',
                     number / 150, number, kind.name);
      number := number + 1;
    EXCEPTION WHEN invalid_table_definition THEN
    END;
  END LOOP;
END $$
"""

ARRAYS = """
SELECT c.relname, array_agg(a.attname::text)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0
  AND t.typcategory = 'A' AND t.typlen = -1 AND t.typtype = 'b'
  AND t.typname NOT IN ('int2vector', 'oidvector')
GROUP BY c.relname ORDER BY c.relname
"""


def load(source: Source, **sections: Any) -> dict[str, TableResult]:
    """Loads the tables, and expects that every one succeeds."""
    result = pipeline.run(source.settings(**sections))
    assert [table.error for table in result.tables if table.error] == []
    return {table.table: table for table in result.tables}


def test_every_type_of_the_catalog_is_loaded(source: Source) -> None:
    """With NULL, empty arrays and NULL in arrays; the row hashes are PostgreSQL's."""
    for name in EXTENSIONS:
        source.execute(f"CREATE EXTENSION {name}")
    source.execute(OWN)
    source.execute(TABLES)
    arrays = dict(source.execute(ARRAYS))
    names = [row[0] for row in source.execute("SELECT tablename FROM pg_tables ORDER BY 1")]
    names = [name for name in names if name in arrays]
    for name in names:
        source.execute(f"INSERT INTO {name} SELECT generate_series(1, 3)")
        for key, value in ((2, "{}"), (3, "{NULL}")):
            cells = ", ".join(f"{column} = '{value}'" for column in arrays[name])
            source.execute(f"UPDATE {name} SET {cells} WHERE id = {key}")
    load(source)
    hashes = hashes_in_source(source, source.settings(), *names)
    types = 0
    for name in names:
        frame = pl.read_delta(str(source.table(name))).sort("id")
        columns = [
            column for column in frame.columns if column.startswith("c") and column[1].isdigit()
        ]
        types += len(columns)
        for column in columns:
            expected = [None, [], [None]] if column in arrays[name] else [None] * 3
            assert frame[column].to_list() == expected, column
        assert set(frame["row_hash"]) == hashes[name]
    assert types > (500 if has("arrays of catalogs' rows") else 400)


# The fields of a composite value, and its text.
FIELDS = {
    "(1,NULL)": "(1,)",
    "(NULL,'x')": "(,x)",
    "(NULL,NULL)": "(,)",
    "(NULL,'')": '(,"")',
    "(1,'a')": "(1,a)",
}


def test_a_composite_value_of_null_fields_is_not_null(source: Source) -> None:
    """It keeps its text, also within an array or a domain."""
    source.execute("CREATE TYPE pair AS (a int, b text); CREATE DOMAIN couple AS pair")
    tables = {"pairs": "pair", "couples": "couple", "lists": "pair[]"}
    for name, kind in tables.items():
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v {kind})")
        for i, fields in enumerate(FIELDS):
            written = f"ROW{fields}::pair"
            value = f"ARRAY[{written}]" if kind == "pair[]" else written
            source.execute(f"INSERT INTO {name} VALUES ({i}, {value})")
        source.execute(f"INSERT INTO {name} VALUES ({len(FIELDS)}, NULL)")
    load(source)
    hashes = hashes_in_source(source, source.settings())
    for name, kind in tables.items():
        frame = pl.read_delta(str(source.table(name))).sort("id")
        expected = [[text] if kind == "pair[]" else text for text in FIELDS.values()]
        assert frame["v"].to_list() == [*expected, None], kind
        assert set(frame["row_hash"]) == hashes[name], kind
        assert frame["row_hash"].n_unique() == len(frame), kind


CHOSEN: list[tuple[str, list[str | None], list[str | None]]] = [
    (
        "decimal(10,2)",
        ["1.10", "1.1000", "1.101", "-99999999.99", "100000000", "NaN", "Infinity", "0", None],
        ["1.10", "1.10", None, "-99999999.99", None, None, None, "0.00", None],
    ),
    (
        "decimal(38,10)",
        ["9999999999999999999999999999.9999999999", "1e28", "1e-10", "1e-11", "-Infinity"],
        ["9999999999999999999999999999.9999999999", None, "0.0000000001", None, None],
    ),
    (
        "decimal(18,0)",
        ["999999999999999999", "1e18", "0.5", "1.0"],
        ["999999999999999999", None, None, "1"],
    ),
    ("decimal(3,3)", ["0.999", "1", "-0.001"], ["0.999", None, "-0.001"]),
]


def test_a_configured_decimal_rejects_values_that_do_not_fit(source: Source) -> None:
    """A numeric without precision becomes the decimal of the config; no value is rounded."""
    tables = {f"t{i}": case for i, case in enumerate(CHOSEN)}
    for name, (_, values, _) in tables.items():
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, n numeric)")
        for i, value in enumerate(values):
            if not has("infinite numerics") and value and "Infinity" in value:
                value = "NaN"
            source.execute(f"INSERT INTO {name} VALUES (%s, %s::text::numeric)", i, value)
    own = {name: {"decimals": {"n": choice}} for name, (choice, *_) in tables.items()}
    result = load(source, tables=own)
    hashes = hashes_in_source(source, source.settings(tables=own))
    for name, (choice, values, expected) in tables.items():
        frame = pl.read_delta(str(source.table(name))).sort("id")
        decimals = [None if text is None else Decimal(text) for text in expected]
        assert [repr(v) for v in frame["n"]] == [repr(v) for v in decimals], choice
        rejected = sum(v is not None and w is None for v, w in zip(values, expected, strict=True))
        assert result[f"public.{name}"].rejected == rejected, choice
        assert set(frame["row_hash"]) == hashes[name], choice


def test_arrays_are_loaded_as_text_by_config(source: Source) -> None:
    """With arrays = "string", arrays of any shape become PostgreSQL's text; none is rejected."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v int[], w text[])")
    source.execute(
        "INSERT INTO t VALUES (1, '{{1,2},{3,4}}', '[0:1]={a,NULL}'), (2, '{}', '{\"a b\"}'),"
        " (3, NULL, NULL)"
    )
    result = load(source, tables={"t": {"arrays": "string"}})
    frame = pl.read_delta(str(source.table("t"))).sort("id")
    assert frame["v"].to_list() == ["{{1,2},{3,4}}", "{}", None]
    assert frame["w"].to_list() == ["[0:1]={a,NULL}", '{"a b"}', None]
    assert result["public.t"].rejected == 0
    settings = source.settings(tables={"t": {"arrays": "string"}})
    assert {"t": set(frame["row_hash"])} == hashes_in_source(source, settings, "t")


def test_timestamps_without_zone_are_loaded_as_utc_by_config(source: Source) -> None:
    """With timestamps = "timestamp", to the microsecond."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamp, list timestamp[])")
    source.execute(
        "INSERT INTO t VALUES (1, '0001-01-01 00:00:00.000001', '{9999-12-31 23:59:59.999999}'),"
        " (2, 'infinity', '{infinity}'), (3, NULL, '{NULL}')"
    )
    sections = {"tables": {"t": {"timestamps": "timestamp"}}}
    result = load(source, **sections)
    frame = pl.read_delta(str(source.table("t"))).sort("id")
    last = dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC)
    first = dt.datetime(1, 1, 1, 0, 0, 0, 1, dt.UTC)
    assert same(frame["at"].to_list(), [first, None, None])
    assert same(frame["list"].to_list(), [[last], None, [None]])
    assert result["public.t"].rejected == 2
    assert {"t": set(frame["row_hash"])} == hashes_in_source(
        source, source.settings(**sections), "t"
    )


def rejected_values(source: Source) -> list[tuple[dict[str, Any], str, str]]:
    """The rejected values: key, column and text of each."""
    rows = pl.read_delta(str(source.lake / "governance" / "rejected_values")).to_dicts()
    return [(json.loads(r["row_key"]), r["column_name"], r["source_text"]) for r in rows]


def test_rejected_values_of_a_table_without_a_key_have_the_row_hash(source: Source) -> None:
    """The governance table identifies their rows by row hash."""
    source.execute("CREATE TABLE t (n numeric(5,2), d date)")
    source.execute("INSERT INTO t VALUES ('NaN', 'infinity'), (1, '2024-01-01'), ('NaN', NULL)")
    result = load(source)
    assert result["public.t"].rejected == 3
    expected = [("d", "infinity"), ("n", "NaN"), ("n", "NaN")]
    assert sorted((column, text) for _, column, text in rejected_values(source)) == expected
    hashes = pl.read_delta(str(source.table("t"))).filter(pl.col("n").is_null())["row_hash"]
    assert {key["row_hash"] for key, _, _ in rejected_values(source)} == set(hashes)


def test_rejected_texts_keep_line_separators(source: Source) -> None:
    """A character that some standard takes for the end of a line is part of the value."""
    separators = ("\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029")
    with psycopg.connect(source.dsn) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text[], w text[])")
        for i, separator in enumerate(separators):
            text = f"a{separator}b{separator}"
            row = [i, [[text]], [[text], ["c"]]]
            connection.execute("INSERT INTO t VALUES (%s, %s, %s)", row)
    result = load(source)
    assert result["public.t"].rejected == 2 * len(separators)
    kept = source.execute("SELECT id, v::text, w::text FROM t")
    expected = [({"id": i}, *cell) for i, v, w in kept for cell in (("v", v), ("w", w))]
    assert sorted(rejected_values(source), key=repr) == sorted(expected, key=repr)
    hashes = set(pl.read_delta(str(source.table("t")))["row_hash"])
    assert {"t": hashes} == hashes_in_source(source, source.settings(), "t")


def test_a_table_without_columns_does_not_stop_other_tables(source: Source) -> None:
    """A table without columns is loaded or refused; the others are loaded."""
    source.execute("CREATE TABLE void (); CREATE TABLE t AS SELECT 1 AS id")
    source.execute("INSERT INTO void DEFAULT VALUES")
    result = pipeline.run(source.settings())
    table_results = {table.table: table for table in result.tables}
    assert table_results["public.t"].status == "landed"
    refused = table_results["public.void"].error
    if refused is None:
        assert table_results["public.void"].rows_read == 1
    else:
        assert refused.kind == "TableRefused"
        assert refused.hint


@pytest.mark.soak
def test_a_table_of_1600_columns_is_loaded_exactly(source: Source) -> None:
    """With columns of all kinds, half of them NULL; the row hashes are PostgreSQL's."""
    kinds = ("int", "text", "bool", "date", "numeric(12,2)", "timestamptz", "text[]", "inet")
    values = ("7", "'x'", "true", "'2024-01-01'", "'NaN'", "'2024-01-01Z'", "'{a}'", "'1.2.3.4'")
    columns = ", ".join(f"c{i} {kinds[i % 8]}" for i in range(1599))
    source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    row = [values[i % 8] if i % 16 < 8 else "NULL" for i in range(1599)]
    source.execute(f"INSERT INTO t VALUES (1, {', '.join(row)})")
    source.execute("INSERT INTO t (id, c1, c4, c1598) VALUES (2, 'y', 1.5, '{b}')")
    result = load(source)
    assert result["public.t"].rejected == 100
    frame = pl.read_delta(str(source.table("t"))).sort("id")
    first, second = frame.select(f"c{i}" for i in range(1599)).rows()
    assert first[:5] == (7, "x", True, dt.date(2024, 1, 1), None)
    absent = [i % 16 >= 8 or i % 8 == 4 for i in range(1599)]
    assert [value is None for value in first] == absent
    filled = {i: value for i, value in enumerate(second) if value is not None}
    assert filled == {1: "y", 4: Decimal("1.50"), 1598: ["b"]}
    assert {"t": set(frame["row_hash"])} == hashes_in_source(source, source.settings(), "t")
