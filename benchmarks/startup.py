"""What a command costs before it works: ``python -m benchmarks.startup``.

The commands as installed over ten tables of 20 rows, in interleaved rounds: ``--help``, ``check``,
a ``run`` that finds nothing new, ``verify``. Figures are of whole processes. The second table shows
what of them is imports, by library: the least time that each module took in any round without the
modules that it imports, as Python measures it (``-X importtime``, which itself takes a tenth). The
command writes bytecode before it is measured, as an installation by pip does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from statistics import median

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE, Used, measure, server_of
from bronze.demo import server

_TABLES = 10
_COMMANDS: Mapping[str, Sequence[str]] = {
    "--help": ["--help"],
    "check": ["check"],
    "run, nothing new": ["run"],
    "verify": ["verify"],
}
_TABLE = """
CREATE TABLE t{number} (
    id int8 PRIMARY KEY, name text NOT NULL, price numeric(12,2), updated_at timestamptz NOT NULL
);
INSERT INTO t{number} SELECT g, 'row ' || g, g / 7.0, now() FROM generate_series(1, 20) g;
"""
_IMPORT = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
# Libraries that take less are summed up, in seconds.
_SMALL = 0.005


def compare(rounds: int) -> tuple[dict[str, Used], dict[str, dict[str, float]]]:
    """For each command the medians of what it took, and its seconds of imports by library."""
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
        home = Path(name)
        with server.running(home / "postgres") as started:
            _create_tables(started.dsn(), home)
            # The tables are loaded, and Python writes the bytecode of what is imported.
            for command in (["run"], *_COMMANDS.values()):
                _import_times(command, home)
            return _measured(rounds, started.dsn(), home)


def _create_tables(dsn: str, home: Path) -> None:
    with psycopg.connect(dsn) as connection:
        for number in range(_TABLES):
            connection.execute(_TABLE.format(number=number))
    (home / "bronze.toml").write_text(
        f'[source]\nname = "bench"\ndsn = "{dsn}"\nschema = "public"\n'
        '[lake]\nroot = "lake"\nschema = "bronze"\n'
    )


def _measured(
    rounds: int, dsn: str, home: Path
) -> tuple[dict[str, Used], dict[str, dict[str, float]]]:
    process = server_of(dsn)
    figures: dict[str, list[Used]] = {title: [] for title in _COMMANDS}
    modules: dict[str, dict[str, float]] = {title: {} for title in _COMMANDS}
    for _ in range(rounds):
        for title, command in _COMMANDS.items():
            figures[title].append(measure([BRONZE, *command], process, home))
            least = modules[title]
            for module, seconds in _import_times(command, home).items():
                least[module] = min(seconds, least.get(module, seconds))
    medians = {
        title: Used(*map(median, zip(*map(astuple, runs), strict=True)))
        for title, runs in figures.items()
    }
    return medians, {title: _by_library(least) for title, least in modules.items()}


def _import_times(command: Sequence[str], home: Path) -> dict[str, float]:
    """The seconds of each module that a command imports."""
    run = [sys.executable, "-X", "importtime", "-m", "bronze", *command]
    done = subprocess.run(run, cwd=home, capture_output=True, text=True, check=True)
    return {name: int(micros) / 1e6 for micros, name in _IMPORT.findall(done.stderr)}


def _by_library(modules: Mapping[str, float]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for module, own in modules.items():
        library = module.partition(".")[0].lstrip("_")
        seconds["Python" if library in _PYTHON else library] += own
    return dict(seconds)


_PYTHON = {name.lstrip("_") for name in sys.stdlib_module_names} | {"frozen_importlib_external"}


def show(figures: Mapping[str, Used], imports: Mapping[str, dict[str, float]]) -> None:
    """Prints a line for each command, then one for each library."""
    grid = Table(title=f"Commands over {_TABLES} tables", title_justify="left")
    grid.add_column("command", no_wrap=True)
    for heading in ("wall s", "CPU s", "PostgreSQL s", "peak MB", "imports s"):
        grid.add_column(heading, justify="right")
    for title, used in figures.items():
        grid.add_row(
            title,
            *(f"{seconds:.2f}" for seconds in (used.wall, used.cpu, used.server_cpu)),
            f"{used.peak / 1e6:,.0f}",
            f"{sum(imports[title].values()):.2f}",
        )
    libraries = Table(title="Imports by library, milliseconds", title_justify="left")
    libraries.add_column("library", no_wrap=True)
    for title in imports:
        libraries.add_column(title, justify="right")
    largest = {
        name: max(seconds.get(name, 0.0) for seconds in imports.values())
        for name in dict.fromkeys(name for seconds in imports.values() for name in seconds)
    }
    shown = [name for name, own in largest.items() if own >= _SMALL]
    shown.sort(key=largest.__getitem__, reverse=True)
    for name in shown:
        cells = (seconds.get(name) for seconds in imports.values())
        libraries.add_row(name, *(f"{1000 * cell:.0f}" if cell else "–" for cell in cells))
    rest = (
        sum(own for name, own in seconds.items() if name not in shown)
        for seconds in imports.values()
    )
    libraries.add_row("others", *(f"{1000 * seconds:.0f}" for seconds in rest))
    console = Console(width=100)
    console.print(grid)
    console.print(libraries)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, whose medians are shown")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    # An installed package has its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    figures, imports = compare(given.runs)
    show(figures, imports)
    if given.json:
        document = {
            title: {**asdict(used), "imports": imports[title]} for title, used in figures.items()
        }
        given.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
