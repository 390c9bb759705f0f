"""What a proof costs beside the load that it proves: ``python -m benchmarks.verify``.

Whole commands with their defaults, see `benchmarks.command`: a first ``bronze run``, then proofs.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE, Used, configure, measure, median_of, server_of
from benchmarks.source import SCHEMA, running

_TABLE = "order_details"
_CHANGED = 1_234_567
_PROOFS = (
    "verify",
    "verify --trust-hashes",
    "verify, one row changed",
    "verify --at-rest",
)


def measured(rows: int, rounds: int) -> dict[str, Used]:
    """What loads and proofs used, in turn; medians of the rounds."""
    figures: dict[str, list[Used]] = {}
    with running({_TABLE: rows}) as (dsn, folder):
        configure(folder, dsn, SCHEMA, {})
        server = server_of(dsn)
        for _ in range(rounds):
            shutil.rmtree(folder / "lake", ignore_errors=True)
            figures.setdefault("run", []).append(measure([BRONZE, "run"], server, folder))
            for name in _PROOFS:
                arguments, _, changed = name.partition(", ")
                with _changed_row(dsn, min(_CHANGED, rows)) if changed else nullcontext():
                    code = 1 if changed else 0
                    used = measure([BRONZE, *arguments.split()], server, folder, code=code)
                figures.setdefault(name, []).append(used)
    return {name: median_of(runs) for name, runs in figures.items()}


@contextmanager
def _changed_row(dsn: str, key: int) -> Iterator[None]:
    """One row of the source is another one for a while."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = f"{SCHEMA}.{_TABLE}"
        change = f"UPDATE {name} SET quantity = quantity + %s WHERE order_detail_id = %s"
        connection.execute(change, [1, key])
        yield
        connection.execute(change, [-1, key])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    given = parser.parse_args()
    figures = measured(given.rows, given.runs)
    grid = Table(title=f"{_TABLE}, {given.rows:,} rows", title_justify="left")
    grid.add_column("", no_wrap=True)
    for heading in ("wall s", "of a load", "CPU s", "of a load", "PostgreSQL s", "peak MB"):
        grid.add_column(heading, justify="right")
    load = figures["run"]
    for name, used in figures.items():
        grid.add_row(
            name,
            f"{used.wall:.2f}",
            f"{used.wall / load.wall:.0%}",
            f"{used.cpu:.2f}",
            f"{used.cpu / load.cpu:.0%}",
            f"{used.server_cpu:.2f}",
            f"{used.peak / 1e6:,.0f}",
        )
    Console(width=100).print(grid)


if __name__ == "__main__":
    main()
