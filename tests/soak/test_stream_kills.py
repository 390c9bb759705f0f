"""Streams under fire: kills, restarts, cuts, silence and a full lake, while the source goes on."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze import failpoint
from bronze.cdc import stream
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.demo import inventory
from bronze.demo import server as postgres
from bronze.demo.server import Server
from bronze.errors import BronzeError
from bronze.governance.tables import streams
from bronze.model.events import BatchApplied, StreamEvent
from tests.conftest import Source, without_slots
from tests.soak.test_run_kills import changing
from tests.support import feed
from tests.support.content import differences
from tests.support.proxy import proxied

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("BRONZE_SOAK_KILLS", "8"))
COMMAND = [sys.executable, "-m", "bronze", "stream"]


def until(true: Callable[[], object], patience: float = 60) -> None:
    """Waits until something is true."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "what the test waits for did not come"
        time.sleep(0.02)


def caught_up(given: Settings) -> None:
    """Streams until all that is committed has landed."""
    result = stream.stream(given, until_caught_up=True)
    assert [table.error for table in result.tables if table.error] == []


def records(lake: Path) -> pl.DataFrame:
    """What the stream has recorded, in the order of its being recorded."""
    return pl.read_delta(str(lake / "governance" / "streams")).sort("recorded_timestamp")


