"""What the layout gains: ``python -m benchmarks.optimize``.

The demo's tables get 100 appends and 20 merges, twice: in one lake nothing is maintained (only the
log's checkpoints are written), in the other one bronze clusters and joins files as it goes, with
the same target size of files, and vacuums at the end. Then both are asked the same five queries by
polars and DuckDB; the log says which files and bytes filters need; and an imitated S3 with 20 ms of
latency says which requests and bytes they take.

The four figures of the requirement's section 8.1 are printed beside what was measured: liquid
clustering 40 % of query time, auto-optimize 30 % of storage, Z-ordering 50 % of filters, predictive
I/O 25 % of I/O.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psycopg
from rich.console import Console
from rich.table import Table
from uuid_utils import uuid7

from bronze.delta import commit, files, log
from bronze.delta import store as objects
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.optimize import TableLayout
from bronze.demo import inventory, server
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

APPENDS, MERGES = 100, 20
CLUSTERING: Mapping[str, tuple[str, ...]] = {
    "orders": ("customer_id", "ordered_at"),
    "order_details": ("product_id", "order_id"),
    "shipments": ("order_id", "shipped_at"),
    "inventory": ("product_id", "warehouse_id"),
}
_MEMORY = 256 * 2**20
_TARGET = 256 * 1024


@dataclass
class Lake:
    """One of the two lakes: its folder, and what it cost."""

    name: str
    root: Path
    layout: bool
    seconds: float = 0.0
    rewritten: int = 0
    figures: dict[str, float] = field(default_factory=dict)


Filter = tuple[str, str, Any, Any]
"""A table, a column, and the least and the greatest value that are wanted."""


@contextmanager
def demo(scale: float) -> Iterator[dict[str, pl.DataFrame]]:
    """The demo's tables, as PostgreSQL has them."""
    with tempfile.TemporaryDirectory() as folder, server.running(Path(folder)) as started:
        dsn = inventory.create(started.dsn(), scale=scale)
        with psycopg.connect(dsn) as connection:
            yield {name: _rows(connection, name) for name in CLUSTERING}


def _rows(connection: psycopg.Connection[Any], name: str) -> pl.DataFrame:
    cursor = connection.execute(f'SELECT * FROM {inventory.SCHEMA}."{name}" ORDER BY 1')
    names = [column.name for column in cursor.description or ()]
    frame = pl.DataFrame(cursor.fetchall(), schema=names, orient="row", infer_schema_length=None)
    plain = [c for c, kind in frame.schema.items() if kind.is_integer() or kind.is_temporal()]
    texts = [c for c in names if c not in plain and frame[c].dtype == pl.String]
    digest = pl.concat_str(pl.col(names[0]).cast(pl.String)).hash(7).cast(pl.String)
    return frame.select(*plain, *texts).with_columns(row_hash=digest, value=digest.hash(9))


