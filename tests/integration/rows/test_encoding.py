"""The canonical encoding of rows: its bytes, and that PostgreSQL computes the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

from bronze.ingest import pipeline
from bronze.postgres import statement
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import row_hash, rows_reader
from bronze.rows import metadata
from bronze.rows.encoding import encode
from bronze.tables import selection
from tests.acceptance.test_exact import same
from tests.conftest import Source
from tests.support.effort import examples
from tests.support.strategies import EVERY, REJECTED, SETUP, Sample, expected, samples

IN_DATABASE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=examples(6),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(10))


@pytest.fixture
def typed(source: Source) -> Source:
    """A database with the types of `tests.support.strategies`."""
    source.execute(SETUP)
    return source


_numbers = itertools.count()


def fill(source: Source, sample: Sample) -> None:
    """Replaces the table ``t`` by one with the rows of a sample and a key ``id``."""
    names = [sql.Identifier(name) for name, _ in sample.columns]
    kinds = [sql.SQL(declared.type) for _, declared in sample.columns]
    defined = [sql.SQL("{} {}").format(n, k) for n, k in zip(names, kinds, strict=True)]
    cast = [sql.SQL("t{}::{}").format(sql.SQL(str(i)), k) for i, k in enumerate(kinds)]
    texts = [sql.SQL("t{}").format(sql.SQL(str(i))) for i in range(len(kinds))]
    comma = sql.SQL(", ")
    with psycopg.connect(source.dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute(
            sql.SQL("CREATE TABLE t (id int PRIMARY KEY, {})").format(comma.join(defined))
        )
        if sample.rows:
            lists = [list(column) for column in zip(*sample.rows, strict=True)]
            marks = comma.join([sql.SQL("%s::text[]")] * len(lists))
            connection.execute(
                sql.SQL(
                    "INSERT INTO t SELECT o, {} FROM unnest({}) WITH ORDINALITY AS u({}, o)"
                ).format(comma.join(cast), marks, comma.join(texts)),
                lists,
            )


def texts(source: Source) -> dict[int, list[str | None]]:
    """PostgreSQL's texts of the values of each row of ``t``, by key."""
    with psycopg.connect(source.dsn) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET lc_monetary = 'C'")
        result = connection.execute("SELECT * FROM t").pgresult
        assert result is not None
        cells = [
            [result.get_value(row, column) for column in range(result.nfields)]
            for row in range(result.ntuples)
        ]
    rows = [[None if cell is None else cell.decode() for cell in row] for row in cells]
    return {int(str(row[0])): row[1:] for row in rows}


def hashes(source: Source) -> dict[int, str]:
    """The row hash of each row of ``t`` as PostgreSQL computes it, by key."""
    origin = source.settings().origin("test")
    with connect.connect(origin) as connection:
        present = [("test", relation) for relation in relations(connection, ["public"])]
        (target,) = selection.select_targets(source.settings(), present, ["t"])
        columns, table = selection.contract_columns(target), statement.quoted("public", "t")
        keys = [row[0] for row in connection.execute("SELECT id FROM public.t").fetchall()]
        queries = {key: row_hash.row_hash_query(columns, table, f"id = {key}") for key in keys}
        rows: dict[Any, Any] = {
            key: connection.execute(query).fetchone() for key, query in queries.items()
        }
    return {key: row[0] for key, row in rows.items()}


def load_and_compare(source: Source, sample: Sample, lake: Path) -> None:
    """Loads a sample, and compares values, rejected values and hashes with those of the source."""
    fill(source, sample)
    source = dataclasses.replace(source, lake=lake)
    result = pipeline.run(source.settings())
    assert [table.error for table in result.tables if table.error] == []
    frame = pl.read_delta(str(source.table("t")))
    source_texts = texts(source)
    bronze_rows = {row["id"]: row for row in frame.to_dicts()}
    assert bronze_rows.keys() == source_texts.keys()
    rejected = {}
    for key, row in source_texts.items():
        for (name, declared), text in zip(sample.columns, row, strict=True):
            value, actual = expected(declared.kind, text), bronze_rows[key][name]
            if value is REJECTED:
                rejected[key, name] = text
                value = None
            assert same(actual, value), (declared, text, actual, value)
    assert {key: row["row_hash"] for key, row in bronze_rows.items()} == hashes(source)
    assert len(set(frame["row_hash"])) == len(frame)
    assert rejected_values(source) == rejected


