"""Requests to an object store: ``python -m benchmarks.stores``.

Ten tables of 20 rows are loaded into an imitated S3 behind a gateway that waits for each answer,
50 ms by default. Then come runs that find nothing new, runs that find one row, and ``verify``; each
is a process of its own; and ``maintain``. The figures are seconds, requests to the store by their
kind, and how many of them waited for each other.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.command import BRONZE
from bronze.demo import server
from tests.support import object_store
from tests.support.object_store import Store

_TABLES = 10
_TABLE = """
CREATE TABLE t{number} (
    id int8 PRIMARY KEY, name text NOT NULL, price numeric(12,2), updated_at timestamptz NOT NULL
);
INSERT INTO t{number} SELECT g, 'row ' || g, g / 7.0, now() FROM generate_series(1, 20) g;
"""
_QUERY = re.compile(r"list-type")


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, round trips that followed each other, requests by kind."""

    command: str
    seconds: float
    round_trips: int
    requests: Counter[str]
    paths: Counter[str]


@contextmanager
def lake(tables: int) -> Iterator[tuple[str, Path, Store]]:
    """The connection string of a database with tables, a folder with a config, and its store."""
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as name:
        home = Path(name)
        with server.running(home / "postgres") as started, object_store.s3() as store:
            with psycopg.connect(started.dsn(), autocommit=True) as connection:
                for number in range(tables):
                    connection.execute(_TABLE.format(number=number))
            options = "\n".join(f'{key} = "{value}"' for key, value in store.options.items())
            (home / "bronze.toml").write_text(
                f'[source]\nname = "bench"\ndsn = "{started.dsn()}"\n'
                f'[lake]\nroot = "{store.root}/bench"\n[lake.options]\n{options}\n'
            )
            yield started.dsn(), home, store


def cost_of(command: Sequence[str], home: Path, store: Store) -> Cost:
    """What a command of its own process takes."""
    store.gateway.requests.clear()
    store.gateway.spans.clear()
    began = time.perf_counter()
    subprocess.run([str(BRONZE), *command], cwd=home, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    requests = list(store.gateway.requests)
    kinds = Counter("LIST" if _QUERY.search(path) else method for method, path in requests)
    paths = Counter(f"{m} {p}" for m, p in requests)
    waited = object_store.round_trips(store.gateway)
    return Cost(" ".join(command), seconds, waited, kinds, paths)


def measure(latency: float, *, show: bool = False) -> list[Cost]:
    """The costs of a first load, no-ops, a run with one new row, `verify`, and `maintain`."""
    with lake(_TABLES) as (dsn, home, store):
        costs = [cost_of(["run"], home, store)]
        store.gateway.delay = latency
        costs += [cost_of(["run"], home, store) for _ in range(3)]
        if show:
            for path, count in sorted(costs[-1].paths.items()):
                Console().print(count, path, soft_wrap=True)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO t0 VALUES (99, 'new', 1, now())")
        costs.append(cost_of(["run"], home, store))
        costs.append(cost_of(["verify"], home, store))
        costs.append(cost_of(["maintain"], home, store))
        return costs


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of each answer")
    parser.add_argument("--show", action="store_true", help="the requests of a run without news")
    given = parser.parse_args()
    kinds = ("LIST", "GET", "HEAD", "PUT", "POST", "DELETE")
    table = Table("command", "seconds", "in series", "requests", *kinds)
    for cost in measure(given.latency, show=given.show):
        counts = [str(cost.requests[kind]) for kind in kinds]
        total = str(sum(cost.requests.values()))
        series = str(cost.round_trips)
        table.add_row(cost.command, f"{cost.seconds:.2f}", series, total, *counts)
    Console().print(table)


if __name__ == "__main__":
    main()
