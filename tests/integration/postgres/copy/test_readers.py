"""The contract of readers: each returns the same frames as connectorx, whatever the rows are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from bronze.demo.server import Server
from bronze.model.columns import Column
from bronze.postgres import statement
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import packed_query, packed_reader, rows_reader
from bronze.postgres.copy.reader import READERS, SplitReader
from bronze.tables import selection
from tests.acceptance.test_any_bytes import MADE, ODD, encoded
from tests.acceptance.test_exact import CASES
from tests.acceptance.test_exact import SETUP as TYPES
from tests.conftest import Source
from tests.integration.rows.test_encoding import fill
from tests.support.features import since
from tests.support.strategies import EVERY, SETUP, Sample, samples

pytestmark = since("scans of page ranges")

IN_DATABASE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=12,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Rows = tuple[pl.DataFrame, list[str | None]]


def contract(source: Source, name: str, **chosen: object) -> Sequence[Column]:
    """The contract of a table's columns."""
    config = source.settings(tables={name: chosen}) if chosen else source.settings()
    with connect.connect(config.origin("test")) as connection:
        present = [("test", relation) for relation in relations(connection, ["public"])]
    (target,) = selection.select_targets(config, present, [name])
    return selection.contract_columns(target)


def rows_of(
    reader: SplitReader,
    source: Source,
    columns: Sequence[Column],
    name: str = "t",
    where: Sequence[str] = ("true",),
) -> Rows:
    """The rows of a table, and their rejected values, in the order in which they are read."""
    query = statement.select(columns, statement.quoted("public", name))
    origin = source.settings().origin("test")
    parts = list(reader(origin, (), query, where, columns, name))
    if not parts:
        return pl.DataFrame(), []
    frames, rejected = zip(*parts, strict=True)
    assert {series.dtype for series in rejected} == {pl.String()}
    return pl.concat(frames), [text for series in rejected for text in series]


@contextmanager
def guarded_way() -> Iterator[None]:
    """Makes the packed reader begin with the query that tests all values."""
    with mock.patch.object(packed_query, "quick_packing", packed_query.guarded_packing):
        yield


@contextmanager
def without_connectorx() -> Iterator[None]:
    """Makes the packed reader fail where it would leave rows to connectorx."""
    with mock.patch.object(
        rows_reader, "read_rows", side_effect=AssertionError("connectorx reads")
    ):
        yield


def differences(one: Rows, other: Rows) -> dict[str, object]:
    """What differs between two results, to the bit: NaN is NaN, and -0.0 is not 0.0."""
    if one[0].schema != other[0].schema:
        return {"schema": (one[0].schema, other[0].schema)}
    pairs = {
        name: (repr(one[0][name].to_list()), repr(other[0][name].to_list()))
        for name in one[0].columns
    }
    pairs["rejected"] = (repr(one[1]), repr(other[1]))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def prove(
    source: Source, name: str = "t", where: Sequence[str] = ("true",), **chosen: object
) -> Rows:
    """Asserts that the packed reader returns connectorx's rows, in each of its ways."""
    columns = contract(source, name, **chosen)
    expected = rows_of(rows_reader.read_rows, source, columns, name, where)
    with without_connectorx():
        assert (
            differences(rows_of(packed_reader.read_rows, source, columns, name, where), expected)
            == {}
        )
        with guarded_way():
            guarded = rows_of(packed_reader.read_rows, source, columns, name, where)
        assert differences(guarded, expected) == {}
    return expected


def prove_column(source: Source, column: Column) -> None:
    """The same of one column alone, as the packed reader begins."""
    expected = rows_of(rows_reader.read_rows, source, [column])
    with without_connectorx():
        assert differences(rows_of(packed_reader.read_rows, source, [column]), expected) == {}


@pytest.fixture
def typed(source: Source) -> Source:
    """A database with the types of `tests.support.strategies`."""
    source.execute(SETUP)
    return source


def test_both_readers_can_be_chosen() -> None:
    """The config's names of readers are those that there are."""
    assert READERS.keys() == {"packed", "connectorx"}


@IN_DATABASE
@given(sample=samples())
def test_random_rows_are_equal(typed: Source, sample: Sample) -> None:
    """Rows of random types and values, with NULL and rejected values."""
    fill(typed, sample)
    rows, _ = prove(typed)
    assert rows.height == len(sample.rows)


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=4)
@given(sample=samples())
def test_random_rows_are_equal_by_the_type_options(typed: Source, sample: Sample) -> None:
    """Decimals, arrays as text, timestamps as UTC."""
    fill(typed, sample)
    unbounded = [name for name, declared in sample.columns if declared.type == "numeric"]
    prove(typed, decimals=dict.fromkeys(unbounded, "decimal(20,3)"), timestamps="timestamp")
    prove(typed, arrays="string")


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=4)
@given(sample=samples())
def test_many_random_rows_are_equal(typed: Source, sample: Sample) -> None:
    """As many rows as make long columns, in several splits."""
    fill(typed, sample)
    typed.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
    typed.execute("INSERT INTO t SELECT t.* FROM t, generate_series(1, 60)")
    prove(typed, where=["id < 3", "id = 3", "id = 0", "id > 3"])