def rejected_values(source: Source) -> dict[tuple[int, str], str]:
    """The texts in ``governance.rejected_values``, by key and column."""
    folder = source.lake / "governance" / "rejected_values"
    if not folder.exists():
        return {}
    return {
        (json.loads(row["row_key"])["id"], row["column_name"]): row["source_text"]
        for row in pl.read_delta(str(folder)).to_dicts()
    }


@IN_DATABASE
@given(sample=samples())
def test_random_tables_are_loaded_exactly_and_have_postgresqls_hashes(
    typed: Source, sample: Sample
) -> None:
    """For any types and values, Bronze has the exact values, and PostgreSQL computes its hashes."""
    load_and_compare(typed, sample, typed.lake / str(next(_numbers)))


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=2)
@given(rows=st.lists(st.tuples(*(st.none() | kind.texts for kind in EVERY)), min_size=9))
def test_a_table_with_all_types_is_loaded_exactly(
    typed: Source, rows: list[tuple[str | None, ...]]
) -> None:
    """A table with a column of each type has several words of flags."""
    columns = tuple((f"c{i}", kind) for i, kind in enumerate(EVERY))
    load_and_compare(typed, Sample(columns, tuple(rows)), typed.lake / str(next(_numbers)))


UTC = dt.UTC
GOLDEN: list[tuple[Any, list[Any], list[str]]] = [
    (pl.Int16, [1, -2, None], ["0000 0001", "0000 fffe", "0001 0000"]),
    (pl.Int32, [1, -2, None], ["0000 00000001", "0000 fffffffe", "0001 00000000"]),
    (
        pl.Int64,
        [2**63 - 1, -(2**63), None],
        ["0000 7fffffffffffffff", "0000 8000000000000000", "0001 0000000000000000"],
    ),
    (
        pl.Float32,
        [1.5, -0.0, float("nan"), None, float("inf")],
        ["0000 3fc00000", "0000 80000000", "0000 7fc00000", "0001 7fc00000", "0000 7f800000"],
    ),
    (
        pl.Float64,
        [1.5, -0.0, float("nan"), None, -float("inf")],
        [
            "0000 3ff8000000000000",
            "0000 8000000000000000",
            "0000 7ff8000000000000",
            "0001 7ff8000000000000",
            "0000 fff0000000000000",
        ],
    ),
    (pl.Boolean, [True, False, None], ["0000 01", "0000 00", "0001 00"]),
    (
        pl.Date,
        [dt.date(2000, 1, 1), dt.date(1999, 12, 31), dt.date(1, 1, 1), None],
        ["0000 00000000", "0000 ffffffff", "0000 fff4dbf9", "0001 00000000"],
    ),
    (
        pl.Datetime("us"),
        [dt.datetime(2000, 1, 1, 0, 0, 0, 1), dt.datetime(1999, 12, 31, 23, 59, 59, 999999), None],
        ["0000 0000000000000001", "0000 ffffffffffffffff", "0001 0000000000000000"],
    ),
    (
        pl.Datetime("us", "UTC"),
        [dt.datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC), dt.datetime(1970, 1, 1, tzinfo=UTC), None],
        ["0000 00000000000f4240", "0000 fffca2fec4c82000", "0001 0000000000000000"],
    ),
    (
        pl.Decimal(12, 2),
        [Decimal("1.50"), Decimal("-0.01"), None],
        ["0000 0000000000000096", "0000 ffffffffffffffff", "0001 0000000000000000"],
    ),
    (
        pl.Decimal(18, 18),
        [Decimal("0.999999999999999999")],
        ["0000 0de0b6b3a763ffff"],
    ),
    (
        pl.Decimal(19, 2),
        [Decimal("-1.50"), Decimal(0), None],
        ["0000 00000005 2d312e3530", "0000 00000004 302e3030", "0001 00000000"],
    ),
    (pl.Decimal(38, 0), [Decimal(-10), None], ["0000 00000003 2d3130", "0001 00000000"]),
    (
        pl.String,
        ["a", "", None, "é🚀"],
        ["0000 00000001 61", "0000 00000000", "0001 00000000", "0000 00000006 c3a9f09f9a80"],
    ),
    (
        pl.Binary,
        [b"\x00\xff", b"", None],
        ["0000 00000002 00ff", "0000 00000000", "0001 00000000"],
    ),
    (
        pl.List(pl.Int32),
        [[1, None], [], None, [2]],
        [
            "0000 00000002 0000 00000001 0001 00000000",
            "0000 00000000",
            "0001 00000000",
            "0000 00000001 0000 00000002",
        ],
    ),
    (
        pl.List(pl.String),
        [["a", ""], ["", "a"], [None]],
        [
            "0000 00000002 0000 00000001 61 0000 00000000",
            "0000 00000002 0000 00000000 0000 00000001 61",
            "0000 00000001 0001 00000000",
        ],
    ),
    (pl.List(pl.Decimal(5, 2)), [[Decimal("1.50")]], ["0000 00000001 0000 0000000000000096"]),
    (pl.List(pl.Boolean), [[True, None]], ["0000 00000002 0000 01 0001 00"]),
]


