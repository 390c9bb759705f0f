"""Tables of bronze that other writers append to: nothing refuses, and bronze goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

import bronze
from bronze.delta import log
from bronze.model.locations import Place
from tests.conftest import Source
from tests.support.content import differences
from tests.support.former_lake import make_former
from tests.support.vectors import delete, in_file

pytestmark = pytest.mark.interop


def by_deltalake(table: Path, rows: pl.DataFrame) -> None:
    """Deltalake's writer."""
    write_deltalake(str(table), rows.to_arrow(), mode="append")


def by_polars(table: Path, rows: pl.DataFrame) -> None:
    """polars', which is deltalake's with other types."""
    rows.write_delta(str(table), mode="append")


@contextmanager
def duckdb_connection() -> Iterator[Any]:
    """DuckDB with its delta extension, which comes from PyPI."""
    duckdb = pytest.importorskip("duckdb")
    extension = pytest.importorskip("duckdb_extension_delta")
    (library,) = Path(extension.__file__).parent.rglob("*.duckdb_extension")
    with duckdb.connect() as connection:
        connection.load_extension(str(library))
        yield connection


def by_duckdb(table: Path, rows: pl.DataFrame) -> None:
    """DuckDB's."""
    with duckdb_connection() as connection:
        connection.execute(f"ATTACH '{table}' AS bronze (TYPE delta)")
        connection.register("rows", rows.to_arrow())
        connection.execute("INSERT INTO bronze SELECT * FROM rows")


WRITERS: Mapping[str, Callable[[Path, pl.DataFrame], None]] = {
    "deltalake": by_deltalake,
    "polars": by_polars,
    "duckdb": by_duckdb,
}
TABLES = {
    "t": "id int PRIMARY KEY, name text, price numeric(10, 2), tags text[]",
    "ntz": "id int PRIMARY KEY, at timestamp, day date, ok bool, photo bytea",
}


def landed(source: Source) -> bronze.Bronze:
    """Both tables with a row each, loaded."""
    for name, columns in TABLES.items():
        source.execute(f"CREATE TABLE {name} ({columns})")
    source.execute("INSERT INTO t VALUES (1, 'one', 1.25, '{a,b}')")
    source.execute("INSERT INTO ntz VALUES (1, '2026-01-02 03:04:05.678901', 'today', true, 'x')")
    opened = bronze.Bronze(source.settings())
    assert opened.run().exit_code == 0
    return opened


def append_a_row(source: Source, name: str, write: Callable[[Path, pl.DataFrame], None]) -> int:
    """Appends a copy of the row with another key; the table's version."""
    table = source.table(name)
    rows = pl.read_delta(str(table)).with_columns(id=pl.lit(99, pl.Int32))
    write(table, rows)
    assert pl.read_delta(str(table)).height == 2
    return DeltaTable(str(table)).version()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", TABLES)
def test_other_writers_append_and_bronze_goes_on(source: Source, writer: str, name: str) -> None:
    """The next run names the foreign commit, and makes the table equal its source again."""
    opened = landed(source)
    version = append_a_row(source, name, WRITERS[writer])
    state = log.read(Place(str(source.table(name))))
    assert state is not None
    assert len(state.foreign) == 1
    source.execute(f"INSERT INTO {name} (id) VALUES (2)")
    result = opened.run()
    assert result.exit_code == 0
    notes = [note for table in result.tables for note in table.notes]
    assert any(f"version {version}" in note for note in notes), notes
    assert differences(source.settings()) == {}


def test_tables_of_older_versions_are_upgraded_on_request(source: Source) -> None:
    """DuckDB refuses a table whose protocol has numbers alone; after ``maintain --upgrade`` it
    inserts. No run upgrades a table by itself, and a second upgrade does nothing.
    """
    duckdb = pytest.importorskip("duckdb")
    opened = landed(source)
    make_former(source.lake)
    source.execute("INSERT INTO t (id) VALUES (2)")
    assert opened.run().exit_code == 0
    with pytest.raises(duckdb.Error):
        append_a_row(source, "t", by_duckdb)
    assert protocol(source.table("t"))["minWriterVersion"] == 4
    result = opened.maintain(upgrade=True)
    assert result.exit_code == 0
    assert {"bronze.bz_t", "governance.runs"} <= {t.target for t in result.tables if t.upgraded}
    assert protocol(source.table("t")) == {
        "minReaderVersion": 1,
        "minWriterVersion": 7,
        "writerFeatures": ["appendOnly", "invariants", "changeDataFeed"],
    }
    assert not any(table.upgraded for table in opened.maintain(upgrade=True).tables)
    source.execute("DELETE FROM t WHERE id = 2")
    assert opened.run().exit_code == 0
    assert differences(source.settings()) == {}


def test_rows_that_deletion_vectors_delete(source: Source) -> None:
    """Rows that another writer deletes by a vector, as Databricks does, are deleted for bronze too;
    the next run brings them back, and every command works on the table.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    source.execute("INSERT INTO t SELECT g, 'name ' || g FROM generate_series(1, 1000) g")
    opened = bronze.Bronze(source.settings())
    assert opened.run().exit_code == 0
    table = source.table("t")
    (path,) = DeltaTable(str(table)).get_add_actions()["path"].to_pylist()
    delete(table, str(path), in_file(table, "", [*range(0, 1000, 7)])[0])
    left = {*range(1, 1001)} - {n + 1 for n in range(0, 1000, 7)}
    for rows in (by_duckdb_read(table), pl.read_delta(str(table)), opened.table("t").collect()):
        assert {*rows["id"]} == left
        assert rows.height == len(left)
    at_rest = opened.verify(at_rest=True).tables[0]
    assert (at_rest.bronze_rows, at_rest.altered, at_rest.files) == (857, 0, ())
    assert at_rest.foreign == ("version 1: DELETE by another writer",)
    proof = opened.verify().tables[0]
    assert (proof.missing, proof.extra, proof.different) == (143, 0, 0)
    source.execute("DELETE FROM t WHERE id IN (1, 2)")
    source.execute("UPDATE t SET name = 'new' WHERE id IN (3, 8)")
    assert opened.run().exit_code == 0
    assert differences(source.settings()) == {}
    assert opened.verify().exit_code == opened.verify(at_rest=True).exit_code == 0
    assert opened.maintain().exit_code == 0
    # Row 1 was deleted by the vector, and is in the first file all the same.
    for key in ("1", "2"):
        erased = opened.forget("t", {"id": key})
        assert erased.exit_code == 0
        assert erased.left == 0
    assert not list(table.glob("deletion_vector_*.bin"))
    assert opened.verify().exit_code == 0


def by_duckdb_read(table: Path) -> pl.DataFrame:
    """The rows as DuckDB reads them."""
    with duckdb_connection() as connection:
        found: pl.DataFrame = connection.execute(f"FROM delta_scan('{table}')").pl()
    return found


def protocol(table: Path) -> dict[str, object]:
    """The last protocol in a table's log."""
    entries = sorted((table / "_delta_log").glob("*.json"))
    lines = [json.loads(line) for entry in entries for line in entry.read_text().splitlines()]
    found: list[dict[str, object]] = [line["protocol"] for line in lines if "protocol" in line]
    return found[-1]
