"""Long proofs: consistency under load, memory that does not grow."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import psycopg
import pytest

from bronze import config, pipeline
from bronze.demo import inventory
from bronze.demo.server import Server
from tests.content import differences

pytestmark = pytest.mark.soak

SCALE = float(os.environ.get("BRONZE_SOAK_SCALE", "0.05"))


@pytest.fixture(scope="module")
def shop(server: Server) -> Iterator[str]:
    """The demo's source."""
    yield inventory.create(server.dsn(), scale=SCALE)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{inventory.DATABASE}" WITH (FORCE)')


def settings_for(dsn: str, lake: Path, memory: str = "1GB") -> config.Settings:
    """The demo's config."""
    return config.parse(
        {
            "source": {"name": "DE", "dsn": dsn, "schema": inventory.SCHEMA},
            "lake": {"root": str(lake), "schema": "inventory_bronze"},
            "run": {"workers": 2, "memory": memory},
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


RUN = """
import json, sys
from pathlib import Path
from bronze import config, pipeline
settings = config.parse(json.loads(sys.argv[1]))
result = pipeline.run(settings, sys.argv[2:])
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"code": result.exit_code, "peak": peak}))
"""


@pytest.mark.parametrize("memory", ["512MB", "1GB"])
def test_a_run_stays_within_its_memory(shop: str, tmp_path: Path, memory: str) -> None:
    """The peak of the whole process, libraries included, stays below the config's memory."""
    with psycopg.connect(shop, autocommit=True) as connection:
        connection.execute("""
            CREATE TABLE IF NOT EXISTS tests.lines AS
            SELECT l.*, g FROM tests.order_details l,
                 generate_series(1, (2000000 / (SELECT count(*) FROM tests.order_details))::int) g
        """)
        connection.execute("ANALYZE tests.lines")
    settings = settings_for(shop, tmp_path, memory)
    document = settings.model_dump_json(by_alias=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, document, "lines"], stdout=subprocess.PIPE, check=True
    )
    outcome = json.loads(done.stdout)
    assert outcome["code"] == 0
    assert outcome["peak"] <= settings.run.memory
