"""The bound: one binary COPY thrown away, and the rows encoded as Parquet, one after the other.

The rows are in ``TABLE.arrow`` beside the folder, which `benchmarks.load` has written: a file that
the system holds in memory and that is mapped, not read.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet
from psycopg import sql


def copy(dsn: str, schema: str, table: str) -> None:
    """Reads the table as PostgreSQL sends it fastest, and keeps nothing."""
    query = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(schema, table))
    with (
        psycopg.connect(dsn) as connection,
        connection.cursor() as cursor,
        cursor.copy(query) as blocks,
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


def main(dsn: str, schema: str, table: str, folder: str) -> None:
    """Reads the table, then writes its rows into the folder."""
    copy(dsn, schema, table)
    with pa.memory_map(f"{folder}/../{table}.arrow") as file:
        encode(pa.ipc.open_file(file).read_all(), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
