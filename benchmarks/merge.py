"""Merging changes into a large table, beside deltalake's MERGE: ``python -m benchmarks.merge``.

The table is like ``bz_order_details``, its keys in order, a file for each million of rows. The
changes lie ready in a Parquet file, so that no source is measured. ``plain`` is
``DeltaTable.merge`` on equal keys, as its documentation shows it; ``bounded`` also gives it the
range of the changed keys as literals, and ``streamed_exec=False``, without which it skips no file.
``vectors`` is bronze with ``deletion_vectors = true``. All update where row_hash differs and insert
what is new, with a change data feed. Bytes are of all files but the log's; CPU is the process's.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from bronze.delta import commit, files, log
from bronze.delta.commit import Change, Shape
from bronze.delta.positions import Position
from bronze.delta.read import deletion_vectors
from bronze.delta.schema import VECTORS_ENABLED
from bronze.delta.write import insert, merge, merge_job
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from bronze.model.stamp import RowStamp
from bronze.model.units import KnownRows
from bronze.rows.metadata import METADATA_COLUMNS, digests, with_metadata
from bronze.tables import known_rows

KEY = "order_detail_id"
COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    (KEY, DeltaType("long")),
    ("order_id", DeltaType("int")),
    ("product_id", DeltaType("int")),
    ("quantity", DeltaType("int")),
    ("unit_price", DeltaType("decimal", 12, 2)),
    ("discount", DeltaType("decimal", 5, 4)),
    ("line_total", DeltaType("decimal", 14, 2)),
    ("note", DeltaType("string")),
    ("updated_at", DeltaType("timestamp")),
)
SHAPE = Shape((*COLUMNS, *METADATA_COLUMNS), (KEY,))
CONTESTANTS = ("bronze", "vectors", "bounded", "plain")
_GROUP = 33_000
_FILE = 1_000_000
_LEAST = 2 * _FILE
_BATCH = "01a20595-02b3-7000-8000-00000000000{}"
_RANGE = 1_000


def rows(keys: np.ndarray[tuple[int], np.dtype[np.int64]], version: int) -> pl.DataFrame:
    """Bronze rows with these keys, whose values depend on the version alone."""
    dice = np.random.default_rng(7)
    height = len(keys)
    frame = pl.DataFrame(
        {
            KEY: keys,
            "order_id": (keys // 4).astype(np.int32),
            "product_id": dice.integers(1, 10_000, height, dtype=np.int32),
            "quantity": dice.integers(1, 20, height, dtype=np.int32) + np.int32(version),
            "unit_price": dice.integers(100, 99_999, height),
            "discount": dice.integers(0, 3_000, height),
            "line_total": dice.integers(100, 999_999, height),
            "note": dice.choice(["", "gift", "fragile", "late"], height),
            "updated_at": dice.integers(1_700_000_000_000_000, 1_760_000_000_000_000, height),
        }
    ).with_columns(
        (pl.col("unit_price").cast(pl.Decimal(14, 0)) / 100).cast(pl.Decimal(12, 2)),
        (pl.col("discount").cast(pl.Decimal(9, 0)) / 10_000).cast(pl.Decimal(5, 4)),
        (pl.col("line_total").cast(pl.Decimal(16, 0)) / 100).cast(pl.Decimal(14, 2)),
        pl.col("updated_at").cast(pl.Datetime("us", "UTC")),
    )
    moment = dt.datetime(2026, 1, 1 + version, tzinfo=dt.UTC)
    stamp = RowStamp(_BATCH.format(version), moment, "bench", "batch")
    nothing = pl.repeat(None, height, dtype=pl.String, eager=True)
    return with_metadata(frame, *digests(frame, nothing), stamp)


def build(folder: Path, count: int) -> None:
    """A table of ``count`` rows, keys from 1 on."""
    place = Place(str(folder))
    written = []
    for start in range(1, count + 1, _FILE):
        frame = rows(np.arange(start, min(count + 1, start + _FILE)), 0)
        groups = (frame[i : i + _GROUP] for i in range(0, frame.height, _GROUP))
        file = files.write(groups, place, _BATCH.format(0), (KEY,))
        written += [file] if file else []
    commit.replace(place, SHAPE, written, Position("bench", 1), {})


def keys(what: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The keys that a case changes."""
    dice = np.random.default_rng(1)
    if what == "neighbouring":
        middle = count // 2 + _FILE // 2  # inside a file
        return np.arange(middle, middle + _RANGE)
    many = int(what.split()[0].replace(",", ""))
    return np.sort(dice.choice(count, many, replace=False) + 1)