@pytest.mark.soak
def test_special_values_of_every_type_are_equal(source: Source) -> None:
    """All columns together, and each one alone: a rejected value in one does not change others."""
    source.execute(TYPES)
    names = [f"c{i}" for i in range(len(CASES))]
    defined = [f"{name} {kind}" for name, (kind, _) in zip(names, CASES, strict=True)]
    source.execute(f"CREATE TABLE t (id int, {', '.join(defined)})")
    for i in range(max(len(values) for _, values in CASES)):
        cells = [values[i][0] if i < len(values) else "NULL" for _, values in CASES]
        source.execute(f"INSERT INTO t VALUES ({i}, {', '.join(cells)})")
    _, rejected = prove(source)
    assert any(rejected)
    prove(source, where=["id = 0", "id > 0", "id < 0", "id >= 7"])
    for column in contract(source, "t"):
        prove_column(source, column)


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=2)
@given(texts=st.tuples(*(declared.texts for declared in EVERY)), seed=st.integers(0, 2**32))
def test_all_types_have_any_pattern_of_nulls(
    typed: Source, texts: tuple[str, ...], seed: int
) -> None:
    """More columns than one word has flags: none, all, or some of the values are NULL."""
    dice = random.Random(seed)  # noqa: S311 - a pattern of test data
    columns = tuple((f"c{i}", declared) for i, declared in enumerate(EVERY))
    assert len(columns) > 2 * packed_query.FLAGS_PER_WORD
    rows = tuple(
        tuple(text if dice.random() < share else None for text in texts)
        for share in (1, 0, 0.5, 0.5, 0.98, 0.02, 1)
        for _ in range(10)
    )
    fill(typed, Sample(columns, rows))
    prove(typed)
    prove(typed, where=["id <= 10", "id BETWEEN 11 AND 20", "id BETWEEN 21 AND 50", "id > 50"])


@pytest.mark.soak
def test_texts_may_contain_the_separator(source: Source) -> None:
    """Also beside NULL and empty texts, and as the only text."""
    cells = [
        "E'\\x01'",
        "E'a\\x01'",
        "E'\\x01\\x01b'",
        "''",
        "NULL",
        "E'\\x02'",
        "'N'",
        "E'é\\x01é'",
    ]
    source.execute("CREATE TABLE t (id int, v text, w text NOT NULL, l text[])")
    for cell in cells:
        source.execute("TRUNCATE t")
        source.execute(f"INSERT INTO t VALUES (0, {cell}, coalesce({cell}, ''), ARRAY[{cell}])")
        prove(source)
    for i, cell in enumerate(cells):
        source.execute(f"INSERT INTO t VALUES ({i}, {cell}, coalesce({cell}, ''), ARRAY[{cell}])")
    prove(source)
    prove(source, where=["id < 3", "id = 3", "id > 3"])


def test_a_column_that_is_wrongly_not_null_is_equal(source: Source) -> None:
    """PostgreSQL can have NULL in a column that its catalog says has none."""
    source.execute("CREATE TABLE t (a int, b text, c timestamp, d bytea, e bool, f int[], g text)")
    source.execute(
        "INSERT INTO t VALUES (1, E'x\\x01y', now(), '\\x00', true, '{1}', 'x'),"
        " (NULL, NULL, NULL, NULL, NULL, NULL, NULL), (2, 'z', now(), '', false, '{}', 'y')"
    )
    source.execute(
        "UPDATE pg_attribute SET attnotnull = true WHERE attrelid = 't'::regclass AND attnum > 0"
    )
    assert all(column.not_null for column in contract(source, "t"))
    rows, _ = prove(source)
    assert rows.row(1) == (None,) * 7
    for column in contract(source, "t"):
        prove_column(source, column)
    source.execute("DELETE FROM t WHERE a IS NOT NULL")
    prove(source)


def test_configured_decimals_are_not_rounded(source: Source) -> None:
    """A value with more digits is rejected, which its integer would not show."""
    source.execute("CREATE TABLE t (id int, v numeric)")
    source.execute("INSERT INTO t VALUES (1, 1.5), (2, 1.101), (3, 0.005), (4, NULL)")
    for kind in ("decimal(9,2)", "decimal(30,2)"):
        _, rejected = prove(source, decimals={"v": kind})
        assert [text is not None for text in rejected] == [False, True, True, False]


