"""One engine reads one table, in a process of its own: ``python -m tests.interop.readers``.

It gets the engine's name, the folder of a table with the columns ``id`` and ``name``, a question,
and a key; and prints JSON: rows as ``[id, name]``, a count, or changes as ``[kind, id]``. Nothing
but the engine is imported, so that any interpreter can run this file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
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
    import duckdb
    import duckdb_extension_delta

    (library,) = Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension")
    with duckdb.connect() as connection:
        connection.load_extension(str(library))

        def ask(query: str) -> Any:
            return _arrow(connection.execute(query).arrow())

        return _by_sql(ask, f"delta_scan('{folder}')", question, key)


def by_chdb(folder: str, question: str, key: int) -> Any:
    """ClickHouse."""
    import chdb
    import pyarrow as pa

    root = os.path.dirname(folder)  # noqa: PTH120 - it opens nothing outside
    os.chdir(root)
    connection = chdb.connect(f":memory:?user_files_path={root}")

    def ask(query: str) -> Any:
        found = connection.query(query.replace("count(*)", "count()"), "ArrowStream").bytes()
        return pa.ipc.open_stream(found).read_all()

    return _by_sql(ask, f"deltaLakeLocal('{folder}')", question, key)


def by_sail(folder: str, question: str, key: int) -> Any:
    """Sail, by the protocol of Spark Connect."""
    from pysail.spark import SparkConnectServer
    from pyspark.sql import SparkSession

    server = SparkConnectServer("127.0.0.1", 0)
    server.start()
    port = server.listening_address[1]
    session = SparkSession.builder.remote(f"sc://127.0.0.1:{port}").getOrCreate()
    reader = session.read.format("delta")
    if question == "feed":
        reader = reader.option("readChangeFeed", "true").option("startingVersion", "0")
        return _changes(reader.load(folder).toArrow())
    frame = reader.load(folder)
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
    "Sail": (by_sail, ("content", "count", "filter", "feed"), "pysail"),
    "Daft": (by_daft, ("content", "count", "filter"), "daft"),
    "delta-kernel": (
        by_kernel,
        ("content", "count", "feed"),
        "delta-kernel-rust-sharing-wrapper",
    ),
}
"""What each engine can be asked, and the package whose version is told."""


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


if __name__ == "__main__":
    name, table_folder, asked, wanted = sys.argv[1:]
    print("\n" + json.dumps(ENGINES[name][0](table_folder, asked, int(wanted))), flush=True)
    # Servers inside of the process would keep it alive.
    os._exit(0)
