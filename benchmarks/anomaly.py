"""What anomaly scores find, and what they cost: ``python -m benchmarks.anomaly``."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from bronze.config import loading
from bronze.demo import inventory, server
from bronze.ingest import pipeline

_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}
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


def load(dsn: str, table: str, lake: str, own: Mapping[str, Any]) -> dict[str, float]:
    """Loads one table into a new lake; the seconds that it took, without the imports of bronze, and
    the most resident MB of the process.
    """
    document = {
        "source": {"name": "bench", "dsn": dsn, "schema": inventory.SCHEMA, "tables": [table]},
        "lake": {"root": lake},
        "run": {"workers": 2},
        "maintain": {"auto": False},
        "tables": {table: dict(own)} if own else {},
    }
    began, used = time.perf_counter(), _cpu()
    result = pipeline.run(loading.parse(document))
    assert result.exit_code == 0, result
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {"work": time.perf_counter() - began, "cpu": _cpu() - used, "peak": peak / 1e6}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def apart(dsn: str, table: str, lake: Path, own: Mapping[str, Any]) -> dict[str, float]:
    """`load` in a process of its own."""
    given = json.dumps([dsn, table, str(lake), own])
    command = [sys.executable, "-m", "benchmarks.anomaly", "--load", given]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def costs(dsn: str, folder: Path, rounds: int) -> None:
    """Prints what scores cost a first load of order_details, with the training of the model and
    where that is there.
    """
    cases: dict[str, Mapping[str, Any]] = {
        "no scores": {},
        "100 trees, columns as in the demo": {"anomalies": _own("order_details", 100)},
        "100 trees, columns as found": {"anomalies": {"trees": 100}},
        "50 trees, columns as in the demo": {"anomalies": _own("order_details", 50)},
    }
    loaded = {f"{case}, model there": own for case, own in cases.items() if own}
    for place, own in enumerate(loaded.values()):
        apart(dsn, "order_details", folder / f"trained-{place}", own)
    cases |= loaded
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(rounds):
        for place, (case, own) in enumerate(cases.items()):
            lake = folder / f"lake-{number}-{place}"
            if case in loaded:
                there = folder / f"trained-{list(loaded).index(case)}" / "governance" / "models"
                shutil.copytree(there, lake / "governance" / "models")
            runs[case].append(apart(dsn, "order_details", lake, own))
            shutil.rmtree(lake)
    grid = Table(title="order_details, first load", title_justify="left")
    for heading in ("", "work s", "CPU s", "more work", "more CPU", "peak MB"):
        grid.add_column(heading, justify="right" if heading else "left")
    plain = {kind: median(run[kind] for run in runs["no scores"]) for kind in ("work", "cpu")}
    for case, found in runs.items():
        mine = {kind: median(run[kind] for run in found) for kind in plain}
        more = [f"{mine[kind] / plain[kind] - 1:.0%}" for kind in plain]
        peak = median(run["peak"] for run in found)
        grid.add_row(case, f"{mine['work']:.2f}", f"{mine['cpu']:.2f}", *more, f"{peak:.0f}")
    Console(width=100).print(grid)


def _own(table: str, trees: int) -> dict[str, Any]:
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
            lake = folder / f"finds-{table}-{len(chosen)}"
            own = {"expected": expected, "columns": chosen}
            apart(dsn, table, lake, {"anomalies": own})
            rows = pl.read_delta(str(lake / "bronze" / f"bz_{table}"))
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
    parser.add_argument("--load", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.load:
        print(json.dumps(load(*json.loads(given.load))))
        return
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
