"""Streaming, from commit in PostgreSQL to readable in Delta: ``python -m benchmarks.stream``.

The load is like an order system's: a transaction inserts an order with three details and updates
the total of one of the last thousand orders (``--random`` updates any order). The stream is
``bronze stream`` in a process of its own; PostgreSQL runs on the same cores.

``catchup``: the stream is stopped, transactions of ``--changes`` row changes are committed, and the
stream is timed until it has caught up. ``rates``: transactions are committed at a steady rate; the
latency of each is the time until the record of the batch that it landed in is there. Both on the
same tables: ``rates catchup``. Several ``--rows`` show what the tables' size costs. With
``--vectors without with`` each is measured twice, on tables of their own: as by default, and with
``deletion_vectors = true``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
from rich.console import Console

from bronze.demo.server import running

_CHANGES = 5
SCHEMA = """
CREATE TABLE orders (
    order_id int8 PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL,
    total numeric(12,2) NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL
);
CREATE TABLE order_details (
    detail_id int8 PRIMARY KEY, order_id int8 NOT NULL, product_id int NOT NULL,
    quantity int NOT NULL, unit_price numeric(12,2) NOT NULL, discount numeric(5,4) NOT NULL,
    note text
);
CREATE FUNCTION sell(n int8, reach int8) RETURNS void LANGUAGE sql AS $$
    INSERT INTO orders VALUES (n, (n * 7919) % 100000, 'new', (n % 1000) / 7.0, now(), now());
    INSERT INTO order_details SELECT n * 3 + i, n, (n * 31 + i) % 10000, 1 + (n + i) % 9,
        ((n * 13 + i) % 99999) / 100.0, 0.05, CASE WHEN n % 9 = 0 THEN 'gift' END
    FROM generate_series(0, 2) i;
    UPDATE orders SET total = total + 1, status = 'paid', updated_at = now()
    WHERE order_id = n - 1 - (n * 7919) % reach;
$$;
CREATE PROCEDURE sell_many(first int8, count int8, reach int8) LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN first .. first + count - 1 LOOP
        PERFORM sell(n, reach);
        COMMIT;
    END LOOP;
END $$;
"""
FILL = """
INSERT INTO orders SELECT g, (g * 7919) % 100000, 'new', (g % 1000) / 7.0, now(), now()
FROM generate_series(0::int8, %(orders)s - 1) g;
INSERT INTO order_details SELECT g, g / 3, (g * 31) % 10000, 1 + g % 9, (g % 99999) / 100.0, 0.05,
    CASE WHEN g % 27 = 0 THEN 'gift' END
