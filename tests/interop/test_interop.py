"""Tables that bronze landed, read back by engines that share no code with it."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import psycopg
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from psycopg import sql

from bronze.demo import inventory
from bronze.demo.server import running
from bronze.ingest import pipeline
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.tables import selection
from tests.acceptance.test_exact import CASES, REJECTED, SETUP, UTC, same
from tests.conftest import FAST, Source
from tests.support.strategies import expected

pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]

Row = dict[str, Any]
Key = Mapping[str, Any]


class Reader(Protocol):
    """An engine that reads Delta tables. ``nothing`` is what it makes of an array that is NULL."""

    nothing: list[Any] | None

    def rows(self, folder: Path, key: Key) -> list[Row]:
        """The rows whose columns equal those of ``key``; all rows for an empty one."""

    def shown(self, value: Any) -> Any:
        """What the engine makes of a value that it can only show otherwise."""


class DeltaRs:
    """The Delta reader in Rust, with pyarrow's scanner."""

    nothing: list[Any] | None = None

    def rows(self, folder: Path, key: Key) -> list[Row]:
        """Reads through a pyarrow dataset."""
        root = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())
        condition = None
        for name, value in key.items():
            one = pc.field(name) == value
            condition = one if condition is None else condition & one
        dataset = DeltaTable(str(folder)).to_pyarrow_dataset(filesystem=root)
        found: list[Row] = dataset.to_table(filter=condition).to_pylist()
        return found

    def shown(self, value: Any) -> Any:
        """Everything as it is."""
        return value


class Polars(DeltaRs):
    """Polars' own scanner."""

    def rows(self, folder: Path, key: Key) -> list[Row]:
        """Reads lazily, with the filter pushed down."""
        lazy = pl.scan_delta(str(folder))
        return lazy.filter(*(pl.col(n) == v for n, v in key.items())).collect().to_dicts()


class ClickHouse:
    """ClickHouse, whose arrays are never NULL, and whose times know no absence of a zone."""

    nothing: list[Any] | None = []  # noqa: RUF012 - nobody changes it
    years = range(1900, 2300)

    def __init__(self, root: Path) -> None:
        chdb = pytest.importorskip("chdb")
        self._root = root
        self._connection = chdb.connect(f":memory:?user_files_path={root}")

    def close(self) -> None:
        """Ends the embedded server."""
        self._connection.close()

    def rows(self, folder: Path, key: Key) -> list[Row]:
        """Reads with a table function; binaries as hexadecimal digits."""
        columns = []
        for field in DeltaTable(str(folder)).schema().fields:
            name, kind = f'"{field.name}"', str(field.type)
            if "binary" in kind:
                name = f"arrayMap(x -> hex(x), {name})" if "Array" in kind else f"hex({name})"
            columns.append(f'{name} AS "{field.name}"')
        where = " AND ".join(f'"{n}" = {_literal(v)}' for n, v in key.items()) or "true"
        query = f"SELECT {', '.join(columns)} FROM deltaLakeLocal('{folder}') WHERE {where}"
        with contextlib.chdir(self._root):  # it opens nothing outside
            found = self._connection.query(query, "Parquet").bytes()
        return list(pq.read_table(io.BytesIO(found)).to_pylist()) if found else []

    def shown(self, value: Any) -> Any:
        """Dates that ClickHouse has no room for are left out (Ellipsis)."""
        if isinstance(value, list):
            shown = [self.shown(element) for element in value]
            return ... if ... in shown else shown
        if isinstance(value, bytes):
            return value.hex().upper()
        if isinstance(value, dt.date) and value.year not in self.years:
            return ...
        if isinstance(value, dt.datetime) and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


class Sail(DeltaRs):
    """Sail, by the protocol of Spark Connect."""

    def __init__(self) -> None:
        pysail = pytest.importorskip("pysail.spark")
        session = pytest.importorskip("pyspark.sql").SparkSession
        self._server = pysail.SparkConnectServer("127.0.0.1", 0)
        self._server.start()
        _, port = self._server.listening_address
        self._spark = session.builder.remote(f"sc://127.0.0.1:{port}").getOrCreate()
        self._spark.conf.set("spark.sql.session.timeZone", "UTC")

    def close(self) -> None:
        """Ends the session and the server."""
        self._spark.stop()
        self._server.stop()

    def rows(self, folder: Path, key: Key) -> list[Row]:
        """Reads as Spark would."""
        frame = self._spark.read.format("delta").load(str(folder))
        for name, value in key.items():
            frame = frame.where(f"`{name}` = {_literal(value)}")
        found: list[Row] = frame.toArrow().to_pylist()
        return found


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


