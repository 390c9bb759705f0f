"""Clustering against deltalake's Z-order, and Hilbert's curve against Z: ``benchmarks.layout``.

A table gets an append a day; after each one it is clustered by ``bronze.delta.layout.optimize``
where that is needed, and a twin of it by deltalake's ``optimize.z_order``. At the end of each day,
and of the last one, filters on each column are asked how many files and bytes they need not read,
by the bounds in the log alone.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table
from uuid_utils import uuid7

from bronze.delta import commit, files, log
from bronze.delta.layout import hilbert, optimize
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Keys = npt.NDArray[np.uint64]

BY = ("product_id", "warehouse_id", "day")
COLUMNS = (
    ("product_id", DeltaType("long")),
    ("warehouse_id", DeltaType("long")),
    ("day", DeltaType("date")),
    ("quantity", DeltaType("int")),
    ("row_hash", DeltaType("string")),
)
PRODUCTS, WAREHOUSES, LATE = 5000, 50, 7
FIRST = dt.date(2024, 1, 1)
_MEMORY = 256 * 2**20
_FILTERS = 40
_WIDTH = 0.05


@dataclass(frozen=True)
class Filter:
    """Rows whose ``column`` lies between two values, both included."""

    column: str
    shape: str
    low: Any
    high: Any


@dataclass(frozen=True)
class Skipped:
    """The shares of files and bytes that need not be read."""

    files: float
    bytes: float


def append(day: int, rows: int) -> pl.DataFrame:
    """A day's rows: some products sell more than others, some rows come late."""
    draw = np.random.default_rng(day)
    late = np.where(draw.random(rows) < 0.05, draw.integers(0, LATE, rows), 0)
    return pl.DataFrame(
        {
            "product_id": np.ceil(draw.random(rows) ** 2 * PRODUCTS).astype(np.int64),
            "warehouse_id": draw.integers(1, WAREHOUSES + 1, rows),
            "day": (day - late).clip(0).astype(np.int32),
            "quantity": draw.integers(1, 100, rows).astype(np.int32),
            "row_hash": [draw.bytes(16).hex() for _ in range(rows)],
        }
    ).with_columns(
        day=pl.lit(FIRST) + pl.duration(days=pl.col("day")),
    )


def filters(days: int) -> list[Filter]:
    """Points and ranges of each column, which are the same whatever was asked before."""
    draw = np.random.default_rng(days)
    most = {"product_id": PRODUCTS, "warehouse_id": WAREHOUSES, "day": days}
    found = []
    for column, count in most.items():
        for shape, width in (("point", 1), ("range", max(2, round(count * _WIDTH)))):
            for low in draw.integers(1, count - width + 2 if count >= width else 2, _FILTERS):
                ends: list[Any] = [int(low), int(low) + width - 1]
                if column == "day":
                    ends = [FIRST + dt.timedelta(days=end - 1) for end in ends]
                found.append(Filter(column, shape, *ends))
    return found


def skipped(
    stored: Sequence[StoredFile], asked: Sequence[Filter]
) -> dict[tuple[str, str], Skipped]:
    """What filters skip on average, for each column and shape."""
    sums: dict[tuple[str, str], list[tuple[float, float]]] = {}
    size = sum(file.size for file in stored)
    bounds = [(file.size, dict(file.low), dict(file.high)) for file in stored]
    for ask in asked:
        out = [s for s, lo, hi in bounds if hi[ask.column] < ask.low or lo[ask.column] > ask.high]
        found = (len(out) / len(stored), sum(out) / size)
        sums.setdefault((ask.column, ask.shape), []).append(found)
    return {key: Skipped(*np.mean(values, axis=0).tolist()) for key, values in sums.items()}


def ours(place: Place, wish: optimize.TableLayout) -> int:
    """Clusters where it is needed; returns the bytes that were written."""
    state = log.read(place)
    if state is None or not optimize.is_needed(state, wish):
        return 0

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()

    with ThreadPoolExecutor(2) as pool:
        done = optimize.optimize_table(
            place, wish, batch_id=str(uuid7()), memory=_MEMORY, each=each
        )
    return done.rewritten


def theirs(place: Place, wish: optimize.TableLayout) -> int:
    """Z-orders all of the table; returns the bytes that were written."""
    table = DeltaTable(place.url)
    found = table.optimize.z_order(list(wish.cluster_by), target_size=wish.target)
    added = found["filesAdded"]
    sizes = json.loads(added) if isinstance(added, str) else added
    return int(sizes["totalSize"])


@dataclass
class Contestant:
    """One way to lay out a table, and how it did."""

    improve: Callable[[Place, optimize.TableLayout], int]
    rewritten: int = 0
    seconds: float = 0.0
    files: int = 0
    last: Mapping[tuple[str, str], Skipped] | None = None
    days: list[float] | None = None


