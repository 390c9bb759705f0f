"""The reference: one binary COPY thrown away, and the rows encoded as Parquet, one after the other.

psql reads, in C, and keeps nothing. The rows to encode are in ``TABLE.arrow`` beside the folder,
which `benchmarks.load` has written: a file that the system holds in memory and that is mapped, not
read. Reading with several connections, and reading while encoding, can take less wall time.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet


def copy(dsn: str, schema: str, table: str, psql: str) -> None:
    """Reads the table as PostgreSQL sends it fastest, and keeps nothing."""
    command = f"""\\copy "{schema}"."{table}" to '/dev/null' (format binary)"""
    subprocess.run([psql, "-X", dsn, "-c", command], check=True)


def encode(rows: pa.Table, folder: Path) -> None:
    """Writes each half of the rows as a Parquet file, on a thread of its own."""
    half = len(rows) // 2
    halves = (rows.slice(0, half), rows.slice(half))
    paths = (folder / "0.parquet", folder / "1.parquet")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_write, halves, paths))


def _write(rows: pa.Table, path: Path) -> None:
    pa.parquet.write_table(rows, path, compression="zstd", compression_level=1)


def main(dsn: str, schema: str, table: str, folder: str, psql: str) -> None:
    """Reads the table, then writes its rows into the folder."""
    copy(dsn, schema, table, psql)
    with pa.memory_map(f"{folder}/../{table}.arrow") as file:
        encode(pa.ipc.open_file(file).read_all(), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