def layout_of(frame: pl.DataFrame) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a table."""
    found = []
    for name, kind in frame.schema.items():
        if kind == pl.Date:
            found.append((name, DeltaType("date")))
        elif kind.is_temporal():
            zoned = getattr(kind, "time_zone", None) is not None
            found.append((name, DeltaType("timestamp" if zoned else "timestamp_ntz")))
        elif kind == pl.String:
            found.append((name, DeltaType("string")))
        else:
            found.append((name, DeltaType("long")))
    return tuple(found)


def play(lake: Lake, name: str, frame: pl.DataFrame, target: int) -> None:
    """Appends and merges of one table; the key is its first column."""
    place = Place(str(lake.root / name))
    by = CLUSTERING[name] if all(c in frame.columns for c in CLUSTERING[name]) else ()
    columns = layout_of(frame.with_columns(pl.col(pl.UInt64).cast(pl.Int64, wrap_numerical=True)))
    frame = frame.with_columns(
        pl.col(n).cast(pl.Int64, wrap_numerical=True) for n, k in columns if k.name == "long"
    )
    stats = tuple(n for n in dict.fromkeys((frame.columns[0], *by)) if n in dict(columns))
    wish = TableLayout(by, target)
    draw = np.random.default_rng(11)
    for part in np.array_split(np.arange(frame.height), APPENDS):
        if len(part):
            _write(place, columns, stats, frame[part], None)
            _improve(lake, place, wish)
    for number in range(MERGES):
        picked = draw.choice(frame.height, max(1, frame.height // 200), replace=False)
        changed = frame[np.sort(picked)].with_columns(
            row_hash=pl.lit(str(number)) + pl.col("row_hash")
        )
        _write(place, columns, stats, changed, frame.columns[0])
        _improve(lake, place, wish)


def _write(
    place: Place,
    columns: tuple[tuple[str, DeltaType], ...],
    stats: tuple[str, ...],
    rows: pl.DataFrame,
    key: str | None,
) -> None:
    """An append, or with a key a merge: files with rows of these keys are written again."""
    state = log.read(place)
    shape = None if state else commit.Shape(columns, stats)
    batch = str(uuid7())
    removed: list[StoredFile] = []
    added = []
    if key is not None and state is not None:
        wanted = rows[key].to_list()
        for stored in state.files:
            low, high = dict(stored.low).get(key), dict(stored.high).get(key)
            if low is not None and not any(low <= value <= high for value in wanted):
                continue
            old = pl.read_parquet(Path(place.url) / stored.path)
            kept = old.filter(~pl.col(key).is_in(wanted))
            if kept.height < old.height:
                removed.append(stored)
                if kept.height:
                    added.append(files.write([kept], place, batch, stats))
    added.append(files.write([rows], place, batch, stats))
    written = [file for file in added if file is not None]
    change = commit.Change("MERGE" if key else "WRITE", written, removed)
    commit.commit(place, state, change, {}, shape=shape)


def _improve(lake: Lake, place: Place, wish: TableLayout) -> None:
    state = log.read(place)
    if not lake.layout or state is None or not optimize.is_needed(state, wish):
        return
    began = time.perf_counter()
    done = optimize.optimize_table(
        place, wish, batch_id=str(uuid7()), memory=_MEMORY, each=lambda work, jobs: map(work, jobs)
    )
    lake.seconds += time.perf_counter() - began
    lake.rewritten += done.rewritten


# The figures


def filters(frames: Mapping[str, pl.DataFrame]) -> list[Filter]:
    """Twenty points and twenty ranges of 5 % for each clustering column."""
    found: list[Filter] = []
    draw = np.random.default_rng(3)
    for name, by in CLUSTERING.items():
        for column in (c for c in by if c in frames[name].columns):
            values = frames[name][column].drop_nulls().sort()
            for at in draw.integers(0, len(values), 20):
                found.append((name, column, values[int(at)], values[int(at)]))
                end = min(len(values) - 1, int(at) + len(values) // 20)
                found.append((name, column, values[int(at)], values[end]))
    return found


def read_by_filters(lake: Lake, asked: Sequence[Filter]) -> tuple[float, float]:
    """The mean share of files, and of bytes, that the filters have to read by the log."""
    shares = []
    for name, column, low, high in asked:
        state = log.read(Place(str(lake.root / name)))
        assert state is not None
        bounds = [(f.size, dict(f.low).get(column), dict(f.high).get(column)) for f in state.files]
        needed = [s for s, lo, hi in bounds if lo is None or not (hi < low or lo > high)]
        shares.append((len(needed), sum(needed)))
    return tuple(np.mean(shares, axis=0).tolist())


def queries(frames: Mapping[str, pl.DataFrame]) -> list[Filter]:
    """Five queries: two points, two ranges, one that reads everything of a table."""
    ids = frames["orders"]["customer_id"].drop_nulls().sort()
    times = frames["orders"]["ordered_at"].drop_nulls().sort()
    products = frames["order_details"]["product_id"].drop_nulls().sort()
    middle = len(times) // 2
    return [
        ("orders", "customer_id", ids[len(ids) // 2], ids[len(ids) // 2]),
        ("orders", "ordered_at", times[middle], times[middle + len(times) // 50]),
        ("order_details", "product_id", products[0], products[len(products) // 50]),
        ("order_details", "product_id", products[len(products) // 2], products[len(products) // 2]),
        ("order_details", "order_id", 0, 2**62),
    ]


def by_polars(root: str, asked: Filter, options: Mapping[str, str] | None = None) -> int:
    """The sum of a column of the rows that a query selects, by polars."""
    name, column, low, high = asked
    lazy = pl.scan_delta(f"{root}/{name}", storage_options=dict(options or {}) or None)
    found = lazy.filter(pl.col(column).is_between(low, high))
    return int(found.select(pl.len()).collect().item())


def by_duckdb(connection: Any, root: str, asked: Filter) -> int:
    """The same by DuckDB."""
    name, column, low, high = asked
    scan = f"delta_scan('{root}/{name}')"
    query = f"SELECT count(row_hash) FROM {scan} WHERE {column} BETWEEN ? AND ?"
    return int(connection.execute(query, [low, high]).fetchone()[0])


def seconds_of(work: Callable[[], object], rounds: int) -> float:
    """The median of a few runs, after one that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def measure(lake: Lake, frames: Mapping[str, pl.DataFrame], rounds: int) -> None:
    """All figures of one lake but those of the object store."""
    import duckdb
    import duckdb_extension_delta

    (extension,) = Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension")
    asked = queries(frames)
    root = str(lake.root)
    with duckdb.connect() as connection:
        connection.load_extension(str(extension))
        connection.execute("SET threads = 1")
        counts = [by_polars(root, one) for one in asked]
        assert counts == [by_duckdb(connection, root, one) for one in asked]
        for number, one in enumerate(asked, 1):
            lake.figures[f"query {number}, polars, ms"] = 1000 * seconds_of(
                lambda one=one: by_polars(root, one),  # type: ignore[misc]
                rounds,
            )
            lake.figures[f"query {number}, DuckDB, ms"] = 1000 * seconds_of(
                lambda one=one: by_duckdb(connection, root, one),  # type: ignore[misc]
                rounds,
            )
    for engine in ("polars", "DuckDB"):
        every = [v for n, v in lake.figures.items() if n.endswith(f"{engine}, ms")]
        lake.figures[f"all queries, {engine}, ms"] = sum(every)
    needed = read_by_filters(lake, filters(frames))
    lake.figures["files that a filter reads"], lake.figures["kB that a filter reads"] = needed
    lake.figures["kB that a filter reads"] /= 1000
    stored = [log.read(Place(str(lake.root / name))) for name in CLUSTERING]
    live = [file.size for state in stored if state for file in state.files]
    lake.figures["live files"], lake.figures["live MB"] = len(live), sum(live) / 1e6
    lake.figures["MB with history"] = _folder(lake.root) / 1e6


