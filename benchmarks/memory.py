"""What bronze takes for ever larger tables: ``python -m benchmarks.memory``."""

from __future__ import annotations

import argparse
import shutil

from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.contestants import Task
from benchmarks.measure import Measured
from benchmarks.source import SCHEMA, running


def sizes(rows: list[int]) -> list[Measured]:
    """Loads ``order_details`` with each number of rows."""
    tables = {f"order_details_{count}": count for count in rows}
    found = []
    with running(tables) as (dsn, folder):
        for table in tables:
            lake = folder / f"lake-{table}"
            lake.mkdir()
            found.append(measure.run("bronze", Task(dsn, SCHEMA, table, lake)))
            shutil.rmtree(lake)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 20_000_000])
    given = parser.parse_args()
    grid = Table(title="bronze, order_details", title_justify="left")
    for heading in ("rows", "work s", "rows/s", "CPU s", "peak MB", "MB written"):
        grid.add_column(heading, justify="right")
    for count, run in zip(given.rows, sizes(given.rows), strict=True):
        if run.error:
            grid.add_row(f"{count:,}", f"failed: {run.error}")
            continue
        megabytes = f"{run.peak / 1e6:,.0f}", f"{run.size / 1e6:,.0f}"
        speed = f"{count / run.work:,.0f}"
        grid.add_row(f"{count:,}", f"{run.work:.2f}", speed, f"{run.cpu:.2f}", *megabytes)
    Console().print(grid)


if __name__ == "__main__":
    main()
