"""What the driver of a cluster takes for many files and units: ``python -m
benchmarks.scale.driver``.

Units are fake: a pool answers each with files that do not exist, pickled as a worker's result is.
All else is what a run does: the state of a table of so many files, a comparison's units that name
it, their packing for a cluster, the driver of workflows, and the commit. Each stage is a process of
its own, whose CPU seconds and most resident bytes are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uuid_utils import uuid7

from bronze.delta import commit, log
from bronze.delta.commit import Change, Shape
from bronze.execution.executors import Task, drive
from bronze.execution.parcel import Packing, Parcel
from bronze.ingest.diff import SeenMasks
from bronze.ingest.worker import read_unit
from bronze.model.columns import DeltaType, RowKey
from bronze.model.files import WrittenFile
from bronze.model.locations import Destination, Origin, Place
from bronze.model.stamp import RowStamp
from bronze.model.units import BronzeRows, KnownRows, SourceRead, SplitGroup, Unit, UnitResult
from bronze.tables import known_rows

COLUMNS = tuple((f"column_{n}", DeltaType("long")) for n in range(9))
SHAPE = Shape(COLUMNS, tuple(name for name, _ in COLUMNS))


def file(number: int) -> WrittenFile:
    """A file with statistics of nine columns."""
    low = {name: number * 1000 for name, _ in COLUMNS}
    high = {name: number * 1000 + 999 for name, _ in COLUMNS}
    nulls = dict.fromkeys(low, 0)
    stats = {"numRecords": 1000, "minValues": low, "maxValues": high, "nullCount": nulls}
    return WrittenFile(f"{uuid7()}.parquet", 10**6, 1000, json.dumps(stats))


def create(place: Place, files: int, units: int) -> None:
    """The first commit."""
    del units
    commit.commit(place, None, Change("WRITE", [file(n) for n in range(files)]), {}, shape=SHAPE)


def read(place: Place, files: int, units: int) -> None:
    """The state of the table, with all its files."""
    del units
    state = log.read(place)
    assert state
    assert len(state.files) == files


def _units(place: Place, units: int) -> list[Unit]:
    state = log.read(place)
    assert state
    known = KnownRows(place, state.version, state.files, COLUMNS, (), 0)
    stamp = RowStamp(str(uuid7()), datetime.now(UTC), "DE", "batch")
    into = Destination(place, COLUMNS, (), (), stamp)
    source = Origin("DE", "host=source")
    splits = SplitGroup(128 * 2**20, tuple(f"ctid >= '({n},0)'" for n in range(32)))
    read = SourceRead("public.t", source, ("BEGIN",), "SELECT a FROM t", splits, ())
    rows = BronzeRows(RowKey(()), into)
    return [Unit.merge(n, read, rows, 128 * 2**20, known, 2**16) for n in range(units)]


def plan(place: Place, files: int, units: int) -> None:
    """The units of a comparison."""
    del files
    assert len(_units(place, units)) == units


def pack(place: Place, files: int, units: int) -> None:
    """Each unit as it is sent."""
    del files
    parts: list[bytes] = []

    def share(data: bytes) -> int:
        parts.append(data)
        return len(parts)

    packing = Packing(share)
    sizes = [len(packing.pack(unit)[0]) for unit in _units(place, units)]
    print(f"    {max(sizes):,} bytes a unit, {sum(map(len, parts)):,} once", file=sys.stderr)


class _Fake(Executor):
    """Answers each unit with its files, and a mask over a million fingerprints."""

    def __init__(self, files: int) -> None:
        self._files = files

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A result that comes as bytes."""
        del fn, kwargs
        unit = args[1].content
        written = tuple(file(unit.number) for _ in range(self._files))
        result = UnitResult(unit.number, 1000, written, seen=os.urandom(125_000))
        future: Future[Any] = Future()
        future.set_result(pickle.loads(pickle.dumps(Parcel(result))))  # noqa: S301 - our own
        return future


def results(place: Place, files: int, units: int) -> None:
    """All results of a comparison."""
    work = _units(place, units)
    masks = SeenMasks(work)

    def workflow() -> Any:
        return (yield [Task(read_unit, unit, "public.t", absorb=masks.absorb) for unit in work])

    (done,) = drive(_Fake(files // units), [workflow()], 64)
    assert sum(len(result.files) for result in done) == files


def replace(place: Place, files: int, units: int) -> None:
    """A commit that replaces all files by as many others."""
    del units
    state = log.read(place)
    added = [file(n) for n in range(files)]
    commit.commit(place, state, Change("WRITE", added, state.files if state else ()), {})
    known_rows.drop_index(place)


STAGES = {stage.__name__: stage for stage in (create, read, plan, pack, results, replace)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.driver", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--stage", choices=list(STAGES))
    parser.add_argument("--place")
    given = parser.parse_args()
    if given.stage:
        began = time.process_time()
        STAGES[given.stage](Place(given.place), given.files, given.units)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = time.process_time() - began
        print(f"{given.stage:8} {seconds:7.2f} s {peak / 1e6:7,.0f} MB", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "t")
        sizes = ["--files", str(given.files), "--units", str(given.units)]
        for name in STAGES:
            words = ["--stage", name, "--place", str(place), *sizes]
            module = [sys.executable, "-m", "benchmarks.scale.driver"]
            subprocess.run([*module, *words], check=True)


if __name__ == "__main__":
    main()
