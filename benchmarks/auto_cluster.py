"""How good ``cluster_by = "auto"`` is: ``python -m benchmarks.auto_cluster``.

For each of the demo's tables, the share of files that filters skip: in the order of arrival, by the
columns that bronze chooses from a sample, and by the best pair, which is found by trying all pairs
on all rows. Once with no query log, once with one that filters three columns of the table.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
from rich.console import Console
from rich.table import Table

from bronze.delta.layout import choice
from bronze.delta.layout.choice import Queries
from bronze.demo import inventory, server

PARTS = 32
# The types that are read, those with a "t" being times.
_TIMES = {
    "smallint": "",
    "integer": "",
    "bigint": "",
    "text": "",
    "character varying": "",
    "date": "t",
    "timestamp without time zone": "t",
    "timestamp with time zone": "t",
}


@contextmanager
def demo(scale: float) -> Iterator[dict[str, tuple[pl.DataFrame, str]]]:
    """The demo's tables and the name of their key, as PostgreSQL has them: by arrival."""
    with tempfile.TemporaryDirectory() as folder, server.running(Path(folder)) as started:
        dsn = inventory.create(started.dsn(), scale=scale)
        with psycopg.connect(dsn) as connection:
            yield {name: _rows(connection, name) for name in inventory.SIZES}


def _rows(connection: psycopg.Connection[Any], name: str) -> tuple[pl.DataFrame, str]:
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
        [inventory.SCHEMA, name],
    ).fetchall()
    fit = [
        f'CASE WHEN isfinite("{n}") THEN "{n}" END AS "{n}"'
        if "t" in _TIMES.get(k, "")
        else f'"{n}"'
        for n, k in columns
        if k in _TIMES
    ]
    cursor = connection.execute(f'SELECT {", ".join(fit)} FROM {inventory.SCHEMA}."{name}"')
    names = [column.name for column in cursor.description or ()]
    frame = pl.DataFrame(cursor.fetchall(), schema=names, orient="row", infer_schema_length=None)
    return frame, names[0]


def compare(frame: pl.DataFrame, key: str, queries: Queries) -> dict[str, Any]:
    """The skipped shares of the three layouts, the columns, and the seconds that choosing took."""
    step = max(1, frame.height // 20_000)
    began = time.perf_counter()
    sample = frame.gather_every(step)
    question = choice.Question((sample,), (key,), (), PARTS, 1, queries)
    chosen = choice.choose(question)
    seconds = time.perf_counter() - began
    asked = choice.filters_of(frame, (key,), queries)
    names = list(dict.fromkeys(one.column for one in asked))
    pairs = [*((name,) for name in names), *itertools.combinations(names, 2)]
    shares = {by: choice.skipped_share(frame, by, asked, PARTS) for by in pairs}
    best = max(shares, key=lambda by: shares[by])
    return {
        "arrival": choice.skipped_share(frame, (), asked, PARTS),
        "auto": choice.skipped_share(frame, chosen.by, asked, PARTS),
        "best": shares[best],
        "by": chosen.by,
        "best by": best,
        "seconds": seconds,
    }


def logged(frame: pl.DataFrame) -> Queries:
    """A query log that filters three columns, drawn by the table's names."""
    draw = np.random.default_rng(len(frame.columns) + frame.height)
    names = draw.permutation([n for n in frame.columns if frame[n].n_unique() > 5])[:3].tolist()
    counts: Mapping[str, int] = dict(zip(names, (100, 40, 10), strict=False))
    times = {name for name in names if frame[name].dtype.is_temporal()}
    return Queries(
        {n: c for n, c in counts.items() if n not in times},
        {n: c for n, c in counts.items() if n in times},
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto_cluster", description=__doc__)
    parser.add_argument("--scale", type=float, default=0.02, help="of the demo's 3.3 million rows")
    given = parser.parse_args()
    grid = Table(title=f"skipped, {PARTS} files a table", title_justify="left")
    for title in ("table", "queries", "arrival", "auto", "best", "auto by", "best by", "seconds"):
        grid.add_column(title)
    sums: dict[str, list[float]] = {"arrival": [], "auto": [], "best": []}
    with demo(given.scale) as frames:
        for name, (frame, key) in frames.items():
            for label, queries in (("none", Queries()), ("log", logged(frame))):
                found = compare(frame, key, queries)
                for layout, shares in sums.items():
                    shares.append(found[layout])
                grid.add_row(
                    name,
                    label,
                    *(f"{found[layout]:.1%}" for layout in sums),
                    ", ".join(found["by"]),
                    ", ".join(found["best by"]),
                    f"{found['seconds']:.1f}",
                )
    Console(width=150).print(grid)
    print({layout: f"{float(np.mean(shares)):.1%}" for layout, shares in sums.items()})


if __name__ == "__main__":
    main()
