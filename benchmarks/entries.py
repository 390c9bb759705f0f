"""What log compaction files would gain: ``python -m benchmarks.entries``.

A table of 1,000 commits is opened by bronze, deltalake, polars and DuckDB: with a checkpoint every
20 commits, as bronze writes them, at the moment when most entries (19) are after the last one; with
a compacted entry of those beside them; without checkpoints; and without checkpoints, but with a
compacted entry of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table
from uuid_utils import uuid7

from bronze.delta import commit, files, log
from bronze.model.columns import DeltaType
from bronze.model.locations import Place

COLUMNS = (("id", DeltaType("long")), ("name", DeltaType("string")))


def make(place: Place, commits: int) -> None:
    """A table of appends of one row."""
    for number in range(commits):
        frame = pl.DataFrame({"id": [number], "name": [f"name {number}"]})
        file = files.write([frame], place, str(uuid7()), ("id",))
        assert file is not None
        state = log.read(place)
        shape = None if state else commit.Shape(COLUMNS, ("id",))
        commit.commit(place, state, commit.Change("WRITE", [file]), {}, shape=shape)


def compact(folder: Path, first: int, last: int) -> None:
    """Writes the compacted entry of some entries; of appends it has all their files."""
    kept: dict[str, str] = {}
    for version in range(first, last + 1):
        for line in (folder / f"_delta_log/{version:020}.json").read_text().splitlines():
            ((kind, value),) = json.loads(line).items()
            name = value.get("path") or value.get("appId") or ""
            if kind != "commitInfo":
                kept[f"{kind} {name}"] = line
    path = folder / f"_delta_log/{first:020}.{last:020}.compacted.json"
    path.write_text("\n".join(kept.values()) + "\n")


def milliseconds(work: Callable[[], Any], rounds: int) -> float:
    """The median of some rounds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * median(taken)


def readers(folder: Path, connection: Any) -> Mapping[str, Callable[[], Any]]:
    """What opens the table, and lists its files."""
    count = f"SELECT count(*) FROM delta_scan('{folder}') WHERE id < 0"

    def by_bronze() -> Any:
        state = log.read(Place(str(folder)))
        return state.files if state else None

    return {
        "bronze": by_bronze,
        "deltalake": lambda: DeltaTable(str(folder)).file_uris(),
        "polars": lambda: pl.scan_delta(str(folder)).filter(pl.col("id") < 0).collect(),
        "DuckDB": lambda: connection.execute(count).fetchall(),
    }


def main() -> None:
    """The command line."""
    import duckdb
    import duckdb_extension_delta

    parser = argparse.ArgumentParser(prog="python -m benchmarks.entries", description=__doc__)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    last = given.commits - 1
    (library,) = Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension")
    grid = Table(title=f"{given.commits} commits: milliseconds to open", title_justify="left")
    with tempfile.TemporaryDirectory() as name, duckdb.connect() as connection:
        connection.load_extension(str(library))
        root = Path(name)
        make(Place(str(root / "a")), given.commits)
        for copy in "bcd":
            shutil.copytree(root / "a", root / copy)
        checkpoint = last // 20 * 20
        compact(root / "b", checkpoint + 1, last)
        for copy in "cd":
            for path in (root / copy / "_delta_log").glob("*checkpoint*"):
                path.unlink()
        compact(root / "d", 0, last)
        grid.add_column("")
        titles = ("as bronze", "with compaction", "no checkpoint", "no checkpoint, compaction")
        for title in titles:
            grid.add_column(title, justify="right")
        cells: dict[str, list[str]] = {}
        for copy in "abcd":
            for reader, work in readers(root / copy, connection).items():
                work()
                cells.setdefault(reader, []).append(f"{milliseconds(work, given.rounds):,.1f}")
        for reader, figures in cells.items():
            grid.add_row(reader, *figures)
        Console(width=120).print(grid)


if __name__ == "__main__":
    main()