def _folder(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def measure_store(lakes: Sequence[Lake], frames: Mapping[str, pl.DataFrame]) -> None:
    """What the five queries take of an imitated S3 with 20 ms of latency, by polars."""
    from tests.support import object_store

    with object_store.s3() as store:
        for lake in lakes:
            root = f"{store.root}/{lake.name}"
            place = Place(root, tuple(store.options.items()))
            for path in lake.root.rglob("*"):
                if path.is_file():
                    objects.create(place, str(path.relative_to(lake.root)), path.read_bytes())
            store.gateway.delay = 0.02
            store.gateway.requests.clear()
            store.gateway.sent = 0
            began, options = time.perf_counter(), dict(store.options)
            for one in queries(frames):
                by_polars(root, one, options)
            lake.figures["queries on S3, s"] = time.perf_counter() - began
            lake.figures["queries on S3, requests"] = len(store.gateway.requests)
            lake.figures["queries on S3, MB"] = store.gateway.sent / 1e6
            store.gateway.delay = 0.0


def show(lakes: Sequence[Lake], target: int) -> None:
    """Prints the figures, with the change from the first lake to the others."""
    grid = Table(title=f"files of {target // 1024} KiB", title_justify="left")
    for title in ("", *(lake.name for lake in lakes), "change"):
        grid.add_column(title, justify="right" if title else "left")
    for name in lakes[0].figures:
        values = [lake.figures[name] for lake in lakes]
        change = (values[-1] / values[0] - 1) if values[0] else 0.0
        grid.add_row(name, *(f"{value:,.1f}" for value in values), f"{change:+.0%}")
    Console().print(grid)
    for lake in lakes:
        print(f"{lake.name}: {lake.rewritten / 1e6:.1f} MB rewritten in {lake.seconds:.1f} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimize", description=__doc__)
    parser.add_argument("--scale", type=float, default=0.1, help="of the demo's 3.3 million rows")
    parser.add_argument("--target", type=int, default=_TARGET, help="bytes of a file")
    parser.add_argument("--rounds", type=int, default=5, help="of each query")
    parser.add_argument("--no-store", action="store_true", help="without the object store")
    given = parser.parse_args()
    with demo(given.scale) as frames, tempfile.TemporaryDirectory() as folder:
        lakes = [
            Lake("untouched", Path(folder) / "untouched", layout=False),
            Lake("laid-out", Path(folder) / "laid", layout=True),
        ]
        for lake in lakes:
            for name, frame in frames.items():
                play(lake, name, frame, given.target)
            measure(lake, frames, given.rounds)
            for name in CLUSTERING:
                late = time.time() + 40 * 86400
                vacuum.expire(Place(str(lake.root / name)), 30 * 86400, (), late)
            lake.figures["MB after a vacuum"] = _folder(lake.root) / 1e6
        if not given.no_store:
            measure_store(lakes, frames)
        show(lakes, given.target)


if __name__ == "__main__":
    main()
