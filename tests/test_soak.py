"""Long proofs: consistency under load, memory that does not grow."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze import config, pipeline, stream
from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.settings import Settings
from tests.content import differences

pytestmark = pytest.mark.soak

SCALE = float(os.environ.get("BRONZE_SOAK_SCALE", "0.05"))


@pytest.fixture(scope="module")
def shop(server: Server) -> Iterator[str]:
    """The demo's source."""
    yield inventory.create(server.dsn(), scale=SCALE)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{inventory.DATABASE}" WITH (FORCE)')


def settings_for(
    dsn: str, lake: Path, memory: str = "1GB", tables: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """The demo's config."""
    chosen = {"tables": sorted(tables)} if tables else {}
    return config.parse(
        {
            "source": {"name": "DE", "dsn": dsn, "schema": inventory.SCHEMA, **chosen},
            "lake": {"root": str(lake), "schema": "inventory_bronze"},
            "run": {"workers": 2, "memory": memory},
            "tables": dict(tables),
        }
    )


TRANSFER = """
WITH picked AS (
    SELECT i.inventory_id, s.stock_level_id FROM tests.inventory i, tests.stock_levels s
    WHERE i.inventory_id = %(inventory)s AND s.stock_level_id = %(stock)s
), taken AS (
    UPDATE tests.inventory i SET quantity_available = quantity_available - %(count)s FROM picked p
    WHERE i.inventory_id = p.inventory_id
)
UPDATE tests.stock_levels s SET {column} = {column} + %(count)s FROM picked p
WHERE s.stock_level_id = p.stock_level_id
"""
COLUMN = "quantity_on_hand"


@contextmanager
def transfers(dsn: str) -> Iterator[None]:
    """Moves goods between inventory and stock_levels, all the time, in transactions."""
    stopped = threading.Event()
    dice = random.Random(1)  # noqa: S311 - a load, no secret

    def move() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            highest = [
                connection.execute(f"SELECT max({key}) FROM tests.{table}").fetchone()
                for table, key in (
                    ("inventory", "inventory_id"),
                    ("stock_levels", "stock_level_id"),
                )
            ]
            while not stopped.is_set():
                connection.execute(
                    TRANSFER.format(column=COLUMN),
                    {
                        "inventory": dice.randint(1, highest[0][0]),  # type: ignore[index]
                        "stock": dice.randint(1, highest[1][0]),  # type: ignore[index]
                        "count": dice.randint(-50, 50),
                    },
                )

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def balance(lake: Path) -> int:
    """All goods in the lake."""
    folder = lake / "inventory_bronze"
    left = pl.read_delta(str(folder / "bz_inventory"))["quantity_available"].sum()
    return int(left) + int(pl.read_delta(str(folder / "bz_stock_levels"))[COLUMN].sum())


def test_transfers_between_tables_balance_in_every_run(shop: str, tmp_path: Path) -> None:
    """Twenty runs beside transfers: no run ever shows one half of a transfer."""
    settings = settings_for(shop, tmp_path)
    query = f"""
        SELECT (SELECT sum(quantity_available) FROM tests.inventory)
             + (SELECT sum({COLUMN}) FROM tests.stock_levels)
    """
    with psycopg.connect(shop) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        total = int(row[0])
    with transfers(shop):
        for _ in range(20):
            result = pipeline.run(settings)
            assert result.exit_code == 0
            assert balance(tmp_path) == total
    pipeline.run(settings)
    assert differences(settings) == {}


# Of the libraries' own files the kernel maps 90 to 240 MB, as it likes (more of files that were
# written just now), and drops them when memory is short: they are no memory that a run takes.
WATCHED = """
import threading, time
from pathlib import Path
seen = [0]
def watch():
    while True:
        status = Path("/proc/self/status").read_text()
        seen.append(int(status.partition("RssAnon:")[2].split()[0]) * 1024)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
"""
RUN = (
    WATCHED
    + """
import json, sys
from pathlib import Path
from bronze import config, pipeline
settings = config.parse(json.loads(sys.argv[1]))
(result,) = pipeline.run(settings, sys.argv[2:]).tables
print(json.dumps({"status": result.status, "updated": result.updated, "peak": max(seen)}))
"""
)


def outcome(settings: Settings, table: str) -> dict[str, Any]:
    """What a run in a process of its own did, and its peak."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, document, table], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def lines(shop: str) -> Iterator[str]:
    """About two million rows with a key, in the order that they came in."""
    with psycopg.connect(shop, autocommit=True) as connection:
        connection.execute("""
            CREATE TABLE tests.lines AS
            SELECT row_number() OVER () AS line_id, l.* FROM tests.order_details l,
                 generate_series(1, (2000000 / (SELECT count(*) FROM tests.order_details))::int)
        """)
        connection.execute("ALTER TABLE tests.lines ADD PRIMARY KEY (line_id)")
        connection.execute("VACUUM ANALYZE tests.lines")
        connection.execute("CREATE TABLE tests.keyless AS TABLE tests.lines")
        yield shop
        connection.execute("DROP TABLE tests.lines, tests.keyless")


@pytest.mark.parametrize("memory", ["512MB", pytest.param("1GB", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pattern", ["full_refresh", "batch"])
def test_runs_stay_within_their_memory(
    lines: str, tmp_path: Path, memory: str, pattern: str
) -> None:
    """The peak of what the process takes stays below the config's memory.

    That is so when a table lands, when nothing is new, and when 100,000 rows are to be merged that
    lie all over the table.
    """
    settings = settings_for(lines, tmp_path, memory, {"lines": {"pattern": pattern}})
    first = outcome(settings, "lines")
    assert first["status"] == "landed"
    second = outcome(settings, "lines")
    assert second["status"] == "unchanged"
    with psycopg.connect(lines, autocommit=True) as connection:
        connection.execute("""
            UPDATE tests.lines SET quantity = quantity + 1 WHERE line_id IN (
                SELECT line_id FROM tests.lines ORDER BY hashint8(line_id) LIMIT 100000
            )
        """)
    third = outcome(settings, "lines")
    assert (third["status"], third["updated"]) == ("landed", 100_000)
    peaks = [one["peak"] for one in (first, second, third)]
    assert max(peaks) <= settings.run.memory, peaks
    assert differences(settings) == {}


def test_a_table_without_a_key_stays_within_its_memory(lines: str, tmp_path: Path) -> None:
    """Landing it anew, and finding that nothing has changed, as well."""
    settings = settings_for(lines, tmp_path, "512MB", {"keyless": {}})
    first, second = outcome(settings, "keyless"), outcome(settings, "keyless")
    assert (first["status"], second["status"]) == ("landed", "unchanged")
    assert max(first["peak"], second["peak"]) <= settings.run.memory


STREAM = (
    WATCHED
    + """
import json, sys
from pathlib import Path
from bronze import config, stream
settings = config.parse(json.loads(sys.argv[1]))
(result,) = stream.stream(settings, sys.argv[2:], until_caught_up=True).tables
print(json.dumps({"status": result.status, "updated": result.updated, "peak": max(seen)}))
"""
)


@pytest.mark.slow
def test_a_stream_stays_within_its_memory(lines: str, tmp_path: Path) -> None:
    """So does a stream: as it copies, with one transaction of half a million changes, with many."""
    settings = settings_for(lines, tmp_path, "512MB", {"lines": {"pattern": "streaming"}})
    peaks = [streamed(settings)["peak"]]
    update = "UPDATE tests.lines SET quantity = quantity + 1 WHERE line_id % 4 = 1"
    with psycopg.connect(lines, autocommit=True) as connection:
        connection.execute(update)
        second = streamed(settings)
        assert second["updated"] == 500_000
        for part in range(200):
            connection.execute(f"{update} AND line_id / 4 % 200 = {part}")
    third = streamed(settings)
    assert third["updated"] >= 500_000
    peaks += [second["peak"], third["peak"]]
    stream.drop(settings)
    assert max(peaks) <= settings.run.memory, peaks
    assert differences(settings) == {}


def streamed(settings: Settings) -> dict[str, Any]:
    """What a stream in a process of its own did until it had caught up, and its peak."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", STREAM, document, "lines"], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
