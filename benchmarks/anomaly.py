"""What anomaly scores find, and what they cost: ``python -m benchmarks.anomaly``.

Loads are whole commands, see `benchmarks.command`, in interleaved rounds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE, Used, configure, measure, median_of, server_of
from bronze.demo import inventory, server

_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}
_MODELS = Path("lake", "governance", "models")
# The share of planted outliers, the columns of the demo's config, and which rows they are.
PLANTED: Mapping[str, tuple[float, list[str], pl.Expr]] = {
    "inventory": (
        0.001,
        ["quantity_available", "unit_cost"],
        pl.col("inventory_id") % 997 == 100,
    ),
    "order_details": (
        0.00025,
        ["quantity", "unit_price", "line_total"],
        pl.col("order_detail_id") % 3989 == 42,
    ),
}


def costs(dsn: str, folder: Path, rounds: int) -> None:
    """Prints what scores cost a first load of order_details, with the training of the model and
    where the lake has one.
    """
    cases: dict[str, Mapping[str, Any]] = {
        "no scores": {},
        "100 trees, columns as in the demo": {"anomalies": _settings("order_details", 100)},
        "100 trees, columns as found": {"anomalies": {"trees": 100}},
        "50 trees, columns as in the demo": {"anomalies": _settings("order_details", 50)},
    }
    trained = {f"{case}, model there": case for case, own in cases.items() if own}
    runs: dict[str, list[Used]] = {case: [] for case in (*cases, *trained)}
    models = folder / "models"
    # The first round, which is not shown, fills caches and trains the models.
    for number in range(rounds + 1):
        for place, case in enumerate(runs):
            home = folder / f"costs-{number}-{place}"
            home.mkdir()
            base = trained.get(case, case)
            if case in trained:
                shutil.copytree(models / base, home / _MODELS)
            used = load(dsn, "order_details", home, cases[base])
            if number:
                runs[case].append(used)
            elif case in trained.values():
                shutil.copytree(home / _MODELS, models / case)
            shutil.rmtree(home)
    grid = Table(title="order_details, first load", title_justify="left")
    for heading in ("", "wall s", "CPU s", "more wall", "more CPU", "peak MB"):
        grid.add_column(heading, justify="right" if heading else "left")
    medians = {case: median_of(found) for case, found in runs.items()}
    plain = medians["no scores"]
    for case, used in medians.items():
        more = (f"{used.wall / plain.wall - 1:.0%}", f"{used.cpu / plain.cpu - 1:.0%}")
        grid.add_row(case, f"{used.wall:.2f}", f"{used.cpu:.2f}", *more, f"{used.peak / 1e6:,.0f}")
    Console(width=100).print(grid)


def load(dsn: str, table: str, home: Path, own: Mapping[str, Any]) -> Used:
    """A first ``bronze run`` of one table, with its own settings, into ``home / "lake"``."""
    sections = {"source": {"tables": [table]}, "tables": {table: own} if own else {}}
    configure(home, dsn, inventory.SCHEMA, sections)
    return measure([BRONZE, "run"], server_of(dsn), home)


def _settings(table: str, trees: int) -> dict[str, Any]:
    expected, columns, _ = PLANTED[table]
    return {"expected": expected, "columns": columns, "trees": trees}


def finds(dsn: str, folder: Path) -> None:
    """Prints how many of the planted outliers are found, and how much else."""
    grid = Table(title="planted outliers", title_justify="left")
    headings = ("table", "columns", "planted", "flagged", "found", "precision", "recall")
    for heading in headings:
        grid.add_column(heading)
    for table, (expected, columns, truth) in PLANTED.items():
        for chosen in (columns, []):
            home = folder / f"finds-{table}-{len(chosen)}"
            home.mkdir()
            load(dsn, table, home, {"anomalies": {"expected": expected, "columns": chosen}})
            rows = pl.read_delta(str(home / "lake" / "bronze" / f"bz_{table}"))
            planted, flagged = rows.filter(truth).height, rows.filter("is_anomaly").height
            both = rows.filter(truth & pl.col("is_anomaly")).height
            shares = [f"{both / max(count, 1):.2f}" for count in (flagged, planted)]
            named = ", ".join(chosen) or "as found"
            grid.add_row(table, named, str(planted), str(flagged), str(both), *shares)
    Console(width=120).print(grid)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomaly", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the demo's source")
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    parser.add_argument("--only", choices=("finds", "costs"), help="one of the two; both without")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
        folder = Path(name)
        with server.running(folder / "postgres", settings=_SETTINGS) as started:
            dsn = inventory.create(started.dsn(), scale=given.scale)
            if given.only != "costs":
                finds(dsn, folder)
            if given.only != "finds":
                costs(dsn, folder, given.runs)


if __name__ == "__main__":
    main()