def run(
    folder: Path, days: int, rows: int, wish: optimize.TableLayout, only: str
) -> dict[str, Contestant]:
    """Plays all days for all contestants."""
    field = {"bronze": Contestant(ours), "z_order": Contestant(theirs)}
    field = {name: one for name, one in field.items() if only in ("", name)}
    for name, one in field.items():
        place = Place(str(folder / name))
        one.days = []
        for day in range(days):
            _land(place, append(day, rows))
            started = time.perf_counter()
            one.rewritten += one.improve(place, wish)
            one.seconds += time.perf_counter() - started
            state = log.read(place)
            assert state is not None
            one.last = skipped(state.files, filters(day + 1))
            one.files = len(state.files)
            one.days.append(float(np.mean([found.bytes for found in one.last.values()])))
    return field


def _land(place: Place, frame: pl.DataFrame) -> None:
    state = log.read(place)
    file = files.write([frame], place, str(uuid7()), BY)
    assert file is not None
    shape = None if state else commit.Shape(COLUMNS, BY)
    commit.commit(place, state, commit.Change("WRITE", [file]), {}, shape=shape)


def zorder(axes: Sequence[Keys], bits: int) -> Keys:
    """The places of points on the Z-order curve, whose key has the axes' bits in turn."""
    key = np.zeros_like(axes[0])
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            key = (key << np.uint64(1)) | ((axis >> np.uint64(bit)) & np.uint64(1))
    return key


def curves(days: int, rows: int, counts: Sequence[int]) -> dict[str, dict[int, float]]:
    """The share of files that filters skip when all rows are cut along one curve into ``counts``
    files, for each curve over the same ranks.
    """
    frame = pl.concat([append(day, rows) for day in range(days)]).select(BY)
    scales = hilbert.scales(frame[:: max(1, frame.height // 100_000)], BY)
    axes = [hilbert.keys(frame, [scale]) for scale in scales]
    found: dict[str, dict[int, float]] = {}
    for name, key in (
        ("hilbert", hilbert.hilbert(axes, hilbert.BITS)),
        ("z", zorder(axes, hilbert.BITS)),
    ):
        ordered = frame[np.argsort(key, kind="stable")]
        found[name] = {}
        for count in counts:
            parts = np.array_split(np.arange(frame.height), count)
            cut = [ordered[int(part[0]) : int(part[-1]) + 1] for part in parts]
            stored = [_stored(piece) for piece in cut]
            shares = skipped(stored, filters(days)).values()
            found[name][count] = float(np.mean([share.files for share in shares]))
    return found


def _stored(frame: pl.DataFrame) -> StoredFile:
    low, high = frame.min().row(0, named=True), frame.max().row(0, named=True)
    return StoredFile("", 1, frame.height, tuple(low.items()), tuple(high.items()))


def show(field: Mapping[str, Contestant]) -> None:
    """Prints the figures."""
    grid = Table(title="skipped: files / bytes", title_justify="left")
    grid.add_column("")
    for name in field:
        grid.add_column(name, justify="right")
    first = next(iter(field.values()))
    for key in first.last or {}:
        cells = [one.last[key] for one in field.values() if one.last]
        grid.add_row(" ".join(key), *(f"{c.files:.1%} / {c.bytes:.1%}" for c in cells))
    every = [one.days or [0.0] for one in field.values()]
    grid.add_row("all filters, last day", *(f"{days[-1]:.1%}" for days in every))
    grid.add_row("all filters, all days", *(f"{float(np.mean(days)):.1%}" for days in every))
    grid.add_row("MB rewritten", *(f"{one.rewritten / 1e6:,.1f}" for one in field.values()))
    grid.add_row("seconds", *(f"{one.seconds:.1f}" for one in field.values()))
    grid.add_row("files", *(str(one.files) for one in field.values()))
    Console().print(grid)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description=__doc__)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20_000, help="a day")
    parser.add_argument("--target", type=int, default=512 * 1024, help="bytes of a file")
    parser.add_argument("--only", choices=("bronze", "z_order", "curves"), default="")
    given = parser.parse_args()
    if given.only in ("", "curves"):
        for name, shares in curves(given.days, given.rows, (16, 64, 75, 128, 256)).items():
            said = ", ".join(f"{count} files {share:.1%}" for count, share in shares.items())
            print(f"one {name} curve through all rows skips: {said}")
    if given.only != "curves":
        wish = optimize.TableLayout(BY, given.target)
        with tempfile.TemporaryDirectory() as folder:
            show(run(Path(folder), given.days, given.rows, wish, given.only))


if __name__ == "__main__":
    main()