def encoded(*columns: pl.Series) -> list[bytes]:
    """The encoding of each row."""
    rows: list[bytes] = encode(columns, len(columns[0])).to_pylist()
    return rows


@pytest.mark.parametrize(("kind", "values", "expected"), GOLDEN, ids=[str(g[0]) for g in GOLDEN])
def test_the_encoding_of_each_type_does_not_change(
    kind: Any, values: list[Any], expected: list[str]
) -> None:
    """The values of each type have the bytes that the format defines."""
    rows = encoded(pl.Series(values, dtype=kind))
    assert [row.hex() for row in rows] == [text.replace(" ", "") for text in expected]


def test_every_nan_has_the_same_encoding() -> None:
    """A NaN with a sign or a payload is encoded like any other."""
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001], np.uint64)
    assert len(set(encoded(pl.Series(bits.view(np.float64))))) == 1
    short = np.array([0x7FC00000, 0xFFC00001, 0x7F800001], np.uint32)
    assert len(set(encoded(pl.Series(short.view(np.float32))))) == 1


def test_a_row_is_flags_then_fixed_then_variable_parts() -> None:
    """The parts of several columns are in the order of the format."""
    columns = [
        pl.Series([1], dtype=pl.Int16),
        pl.Series(["ab"]),
        pl.Series([None], dtype=pl.Boolean),
        pl.Series([[7]], dtype=pl.List(pl.Int16)),
        pl.Series(["c"]),
    ]
    expected = "0004 0001 00000002 00 00000001 00000001 6162 0000 0007 63"
    assert encoded(*columns)[0].hex() == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("width", "flags"),
    [(1, "0001"), (15, "7fff"), (16, "7fff0001"), (30, "7fff7fff"), (31, "7fff7fff0001")],
)
def test_fifteen_columns_share_a_word_of_flags(width: int, flags: str) -> None:
    """NULL in every column sets the bit of every column."""
    null = pl.Series([None], dtype=pl.Boolean)
    assert encoded(*[null] * width)[0].hex() == flags + "00" * width