@dataclass(frozen=True)
class Table:
    """A table that landed, and what the source holds: values by column, row by row."""

    folder: Path
    key: tuple[str, ...]
    rows: Sequence[Row]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Table]]:
    """The demo's tables and one of all types, landed."""
    folder = tmp_path_factory.mktemp("lake")
    with running(folder / "postgres", settings=FAST) as server:
        demo = Source(inventory.create(server.dsn(), scale=0.0001), folder / "demo")
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE kinds")
        kinds = Source(server.dsn("kinds"), folder / "kinds")
        yield _demo(demo) | {"kinds": _kinds(kinds)}


def _demo(source: Source) -> dict[str, Table]:
    settings = source.settings(source={"schema": inventory.SCHEMA})
    result = pipeline.run(settings)
    assert [table.error for table in result.tables] == [None] * len(inventory.SIZES)
    with connect.connect(settings.origin("test")) as connection:
        found = [("test", r) for r in relations(connection, [inventory.SCHEMA])]
        targets = selection.select_targets(settings, found, [])
        return {
            target.relation.name: Table(
                source.table(target.relation.name),
                target.relation.key,
                _held(connection, target),
            )
            for target in targets
        }


def _held(connection: connect.Connection, target: selection.Target) -> list[Row]:
    columns = selection.contract_columns(target)
    name = sql.Identifier(target.relation.schema, target.relation.name)
    result = connection.execute(sql.SQL("SELECT * FROM {}").format(name)).pgresult
    assert result is not None
    rows = []
    for i in range(result.ntuples):
        cells = [result.get_value(i, j) for j in range(result.nfields)]
        texts = [None if cell is None else cell.decode() for cell in cells]
        pairs = zip(columns, texts, strict=True)
        rows.append({c.target: expected(str(c.kind), text) for c, text in pairs})
    return rows


def _kinds(source: Source) -> Table:
    source.execute(SETUP)
    defined = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(CASES))
    source.execute(f"CREATE TABLE t (id int, word text, {defined}, PRIMARY KEY (id, word))")
    rows = []
    for number in range(max(len(values) for _, values in CASES) + 1):
        cells = {
            f"c{i}": values[number] for i, (_, values) in enumerate(CASES) if number < len(values)
        }
        names, values = ", ".join(cells), ", ".join(value for value, _ in cells.values())
        word = f"it''s {number} 🚀"
        more = (f", {names}", f", {values}") if cells else ("", "")
        source.execute(f"INSERT INTO t (id, word{more[0]}) VALUES ({number}, '{word}'{more[1]})")
        held = {name: None if e is REJECTED else e for name, (_, e) in cells.items()}
        empty = {f"c{i}": None for i in range(len(CASES))}
        rows.append({"id": number, "word": word.replace("''", "'"), **empty, **held})
    result = pipeline.run(source.settings())
    assert [table.error for table in result.tables] == [None]
    return Table(source.table("t"), ("id", "word"), rows)


@pytest.fixture(scope="module", params=["deltalake", "polars", "clickhouse", "sail"])
def reader(
    request: pytest.FixtureRequest, lake: dict[str, Table], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """Each of the engines in turn."""
    if request.param in ("deltalake", "polars"):
        yield DeltaRs() if request.param == "deltalake" else Polars()
        return
    common = Path(os.path.commonpath([table.folder for table in lake.values()]))
    engine = ClickHouse(common) if request.param == "clickhouse" else Sail()
    try:
        yield engine
    finally:
        engine.close()


NAMES = [*sorted(inventory.SIZES), "kinds"]


def compare(reader: Reader, table: Table, found: Sequence[Row], wanted: Sequence[Row]) -> None:
    """Each row that is wanted was found once, with its values to the bit, and no other."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in table.key)

    held = {key(row): row for row in found}
    assert len(held) == len(found)
    assert held.keys() == {key(row) for row in wanted}
    nothing = dict.fromkeys(_lists(table.rows), reader.nothing)
    for row in wanted:
        for name, value in row.items():
            shown = reader.shown(nothing.get(name) if value is None else value)
            if shown is not ...:
                assert same(held[key(row)][name], shown), (name, held[key(row)][name], shown)


def _lists(rows: Sequence[Row]) -> set[str]:
    return {name for row in rows for name, value in row.items() if isinstance(value, list)}


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_reads_what_the_source_holds(
    lake: dict[str, Table], reader: Reader, name: str
) -> None:
    """All rows and values are the source's, and the row hashes are there."""
    table = lake[name]
    found = reader.rows(table.folder, {})
    compare(reader, table, found, table.rows)
    assert len({row["row_hash"] for row in found}) == len(table.rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_finds_a_row_by_its_key(
    lake: dict[str, Table], reader: Reader, name: str
) -> None:
    """A lookup of a key finds its row, and one of no row's finds none."""
    table = lake[name]
    assert table.key
    for row in (table.rows[0], table.rows[len(table.rows) // 2], table.rows[-1]):
        found = reader.rows(table.folder, {column: row[column] for column in table.key})
        compare(reader, table, found, [row])
    absent = {table.key[0]: -1}
    assert reader.rows(table.folder, absent) == []
