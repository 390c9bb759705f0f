"""What the service takes, and how soon it answers: ``python -m benchmarks.serve``.

Each figure is of ``bronze serve`` as installed, in a process of its own with its defaults, against
an embedded PostgreSQL on the same processors. CPU is the part of a core that the service's process
takes; memory is anonymous (RssAnon), without the files of libraries. The parts:

``idle``: ten tables, three of them streamed, a dashboard open; beside it ``bronze stream`` alone.
``many``: a thousand tables that are not due; then the first page and ``/live``.
``due``: tables due every few seconds: from due to begun, and a run beside ``bronze run``.
``history``: a start with ninety days of records.
``outage``: from the stop of PostgreSQL to the message in PagerDuty's inbox.
``beside``: the latency of a stream, alone and while 2,000,000 rows are loaded again and again.
``memory``: the peak of a stream, runs, verification and maintenance at once.
"""

from __future__ import annotations

import argparse
import http.server
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks import run_history
from benchmarks.command import BRONZE, measure, server_of
from benchmarks.service import Folder, Service, far_away, percentiles, until
from benchmarks.stream import FILL, SCHEMA
from bronze.demo.server import Server, running

_ROWS = 20
_STREAMED = 3
_MANY = 1_000
_RECORDS = 2_000_000
_SETTLED = 15.0
_MEASURED = 45.0
_TABLE = """
CREATE TABLE t{number:05} (
    id int8 PRIMARY KEY, name text NOT NULL, price numeric(12,2), updated_at timestamptz NOT NULL
);
INSERT INTO t{number:05} SELECT g, 'row ' || g, g / 7.0, now() FROM generate_series(1, {rows}) g;
"""
_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "max_wal_size": "8GB",
    "max_connections": "90",
}
Figures = dict[str, Any]


@contextmanager
def _source(tables: int = 0) -> Iterator[tuple[Server, Folder]]:
    """A PostgreSQL with small tables ``t00000…``, and a folder for a service."""
    with (
        tempfile.TemporaryDirectory(prefix="bronze-bench-") as name,
        running(Path(name) / "postgres", settings=_FAST) as server,
    ):
        with psycopg.connect(server.dsn()) as connection:
            for number in range(tables):
                connection.execute(_TABLE.format(number=number, rows=_ROWS))
        yield server, Folder(Path(name) / "service", server.dsn())


def _rest(service: Service) -> Figures:
    """What a service takes that has nothing to do."""
    until(service.is_ready)
    time.sleep(_SETTLED)
    with service.dashboard():
        time.sleep(2)
        core = service.share_of_core(_MEASURED)
    return {"core": core, "anonymous": service.anonymous, "peak": service.peak}


def idle() -> Figures:
    """Ten tables, three streamed, a dashboard open; the same without streams; streams alone."""
    streamed = {f"t{number:05}": {"pattern": "streaming"} for number in range(_STREAMED)}
    with _source(10) as (_, folder):
        folder.configure({"serve": {"schedule": far_away()}, "tables": streamed})
        folder.command("serve", "--once")
        with folder.running("stream") as stream:
            time.sleep(_SETTLED)
            alone = {"core": stream.share_of_core(_MEASURED), "anonymous": stream.anonymous}
        with folder.running() as service:
            found = _rest(service)
        return {"service": found, "stream alone": alone}


def many() -> Figures:
    """Tables that are not due, ten and a thousand, none streamed; pages with the thousand."""
    found: Figures = {}
    for tables in (10, _MANY):
        with _source(tables) as (_, folder):
            folder.configure({"serve": {"schedule": far_away()}})
            folder.command("serve", "--once")
            with folder.running() as service:
                found[f"{tables} tables"] = _rest(service)
                if tables == _MANY:
                    found |= _pages(service)
    return found


def _pages(service: Service) -> Figures:
    """The first page for ten viewers, who reload it each second; ``/live`` meanwhile, also while
    all tables are loaded.
    """
    size = len(service.get("/")[1])
    alive: list[float] = []
    beside = threading.Thread(target=lambda: alive.extend(service.times_of("/live", 20, 0.05)))
    beside.start()
    pages = service.times_of("/", 20, 1.0, viewers=10)
    beside.join()
    service.folder.configure({"serve": {"schedule": {**far_away(), "full_refresh": "every 20s"}}})
    viewers = threading.Thread(target=lambda: service.times_of("/", 40, 1.0, viewers=10))
    viewers.start()
    working = service.times_of("/live", 40, 0.05)
    viewers.join()
    return {
        "first page": {**percentiles(pages), "bytes": size},
        "live, ten viewers": percentiles(alive),
        "live, all tables loaded, ten viewers": percentiles(working),
    }


