"""A model of a load on a cluster: ``python -m benchmarks.scale.model RUNS.json``.

`calibrate` takes the costs of a row from the run of one unit at a time that `benchmarks.scale.runs`
measured. `check` predicts the other runs from them, which shared one machine, and prints the
deviations. `rate` says how many rows a second so many workers load that have a machine each, and
what bounds them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALIBRATION, CHECKED = "small-2ms", ("large-2ms", "large-20ms")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
# Measured by `benchmarks.scale.driver`: CPU seconds of the driver for a file in a commit, and for a
# unit that is packed, sent and answered.
DRIVER_FILE, DRIVER_UNIT = 0.00004, 0.0022
# Measured by runs of 100,000 and 400,000 rows: CPU seconds of a worker's first unit, for imports.
WARM_UP = 1.3


@dataclass(frozen=True)
class Costs:
    """What a load takes: CPU in seconds, sizes in bytes.

    ``source``, ``worker``, ``store`` and ``network`` are of a row, ``lake`` the bytes of a row in
    Parquet, ``heap`` those in PostgreSQL; ``idle`` is what a worker, or the scheduler, takes in a
    second whatever it does, ``driver`` what the driver takes for a run. ``requests`` are those of
    the store for a file of ``rows`` rows.
    """

    source: float
    worker: float
    store: float
    network: float
    idle: float
    driver: float
    lake: float
    heap: float
    requests: float
    rows: float


@dataclass(frozen=True)
class Machines:
    """What there is: cores of the source, bytes a second of its disk, requests and bytes a second
    of the store, and threads of a worker.
    """

    source_cores: float = 4
    source_disk: float = 500e6
    store_requests: float = 3500
    store_bytes: float = 1.25e9
    threads: int = 1


def _of_workers(cpu: Mapping[str, float]) -> list[float]:
    return [spent for name, spent in cpu.items() if name.startswith("w")]


def calibrate(found: Mapping[str, Any], heap: float) -> Costs:
    """The costs, from a run of one unit at a time: other workers idled."""
    run, rows = found["runs"][CALIBRATION], found["rows"]["small"]
    large = found["runs"][CHECKED[0]]
    workers, wall = sorted(_of_workers(run["cpu"])), run["wall"]
    # The two least have had nothing to do.
    idle = sum(workers[:2]) / 2 / wall
    # In the first of all runs workers import what they need.
    is_first = next(iter(found["runs"])) == CALIBRATION
    fresh = sum(spent > 2 * idle * wall for spent in workers) if is_first else 0
    files, size = _files(large["said"])
    return Costs(
        source=run["cpu"]["source"] / rows,
        worker=(sum(workers) - idle * wall * len(workers) - WARM_UP * fresh) / rows,
        store=run["cpu"]["store"] / rows,
        network=run["cpu"]["router"] / rows,
        idle=idle,
        driver=run["cpu"]["driver"],
        lake=size / found["rows"]["large"],
        heap=heap,
        requests=sum(large["requests"].values()) / files,
        rows=found["rows"]["large"] / files,
    )


def _files(said: str) -> tuple[int, int]:
    """The files and bytes of a table, as the run's log has them."""
    words = dict(word.split("=", 1) for word in said.split() if word.count("=") == 1)
    return int(words["files"]), int(words["bytes"])


def cpu(costs: Costs, rows: int, workers: int, wall: float, fresh: int) -> dict[str, float]:
    """CPU seconds by machine of a load of so many rows that takes ``wall`` seconds, where so many
    workers are ``fresh``.
    """
    return {
        "source": costs.source * rows,
        "workers": costs.worker * rows + costs.idle * wall * workers + WARM_UP * fresh,
        "store": costs.store * rows,
        "router": costs.network * rows,
        "scheduler": costs.idle * wall,
        "driver": costs.driver,
    }


def check(found: Mapping[str, Any], costs: Costs, cores: int) -> None:
    """Prints how measured runs deviate from the model, which has to share what cores were left."""
    for name in CHECKED:
        run, rows = found["runs"].get(name), found["rows"]["large"]
        if run is None:
            continue
        wall = run["wall"]
        left = cores - run["others"] / wall
        is_first = next(iter(found["runs"])) == CALIBRATION
        fresh = found["workers"] if is_first and name == CHECKED[0] else 0
        predicted = wall
        for _ in range(50):
            used = cpu(costs, rows, found["workers"], predicted, fresh)
            predicted = sum(used.values()) / left
        measured = {**run["cpu"], "workers": sum(_of_workers(run["cpu"]))}
        print(f"{name}: {wall:.0f} s measured, {predicted:.0f} s by the model", end=" ")
        print(f"({predicted / wall - 1:+.0%}), {left:.2f} of {cores} cores left by others")
        for part, seconds in used.items():
            deviation = seconds / measured[part] - 1
            print(f"  {part:10} {measured[part]:7.1f} s {seconds:7.1f} s {deviation:+.0%}")


def rate(costs: Costs, machines: Machines, workers: int) -> tuple[float, str]:
    """Rows a second of so many workers, and what bounds them."""
    # A worker decodes and writes one split while PostgreSQL prepares the next one.
    of_thread = (1 - costs.idle) / max(costs.worker, costs.source)
    driver = DRIVER_FILE / costs.rows + DRIVER_UNIT / costs.rows
    bounds = {
        "workers": of_thread * machines.threads * workers,
        "source's CPU": machines.source_cores / costs.source,
        "source's disk": machines.source_disk / costs.heap,
        "store's requests": machines.store_requests * costs.rows / costs.requests,
        "store's bandwidth": machines.store_bytes / costs.lake,
        "driver": 1 / driver,
    }
    name = min(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.model", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--cores", type=int, default=2, help="of the machine of the runs")
    parser.add_argument("--heap", type=float, default=84.5, help="bytes of a row in PostgreSQL")
    parser.add_argument("--source-cores", type=float, nargs="*", default=[2, 4, 16])
    parser.add_argument("--source-disk", type=float, default=500e6)
    given = parser.parse_args()
    found = json.loads(given.runs.read_text())
    costs = calibrate(found, given.heap)
    print(costs)
    check(found, costs, given.cores)
    for cores in given.source_cores:
        machines = Machines(source_cores=cores, source_disk=given.source_disk)
        print(f"source of {cores:.0f} cores")
        for workers in WORKERS:
            rows, bound = rate(costs, machines, workers)
            print(f"  {workers:3} workers {rows:12,.0f} rows a second, bound by the {bound}")


if __name__ == "__main__":
    main()
