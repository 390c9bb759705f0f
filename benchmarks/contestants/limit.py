"""The bound: one binary COPY thrown away, and the rows encoded as Parquet, one after the other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.contestants import Task, report, task
from benchmarks.table import Column, columns, export, quoted

_TYPES = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us"),
}
_UTC = pa.timestamp("us", "UTC")


def copy(given: Task) -> None:
    """Reads the table as PostgreSQL sends it fastest, and keeps nothing."""
    query = f"COPY {quoted(given.schema)}.{quoted(given.table)} TO STDOUT (FORMAT binary)"
    with (
        psycopg.connect(given.dsn) as connection,
        connection.cursor() as cursor,
        cursor.copy(query.encode()) as blocks,
    ):
        for _ in blocks:
            pass


def encode(rows: pa.Table, folder: Path) -> None:
    """Writes each half of the rows as a Parquet file, on a thread of its own."""
    half = len(rows) // 2
    halves = (rows.slice(0, half), rows.slice(half))
    paths = (folder / "0.parquet", folder / "1.parquet")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_write, halves, paths))


def _write(rows: pa.Table, path: Path) -> None:
    pa.parquet.write_table(rows, path, compression="zstd", compression_level=1)


def in_memory(given: Task) -> pa.Table:
    """The rows of the table in Arrow's types."""
    file = given.lake / "rows.csv"
    with psycopg.connect(given.dsn, options="-c timezone=UTC") as connection:
        found = columns(connection, given.schema, given.table)
        export(connection, given.schema, given.table, _text, file)
    rows = pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={column.name: _type(column) for column in found},
            null_values=[""],
            quoted_strings_can_be_null=False,
            strings_can_be_null=True,
            true_values=["t"],
            false_values=["f"],
        ),
    )
    file.unlink()
    return pa.table({column.name: _typed(rows[column.name], column) for column in found})


def _text(column: Column) -> str:
    if column.type.startswith("_"):
        return "to_json({})"
    return "{} AT TIME ZONE 'UTC'" if column.type == "timestamptz" else "{}"


def _type(column: Column) -> pa.DataType:
    if column.precision:
        return pa.decimal128(column.precision, column.scale)
    return _TYPES.get(column.type, pa.string())


def _typed(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    if column.type.startswith("_"):
        lists = pl.Series(values).str.json_decode(pl.List(pl.String)).to_arrow()
        return pa.chunked_array([lists.cast(pa.list_(pa.string()))])
    return values.cast(_UTC) if column.type == "timestamptz" else values


if __name__ == "__main__":
    here = task()
    encoded = in_memory(here)
    began, used = time.perf_counter(), time.process_time()
    copy(here)
    encode(encoded, here.lake)
    report(time.perf_counter() - began, time.process_time() - used, "")