_SMALL = st.sampled_from
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pl.Int16, _SMALL([0, 1, -1])),
    (pl.Int64, _SMALL([0, 1, 256])),
    (pl.Float64, _SMALL([0.0, -0.0, float("nan"), float("inf")])),
    (pl.Boolean, st.booleans()),
    (pl.Date, _SMALL([dt.date(2000, 1, 1), dt.date(2000, 1, 2)])),
    (pl.Datetime("us"), _SMALL([dt.datetime(2000, 1, 1), dt.datetime(2000, 1, 1, 0, 0, 0, 1)])),
    (pl.Decimal(5, 1), _SMALL([Decimal("0.0"), Decimal("0.1")])),
    (pl.Decimal(20, 1), _SMALL([Decimal("0.0"), Decimal("0.1"), Decimal("10.1")])),
    (pl.String, st.text("a\0", max_size=3)),
    (pl.Binary, st.binary(max_size=3)),
    (pl.List(pl.String), st.lists(st.none() | st.text("a\0", max_size=2), max_size=3)),
    (pl.List(pl.Int16), st.lists(st.none() | _SMALL([0, 1]), max_size=3)),
    (pl.List(pl.Float32), st.lists(st.none() | _SMALL([0.0, -0.0, float("nan")]), max_size=2)),
]


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    """Frames of a few columns with few different values, so that many rows are equal or similar."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    height = draw(st.integers(1, 12))
    return pl.DataFrame(
        [
            pl.Series(
                f"c{i}",
                draw(st.lists(st.none() | values, min_size=height, max_size=height)),
                dtype=kind,
            )
            for i, (kind, values) in enumerate(kinds)
        ]
    )


@IN_MEMORY
@given(frame=frames())
def test_rows_are_equal_if_and_only_if_their_encodings_are(frame: pl.DataFrame) -> None:
    """No two different rows of the same columns share an encoding; equal ones do."""
    pairs = {(repr(row), code) for row, code in _rows(frame)}
    assert len(pairs) == len({row for row, _ in pairs}) == len({code for _, code in pairs})


def _rows(frame: pl.DataFrame) -> list[tuple[tuple[Any, ...], bytes]]:
    return list(zip(frame.rows(), encoded(*frame.get_columns()), strict=True))


@IN_MEMORY
@given(frame=frames(), data=st.data())
def test_the_encoding_is_the_same_for_slices_and_chunks(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    """Slices with an offset, several chunks and single rows have the bytes of the whole frame."""
    whole = encoded(*frame.get_columns())
    low = data.draw(st.integers(0, frame.height - 1))
    high = data.draw(st.integers(low + 1, frame.height))
    assert encoded(*frame[low:high].get_columns()) == whole[low:high]
    chunked = pl.concat([frame[:low], frame[low:high], frame[high:]], rechunk=False)
    assert encoded(*chunked.get_columns()) == whole
    assert encoded(*pl.concat([frame, frame], rechunk=False).get_columns()) == whole * 2
    single = [encoded(*frame[i].get_columns())[0] for i in range(frame.height)]
    assert single == whole


# Columns that were added later


@st.composite
def evolved_frames(draw: st.DrawFn) -> tuple[pl.DataFrame, int]:
    """Frames with the number of columns that were not added later, maybe none or all."""
    frame = draw(frames())
    return frame, draw(st.integers(0, frame.width))


@IN_MEMORY
@given(case=evolved_frames())
def test_rows_with_added_columns_are_equal_if_and_only_if_their_encodings_are(
    case: tuple[pl.DataFrame, int],
) -> None:
    """No two different rows share an encoding, however many of the columns were added later."""
    frame, base = case
    codes = encode(frame.get_columns(), frame.height, base).to_pylist()
    pairs = set(zip(map(repr, frame.rows()), codes, strict=True))
    assert len(pairs) == len({row for row, _ in pairs}) == len({code for _, code in pairs})


@IN_MEMORY
@given(
    case=evolved_frames(), more=st.lists(st.sampled_from([kind for kind, _ in KINDS]), max_size=20)
)
def test_an_added_column_that_is_null_does_not_change_the_encoding(
    case: tuple[pl.DataFrame, int], more: list[Any]
) -> None:
    """With any number of added columns that are NULL, a row is encoded as it was without them."""
    frame, base = case
    rows, before = frame.height, frame.get_columns()
    added = [pl.Series([None] * rows, dtype=kind) for kind in more]
    whole = encode(before, rows, base).to_pylist()
    assert encode([*before, *added], rows, base).to_pylist() == whole
    assert encode(before, rows, frame.width).to_pylist() == encoded(*before)
    assert encode(before, rows, None).to_pylist() == encoded(*before)
    both = encode([*before, *added], rows, frame.width).to_pylist()
    assert both == encoded(*before)


@IN_MEMORY
@given(case=evolved_frames(), data=st.data())
def test_an_added_column_changes_the_encoding_of_rows_in_which_it_is_not_null(
    case: tuple[pl.DataFrame, int], data: st.DataObject
) -> None:
    """A value in an added column is appended to its row only; its position is encoded too."""
    frame, base = case
    rows, before = frame.height, frame.get_columns()
    kind, strategy = data.draw(st.sampled_from(KINDS))
    values = data.draw(st.lists(st.none() | strategy, min_size=rows, max_size=rows))
    added = pl.Series(values, dtype=kind)
    gap = pl.Series([None] * rows, dtype=kind)
    whole = encode(before, rows, base).to_pylist()
    after = encode([*before, added], rows, base).to_pylist()
    shifted = encode([*before, gap, added], rows, base).to_pylist()
    for i, value in enumerate(values):
        assert (after[i] == whole[i]) == (value is None)
        assert after[i].startswith(whole[i])
        assert (shifted[i] == after[i]) == (value is None)


def test_the_encoding_of_added_columns_does_not_change() -> None:
    """An added column is its number and its value as a row of one column, and empty if NULL."""
    columns = [
        pl.Series([1, 2], dtype=pl.Int16),
        pl.Series(["ab", None]),
        pl.Series([None, True], dtype=pl.Boolean),
    ]
    actual = [row.hex() for row in encode(columns, 2, 1).to_pylist()]
    expected = ["0000 0001 0001 0000 00000002 6162", "0000 0002 0002 0000 01"]
    assert actual == [text.replace(" ", "") for text in expected]
    assert encode(columns[2:], 2, 0).to_pylist() == [b"", bytes.fromhex("0000000001")]


@IN_DATABASE
@given(sample=samples(), data=st.data())
def test_rows_with_added_columns_have_postgresqls_hashes(
    typed: Source, sample: Sample, data: st.DataObject
) -> None:
    """PostgreSQL and bronze compute the same hashes of rows some of whose columns were added."""
    compare_hashes(typed, sample, data.draw(st.integers(0, len(sample.columns))))


@pytest.mark.soak
@settings(IN_DATABASE, max_examples=2)
@given(
    rows=st.lists(st.tuples(*(st.none() | kind.texts for kind in EVERY)), min_size=9),
    base=st.sampled_from([0, 3]),
)
def test_added_columns_of_all_types_have_postgresqls_hashes(
    typed: Source, rows: list[tuple[str | None, ...]], base: int
) -> None:
    """A column of each type can be added later."""
    columns = tuple((f"c{i}", kind) for i, kind in enumerate(EVERY))
    compare_hashes(typed, Sample(columns, tuple(rows)), base)


def compare_hashes(source: Source, sample: Sample, base: int) -> None:
    """Compares the hashes of a sample's rows with PostgreSQL's, as if all columns but the key and
    the first ``base`` ones had been added later.
    """
    fill(source, sample)
    origin = source.settings().origin("test")
    table = statement.quoted("public", "t")
    with connect.connect(origin) as connection:
        present = [("test", relation) for relation in relations(connection, ["public"])]
        (target,) = selection.select_targets(source.settings(), present, ["t"])
        columns = selection.contract_columns(target)
        query = row_hash.row_hash_query(columns, table, "true", base + 1)
        by_postgresql = [str(row[0]) for row in connection.execute(query)]
        without_added = [
            str(row[0])
            for row in connection.execute(row_hash.row_hash_query(columns, table, "true"))
        ]
    by_bronze: list[str] = []
    select = statement.select(columns, table)
    for rows, rejected in rows_reader.read_rows(origin, (), select, ["true"], columns, "public.t"):
        by_bronze.extend(metadata.digests(rows, rejected, base + 1)[0])
    assert sorted(by_bronze) == sorted(by_postgresql)
    assert len(set(by_bronze)) == len(sample.rows)
    if base < len(sample.columns) and sample.rows:
        assert set(by_bronze).isdisjoint(without_added)
