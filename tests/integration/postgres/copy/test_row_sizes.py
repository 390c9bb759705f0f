"""Weighing: large rows are known, and parted, before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bronze.errors import TableRefused
from bronze.execution import budget
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.model.units import Weighing
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import row_sizes
from bronze.postgres.statement import quoted
from tests.conftest import Source
from tests.support.content import differences

KB = 1000


def relation(connection: Connection, name: str) -> Relation:
    """A table of the schema public, with its sizes as they are."""
    found = {r.name: r for r in relations(connection, ["public"])}
    return {r.name: r for r in relations(connection, ["public"], [found[name].oid])}[name]


def weighing(table: Relation, size: int, heaviest: int = 10**9) -> Weighing:
    """How its rows are weighed."""
    weight = row_sizes.weight(table, [a.name for a in table.attributes])
    name = quoted(table.schema, table.name)
    return Weighing(name, weight, "id::text", size, heaviest, 16, 10**8)


def rows_of(source: Source, name: str, part: row_sizes.Part) -> list[Any]:
    """The ids for which a part's condition is true."""
    return [row[0] for row in source.execute(f"SELECT id FROM {name} WHERE {part.where}")]


TABLES = {
    "plain": "CREATE TABLE t (id int, v text)",
    "parts": "CREATE TABLE t (id int, v text) PARTITION BY HASH (id);"
    " CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    " CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
}


@pytest.mark.parametrize("kind", TABLES)
def test_parts_hold_every_row_once_and_large_ones_alone(
    source: Source, connection: Connection, kind: str
) -> None:
    """Whatever the sizes, compressed or not, each row is in one part: no part holds more than a
    slice, but one row that is larger.
    """
    for statement in TABLES[kind].split(";"):
        source.execute(statement)
    lengths = [10, 90 * KB, 10, 2_500 * KB, 10, 10, 40 * KB, 40 * KB, 40 * KB, 10] * 4
    for number, length in enumerate(lengths):
        source.execute("INSERT INTO t VALUES (%s, repeat('é', %s))", number, length // 2)
    table = relation(connection, "t")
    given = weighing(table, 100 * KB)
    assert row_sizes.needed(connection, table, ["id", "v"])
    origin = Origin("test", source.dsn)
    found = row_sizes.parts(origin, (), given, ["ctid >= '(0,0)'::tid"], "public.t")
    held = [rows_of(source, "t", part) for part in found]
    assert sorted(i for part in held for i in part) == list(range(len(lengths)))
    for part, ids in zip(found, held, strict=True):
        sizes = [lengths[i] for i in ids]
        assert part.heavy == (max(sizes) > 100 * KB)
        assert len(sizes) == 1 if part.heavy else sum(sizes) <= 200 * KB


def test_values_that_only_take_room_with_us_are_known(
    source: Source, connection: Connection
) -> None:
    """Compressed values lie in a table's pages, or are of types that tell no length."""
    source.execute("CREATE TABLE inside (id int, v text)")
    source.execute("INSERT INTO inside SELECT i, repeat('a', 90000) FROM generate_series(1, 400) i")
    source.execute("CREATE TABLE json (id int, v jsonb)")
    source.execute("INSERT INTO json SELECT 1, to_jsonb(repeat(md5('1'), 100000))")
    source.execute("CREATE TABLE small (id int, v text)")
    source.execute("INSERT INTO small SELECT i, 'a' FROM generate_series(1, 9000) i")
    assert relation(connection, "inside").toast == 0
    known = {n: relation(connection, n) for n in ("inside", "json", "small")}
    needed = {n: row_sizes.needed(connection, table, ["v"]) for n, table in known.items()}
    assert needed == {"inside": True, "json": True, "small": False}
    weights = {
        n: source.execute(f"SELECT max({row_sizes.weight(table, ['v'])}) FROM {n}")[0][0]
        for n, table in known.items()
    }
    assert weights["inside"] == 90_000
    assert 3_200_000 <= weights["json"] <= 3_300_000


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for rows of 4 MB."""
    monkeypatch.setattr(budget, "COPIES", 10**6)


def landed(source: Source, only: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """The results of a run, by table."""
    result = pipeline.run(source.settings(**more), only)
    return {table.table: table for table in result.tables}


@pytest.mark.usefixtures("little")
def test_a_row_that_is_too_large_is_refused_by_name(source: Source) -> None:
    """Its table alone fails, before the value is read, and says what would do; once the row is
    gone, or the column left out, the table lands.
    """
    source.execute("CREATE TABLE big (id int, part text, v text, PRIMARY KEY (id, part))")
    source.execute("CREATE TABLE other (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO big VALUES (1, 'a', 'x'), (2, 'b', repeat('0123', 1500000))")
    source.execute("INSERT INTO other VALUES (1, 'x')")
    found = landed(source)
    assert found["public.other"].status == "landed"
    error = found["public.big"].error
    assert error.kind == TableRefused.__name__
    assert 'The row {"id" : "2", "part" : "b"} of table public.big has 6,000,0' in error.message
    assert "4,194,304 in a row" in error.message
    assert 'Raise [run] memory to "' in error.hint
    protect = {"big": {"protect": {"v": "drop"}}}
    assert landed(source, ["big"], tables=protect)["public.big"].status == "landed"
    source.execute("DELETE FROM big WHERE id = 2")
    assert landed(source, ["big"])["public.big"].error is None
    assert differences(source.settings()) == {}


@pytest.mark.usefixtures("little")
def test_no_protected_key_is_told(source: Source) -> None:
    """A row whose key is protected is told by its place."""
    source.execute("CREATE TABLE big (id text PRIMARY KEY, v text)")
    source.execute("INSERT INTO big VALUES ('secret', repeat('0123', 1500000))")
    tables = {"big": {"protect": {"id": "tokenize"}}}
    error = landed(source, tables=tables)["public.big"].error
    assert "secret" not in error.message + error.hint
    assert "(0,1)" in error.message


def test_large_rows_land_exactly(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows larger than a slice, among small ones, are the source's, when they land, when they are
    changed and when nothing is new.
    """
    monkeypatch.setattr(budget, "LARGEST_SPLIT", 100 * KB)
    source.execute("CREATE TABLE big (id int PRIMARY KEY, n int, v text, b bytea, j jsonb)")
    source.execute(
        "INSERT INTO big SELECT i, 0, repeat(md5(i::text), CASE WHEN i % 7 = 0 THEN 9000 ELSE 1"
        " END), decode(repeat('00ff', i * 100), 'hex'), to_jsonb(repeat('é', i * 500))"
        " FROM generate_series(1, 28) i"
    )
    given = source.settings()
    for change, counts in (
        ("SELECT 1", (28, 0)),
        ("UPDATE big SET n = 1 WHERE id % 2 = 0", (0, 14)),
        ("SELECT 1", (0, 0)),
    ):
        source.execute(change)
        table = landed(source)["public.big"]
        assert table.error is None
        assert (table.inserted, table.updated) == counts
        assert differences(given) == {}
