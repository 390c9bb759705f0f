"""One engine reads tables, in a process of its own: ``python tests/interop/readers.py ENGINE``.

Each line of its input is a JSON array: the folder of a table with the columns ``id`` and ``name``,
a question, and a key. Each answer is a line ``= JSON``: rows as ``[id, name]``, a count, changes as
``[kind, id]``, or null after an error. Nothing but the engine is imported, so that any interpreter
can run this file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

Engine = Callable[[str, str, int], Any]


def by_deltalake(folder: str, question: str, key: int) -> Any:
    """Deltalake with pyarrow."""
    from deltalake import DeltaTable

    table = DeltaTable(folder)
    if question == "count":
        return table.count()
    if question == "feed":
        return _changes(_arrow(table.load_cdf(starting_version=0)))
    filters = [("id", "=", key)] if question == "filter" else None
    return _rows(table.to_pyarrow_table(filters=filters))


def by_query(folder: str, question: str, key: int) -> Any:
    """Deltalake's engine for SQL."""
    from deltalake import DeltaTable, QueryBuilder

    engine = QueryBuilder().register("t", DeltaTable(folder))

    def ask(query: str) -> Any:
        return _arrow(engine.execute(query))

    return _by_sql(ask, "t", question, key)


def by_polars(folder: str, question: str, key: int) -> Any:
    """Polars."""
    import polars as pl

    lazy = pl.scan_delta(folder)
    if question == "count":
        return lazy.select(pl.len()).collect().item()
    lazy = lazy.filter(pl.col("id") == key) if question == "filter" else lazy
    return _rows(lazy.select("id", "name").collect().to_arrow())


def by_duckdb(folder: str, question: str, key: int) -> Any:
    """DuckDB with the delta extension of PyPI."""
    connection = _duckdb()

    def ask(query: str) -> Any:
        return _arrow(connection.execute(query).arrow())

    return _by_sql(ask, f"delta_scan('{folder}')", question, key)


def by_chdb(folder: str, question: str, key: int) -> Any:
    """ClickHouse."""
    import pyarrow as pa

    connection = _clickhouse(str(Path(folder).parent))

    def ask(query: str) -> Any:
        found = connection.query(query.replace("count(*)", "count()"), "ArrowStream").bytes()
        return pa.ipc.open_stream(found).read_all()

    return _by_sql(ask, f"deltaLakeLocal('{folder}')", question, key)


def by_sail(folder: str, question: str, key: int) -> Any:
    """Sail, by the protocol of Spark Connect; it takes no notice of ``readChangeFeed``."""
    session, _ = _sail()
    frame = session.read.format("delta").load(folder)
    if question == "count":
        return frame.count()
    frame = frame.where(f"id = {key}") if question == "filter" else frame
    return _rows(frame.select("id", "name").toArrow())


def by_daft(folder: str, question: str, key: int) -> Any:
    """Daft."""
    import daft

    frame = daft.read_deltalake(folder)
    if question == "count":
        return frame.count_rows()
    frame = frame.where(daft.col("id") == key) if question == "filter" else frame
    return _rows(frame.select("id", "name").to_arrow())


def by_kernel(folder: str, question: str, key: int) -> Any:
    """delta-kernel, as Delta Sharing's client has it; it filters files only."""
    import delta_kernel_rust_sharing_wrapper as kernel
    import pyarrow as pa

    location = Path(folder).as_uri() + "/"
    interface, table = kernel.PythonInterface(location), kernel.Table(location)
    if question == "feed":
        version = len(list(Path(folder, "_delta_log").glob("*.json"))) - 1
        scan = kernel.TableChangesScanBuilder(table, interface, 0, version).build()
        return _changes(pa.Table.from_batches(scan.execute(interface)))
    scan = kernel.ScanBuilder(table.snapshot(interface)).build()
    found = pa.Table.from_batches(scan.execute(interface))
    return found.num_rows if question == "count" else _rows(found)


ENGINES: Mapping[str, tuple[Engine, tuple[str, ...], str]] = {
    "deltalake": (by_deltalake, ("content", "count", "filter", "feed"), "deltalake"),
    "QueryBuilder": (by_query, ("content", "count", "filter"), "deltalake"),
    "polars": (by_polars, ("content", "count", "filter"), "polars"),
    "DuckDB": (by_duckdb, ("content", "count", "filter"), "duckdb"),
    "chDB": (by_chdb, ("content", "count", "filter"), "chdb"),
    "Sail": (by_sail, ("content", "count", "filter"), "pysail"),
    "Daft": (by_daft, ("content", "count", "filter"), "daft"),
    "delta-kernel": (
        by_kernel,
        ("content", "count", "feed"),
        "delta-kernel-rust-sharing-wrapper",
    ),
}
"""What each engine can be asked, and the package whose version is told."""


@cache
def _duckdb() -> Any:
    import duckdb
    import duckdb_extension_delta

    (library,) = Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension")
    connection = duckdb.connect()
    connection.load_extension(str(library))
    return connection


@cache
def _clickhouse(root: str) -> Any:
    import chdb

    os.chdir(root)  # it opens nothing outside
    return chdb.connect(f":memory:?user_files_path={root}")


@cache
def _sail() -> tuple[Any, Any]:
    """A session, and its server, which would end if nothing referred to it."""
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer("127.0.0.1", 0)
    server.start()
    address = f"sc://127.0.0.1:{server.listening_address[1]}"
    return SparkSession.builder.remote(address).getOrCreate(), server


def _by_sql(ask: Callable[[str], Any], table: str, question: str, key: int) -> Any:
    if question == "count":
        return ask(f"SELECT count(*) FROM {table}")[0][0].as_py()
    where = f" WHERE id = {key}" if question == "filter" else ""
    return _rows(ask(f"SELECT id, name FROM {table}{where}"))


def _arrow(found: Any) -> Any:
    """What an engine returns, as a table of pyarrow."""
    import pyarrow as pa

    return found if isinstance(found, pa.Table) else pa.table(found.read_all())


def _rows(table: Any) -> list[list[Any]]:
    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    pairs = zip(table["id"].to_pylist(), table["name"].to_pylist(), strict=True)
    return sorted([int(number), text(name)] for number, name in pairs)


def _changes(table: Any) -> list[list[Any]]:
    pairs = zip(table["_change_type"].to_pylist(), table["id"].to_pylist(), strict=True)
    return sorted([kind, number] for kind, number in pairs)


def main() -> None:
    """Answers line by line; after an answer the process may end by the next question."""
    read = ENGINES[sys.argv[1]][0]
    for line in sys.stdin:
        folder, question, key = json.loads(line)
        try:
            answer = read(folder, question, key)
        except Exception as error:
            print(error, file=sys.stderr)
            answer = None
        print("\n=", json.dumps(answer), flush=True)
    # Servers inside of the process would keep it alive.
    os._exit(0)


if __name__ == "__main__":
    main()
