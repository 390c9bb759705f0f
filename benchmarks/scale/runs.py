"""Runs on a cluster, with delay and with faults: ``python -m benchmarks.scale.runs FOLDER``.

Needs Linux, root, and ``/dev/net/tun``. Each table is loaded, and compared with its source by
``bronze verify``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.scale.stage import Figures, Stage, stage


def load(made: Stage, name: str, table: str, workers: int) -> tuple[Path, Figures]:
    """Loads a table into a lake of its own."""
    folder = made.configure(name, [table], workers)
    figures = made.measure(folder, "run")
    assert figures.code == 0, figures.said
    return folder, figures


def verify(made: Stage, folder: Path) -> Figures:
    """Compares each row with the source."""
    figures = made.measure(folder, "verify")
    assert figures.code == 0, figures.said
    return figures


def kill_worker(made: Stage, name: str, table: str, workers: int) -> dict[str, Any]:
    """A worker is killed in the middle of a load."""
    folder = made.configure(name, [table], workers)
    with made.measured(folder, "run") as ended:
        time.sleep(_middle(made, folder))
        made.cluster.kill("w0")
    assert ended[0].code == 0, ended[0].said
    verified = verify(made, folder)
    made.start_worker(0)
    return {"run": asdict(ended[0]), "verify": asdict(verified)}


def cut_worker(made: Stage, name: str, table: str, workers: int) -> dict[str, Any]:
    """The network of a worker is cut in the middle of a load, and there again after its end."""
    folder = made.configure(name, [table], workers)
    with made.measured(folder, "run") as ended:
        time.sleep(_middle(made, folder))
        made.network.tell("cut w1")
    made.network.tell("join w1")
    assert ended[0].code == 0, ended[0].said
    code = made.cluster.processes.pop("w1").wait(120)
    verified = verify(made, folder)
    made.start_worker(1)
    return {"run": asdict(ended[0]), "verify": asdict(verified), "worker": code}


def kill_scheduler(made: Stage, name: str, table: str, workers: int) -> dict[str, Any]:
    """The scheduler is killed in the middle of a load; the next run is with a new one."""
    folder = made.configure(name, [table], workers, max_retries=0)
    with made.measured(folder, "run") as ended:
        time.sleep(_middle(made, folder))
        cluster = made.cluster
        cluster.kill("scheduler")
        for worker in [name for name in cluster.processes if name != "scheduler"]:
            cluster.processes.pop(worker).wait(120)
        made.start_scheduler()
        for number in range(workers):
            made.start_worker(number)
    assert ended[0].code == 3, ended[0].said
    again = made.measure(folder, "run")
    assert again.code == 0, again.said
    verified = verify(made, folder)
    return {"run": asdict(ended[0]), "again": asdict(again), "verify": asdict(verified)}


FAULTS = {"kill-worker": kill_worker, "cut-worker": cut_worker, "kill-scheduler": kill_scheduler}


def _middle(made: Stage, folder: Path) -> float:
    """Seconds from the start of a run until its middle: it is waited until workers work."""
    began = time.monotonic()
    idle = made._cpu()
    while time.monotonic() - began < 60:
        now = made._cpu()
        if sum(now[n] - idle.get(n, 0) for n in now if n.startswith("w")) > 4:
            break
        time.sleep(0.2)
    del folder
    return 1.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.runs", description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder with room for the tables")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--small-rows", type=int, default=2_000_000, help="of a single worker")
    parser.add_argument("--narrow-rows", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--delays", type=float, nargs="*", default=[0.002, 0.02])
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=[])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = {"small": given.small_rows, "large": given.rows, "narrow": given.narrow_rows}
    rows = {name: count for name, count in rows.items() if count}
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder.chmod(0o755)
    found: dict[str, Any] = {"rows": rows, "workers": given.workers, "runs": {}}
    first = given.delays[0]

    def note(name: str, figures: Any) -> None:
        found["runs"][name] = figures
        found["runs"][name]["load"] = os.getloadavg()
        print(name, json.dumps(figures), flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=2))

    with stage(given.folder, rows, given.workers, first) as made:
        print("ready", flush=True)
        for fault in given.faults:
            note(fault, FAULTS[fault](made, fault, "small", given.workers))
        for delay in given.delays:
            made.network.tell(f"delay {delay}")
            for table in rows:
                workers = 1 if table == "small" else given.workers
                name = f"{table}-{delay * 1000:.0f}ms"
                folder, figures = load(made, name, table, workers)
                note(name, asdict(figures))
                if table != "small":
                    note(f"{name}-verify", asdict(verify(made, folder)))
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
