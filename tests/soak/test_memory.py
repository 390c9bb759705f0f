"""Long proofs: consistency under load, memory that does not grow."""

from __future__ import annotations

import json
import os
import random
import re
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

from bronze.cdc import stream
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.ingest import pipeline
from tests.support.content import differences

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
    return loading.parse(
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


@pytest.mark.slow
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
from bronze.config import loading
from bronze.ingest import pipeline
settings = loading.parse(json.loads(sys.argv[1]))
(result,) = pipeline.run(settings, sys.argv[2:]).tables
print(json.dumps({"status": result.status, "updated": result.updated, "peak": max(seen),
                  "hint": result.error.hint if result.error else ""}))
"""
)


def outcome(settings: Settings, table: str) -> dict[str, Any]:
    """What a run in a process of its own did, and its peak."""
    return process(RUN, settings, table)


def process(code: str, settings: Settings, table: str) -> dict[str, Any]:
    """What a process of its own says, which is given a config and a table."""
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", code, document, table], stdout=subprocess.PIPE, check=True
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
@pytest.mark.parametrize("pattern", [pytest.param("full_refresh", marks=pytest.mark.slow), "batch"])
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
    """Neither a reload nor a run without changes takes more memory."""
    settings = settings_for(lines, tmp_path, "512MB", {"keyless": {}})
    first, second = outcome(settings, "keyless"), outcome(settings, "keyless")
    assert (first["status"], second["status"]) == ("landed", "unchanged")
    assert max(first["peak"], second["peak"]) <= settings.run.memory


LARGE = {
    # Rows of 20 MB among small ones, many of 1.5 MB, many whose pages do not tell their size, and
    # rows of as many columns as there can be.
    "large": (
        "CREATE TABLE {t} (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO {t} SELECT i, 0, CASE WHEN i % 500 = 1 THEN (SELECT string_agg("
        "md5((i * j)::text), '') FROM generate_series(1, 625000) j) ELSE 'small' END"
        " FROM generate_series(1, 2500) i",
    ),
    "documents": (
        "CREATE TABLE {t} (id int PRIMARY KEY, n int, v jsonb)",
        "INSERT INTO {t} SELECT i, 0, to_jsonb((SELECT string_agg(md5((i * j)::text), '')"
        " FROM generate_series(1, 47000) j)) FROM generate_series(1, 300) i",
    ),
    "packed": (
        "CREATE TABLE {t} (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO {t} SELECT i, 0, repeat('a', 120000 + i) FROM generate_series(1, 6000) i",
    ),
    "wide": (
        "CREATE TABLE {t} (id int PRIMARY KEY, n int, "
        + ", ".join(f"c{i} text" for i in range(1500))
        + ")",
        "INSERT INTO {t} SELECT i, 0, "
        + ", ".join(f"((i * {i + 3}) % 997)::text" for i in range(1500))
        + " FROM generate_series(1, 6000) i",
    ),
}


@pytest.fixture(scope="module", params=sorted(LARGE))
def large(shop: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A table of large or wide rows."""
    with psycopg.connect(shop, autocommit=True) as connection:
        for statement in LARGE[request.param]:
            connection.execute(statement.replace("{t}", f"tests.{request.param}"))
        connection.execute("VACUUM ANALYZE")
        yield shop, request.param
        connection.execute(f"DROP TABLE tests.{request.param}")


# A file of a megabyte is a large one here, so that there is something to be clustered.
MAINTAINED = (
    WATCHED
    + """
import json, sys
from bronze.config import loading
from bronze.execution import budget
from bronze.delta.layout import optimize
from bronze.model.locations import Place
settings = loading.parse(json.loads(sys.argv[1]))
place = settings.place(settings.lake.schema_, "bz_" + sys.argv[2])
done = optimize.optimize_table(
    place,
    optimize.TableLayout(("n", "id"), 2**20),
    batch_id="018df7a0-0000-7000-8000-00000000000b",
    memory=budget.rewrite_memory(settings.run.memory, settings.run.workers),
    each=lambda work, jobs: map(work, jobs),
)
print(json.dumps({"rows": done.rows, "peak": max(seen)}))
"""
)
PROVEN = (
    WATCHED
    + """
import json, sys
from bronze.config import loading
from bronze.verify.verify import verify
settings = loading.parse(json.loads(sys.argv[1]))
found = [verify(settings, sys.argv[2:], at_rest=rest).tables[0].status for rest in (False, True)]
print(json.dumps({"status": found, "peak": max(seen)}))
"""
)


@pytest.mark.slow
def test_large_rows_stay_within_the_memory(large: tuple[str, str], tmp_path: Path) -> None:
    """Landed, found unchanged, updated, clustered and proven, whatever room the rows take."""
    dsn, name = large
    settings = settings_for(dsn, tmp_path, "512MB", {name: {"pattern": "full_refresh"}})
    done = [outcome(settings, name), outcome(settings, name)]
    assert [one["status"] for one in done] == ["landed", "unchanged"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        count = connection.execute(f"UPDATE tests.{name} SET n = n + 1 WHERE id % 2 = 1").rowcount
    done.append(outcome(settings, name))
    assert (done[-1]["status"], done[-1]["updated"]) == ("landed", count)
    done += [process(MAINTAINED, settings, name), process(PROVEN, settings, name)]
    # What is packed in the source's pages is small in ours: it is one file, and needs nothing.
    assert (done[-2]["rows"] > 0) == (name != "packed")
    assert done[-1]["status"] == ["equal", "equal"]
    peaks = [one["peak"] for one in done]
    assert max(peaks) <= settings.run.memory, peaks


@pytest.mark.slow
def test_large_rows_are_streamed_within_the_memory(large: tuple[str, str], tmp_path: Path) -> None:
    """Copied, changed without their large values, which come from the table, and with them."""
    dsn, name = large
    settings = settings_for(dsn, tmp_path, "512MB", {name: {"pattern": "streaming"}})
    done = [streamed(settings, name)]
    column = "c7" if name == "wide" else "v"
    value = {"wide": "c8 || 'x'", "documents": "to_jsonb(n || (v #>> '{}'))"}.get(name, "n || v")
    for change in ("n = n + 1", f"{column} = {value}"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            # The rows that are large have odd numbers.
            count = connection.execute(
                f"UPDATE tests.{name} SET {change} WHERE id % 2 = 1"
            ).rowcount
        done.append(streamed(settings, name))
        assert done[-1]["updated"] == count
    stream.drop(settings)
    peaks = [one["peak"] for one in done]
    assert max(peaks) <= settings.run.memory, peaks
    assert process(PROVEN, settings, name)["status"] == ["equal", "equal"]


@pytest.mark.slow
def test_a_row_that_does_not_fit_is_refused_within_the_memory(shop: str, tmp_path: Path) -> None:
    """Two values of 100 MB are refused, by a run and by a stream; with what is asked for they
    land, within that.
    """
    with psycopg.connect(shop, autocommit=True) as connection:
        connection.execute("CREATE TABLE tests.huge (id int PRIMARY KEY, v text)")
        connection.execute(
            "INSERT INTO tests.huge SELECT i, (SELECT string_agg(md5((i * j)::text), '')"
            " FROM generate_series(1, 3125000) j) FROM generate_series(1, 2) i"
        )
    try:
        for pattern, run in (("full_refresh", outcome), ("streaming", streamed)):
            settings = settings_for(
                shop, tmp_path / pattern, "512MB", {"huge": {"pattern": pattern}}
            )
            done = run(settings, "huge")
            assert done["status"] == "failed"
            assert done["peak"] <= settings.run.memory
            enough = re.findall(r'to "(\d+MB)"', done["hint"])[0]
            settings = settings_for(
                shop, tmp_path / pattern, enough, {"huge": {"pattern": pattern}}
            )
            done = run(settings, "huge")
            assert done["status"] == "landed"
            assert done["peak"] <= settings.run.memory
            assert differences(settings) == {}
        stream.drop(settings)
    finally:
        with psycopg.connect(shop, autocommit=True) as connection:
            connection.execute("DROP TABLE tests.huge")


STREAM = (
    WATCHED
    + """
import json, sys
from pathlib import Path
from bronze.cdc import stream
from bronze.config import loading
settings = loading.parse(json.loads(sys.argv[1]))
(result,) = stream.stream(settings, sys.argv[2:], until_caught_up=True).tables
print(json.dumps({"status": result.status, "updated": result.updated, "peak": max(seen),
                  "hint": result.error.hint if result.error else ""}))
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


def streamed(settings: Settings, table: str = "lines") -> dict[str, Any]:
    """What a stream in a process of its own did until it had caught up, and its peak."""
    return process(STREAM, settings, table)
