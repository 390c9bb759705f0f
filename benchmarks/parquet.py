"""What readers gain of the inside of Parquet files: ``python -m benchmarks.parquet``.

One file of order details, in the order of the product, is written in several ways: as bronze does,
with page indexes, with Bloom filters, with smaller row groups. A point of the clustered column and
one of a unique text are asked by polars from an imitated S3 (requests and bytes) and by DuckDB from
a local file (bytes read from it). So it is seen which of them serves as "predictive I/O".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bronze.delta import store as objects
from bronze.model.locations import Place

GROUP = 250_000
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as bronze": {},
    "page index": {"write_page_index": True},
    "Bloom filter": {"bloom_filter_options": {"row_hash": {"ndv": GROUP, "fpp": 0.01}}},
    "groups of 62,500": {"row_group_size": GROUP // 4},
    "groups of 15,625": {"row_group_size": GROUP // 16},
}


def details(rows: int) -> pa.Table:
    """Order details by their product, with a unique text, as a hash is."""
    draw = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "product_id": np.sort(draw.integers(0, 10_000, rows)),
            "order_id": draw.integers(0, rows // 4, rows),
            "quantity": draw.integers(1, 100, rows).astype(np.int32),
            "row_hash": [draw.bytes(16).hex() for _ in range(rows)],
        }
    )
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def write(path: Path, table: pa.Table, options: Mapping[str, Any]) -> None:
    """Writes the file as bronze does, with other options."""
    given = {"row_group_size": GROUP, **options}
    integers = ["product_id", "order_id", "quantity"]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=["quantity"],
        write_statistics=given.pop("write_statistics", integers),
        store_schema=False,
        **given,
    )


def median_of(work: Callable[[], object], rounds: int) -> float:
    """Milliseconds of the median of some runs."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * median(taken)


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def measure(rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """The figures of each variant."""
    import duckdb

    from tests.support import object_store

    table = details(rows)
    wanted = {"product_id": 5000, "row_hash": table["row_hash"][rows // 2].as_py()}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, object_store.s3() as store:
        place = Place(store.root, tuple(store.options.items()))
        for name, options in VARIANTS.items():
            path = Path(folder) / f"{name.replace(' ', '_')}.parquet"
            write(path, table, options)
            objects.create(place, path.name, path.read_bytes())
            found = figures[name] = {"MB of the file": path.stat().st_size / 1e6}
            for column, value in wanted.items():
                lazy = pl.scan_parquet(
                    f"{store.root}/{path.name}", storage_options=store.options
                ).filter(pl.col(column) == value)
                store.gateway.delay = 0.02
                store.gateway.requests.clear()
                store.gateway.sent = 0
                found[f"{column}: polars on S3, ms"] = median_of(lazy.collect, 1)
                found[f"{column}: polars on S3, requests"] = len(store.gateway.requests)
                found[f"{column}: polars on S3, MB"] = store.gateway.sent / 1e6
                store.gateway.delay = 0.0
                with duckdb.connect() as connection:
                    connection.execute("SET threads = 1")
                    query = f"FROM read_parquet('{path}') WHERE {column} = ?"

                    def ask(query: str = query, value: Any = value, to: Any = connection) -> Any:
                        return to.execute(query, [value]).fetchall()

                    before = _read_bytes()
                    ask()
                    found[f"{column}: DuckDB, MB"] = (_read_bytes() - before) / 1e6
                    found[f"{column}: DuckDB, ms"] = median_of(ask, rounds)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parquet", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    figures = measure(given.rows, given.rounds)
    grid = Table(title=f"{given.rows:,} rows", title_justify="left")
    for title in ("", *figures):
        grid.add_column(title, justify="right" if title else "left")
    for name in next(iter(figures.values())):
        grid.add_row(name, *(f"{figures[variant][name]:,.1f}" for variant in figures))
    Console(width=160).print(grid)


if __name__ == "__main__":
    main()
