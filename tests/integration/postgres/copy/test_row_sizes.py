"""Row sizes: large rows are found, and splits divided, before rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bronze.errors import TableRefused
from bronze.execution import budget
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.model.units import RowSizeLimits
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import row_sizes
from bronze.postgres.statement import quoted
from tests.conftest import Source
from tests.support.content import differences

KB = 1000


def relation(connection: Connection, name: str) -> Relation:
    """A table of the schema public, with its current sizes."""
    tables = {r.name: r for r in relations(connection, ["public"])}
    return {r.name: r for r in relations(connection, ["public"], [tables[name].oid])}[name]


def weighing(table: Relation, size: int, heaviest: int = 10**9) -> RowSizeLimits:
    """How the sizes of the table's rows are determined."""
    weight = row_sizes.row_size_expression(table, [a.name for a in table.attributes])
    name = quoted(table.schema, table.name)
    return RowSizeLimits(name, weight, "id::text", size, heaviest, 16, 10**8)


def rows_of(source: Source, name: str, part: row_sizes.Part) -> list[Any]:
    """The ids for which a part's condition is true."""
    return [row[0] for row in source.execute(f"SELECT id FROM {name} WHERE {part.where}")]


TABLES = {
    "plain": "CREATE TABLE t (id int, v text)",
    "parts": "CREATE TABLE t (id int, v text) PARTITION BY HASH (id);"
    " CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    " CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
}


def has_large_values(connection: Connection, table: Relation, names: Sequence[str]) -> bool:
    """Whether a table has large values, by the catalog or else by a sample."""
    known = row_sizes.has_large_values(table, names)
    return row_sizes.samples_large_values(connection, table, names) if known is None else known


@pytest.mark.parametrize("kind", TABLES)
def test_parts_hold_each_row_once_and_large_rows_alone(
    source: Source, connection: Connection, kind: str
) -> None:
    """Compressed or not, each row is in exactly one part. A part is not larger than a split, except
    for a single row that is.
    """
    for statement in TABLES[kind].split(";"):
        source.execute(statement)
    lengths = [10, 90 * KB, 10, 2_500 * KB, 10, 10, 40 * KB, 40 * KB, 40 * KB, 10] * 4
    for number, length in enumerate(lengths):
        source.execute("INSERT INTO t VALUES (%s, repeat('é', %s))", number, length // 2)
    table = relation(connection, "t")
    sizes = weighing(table, 100 * KB)
    assert has_large_values(connection, table, ["id", "v"])
    origin = Origin("test", source.dsn)
    parts = row_sizes.divide_splits(origin, (), sizes, ["ctid >= '(0,0)'::tid"], "public.t")
    ids_of = [rows_of(source, "t", part) for part in parts]
    assert sorted(i for ids in ids_of for i in ids) == list(range(len(lengths)))
    for part, ids in zip(parts, ids_of, strict=True):
        part_lengths = [lengths[i] for i in ids]
        assert part.heavy == (max(part_lengths) > 100 * KB)
        assert len(part_lengths) == 1 if part.heavy else sum(part_lengths) <= 200 * KB


def test_compressed_values_are_measured_uncompressed(
    source: Source, connection: Connection
) -> None:
    """Also values that are not out of line, and those of types without a known length."""
    source.execute("CREATE TABLE inside (id int, v text)")
    source.execute("INSERT INTO inside SELECT i, repeat('a', 90000) FROM generate_series(1, 400) i")
    source.execute("CREATE TABLE json (id int, v jsonb)")
    source.execute("INSERT INTO json SELECT 1, to_jsonb(repeat(md5('1'), 100000))")
    source.execute("CREATE TABLE small (id int, v text)")
    source.execute("INSERT INTO small SELECT i, 'a' FROM generate_series(1, 9000) i")
    assert relation(connection, "inside").toast == 0
    tables = {n: relation(connection, n) for n in ("inside", "json", "small")}
    needed = {n: has_large_values(connection, table, ["v"]) for n, table in tables.items()}
    assert needed == {"inside": True, "json": True, "small": False}
    weights = {
        n: source.execute(f"SELECT max({row_sizes.row_size_expression(table, ['v'])}) FROM {n}")[0][
            0
        ]
        for n, table in tables.items()
    }
    assert weights["inside"] == 90_000
    assert 3_200_000 <= weights["json"] <= 3_300_000


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for rows of up to 4 MB."""
    monkeypatch.setattr(budget, "COPIES", 10**6)


def run_tables(source: Source, only: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """The results of a run, by table."""
    result = pipeline.run(source.settings(**more), only)
    return {table.table: table for table in result.tables}


@pytest.mark.usefixtures("little_memory")
def test_a_row_that_is_too_large_fails_only_its_table(source: Source) -> None:
    """The error names the row before its value is read, and the memory that it needs. Without the
    row, or without the column, the table lands.
    """
    source.execute("CREATE TABLE big (id int, part text, v text, PRIMARY KEY (id, part))")
    source.execute("CREATE TABLE other (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO big VALUES (1, 'a', 'x'), (2, 'b', repeat('0123', 1500000))")
    source.execute("INSERT INTO other VALUES (1, 'x')")
    results = run_tables(source)
    assert results["public.other"].status == "landed"
    error = results["public.big"].error
    assert error.kind == TableRefused.__name__
    assert 'The row {"id" : "2", "part" : "b"} of table public.big has 6,000,0' in error.message
    assert "allows 4,194,304 per row" in error.message
    assert 'Raise [run] memory to "' in error.hint
    protect = {"big": {"protect": {"v": "drop"}}}
    assert run_tables(source, ["big"], tables=protect)["public.big"].status == "landed"
    source.execute("DELETE FROM big WHERE id = 2")
    assert run_tables(source, ["big"])["public.big"].error is None
    assert differences(source.settings()) == {}


@pytest.mark.usefixtures("little_memory")
def test_the_error_for_a_large_row_has_no_protected_key(source: Source) -> None:
    """A row whose key is protected is named by its ctid."""
    source.execute("CREATE TABLE big (id text PRIMARY KEY, v text)")
    source.execute("INSERT INTO big VALUES ('secret', repeat('0123', 1500000))")
    tables = {"big": {"protect": {"id": "tokenize"}}}
    error = run_tables(source, tables=tables)["public.big"].error
    assert "secret" not in error.message + error.hint
    assert "(0,1)" in error.message


def test_large_rows_are_loaded_exactly(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows larger than a split, among small ones, equal those of the source after the load, after
    changes, and after a batch without changes.
    """
    monkeypatch.setattr(budget, "LARGEST_SPLIT", 100 * KB)
    source.execute("CREATE TABLE big (id int PRIMARY KEY, n int, v text, b bytea, j jsonb)")
    source.execute(
        "INSERT INTO big SELECT i, 0, repeat(md5(i::text), CASE WHEN i % 7 = 0 THEN 9000 ELSE 1"
        " END), decode(repeat('00ff', i * 100), 'hex'), to_jsonb(repeat('é', i * 500))"
        " FROM generate_series(1, 28) i"
    )
    settings = source.settings()
    for change, counts in (
        ("SELECT 1", (28, 0)),
        ("UPDATE big SET n = 1 WHERE id % 2 = 0", (0, 14)),
        ("SELECT 1", (0, 0)),
    ):
        source.execute(change)
        table = run_tables(source)["public.big"]
        assert table.error is None
        assert (table.inserted, table.updated) == counts
        assert differences(settings) == {}
