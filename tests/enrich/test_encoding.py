"""The canonical encoding: its bytes, and that PostgreSQL computes the same ones."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from psycopg import sql

from bronze import pipeline, prepare
from bronze.source import connect, digest, statement
from bronze.source.catalog import relations
from tests.conftest import Source
from tests.strategies import EVERY, REJECTED, SETUP, Declared, Sample, expected, samples
from tests.test_exact import same

IN_DATABASE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def typed(source: Source) -> Source:
    """A database with the types of `tests.strategies`."""
    source.execute(SETUP)
    return source


_numbers = itertools.count()


def fill(source: Source, sample: Sample) -> None:
    """Makes the table ``t`` anew with a sample's rows, and a key ``id``."""
    names = [sql.Identifier(name) for name, _ in sample.columns]
    kinds = [sql.SQL(declared.type) for _, declared in sample.columns]  # type: ignore[arg-type]
    defined = [sql.SQL("{} {}").format(n, k) for n, k in zip(names, kinds, strict=True)]
    cast = [sql.SQL("t{}::{}").format(sql.SQL(str(i)), k) for i, k in enumerate(kinds)]  # type: ignore[arg-type]
    texts = [sql.SQL("t{}").format(sql.SQL(str(i))) for i in range(len(kinds))]  # type: ignore[arg-type]
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
    """The rows of ``t`` as the server writes them: each value's text, by key."""
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
        found = [("test", relation) for relation in relations(connection, ["public"])]
        (target,) = prepare.targets(source.settings(), found, ["t"])
        columns, table = prepare.columns(target), statement.quoted("public", "t")
        keys = [row[0] for row in connection.execute("SELECT id FROM t").fetchall()]
        queries = {key: digest.row_hash(columns, table, f"id = {key}") for key in keys}
        rows: dict[Any, Any] = {
            key: connection.execute(query).fetchone()  # type: ignore[call-overload]
            for key, query in queries.items()
        }
    return {key: row[0] for key, row in rows.items()}


def prove(source: Source, sample: Sample, lake: Path) -> None:
    """Takes a sample in, and compares values, rejected values and hashes with the source's."""
    fill(source, sample)
    source = dataclasses.replace(source, lake=lake)
    result = pipeline.run(source.settings())
    assert [table.error for table in result.tables if table.error] == []
    frame = pl.read_delta(str(source.table("t")))
    theirs = texts(source)
    ours = {row["id"]: row for row in frame.to_dicts()}
    assert ours.keys() == theirs.keys()
    refused = {}
    for key, row in theirs.items():
        for (name, declared), text in zip(sample.columns, row, strict=True):
            wanted = expected(declared.kind, text)
            if wanted is REJECTED:
                refused[key, name] = text
                wanted = None
            assert same(ours[key][name], wanted), (declared, text, ours[key][name], wanted)
    assert {key: row["row_hash"] for key, row in ours.items()} == hashes(source)
    assert len(set(frame["row_hash"])) == len(frame)
    assert booked(source) == refused


def booked(source: Source) -> dict[tuple[int, str], str]:
    """The rejected values in the books, by key and column."""
    folder = source.lake / "governance" / "rejected_values"
    if not folder.exists():
        return {}
    return {
        (json.loads(row["row_key"])["id"], row["column_name"]): row["source_text"]
        for row in pl.read_delta(str(folder)).to_dicts()
    }


@IN_DATABASE
@given(sample=samples())
def test_random_tables_arrive_exactly_and_hash_as_in_the_source(
    typed: Source, sample: Sample
) -> None:
    """Whatever a table's types and values: Bronze holds them, and both sides' hashes are equal."""
    prove(typed, sample, typed.lake / str(next(_numbers)))