def due() -> Figures:
    """From due to begun while permits are free, and a run of one table beside the command."""
    every = {f"t{n:05}": {"schedule": f"every {n + 10}s"} for n in range(8)}
    with _source(8) as (server, folder):
        folder.configure({"serve": {"schedule": far_away(), "runs": 4}, "tables": every})
        folder.command("run")
        with folder.running() as service:
            until(service.is_ready)
            # What was due before it began runs once, late.
            time.sleep(_SETTLED)
            ready = datetime.now(UTC)
            time.sleep(100)
        rows = folder.records("runs").filter(pl.col("scheduled_timestamp") > ready)
        late = rows.filter(pl.col("status") == "began").select(
            (pl.col("began_timestamp") - pl.col("scheduled_timestamp")).dt.total_microseconds()
        )
        ended = rows.filter(pl.col("status") != "began").select(
            (pl.col("ended_timestamp") - pl.col("began_timestamp")).dt.total_microseconds()
        )
        process = server_of(server.dsn())
        command = [measure([BRONZE, "run", "t00000"], process, folder.path) for _ in range(5)]
        return {
            "due to begun": percentiles((late.to_series() / 1e6).to_list()),
            "run in the service": percentiles((ended.to_series() / 1e6).to_list()),
            "run as a command": {"p50": median(used.wall for used in command)},
        }


def history() -> Figures:
    """A start with a thousand tables and records of ninety days."""
    with _source(_MANY) as (_, folder):
        folder.configure({"serve": {"schedule": {**far_away(), "full_refresh": "monthly 1 03:00"}}})
        folder.command("serve", "--once")
        records = run_history.write(folder.path / "bronze.toml", _MANY, _RECORDS)
        with folder.running() as service:
            until(service.is_ready)
            ready = time.monotonic() - service.began
            cpu = service.cpu
            rest = _rest(service)
        return {"records": records, "ready": ready, "start cpu": cpu, **rest}


def outage() -> Figures:
    """From the stop of the source to the message, with and without a stream."""
    found: Figures = {}
    for title, tables in (("streamed", {"t00000": {"pattern": "streaming"}}), ("not streamed", {})):
        seconds = []
        with _source(3) as (server, folder), _inbox() as (url, arrived):
            channel = {
                "kind": "pagerduty", "name": "on-call", "url": url, "key": {"secret": "BENCH_KEY"},
            }  # fmt: skip
            sections = {"serve": {"schedule": far_away()}, "tables": tables}
            folder.configure(sections)
            folder.command("serve", "--once")
            folder.configure({**sections, "alerts": {"channels": [channel]}})
            with folder.running() as service:
                until(service.is_ready)
                time.sleep(_SETTLED)
                arrived.clear()
                began = time.time()
                server.stop("immediate")
                until(lambda: arrived, 120)
                seconds.append(arrived[0] - began)
        found[title] = {"seconds": median(seconds)}
    return found


@contextmanager
def _inbox() -> Iterator[tuple[str, list[float]]]:
    """PagerDuty's side: its URL, and when each message came."""
    arrived: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            arrived.append(time.time())
            body = b'{"status": "success", "message": "Event processed"}'
            self.send_response(202)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", arrived
    finally:
        server.shutdown()
        server.server_close()


_BIG = """
CREATE TABLE {name} AS SELECT g AS id, 0 AS n, g % 1000 AS product, (g % 977)::numeric(12,2) / 7
    AS price, now() - (g || ' s')::interval AS at, md5(g::text) AS code
FROM generate_series(1, {rows}) g;
ALTER TABLE {name} ADD PRIMARY KEY (id);
"""
_ORDERS = {"orders": {"pattern": "streaming"}, "order_details": {"pattern": "streaming"}}


def _shop(server: Server, big: Mapping[str, int]) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(FILL.replace("%(orders)s", "25000"))
        for name, rows in big.items():
            connection.execute(_BIG.format(name=name, rows=rows))
        connection.execute("VACUUM ANALYZE")


def _sell(dsn: str, first: int, rate: int, seconds: float) -> list[float]:
    """Transactions of five changes at a steady rate of changes; when each was committed."""
    moments = list[float]()
    with psycopg.connect(dsn, autocommit=True) as connection:
        begun = time.time()
        while (at := begun + len(moments) * 5 / rate) < begun + seconds:
            time.sleep(max(0.0, at - time.time()))
            connection.execute("SELECT sell(%s, 1000)", [first + len(moments)])
            moments.append(time.time())
    return moments


