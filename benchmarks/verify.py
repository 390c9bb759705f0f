"""What a proof costs beside the load that it proves: ``python -m benchmarks.verify``."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import psutil  # type: ignore[import-untyped]
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.source import SCHEMA, running
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.ingest import pipeline
from bronze.verify.results import VerifiedTable
from bronze.verify.verify import verify

_TABLE = "order_details"
_CHANGED = 1_234_567


def measured(rows: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and CPU seconds with PostgreSQL's own, of loads and proofs in turn."""
    figures: dict[str, list[tuple[float, float]]] = {}
    with running({_TABLE: rows}) as (dsn, folder):
        settings, server = _settings(dsn, folder / "lake"), _server(dsn)

        def timed(name: str, work: Callable[[], None]) -> None:
            before, began = _cpu(server), time.perf_counter()
            work()
            seconds = time.perf_counter() - began
            figures.setdefault(name, []).append((seconds, _cpu(server) - before))

        for _ in range(rounds):
            shutil.rmtree(folder / "lake", ignore_errors=True)
            timed("load", lambda: _load(settings))
            timed("verify", lambda: _equal(settings))
            timed("verify --trust-hashes", lambda: _equal(settings, trust_hashes=True))
            with _changed(dsn, min(_CHANGED, rows)):
                timed("verify, one row changed", lambda: _one_row(settings))
            timed("verify --at-rest", lambda: _equal(settings, at_rest=True))
    return figures


def _settings(dsn: str, lake: Path) -> Settings:
    return loading.parse(
        {
            "source": {"name": "bench", "dsn": dsn, "schema": SCHEMA},
            "lake": {"root": str(lake), "schema": "bronze"},
            "run": {"workers": 2, "max_retries": 0},
        }
    )


def _server(dsn: str) -> psutil.Process:
    """The process that has started all others of PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        server: psutil.Process = psutil.Process(connection.info.backend_pid).parent()
        return server


def _cpu(server: psutil.Process) -> float:
    """CPU seconds of this process, and of PostgreSQL."""
    total = sum(os.times()[:4])
    for process in (server, *server.children()):
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def _load(settings: Settings) -> None:
    assert pipeline.run(settings).exit_code == 0


def _equal(settings: Settings, *, at_rest: bool = False, trust_hashes: bool = False) -> None:
    result = verify(settings, at_rest=at_rest, trust_hashes=trust_hashes)
    assert result.exit_code == 0, result


def _one_row(settings: Settings) -> None:
    (found,) = verify(settings).tables
    assert _counts(found) == (0, 0, 1), found


def _counts(found: VerifiedTable) -> tuple[int, int, int]:
    return found.missing, found.extra, found.different


@contextmanager
def _changed(dsn: str, key: int) -> Iterator[None]:
    """One row of the source is another one for a while."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = f"{SCHEMA}.{_TABLE}"
        change = f"UPDATE {name} SET quantity = quantity + %s WHERE order_detail_id = %s"
        connection.execute(change, [1, key])
        yield
        connection.execute(change, [-1, key])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    given = parser.parse_args()
    figures = measured(given.rows, given.runs)
    grid = Table(title=f"{_TABLE}, {given.rows:,} rows", title_justify="left")
    grid.add_column("", no_wrap=True)
    for heading in ("s", "of a load", "CPU s", "of a load"):
        grid.add_column(heading, justify="right")
    load = [median(values) for values in zip(*figures["load"], strict=True)]
    for name, runs in figures.items():
        mine = [median(values) for values in zip(*runs, strict=True)]
        pairs = zip(mine, load, strict=True)
        grid.add_row(name, *(cell for own, all_ in pairs for cell in _cells(own, own / all_)))
    Console().print(grid)


def _cells(seconds: float, share: float) -> tuple[str, str]:
    return f"{seconds:.2f}", f"{share:.0%}"


if __name__ == "__main__":
    main()
