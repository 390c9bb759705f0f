"""One limit of memory for all that a process does at once, proven on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bronze.cdc import stream
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.demo.server import Server
from tests.soak.test_memory import WATCHED
from tests.support.content import differences

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(1800)]

ROWS = int(os.environ.get("BRONZE_SOAK_ROWS", "500000"))
DATABASE = "shares"
LONG = (
    "CREATE TABLE {t} AS SELECT i::bigint AS id, 0 AS n, i % 1000 AS product,"
    " (i % 977)::numeric(12, 2) / 7 AS price, now() - (i || ' s')::interval AS at,"
    " md5(i::text) AS code, md5((i * 3)::text) || md5((i * 5)::text) AS note"
    f" FROM generate_series(1, {ROWS}) i"
)
WIDE = (
    "CREATE TABLE {t} AS SELECT i AS id, 0 AS n, "
    + ", ".join(f"((i * {c + 3}) % 997)::text AS c{c}" for c in range(600))
    + f" FROM generate_series(1, {ROWS // 100}) i"
)
# The largest row that the least share takes has ten million bytes.
DOCUMENTS = (
    "CREATE TABLE {t} AS SELECT i AS id, 0 AS n, (SELECT string_agg(md5((i::bigint * j)::text), '')"
    " FROM generate_series(1, CASE WHEN i % 50 = 1 THEN 300000 ELSE 20000 END) j) AS v"
    f" FROM generate_series(1, {ROWS // 2500}) i"
)
KINDS = {"long": LONG, "wide": WIDE, "documents": DOCUMENTS}
PURPOSES = ("streamed", "first", "second")


@pytest.fixture(scope="module")
def tables(server: Server) -> Iterator[str]:
    """Long, wide and heavy tables: streamed ones, and two sets for two runs."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {DATABASE}")
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as connection:
        for purpose in PURPOSES:
            for kind, statement in KINDS.items():
                name = f"{purpose}_{kind}"
                connection.execute(statement.replace("{t}", name))
                connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
        connection.execute("VACUUM ANALYZE")
    yield server.dsn(DATABASE)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


# Two runs, a verification and maintenance beside a stream, over and over, as a service does them;
# rows of all tables change meanwhile. In the end all is brought up to date.
TOGETHER = (
    WATCHED
    + """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import psycopg
from bronze.api import recorded
from bronze.config import loading
from bronze.execution.memory_shares import MemoryShares
from bronze.execution.permits import Permits
settings = loading.parse(json.loads(sys.argv[1]))
tables = json.loads(sys.argv[2])
dsn = settings.source["DE"].dsn
ignore = lambda _: None
permits, stop, changed = Permits(settings.run.workers), threading.Event(), threading.Event()
shares = MemoryShares(settings.run.memory, streams=1, works=4)
waited, memories, failed, peaks = [], [], [], {}

def change():
    with psycopg.connect(dsn, autocommit=True) as connection:
        part = 0
        while not changed.is_set():
            for name in (*tables["streamed"], *tables["first"], *tables["second"]):
                connection.execute(f"UPDATE {name} SET n = n + 1 WHERE id % 40 = {part % 40}")
            part += 1

def follow(until_caught_up):
    return recorded.follow(
        settings, tables["streamed"], until_caught_up=until_caught_up, stop=stop, notify=ignore,
        copied=ignore, share=shares.stream,
    )

def work(name, priority, command):
    with shares.lease(name, priority, notify=waited.append) as share:
        memories.append(share.memory)
        done = command(share)
        failed.extend(f"{name}: {t.error}" for t in done.tables if t.error)

def run(purpose):
    return lambda share: recorded.run(
        settings, tables[purpose], pool=None, notify=ignore, permits=permits, share=share
    )

def verify(purpose, repair=False):
    return lambda share: recorded.verify(
        settings, tables[purpose], repair=repair, at_rest=False, trust_hashes=False, pool=None,
        notify=ignore, permits=permits, share=share,
    )

def maintain(share):
    return recorded.maintain(settings, [], pool=None, notify=ignore, permits=permits, share=share)

with ThreadPoolExecutor(8) as pool:
    changing, following = pool.submit(change), pool.submit(follow, False)
    for round in range(3):
        works = [pool.submit(work, "the first run", 1, run("first")),
                 pool.submit(work, "the second run", 2, run("second"))]
        if round:
            works += [pool.submit(work, "the verification", 3, verify("first")),
                      pool.submit(work, "maintenance", 3, maintain)]
        for one in works:
            one.result()
        peaks[round] = max(seen)
    changed.set()
    changing.result()
    for purpose in ("first", "second"):
        work("the last run", 1, run(purpose))
    stop.set()
    following.result()
    stop.clear()
    done = follow(True)
    failed.extend(f"stream: {t.error}" for t in done.tables if t.error)
print(json.dumps({"peak": max(seen), "peaks": peaks, "waited": waited, "failed": failed,
                  "memories": memories, "stream": shares.stream.memory, "at_once": shares.at_once}))
"""
)


def settings_for(dsn: str, lake: Path, memory: str) -> Settings:
    """The config: small files, so that there is something to be clustered."""
    of_stream = {f"streamed_{kind}": {"pattern": "streaming"} for kind in KINDS}
    others = {
        f"{purpose}_{kind}": {"pattern": "full_refresh", "cluster_by": ["n", "id"]}
        for purpose in PURPOSES[1:]
        for kind in KINDS
    }
    return loading.parse(
        {
            "source": {"name": "DE", "dsn": dsn, "pool": {"max": 30}},
            "lake": {"root": str(lake), "schema": "b"},
            "run": {"workers": 4, "memory": memory},
            "stream": {"slot": "bronze_shares"},
            "maintain": {"file_size": "4MB"},
            "tables": of_stream | others,
        }
    )


@pytest.mark.parametrize("memory", ["512MB", "1GB"])
def test_all_works_of_a_process_keep_within_its_memory(
    tables: str, tmp_path: Path, memory: str
) -> None:
    """A stream, two runs, a verification and maintenance, at the same time, over wide tables, long
    ones and ones with heavy rows that change: none fails, the peak of the process stays below its
    memory, and the tables equal the source in the end. In 512 MB they wait for each other.
    """
    settings = settings_for(tables, tmp_path, memory)
    names = {purpose: [f"{purpose}_{kind}" for kind in KINDS] for purpose in PURPOSES}
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, document, json.dumps(names)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    stream.drop(settings)
    print(found)
    assert found["failed"] == []
    assert found["peak"] <= settings.run.memory, found
    assert bool(found["waited"]) == (memory == "512MB") or found["at_once"] < 4
    assert differences(settings) == {}