def moments(lake: Path, count: int) -> list[Mapping[str, int]]:
    """The versions of the tables at some records, from the first to the last."""
    texts = [json.dumps(at) for _, at in streams.with_versions(records(lake))]
    whole = [at for at in map(json.loads, dict.fromkeys(texts)) if None not in at.values()]
    return whole[:: max(1, len(whole) // count)]


def proven(given: Settings, lake: Path, tables: Sequence[str]) -> None:
    """The tables equal the source, their feeds are true, and no position has gone back."""
    assert differences(given) == {}
    for name in tables:
        folder = lake / "bronze" / f"bz_{name}"
        assert (name, feed.faults(folder)) == (name, [])
        reached = feed.positions(folder)
        assert reached == sorted(reached)
    positions = records(lake)["position"].to_list()
    assert positions == sorted(positions)


# The demo's business, killed at each step

SHOP = ("inventory", "order_details", "orders")
# Only a copy comes by these.
COPYING = ("slotted", "planned", "read", "booked", "cleaned")
NEVER = ("expiring", "expired")


@pytest.fixture
def shop(server: Server) -> Iterator[str]:
    """The demo's source, small."""
    yield inventory.create(server.dsn(), scale=0.004)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        without_slots(admin, inventory.DATABASE)
        admin.execute(f'DROP DATABASE "{inventory.DATABASE}" WITH (FORCE)')


def shop_file(dsn: str, folder: Path) -> Path:
    """A bronze.toml that streams three of the demo's tables."""
    folder.mkdir(exist_ok=True)
    path = folder / "bronze.toml"
    excluded = json.dumps(sorted(set(inventory.SIZES) - set(SHOP)))
    path.write_text(
        f'[source]\nname = "DE"\ndsn = "{dsn}"\nschema = "{inventory.SCHEMA}"\n'
        f'exclude = {excluded}\n[lake]\nroot = "{folder / "lake"}"\nschema = "bronze"\n'
        "[run]\nworkers = 2\nmax_retries = 0\nretry_delay = 0\n[stream]\ninterval = 0\n"
        + "".join(f'[tables.{name}]\npattern = "streaming"\n' for name in SHOP)
    )
    return path


def execute(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """Runs one statement in the demo's schema, committed."""
    options = f"-csearch_path={inventory.SCHEMA}"
    with psycopg.connect(dsn, autocommit=True, options=options) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


IDLE = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'bronze_de' AND active"


def slot_lost(dsn: str) -> None:
    """The slot goes, and all tables have to be compared."""
    until(lambda: not execute(dsn, IDLE))
    execute(dsn, "SELECT pg_drop_replication_slot('bronze_de')")


def slot_moved(dsn: str) -> None:
    """The slot passes over changes, and the tables have to be compared."""
    until(lambda: not execute(dsn, IDLE))
    execute(dsn, "SELECT pg_replication_slot_advance('bronze_de', pg_current_wal_lsn())")


def keys_changed(dsn: str, day: int) -> None:
    """Rows get other keys, large values stay as they are, rows come back under an old key."""
    execute(
        dsn,
        f"UPDATE inventory SET inventory_id = inventory_id + 1000000 WHERE inventory_id ="
        f" (SELECT min(inventory_id) FROM inventory WHERE inventory_id > {day})",
    )


def killed(path: Path, point: str, times: int) -> int:
    """A stream that catches up, killed at a failpoint; its exit code."""
    done = subprocess.run(
        [*COMMAND, "--until-caught-up", "-c", str(path)],
        env={**os.environ, "BRONZE_FAILPOINT": f"{point}:{times}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def torn(lake: Path, at: Mapping[str, int]) -> set[int]:
    """Orders without lines and lines without orders: each day's transaction makes both."""
    rows = {
        name: pl.read_delta(
            str(lake / "bronze" / f"bz_{name}"), version=at[f"bronze.bz_{name}"]
        ).filter(pl.col("record_status") == "ACTIVE")["order_id"]
        for name in ("orders", "order_details")
    }
    return set(rows["orders"]) ^ set(rows["order_details"])


@pytest.mark.slow
def test_the_next_stream_completes_one_killed_at_any_failpoint(shop: str, tmp_path: Path) -> None:
    """Wherever a stream dies, the next one leaves all as if it never had, at every record."""
    path = shop_file(shop, tmp_path)
    given, lake = loading.load(path), tmp_path / "lake"
    caught_up(given)
    childless = execute(shop, LONELY)
    days = itertools.count()
    later = [("file", 3), ("netted", 2), ("merged", 3), ("inserted", 3), ("commit", 4)]
    later += [("committed", 2), ("landed", 2), ("recorded", 2), ("read", 2), ("booked", 3)]
    later += [("cleaned", 2), ("file", 7), ("committed", 7), ("recorded", 3), ("netted", 5)]
    reached = []
    begin = [(p, 1) for p in failpoint.POINTS if p not in (*NEVER, "rewritten")]
    for point, times in [*begin, *later]:
        for attempt in range(10):
            day = next(days)
            inventory.change_day(shop, seed=day)
            keys_changed(shop, day)
            if point in COPYING or attempt > 2:
                (slot_lost, slot_moved)[(attempt + times) % 2](shop)
            with changing(shop, day):
                code = killed(path, point, times)
            inventory.change_day(shop, seed=1000 + day)
            caught_up(given)
            assert differences(given) == {}
            if code:
                reached.append((point, times))
                break
    assert reached == [*begin, *later]
    proven(given, lake, SHOP)
    assert execute(shop, LONELY) == childless == []
    found = moments(lake, 25)
    assert len(found) >= 20
    assert [torn(lake, at) for at in found] == [set()] * len(found)


LONELY = """
SELECT order_id FROM orders WHERE NOT EXISTS
    (SELECT FROM order_details d WHERE d.order_id = orders.order_id)
"""


def test_killed_while_the_layout_is_improved(shop: str, tmp_path: Path) -> None:
    """A stream that runs on tidies up beside it; killed there, nothing is amiss."""
    path = shop_file(shop, tmp_path)
    given = loading.load(path)
    caught_up(given)
    for day in range(2):
        with subprocess.Popen(
            [*COMMAND, "-c", str(path)],
            env={**os.environ, "BRONZE_FAILPOINT": f"rewritten:{day + 1}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                with changing(shop, day):
                    assert process.wait(120) == -signal.SIGKILL
            finally:
                process.kill()
        caught_up(given)
        proven(given, tmp_path / "lake", SHOP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "times"),
    [
        *[("slotted", 1), ("planned", 1), ("file", 2), ("read", 2), ("booked", 1), ("commit", 1)],
        *[("committed", 2), ("landed", 3), ("commit", 4), ("recorded", 1)],
    ],
)
def test_a_killed_table_sync_is_repeated(shop: str, tmp_path: Path, point: str, times: int) -> None:
    """The next stream repeats a table sync that was killed, with a slot or without one."""
    path = shop_file(shop, tmp_path)
    assert killed(path, point, times) == -signal.SIGKILL
    inventory.change_day(shop, seed=times)
    keys_changed(shop, 1)
    caught_up(loading.load(path))
    inventory.change_day(shop, seed=times + 1)
    caught_up(loading.load(path))
    proven(loading.load(path), tmp_path / "lake", SHOP)


# Money that moves between two tables

ACCOUNTS = 60
TOTAL = ACCOUNTS * 2 * 1000
BOOKS = ("debit", "credit")


def settings(source: Source, **sections: Any) -> Settings:
    """A config that streams both tables."""
    given: dict[str, Any] = {
        "tables": {name: {"pattern": "streaming"} for name in BOOKS},
        "stream": {"interval": 0},
        "run": {"max_retries": 10, "retry_delay": 1},
    }
    return source.settings(**{**given, **sections})


def opened(source: Source) -> None:
    """Two tables whose sums are one in all."""
    for name in BOOKS:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL, memo text)")
        source.execute(f"ALTER TABLE {name} ALTER memo SET STORAGE EXTERNAL")
        source.execute(
            f"INSERT INTO {name} SELECT g, 1000, repeat(md5(g::text), 100)"
            f" FROM generate_series(1, {ACCOUNTS}) g"
        )


@dataclass
class Load:
    """What a load has done: transactions that were committed, and those that failed."""

    committed: int = 0
    failed: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def work(self, dsn: str, pause: float, seed: int) -> None:
        """Moves money about until it is stopped, whatever happens to the server."""
        dice = random.Random(seed)  # noqa: S311 - a load, no secret
        fresh = itertools.count(seed * 100_000 + 1000)
        while not self.stopped.is_set():
            with suppress(psycopg.Error), psycopg.connect(dsn, connect_timeout=5) as connection:
                while not self.stopped.wait(pause):
                    self.failed += 1
                    transfer(connection, dice, next(fresh))
                    connection.commit()
                    self.failed -= 1
                    self.committed += 1


def transfer(connection: psycopg.Connection[Any], dice: random.Random, fresh: int) -> None:
    """One transaction that leaves the sum of both tables what it was."""
    one, other = dice.sample(BOOKS, 2)
    run = connection.execute
    for _ in range(dice.randint(1, 3)):
        amount, giver, taker = dice.randint(1, 50), *dice.choices(range(1, ACCOUNTS + 1), k=2)
        moved = run(f"UPDATE {one} SET n = n - {amount} WHERE id = {giver} RETURNING 1").rowcount
        given = run(f"UPDATE {other} SET n = n + {amount} WHERE id = {taker} RETURNING 1").rowcount
        if moved != given:
            connection.rollback()
    if dice.random() < 0.3:
        run(f"INSERT INTO {one} VALUES ({fresh}, 5, repeat('x', 3000))")
        run(f"INSERT INTO {other} VALUES ({fresh}, -5, NULL)")
    if dice.random() < 0.2:
        run(f"UPDATE {one} SET id = -id WHERE id > 1000 AND id % 7 = {dice.randint(0, 6)}")
    if dice.random() < 0.2:
        run(
            f"WITH gone AS (DELETE FROM {one} WHERE id < 0 RETURNING n)"
            f" INSERT INTO {other} SELECT {fresh + 50_000}, sum(n) FROM gone HAVING count(*) > 0"
        )


@contextmanager
def loaded(dsn: str, pause: float = 0.01, seed: int = 1) -> Iterator[Load]:
    """A load that goes on until the context ends."""
    load = Load()
    thread = threading.Thread(target=load.work, args=(dsn, pause, seed))
    thread.start()
    try:
        yield load
    finally:
        load.stopped.set()
        thread.join()


def balance(lake: Path, at: Mapping[str, int]) -> int:
    """The sum of both tables at a record."""
    return sum(
        int(
            pl.read_delta(str(lake / "bronze" / f"bz_{name}"), version=at[f"bronze.bz_{name}"])
            .filter(pl.col("record_status") == "ACTIVE")["n"]
            .sum()
        )
        for name in BOOKS
    )


def balanced(given: Settings, lake: Path, count: int = 60) -> None:
    """All is proven, and at each record the sum is what it always was."""
    proven(given, lake, BOOKS)
    found = moments(lake, count)
    assert [balance(lake, at) for at in found] == [TOTAL] * len(found)


@dataclass
class Running:
    """A stream that runs on in a thread."""

    steps: list[StreamEvent] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What it has told people."""
        return [step.message for step in self.steps if step.message]

    def landed(self) -> int:
        """How many changes have landed."""
        return sum(step.changes for step in self.steps if isinstance(step, BatchApplied))

    def lands(self) -> None:
        """Waits until something more has landed."""
        before = self.landed()
        until(lambda: self.landed() > before or self.errors)
        assert self.errors == []


@contextmanager
def streaming(given: Settings) -> Iterator[Running]:
    """A stream in a thread; at the end all that is committed has landed, and nothing failed."""
    stop, running = threading.Event(), Running()

    def work() -> None:
        try:
            result = stream.stream(given, stop=stop, notify=running.steps.append)
            running.errors += [BronzeError(t.error.message) for t in result.tables if t.error]
        except BaseException as error:
            running.errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield running
        until(lambda: running.errors or differences(given) == {}, 120)
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert running.errors == []


CHILD = """
import json, sys
from bronze.cdc import stream
from bronze.config import loading
settings = loading.parse(json.loads(sys.argv[1]))
sys.stdin.readline()
stream.stream(settings)
"""


@contextmanager
def spare(given: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has all it needs to stream, and waits for the word."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, given.model_dump_json(by_alias=True, exclude_unset=True)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[bytes]) -> None:
    """Gives the word."""
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_killed_at_random_under_load(source: Source) -> None:
    """Many kills of a stream: no change is lost, applied twice or shown in part."""
    opened(source)
    given = settings(source)
    dice = random.Random(7)  # noqa: S311 - a load, no secret
    grown = 0
    with ExitStack() as stack, loaded(source.dsn, 0.02) as load:
        waiting = stack.enter_context(spare(given))
        for number in range(KILLS):
            running, waiting = waiting, stack.enter_context(spare(given))
            before = _recorded(source)
            go(running)
            if number % 2:
                until(lambda: _recorded(source) > before + 1 or running.poll())  # noqa: B023
            with suppress(subprocess.TimeoutExpired):
                running.wait(dice.uniform(0, 1.5))
            assert running.poll() is None
            running.kill()
            running.wait()
            grown += _recorded(source) > before
    assert load.failed == 0
    assert grown >= KILLS // 2
    caught_up(given)
    balanced(given, source.lake, 200)


def _recorded(source: Source) -> int:
    return len(list((source.lake / "governance" / "streams" / "_delta_log").glob("*[0-9].json")))


# A server that dies, and a way to it that is cut

SLOW = {"max_connections": "40", "wal_sender_timeout": "3s"}


def test_a_stream_survives_a_server_crash(tmp_path: Path) -> None:
    """The stream finds a server that was killed and has recovered, and goes on by itself."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="bronze-tests-")))
    try:
        with postgres.running(folder / "data", settings=SLOW) as server:
            source = Source(server.dsn(), tmp_path / "lake")
            opened(source)
            given = settings(source)
            with streaming(given) as running, loaded(source.dsn, 0.005) as load:
                running.lands()
                for _ in range(6):
                    server.stop("immediate")
                    restarted = postgres.start(server.data, port=server.port, settings=SLOW)
                    assert restarted == server
                    running.lands()
                    running.lands()
                load.stopped.set()
            assert load.failed
            assert any("Again" in note for note in running.notes())
            balanced(given, source.lake)
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_stream_survives_repeated_connection_losses(
    source: Source, server: Server, how: str
) -> None:
    """Whether connections are cut, or say nothing any more, the stream makes them again."""
    opened(source)
    database = source.execute("SELECT current_database()")[0][0]
    source.execute(f"ALTER DATABASE {database} SET wal_sender_timeout = '3s'")
    dice = random.Random(3)  # noqa: S311 - a load, no secret
    with proxied(server) as proxy:
        given = settings(Source(proxy.dsn(database), source.lake))
        with streaming(given) as running, loaded(source.dsn, 0.01) as load:
            running.lands()
            for _ in range(8 if how == "stall" else 25):
                load.stopped.wait(dice.uniform(0, 0.5))
                getattr(proxy, how)()
                running.lands()
        assert load.failed == 0
        assert any("Again" in note for note in running.notes())
        balanced(given, source.lake)


@pytest.mark.slow
def test_a_stream_survives_a_full_lake(source: Source, tmp_path: Path) -> None:
    """The stream waits, says so, and lands all of it once there is room; no table is given up."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    done = subprocess.run(mounting, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        opened(source)
        given = settings(source, lake={"root": str(folder / "lake")}, maintain={"auto": False})
        with streaming(given) as running:
            with loaded(source.dsn, 0.02) as load:
                running.lands()
                for number in range(4):
                    filler = folder / "filler"
                    with suppress(OSError), filler.open("wb", buffering=0) as file:
                        while True:
                            file.write(bytes(4096))
                    told = len(running.notes()) + number
                    until(lambda least=told: len(running.notes()) > least)  # type: ignore[misc]
                    assert "no space left" in running.notes()[-1]
                    filler.unlink()
                    running.lands()
                    running.lands()
            assert load.failed == 0
        balanced(given, folder / "lake")
        held = pl.read_delta(str(folder / "lake" / "governance" / "streams"))
        assert held["tables"].str.contains("null").sum() == 0
        names = {name for text in held["tables"] for name in json.loads(text)}
        assert names == {f"bronze.bz_{name}" for name in BOOKS}
    finally:
        unmounting = ["umount", "--lazy", str(folder)]
        subprocess.run(unmounting, check=True)
