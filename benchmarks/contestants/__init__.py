"""The contestants: each a module run as ``python -m``, with DSN, schema, table and lake folder.

Each says what it did as one line of JSON, the fields of `Report`, on its standard output.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

MODULES = {
    "bronze": "benchmarks.contestants.bronze",
    "dlt-connectorx": "benchmarks.contestants.dlt_connectorx",
    "dlt-pyarrow": "benchmarks.contestants.dlt_pyarrow",
    "naive": "benchmarks.contestants.naive",
    "limit": "benchmarks.contestants.limit",
}
"""The names of the contestants, and their modules."""


@dataclass(frozen=True)
class Task:
    """What to load, and the empty folder to load it into."""

    dsn: str
    schema: str
    table: str
    lake: Path


@dataclass(frozen=True)
class Report:
    """What a contestant did: ``path`` is the Delta table, "" if it made none.

    ``cpu`` is the user and system time of the work; ``peak`` the process's most resident bytes.
    """

    seconds: float
    cpu: float
    peak: int
    path: str


def task() -> Task:
    """The task in the command line's arguments."""
    dsn, schema, table, lake = sys.argv[1:]
    return Task(dsn, schema, table, Path(lake))


def timed(work: Callable[[Task], Path]) -> None:
    """Does the task of the command line, and reports it; ``work`` returns the Delta table."""
    given = task()
    began, used = time.perf_counter(), time.process_time()
    path = work(given)
    report(time.perf_counter() - began, time.process_time() - used, str(path))


def report(seconds: float, cpu: float, path: str) -> None:
    """Prints the report."""
    print(json.dumps(asdict(Report(seconds, cpu, _peak(), path))), flush=True)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a started program counts from the size of the process that started it.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