FROM generate_series(0::int8, %(orders)s * 3 - 1) g;
ANALYZE orders, order_details;
"""


class Shop:
    """The source, its lake, and the stream between them."""

    def __init__(
        self, folder: Path, dsn: str, rows: int, reach: int, memory: str, vectors: bool
    ) -> None:
        self.dsn, self.lake = dsn, folder / "lake"
        # Three details to an order.
        self.next, self.reach = max(rows // 4, 1000), reach
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(SCHEMA)
            filled = FILL.replace("%(orders)s", str(self.next))
            connection.execute(filled)
        self.reach = reach or self.next
        self.config = folder / "bronze.toml"
        self.config.write_text(
            f"""
            [source]
            name = "shop"
            dsn = "{dsn}"
            [lake]
            root = "{self.lake}"
            [run]
            workers = 2
            memory = "{memory}"
            [tables.orders]
            pattern = "streaming"
            deletion_vectors = {str(vectors).lower()}
            [tables.order_details]
            pattern = "streaming"
            deletion_vectors = {str(vectors).lower()}
            """
        )

    def caught_up(self) -> tuple[float, int, dict[str, object]]:
        """Seconds and peak bytes of a stream until it has caught up, and what it says."""
        began = time.monotonic()
        with subprocess.Popen(
            [*_BRONZE, "stream", "--until-caught-up", "--json", "-c", str(self.config)],
            stdout=subprocess.PIPE,
        ) as process:
            watch = _Peak(process.pid)
            out = process.communicate()[0]
        if process.returncode:
            raise SystemExit(out.decode())
        return time.monotonic() - began, watch.stop(), json.loads(out)

    def sell(self, count: int) -> None:
        """Commits so many transactions, as fast as it goes."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CALL sell_many({self.next}, {count}, {self.reach})")
        self.next += count

    @contextmanager
    def streaming(self) -> Iterator[_Peak]:
        """A stream that goes on beside."""
        process = subprocess.Popen(
            [*_BRONZE, "stream", "--json", "-c", str(self.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        watch = _Peak(process.pid)
        try:
            yield watch
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            watch.stop()

    def records(self) -> pl.DataFrame:
        """The stream's records."""
        place = self.lake / "governance" / "streams"
        return pl.read_delta(str(place)).sort("recorded_timestamp")


_BRONZE = [sys.executable, "-m", "bronze"]


class _Peak:
    """The most memory that a process has taken, in bytes."""

    def __init__(self, pid: int) -> None:
        self._path, self.peak, self.now = Path(f"/proc/{pid}/status"), 0, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                text = self._path.read_text()
            except OSError:
                return
            if "VmHWM:" in text:
                self.peak = int(text.partition("VmHWM:")[2].split()[0]) * 1024
                self.now = int(text.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self) -> int:
        """Ends watching."""
        self._stopped.set()
        self._thread.join()
        return self.peak


def steady(shop: Shop, rate: int, seconds: int) -> dict[str, float]:
    """A load of ``rate`` changes a second; latencies in seconds, per change."""
    with shop.streaming() as watch:
        _until(lambda: shop.records().height > 0)
        time.sleep(3)
        began = time.time()
        moments = _load(shop, rate, seconds)
        last = moments[-1]
        _until(
            lambda: (
                shop.records()["source_commit_timestamp"].dt.epoch("us") >= (last - 0.5) * 1e6
            ).any()
        )
    records = shop.records().filter(pl.col("source_commit_timestamp").dt.epoch("us") >= began * 1e6)
    landed = records["source_commit_timestamp"].dt.epoch("us").to_numpy() / 1e6
    known = records["recorded_timestamp"].dt.epoch("us").to_numpy() / 1e6
    at = np.searchsorted(landed, np.array(moments))
    # A transaction lands in the first batch whose last one is not before it.
    late = known[np.minimum(at, len(known) - 1)] - np.array(moments)
    return {
        "rate": len(moments) * _CHANGES / (moments[-1] - moments[0]),
        "p50": float(np.percentile(late, 50)),
        "p95": float(np.percentile(late, 95)),
        "p99": float(np.percentile(late, 99)),
        "max": float(late.max()),
        "peak": watch.peak,
    }


def _load(shop: Shop, rate: int, seconds: int) -> list[float]:
    moments = []
    pause = _CHANGES / rate
    with psycopg.connect(shop.dsn, autocommit=True) as connection:
        began = time.time()
        due = began
        while due < began + seconds:
            connection.execute("SELECT sell(%s, %s)", [shop.next, shop.reach])
            shop.next += 1
            moments.append(time.time())
            due += pause
            time.sleep(max(0.0, due - time.time()))
    return moments


def _until(true: Callable[[], bool], patience: float = 600) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        # The first record is still to come.
        with suppress(Exception):
            if true():
                return
        time.sleep(0.2)
    raise SystemExit("The stream did not get there.")


@contextmanager
def shop(
    rows: int, reach: int, memory: str, vectors: bool = False, **settings: str
) -> Iterator[Shop]:
    """A source with about ``rows`` rows in two tables."""
    fast = {"fsync": "off", "synchronous_commit": "off", "max_wal_size": "8GB", **settings}
    with (
        tempfile.TemporaryDirectory(prefix="bronze-bench-") as data,
        tempfile.TemporaryDirectory(prefix="bronze-lake-") as lake,
        running(Path(data) / "data", settings=fast) as server,
    ):
        yield Shop(Path(lake), server.dsn(), rows, reach, memory, vectors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=("catchup", "rates"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, nargs="+", default=[100, 1_000, 5_000])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--random", action="store_true", help="update any order")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument(
        "--vectors",
        nargs="+",
        choices=("without", "with"),
        default=["without"],
        help="deletion vectors, or both one after the other",
    )
    given = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    for rows, vectors in product(given.rows, given.vectors):
        with shop(rows, 0 if given.random else 1000, given.memory, vectors == "with") as one:
            console.print(f"{vectors} deletion vectors:")
            seconds, peak, _ = one.caught_up()
            console.print(f"{rows:,} rows copied in {seconds:.1f} s, peak {peak / 1e6:.0f} MB")
            if "rates" in given.what:
                for rate in given.rate:
                    console.print(_steady_line(rows, steady(one, rate, given.seconds)))
            if "catchup" in given.what:
                console.print(_catch_up_line(one, given.changes))


def _steady_line(rows: int, found: Mapping[str, float]) -> str:
    return (
        f"{rows:,} rows, {found['rate']:,.0f} changes a second: p50 {found['p50']:.2f}"
        f" p95 {found['p95']:.2f} p99 {found['p99']:.2f} max {found['max']:.2f} s,"
        f" peak {found['peak'] / 1e6:.0f} MB"
    )


def _catch_up_line(one: Shop, changes: int) -> str:
    one.sell(changes // _CHANGES)
    seconds, peak, said = one.caught_up()
    return (
        f"{said['changes']:,} changes caught up in {seconds:.1f} s:"
        f" {int(str(said['changes'])) / seconds:,.0f} a second, in {said['batches']}"
        f" batches, peak {peak / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