def enable_vectors(folder: Path) -> None:
    """Gives the table the feature, as the run does in which it is first asked for."""
    place = Place(str(folder))
    shape = replace(SHAPE, notes=((VECTORS_ENABLED, "true"),))
    commit.commit(place, log.read(place), Change("WRITE"), {}, shape=shape)


def bronze(folder: Path, changes: Path, vectors: bool = False) -> None:
    """Our own way."""
    place = Place(str(folder))
    frame = pl.read_parquet(changes)
    state = log.read(place)
    assert state is not None
    stamp = RowStamp(_BATCH.format(1), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "bench", "batch")
    into = SHAPE.destination(place, (KEY,), stamp)
    jobs = [
        merge_job.Merge(into, file, (frame,), vectors=vectors)
        for file in merge.candidate_files(state.files, [frame], (KEY,), place)
    ]
    with ThreadPoolExecutor(2) as pool:
        merged = list(pool.map(merge.merge, jobs))
    found = insert.join_masks([one.matched for one in merged], [frame])
    kept = tuple(one.kept for one in merged if one.kept is not None)
    fed = tuple(one.fed for one in merged if one.fed is not None)
    new = insert.insert(insert.Insert(into, (frame,), found, kept=kept, fed=fed))
    loud = [one for one in merged if one.rewritten]
    old = [one.old for one in loud if one.vector]
    bitmaps = [one.vector for one in loud if one.vector]
    marked = list(zip(old, deletion_vectors.write(place, bitmaps)[1], strict=True)) if old else []
    added = [*(one.file for one in loud if one.file), *new.files]
    feed = [*(one.feed for one in loud if one.feed), *new.feed]
    change = Change("MERGE", added, [one.old for one in loud], feed, marked=marked)
    commit.commit(place, state, change, {}, reached=Position("bench", 2))


def bronze_refresh(folder: Path, source: Path) -> None:
    """All rows are held against the table's fingerprints, as by a run's workers."""
    place = Place(str(folder))
    state = log.read(place)
    assert state is not None
    known = KnownRows(place, state.version, state.files, SHAPE.columns, (), 3)
    held = known_rows.index_of(known)
    files_of = sorted(source.glob("*.parquet"))

    def sieve(path: Path) -> int:
        left = 0
        for batch in pq.ParquetFile(path).iter_batches(_GROUP, use_threads=False):
            frame = pl.DataFrame(batch)
            there, _ = known_rows.match_fingerprints(held, known_rows.fingerprints(known, frame))
            left += int((~there).sum())
        return left

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(sieve, files_of)) == 0
    commit.commit(place, state, Change("MERGE"), {}, reached=Position("bench", 2))


def theirs(folder: Path, source: Path, bounded: bool) -> None:
    """Deltalake's MERGE."""
    table = DeltaTable(str(folder))
    given = pl.scan_parquet(source)
    predicate = f"t.{KEY} = s.{KEY}"
    if bounded:
        low, high = given.select(low=pl.col(KEY).min(), high=pl.col(KEY).max()).collect().row(0)
        predicate += f" AND t.{KEY} >= {low} AND t.{KEY} <= {high}"
    reader = pq.ParquetDataset(source).read() if source.is_dir() else pq.read_table(source)
    merger = table.merge(
        reader,
        predicate,
        source_alias="s",
        target_alias="t",
        streamed_exec=not bounded,
    )
    update = merger.when_matched_update_all("s.row_hash <> t.row_hash")
    update.when_not_matched_insert_all().execute()


