"""What clustering costs a first load: ``python -m benchmarks.clustered``.

Loads are whole commands, see `benchmarks.command`, in interleaved rounds. Files are small, so that
the table has enough of them to be clustered. A first round, which is not shown, fills caches.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

import polars as pl
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE, Used, configure, measure, median_of, server_of
from benchmarks.source import SCHEMA, running

_TABLE = "order_details"
_BY = ("product_id", "updated_at")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clustered", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    parser.add_argument("--file-size", default="32MB", help="[maintain] file_size")
    given = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {"plain": {}, "clustered": {"cluster_by": _BY}}
    runs: dict[str, list[Used]] = {case: [] for case in cases}
    found: dict[str, tuple[int, int, int, float]] = {}
    with running({_TABLE: given.rows}) as (dsn, folder):
        for number in range(given.runs + 1):
            for case, own in cases.items():
                home = folder / "home"
                home.mkdir()
                sections = {"tables": {_TABLE: own}, "maintain": {"file_size": given.file_size}}
                configure(home, dsn, SCHEMA, sections)
                used = measure([BRONZE, "run"], server_of(dsn), home)
                runs[case] += [used] if number else []
                found[case] = _layout(str(home / "lake" / "bronze" / f"bz_{_TABLE}"))
                shutil.rmtree(home)
    grid = Table(title=f"{given.rows:,} rows, first load", title_justify="left")
    headings = ("", "wall s", "CPU s", "peak MB", "written MB", "table MB", "files", "commits")
    for heading in (*headings, "files read"):
        grid.add_column(heading, justify="right" if heading else "left")
    for case, measured in runs.items():
        used = median_of(measured)
        size, files, commits, share = found[case]
        figures = (f"{used.wall:.2f}", f"{used.cpu:.2f}", f"{used.peak / 1e6:,.0f}")
        sizes = (f"{(used.written or 0) / 1e6:.1f}", f"{size / 1e6:.1f}")
        grid.add_row(case, *figures, *sizes, str(files), str(commits), f"{share:.0%}")
    Console(width=110).print(grid)


def _layout(place: str) -> tuple[int, int, int, float]:
    """The bytes of a table, its files and commits, and the share of the files that a filter on one
    of the columns, for one of its values, has to read.
    """
    table = DeltaTable(place)
    files = pl.DataFrame(table.get_add_actions(flatten=True))
    shares = []
    for column in _BY:
        if f"min.{column}" not in files.columns:
            shares.append(1.0)
            continue
        low, high = files[f"min.{column}"], files[f"max.{column}"]
        shares += [float(((low <= value) & (value <= high)).mean() or 0) for value in (*low, *high)]
    share = sum(shares) / len(shares)
    return int(files["size_bytes"].sum()), files.height, table.version() + 1, share


if __name__ == "__main__":
    main()