@pytest.mark.soak
@pytest.mark.parametrize(
    "kinds",
    [("text", "bytea", "date", "text[]"), ("int",)],
)
def test_tables_of_1600_columns_are_equal(source: Source, kinds: tuple[str, ...]) -> None:
    """As many columns as a table can have, whose values come in more than a SELECT can return."""
    names = [f"c{i}" for i in range(1600)]
    defined = [f"{name} {kinds[i % len(kinds)]}" for i, name in enumerate(names)]
    source.execute(f"CREATE TABLE t ({', '.join(defined)})")
    source.execute("INSERT INTO t DEFAULT VALUES")
    values = {"int": "7", "text": "'é'", "bytea": "'\\x00'", "date": "now()", "text[]": "'{a}'"}
    for chosen in (range(1), range(1, 1600, 51), range(3, 1600, 23)):
        cells = [values[kinds[i % len(kinds)]] for i in chosen]
        source.execute(
            f"INSERT INTO t ({', '.join(names[i] for i in chosen)}) VALUES ({', '.join(cells)})"
        )
    prove(source)
    columns = contract(source, "t")
    assert packed_query.quick_packing(statement.select(columns, "public.t"), columns).in_arrays


@pytest.mark.soak
def test_huge_values_are_equal(source: Source) -> None:
    """Values of megabytes, and arrays of a hundred thousand elements, between small ones."""
    source.execute("CREATE TABLE t (id int, v text, b bytea, l text[], n int[], d date[])")
    source.execute(
        "INSERT INTO t SELECT g, repeat(chr(64 + g) || 'é', 700000 * (g % 3)),"
        " decode(repeat('00ff', 300000 * (g % 2)), 'hex'),"
        " CASE WHEN g = 4 THEN (SELECT array_agg(nullif(i % 7, 3)::text) FROM"
        " generate_series(1, 100000) i) ELSE '{}' END,"
        " CASE WHEN g = 5 THEN array_fill(g, ARRAY[100000]) END,"
        " CASE WHEN g = 2 THEN array_fill(date '2020-02-29', ARRAY[5000]) END"
        " FROM generate_series(1, 6) g"
    )
    prove(source)


def test_aggregates_see_the_rows_in_one_order(source: Source) -> None:
    """The ctid of each row comes beside its values, even if the server prefers parallel plans."""
    source.execute("CREATE TABLE t (id int, n int8, v text, place text)")
    source.execute(
        "INSERT INTO t SELECT g, g * 3, repeat('x', g % 90), '' FROM generate_series(1, 30000) g"
    )
    source.execute("UPDATE t SET n = n WHERE id % 7 = 0; DELETE FROM t WHERE id % 5 = 0")
    source.execute("VACUUM t")
    source.execute("INSERT INTO t SELECT -g, g, 'y', '' FROM generate_series(1, 5000) g")
    database = conninfo_to_dict(source.dsn)["dbname"]
    for name in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        source.execute(f"ALTER DATABASE {database} SET {name} = 0")
    source.execute(f"ALTER DATABASE {database} SET max_parallel_workers_per_gather = 4")
    *columns, place = contract(source, "t")
    columns.append(replace(place, select="ctid::text"))
    (plan,) = source.execute("EXPLAIN (FORMAT JSON) SELECT string_agg(v, '') FROM t")
    assert "Gather" in str(plan)
    with without_connectorx():
        rows, _ = rows_of(packed_reader.read_rows, source, columns)
    assert rows.height == 29_000
    assert rows.rows() == source.execute("SELECT id, n, v, ctid::text FROM t ORDER BY t.ctid")


@since("strategies and locale providers of databases")
@pytest.mark.parametrize(
    "encoding",
    [
        "EUC_JP",
        "SQL_ASCII",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("LATIN1", "WIN1252")),
    ],
)
def test_texts_in_other_encodings_are_equal(server: Server, source: Source, encoding: str) -> None:
    """Lengths count the bytes that are sent; bytes that are no text are rejected."""
    with encoded(server, source.lake, encoding) as other:
        if encoding == "SQL_ASCII":
            other.execute(MADE)
            other.execute(f"UPDATE t SET {ODD} WHERE id IN (3, 4)")
            prove(other)
            return
        word = "日本é"[:2] if encoding == "EUC_JP" else "éü"
        other.execute("CREATE TABLE t (id int, v text, w varchar(9), l text[], j json)")
        for i in range(40):
            text = word * (i % 4) + "x"
            other.execute(
                "INSERT INTO t VALUES (%s, %s, %s, ARRAY[%s, NULL, ''], %s)",
                i,
                text,
                word,
                text,
                f'"{text}"',
            )
        rows, _ = prove(other)
        assert rows["w"].to_list() == [word] * 40
