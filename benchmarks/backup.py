"""Copies of a lake, beside a plain copy of its files: ``python -m benchmarks.backup``.

A lake of one large table is copied three times: all of it, then what a run has changed in one row
of a hundred, then nothing; then it is restored, and a recovery is drilled. Beside it the same bytes
are copied by ``cp -r``, and by the same client of stores without hashes, lists and moments (get,
put), which is what a copy from store to store costs at least; and deltalake reads and writes the
table. With ``--seconds`` a stream gets changes meanwhile, without copies and beside copies that
never stop. Nothing is forced out of the page cache; all is on one disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import obstore
import psycopg
from deltalake import DeltaTable, write_deltalake
from obstore.store import LocalStore
from rich.console import Console
from rich.table import Table

from benchmarks import source, stream
from bronze.api.client import Bronze
from bronze.backup import copy, proof
from bronze.backup.recovery import drill, restore
from bronze.backup.results import BackupResult
from bronze.config import loading
from bronze.config.settings import Settings

T = TypeVar("T")

_THREADS = 4
_RATE = "50MB"
# First copies and plain ones are made in turn; medians count.
_TIMES = 3


def settings_of(dsn: str, folder: Path, *, copied: bool) -> Settings:
    """The config of a lake in a folder, with a copy or without."""
    backup = {"backup": {"root": str(folder / "copy")}} if copied else {}
    return loading.parse(
        {
            "source": {"name": "bench", "dsn": dsn, "schema": source.SCHEMA},
            "lake": {"root": str(folder / "lake")},
            "run": {"workers": 2},
            **backup,
        }
    )


def copies(rows: int, console: Console) -> None:
    """Measures a first, an incremental and an idle copy of a table of so many rows."""
    table = Table("copy", "seconds", "MB", "objects", "requests", "times cp -r", "times get, put")
    with source.running({"details": rows}) as (dsn, folder):
        Bronze(settings_of(dsn, folder, copied=False)).run()
        settings = settings_of(dsn, folder, copied=True)
        lake = folder / "lake"
        plain, store, first = [], [], []
        for _ in range(_TIMES):
            for name in ("plain", "store", "copy"):
                shutil.rmtree(folder / name, ignore_errors=True)
            plain.append(timed(lambda: shutil.copytree(lake, folder / "plain"))[0])
            store.append(timed(lambda: stores(lake, folder / "store"))[0])
            seconds, done = timed(lambda: copy.back_up(settings))
            first.append(seconds)
        figures = (median(plain), median(store))
        _add(table, "first", median(first), done, figures)
        seconds, _ = timed(lambda: rewritten(folder))
        _add(table, "cp -r", figures[0], None, figures)
        _add(table, "get, put", figures[1], None, figures)
        _add(table, "deltalake", seconds, None, figures)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                f"UPDATE {source.SCHEMA}.details SET quantity = quantity + 1 WHERE ctid IN ("
                f" SELECT ctid FROM {source.SCHEMA}.details LIMIT {max(1, rows // 100)})"
            )
        Bronze(settings_of(dsn, folder, copied=False)).run()
        for name in ("incremental", "idle"):
            seconds, done = timed(lambda: copy.back_up(settings))
            _add(table, name, seconds, done, figures)
        seconds, found = timed(lambda: proof.verify_copy(settings))
        table.add_row("verified", f"{seconds:.2f}", f"{found.bytes / 1e6:.1f}", f"{found.objects}")
        if found.faults:
            raise SystemExit(found.faults[0])
        _add_recovery(table, settings, folder, figures[0])
    console.print(f"{rows:,} rows")
    console.print(table)


def _add(
    table: Table,
    name: str,
    seconds: float,
    done: BackupResult | None,
    figures: tuple[float, float],
) -> None:
    """Adds a line; ``figures`` are the seconds of both plain copies."""
    copied = (
        (f"{done.bytes / 1e6:.1f}", f"{done.objects}", f"{done.requests}") if done else ("",) * 3
    )
    times = (f"{seconds / plain:.2f}" for plain in figures)
    table.add_row(name, f"{seconds:.2f}", *copied, *times)


def _add_recovery(table: Table, settings: Settings, folder: Path, plain: float) -> None:
    """Measures a restore of the newest generation, and a drill."""
    seconds, restored = timed(lambda: restore.restore(settings, str(folder / "restored")))
    table.add_row(
        "restored", f"{seconds:.2f}", f"{restored.bytes / 1e6:.1f}", f"{restored.objects}", "",
        f"{seconds / plain:.2f}",
    )  # fmt: skip
    seconds, drilled = timed(lambda: drill.drill(settings))
    record = drilled.record
    if record.result == "failed":
        raise SystemExit(record.message)
    table.add_row("drill", f"{seconds:.2f}", f"{record.bytes / 1e6:.1f}", f"{record.objects}")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds of a function, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def stores(one: Path, other: Path) -> None:
    """Copies all objects of one store to another, as a tool for copies of stores does."""
    left, right = LocalStore(one), LocalStore(other, mkdir=True)
    paths = [meta["path"] for chunk in obstore.list(left) for meta in chunk]

    def moved(path: str) -> None:
        obstore.put(right, path, obstore.get(left, path).bytes())

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(moved, paths))


def rewritten(folder: Path) -> None:
    """Reads and writes the table with deltalake."""
    table = DeltaTable(str(next((folder / "lake" / "bronze").iterdir())))
    reader = table.to_pyarrow_dataset().scanner().to_reader()
    write_deltalake(str(folder / "rewritten"), reader)


@contextmanager
def copying(config: Path, rate: str) -> Iterator[list[int]]:
    """Copies again and again, in processes of their own; how often."""
    folder = config.parent
    text = f'{config.read_text()}\n[backup]\nroot = "{folder / "copy"}"\nrate = "{rate}"\n'
    with_copy = folder / "with_copy.toml"
    with_copy.write_text(text)
    stop, count = threading.Event(), [0]

    def work() -> None:
        while not stop.is_set():
            command = [sys.executable, "-m", "bronze", "backup", "-c", str(with_copy)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            count[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def beside(rows: int, rate: int, seconds: int, console: Console) -> None:
    """Measures the latencies of a stream without copies and beside them."""
    with stream.shop(rows, 1000, "1GB") as shop:
        shop.caught_up()
        alone = stream.steady(shop, rate, seconds)
        with copying(shop.config, _RATE) as count:
            both = stream.steady(shop, rate, seconds)
        console.print(
            f"stream of {rows:,} rows, {rate:,} changes a second: p99 {alone['p99']:.2f} s without"
            f" copies, {both['p99']:.2f} s beside {count[0]} copies at {_RATE} a second"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[2_000_000])
    parser.add_argument("--seconds", type=int, default=60, help="0: without a stream")
    parser.add_argument("--rate", type=int, default=1_000)
    given = parser.parse_args(arguments)
    console = Console()
    for rows in given.rows:
        copies(rows, console)
    if given.seconds:
        beside(1_000_000, given.rate, given.seconds, console)


if __name__ == "__main__":
    main()
