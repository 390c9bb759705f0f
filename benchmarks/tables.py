"""What many small tables cost: ``python -m benchmarks.tables``.

Databases of 10, 100 and 1,000 tables of 20 rows each, and the commands as installed, with their
defaults: ``check``, the first ``run``, a ``run`` that finds nothing new, ``verify``. Beside them
dlt's ``sql_database`` with connectorx, which loads all rows again in its second run. Figures are of
whole processes; those of a table are the slope from the smallest database to this one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE, Used, configure, measure, median_of, server_of
from benchmarks.contestants import CONTESTANTS, Task
from bronze.demo import server
from bronze.demo.server import Server

_ROWS = 20
_COMMANDS = {
    "check": ["check"],
    "run, first": ["run"],
    "run, nothing new": ["run"],
    "verify": ["verify"],
}
_TABLE = """
CREATE TABLE t{number:05} (
    id int8 PRIMARY KEY, name text NOT NULL, price numeric(12,2), active bool NOT NULL,
    updated_at timestamptz NOT NULL
);
INSERT INTO t{number:05} SELECT g, 'row ' || g, g / 7.0, g % 2 = 0, now()
FROM generate_series(1, {rows}) g;
"""


def compare(counts: Sequence[int], rounds: int, with_dlt: bool) -> dict[int, dict[str, Used]]:
    """For each number of tables what each command took, medians of the rounds."""
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
        folder = Path(name)
        with server.running(folder / "postgres") as started:
            return {count: _commands(folder, started, count, rounds, with_dlt) for count in counts}


def _commands(
    folder: Path, started: Server, count: int, rounds: int, with_dlt: bool
) -> dict[str, Used]:
    database = f"tables_{count}"
    with psycopg.connect(started.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    own = started.dsn(database)
    with psycopg.connect(own) as connection:
        for number in range(count):
            connection.execute(_TABLE.format(number=number, rows=_ROWS))
    home = folder / database
    process = server_of(own)
    commands: dict[str, list[str | Path]] = {
        title: [BRONZE, *arguments] for title, arguments in _COMMANDS.items()
    }
    if with_dlt:
        dlt = CONTESTANTS["dlt-connectorx"].command(Task(own, "public", "", home / "dlt"))
        commands |= {"dlt, first": dlt, "dlt, again": dlt}
    figures: dict[str, list[Used]] = {}
    for _ in range(rounds):
        (home / "dlt").mkdir(parents=True)
        configure(home, own, "public", {})
        for title, command in commands.items():
            figures.setdefault(title, []).append(measure(command, process, home))
        shutil.rmtree(home)
    return {title: median_of(runs) for title, runs in figures.items()}


def show(figures: dict[int, dict[str, Used]]) -> None:
    """Prints a line for each command and number of tables."""
    grid = Table(title=f"Tables of {_ROWS} rows", title_justify="left")
    for heading in ("tables", "command"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("wall s", "CPU s", "PostgreSQL s", "peak MB", "CPU ms a table"):
        grid.add_column(heading, justify="right")
    least = min(figures)
    for count, commands in figures.items():
        for title, used in commands.items():
            more = count - least
            slope = 1000 * (used.cpu - figures[least][title].cpu) / more if more else 0.0
            grid.add_row(
                f"{count:,}",
                title,
                f"{used.wall:.2f}",
                f"{used.cpu:.2f}",
                f"{used.server_cpu:.2f}",
                f"{used.peak / 1e6:,.0f}",
                f"{slope:.1f}" if more else "–",
            )
    Console(width=100).print(grid)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000], help="of tables")
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--without-dlt", action="store_true")
    given = parser.parse_args()
    figures = compare(given.counts, given.runs, not given.without_dlt)
    show(figures)
    if given.json:
        document = {
            str(count): {title: asdict(used) for title, used in commands.items()}
            for count, commands in figures.items()
        }
        given.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