def child(contestant: str, folder: Path, source: Path) -> None:
    """One contestant in a process of its own: prints seconds, peak and bytes written."""
    if contestant == "vectors":
        enable_vectors(folder)
    before = files_in(folder)
    ways: Mapping[str, Callable[[], None]] = {
        "bronze": lambda: (bronze_refresh if source.is_dir() else bronze)(folder, source),
        "vectors": lambda: bronze(folder, source, vectors=True),
        "bounded": lambda: theirs(folder, source, True),
        "plain": lambda: theirs(folder, source, False),
    }
    began, cpu = time.perf_counter(), time.process_time()
    ways[contestant]()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    size = sum(path.stat().st_size for path in files_in(folder) - before)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "bytes": size}))


def files_in(folder: Path) -> set[Path]:
    """The files of a table, without its log."""
    return {*folder.rglob("*.parquet"), *folder.glob("*.bin")} - {*folder.rglob("_delta_log/*")}


def measured(contestant: str, folder: Path, source: Path) -> dict[str, float] | str:
    """One contestant on a fresh copy of the table (hard links: nobody changes a file)."""
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-al", str(folder), str(copy)], check=True)
    command = [sys.executable, "-m", "benchmarks.merge", "--child", contestant, copy, source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    shutil.rmtree(copy)
    if done.returncode:
        return f"failed ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}"
    found: dict[str, float] = json.loads(done.stdout)
    return found


def sources(folder: Path, count: int, cases: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The changes of each case, as Parquet."""
    for case in cases:
        path = folder / "source"
        if case == "unchanged":
            path.mkdir()
            for start in range(1, count + 1, _FILE):
                frame = rows(np.arange(start, min(count + 1, start + _FILE)), 0)
                frame.cast({pl.Enum: pl.String}).write_parquet(path / f"{start:010}.parquet")
            yield case, path
            shutil.rmtree(path)
        else:
            frame = rows(keys(case, count), 1)
            frame.cast({pl.Enum: pl.String}).write_parquet(path)
            yield case, path
            path.unlink()


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[2_000_000, 20_000_000],
        help=f"of the table, {_LEAST:,} at least",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["neighbouring", "1,000 random", "100,000 random", "unchanged"],
    )
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    given = parser.parse_args()
    if min(given.rows) < _LEAST:
        parser.error(f"the cases change more rows than a table of {min(given.rows):,} has")
    console = Console(width=110)
    for count in given.rows:
        grid = Table(title=f"{count:,} rows", title_justify="left")
        for heading in ("changes", "", "s", "CPU s", "peak MB", "MB written"):
            grid.add_column(heading, justify="right")
        with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
            folder = Path(name) / "table"
            build(folder, count)
            for case, source in sources(Path(name), count, given.cases):
                found: dict[str, list[dict[str, float]]] = {}
                for contestant in given.only * given.runs:
                    if case == "unchanged" and contestant == "vectors":
                        continue
                    one = measured(contestant, folder, source)
                    if isinstance(one, str):
                        grid.add_row(case, contestant, one)
                    else:
                        found.setdefault(contestant, []).append(one)
                for contestant, runs in found.items():
                    cells = [median(run[what] for run in runs) for what in runs[0]]
                    seconds, cpu, peak, size = cells
                    grid.add_row(
                        case,
                        contestant,
                        f"{seconds:.2f}",
                        f"{cpu:.2f}",
                        f"{peak / 1e6:,.0f}",
                        f"{size / 1e6:,.1f}",
                    )
        console.print(grid)


if __name__ == "__main__":
    main()