def beside(seconds: float = 45) -> Figures:
    """Seconds from commit to visible at 100 changes a second, alone and beside full refreshes."""
    found: Figures = {}
    with _source() as (server, folder):
        _shop(server, {"big": _RECORDS})
        folder.configure({"serve": {"schedule": far_away()}, "tables": _ORDERS})
        folder.command("serve", "--once")
        first = 25_000
        for title, every in (("alone", ""), ("beside a full refresh", "every 10s")):
            schedule = far_away() | ({"full_refresh": every} if every else {})
            folder.configure({"serve": {"schedule": schedule}, "tables": _ORDERS})
            with folder.running() as service:
                until(service.is_ready)
                time.sleep(_SETTLED)
                moments = _sell(server.dsn(), first, 100, seconds)
                first += len(moments)
                _wait_for(folder, moments[-1])
                found[title] = {**_latency(folder, moments), "peak": service.peak}
        rows = folder.records("runs").filter(pl.col("source_table") == "public.big")
        found["refreshes"] = {
            "count": rows.filter(pl.col("status").is_in(["landed", "unchanged"])).height,
            "p50": rows["seconds"].drop_nulls().median(),
        }
    return found


def _wait_for(folder: Folder, moment: float) -> None:
    until(lambda: _landed(folder)[0][-1] >= moment - 0.5)


def _landed(folder: Folder) -> tuple[Any, Any]:
    """Up to when all had landed, and when that was known, of each batch of a stream."""
    rows = folder.records("streams").sort("recorded_timestamp")
    rows = rows.filter(pl.col("source_commit_timestamp").is_not_null())
    columns = ("source_commit_timestamp", "recorded_timestamp")
    landed, known = (rows[name].dt.epoch("us").to_numpy() / 1e6 for name in columns)
    return landed, known


def _latency(folder: Folder, moments: list[float]) -> dict[str, float]:
    landed, known = _landed(folder)
    committed = np.array(moments)
    # A transaction lands in the first batch whose last one is not before it.
    at = np.minimum(np.searchsorted(landed, committed), len(known) - 1)
    return percentiles(list(known[at] - committed))


def memory() -> Figures:
    """The peaks of a process that does everything at once, at two limits."""
    found: Figures = {}
    for limit in ("512MB", "1GB"):
        with _source() as (server, folder):
            _shop(server, {"first": 500_000, "second": 500_000})
            schedule = {**far_away(), "verify": "every 25s", "maintain": "every 30s"}
            tables = {
                **_ORDERS,
                "first": {"schedule": "every 10s"},
                "second": {"schedule": "every 11s"},
            }
            folder.configure(
                {"serve": {"schedule": schedule}, "tables": tables, "run": {"memory": limit}}
            )
            with folder.running() as service:
                until(service.is_ready)
                _sell(server.dsn(), 25_000, 500, 90)
                rows = folder.records("runs").filter(pl.col("status") != "began")
                found[limit] = {
                    "resident": service.resident,
                    "peak": service.peak,
                    "works": dict(rows.group_by("command").len().iter_rows()),
                    "failed": rows.filter(pl.col("status") == "failed").height,
                }
    return found


PARTS: Mapping[str, Callable[[], Figures]] = {
    part.__name__: part for part in (idle, many, due, history, outage, beside, memory)
}


def show(figures: Mapping[str, Figures]) -> None:
    """Prints the figures: shares of a core in percent, memory in MB, times in seconds."""
    grid = Table(title="The service", title_justify="left")
    for heading in ("part", "of", "figures"):
        grid.add_column(heading)
    for part, found in figures.items():
        for title, value in found.items():
            cells = value if isinstance(value, dict) else {"": value}
            text = ", ".join(f"{name} {_text(title, name, cell)}" for name, cell in cells.items())
            grid.add_row(part, title, text.strip())
    Console(width=120).print(grid)


def _text(title: str, name: str, cell: Any) -> str:
    name = name or title
    if name == "core":
        return f"{cell:.2%}"
    if name in ("anonymous", "peak", "resident"):
        return f"{cell / 1e6:.0f} MB"
    return f"{cell:.3f} s" if isinstance(cell, float) else f"{cell}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    figures = {name: PARTS[name]() for name in given.only}
    show(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
