"""An outage, played with the command itself: a real server stops, and three channels are told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bronze.config.settings import Settings
from bronze.demo.server import Server, running, start
from bronze.governance.tables.runs import RunRecord
from tests.conftest import FAST, ROOM
from tests.support.content import differences
from tests.support.service_process import CHANNELS, inboxes, service
from tests.support.serving import runs_of, until

pytestmark = pytest.mark.soak

TABLES = int(os.environ.get("BRONZE_SOAK_TABLES", "200"))
URGENT = 10
OUTAGE = "source_unreachable"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may stop."""
    with running(tmp_path / "data", settings={**FAST, **ROOM}) as started:
        yield started


def again(server: Server) -> None:
    """Starts a server that was stopped, where it was."""
    start(server.data, port=server.port, settings={**FAST, **ROOM})


def make(dsn: str, count: int) -> None:
    """Tables t0, t1 … with a few rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(count):
            connection.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, word text)")
            connection.execute(f"INSERT INTO t{number} VALUES (1, 'a'), (2, 'b')")


def landed(settings: Settings) -> dict[str, list[RunRecord]]:
    """The runs that have landed or found nothing new, by table."""
    found: dict[str, list[RunRecord]] = {}
    for record in runs_of(settings):
        if record.status in ("landed", "unchanged"):
            found.setdefault(record.source_table, []).append(record)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_source_that_stops_is_one_message_for_each_channel(
    own_server: Server, tmp_path: Path
) -> None:
    """Each channel is told within 90 s, and that it is over within 60 s of what has to be clear for
    a minute; what was due meanwhile runs once, urgent tables first.
    """
    dsn = own_server.dsn()
    make(dsn, TABLES)
    urgent = "".join(f"[tables.t{n}]\npriority = 1\n" for n in range(URGENT))
    with inboxes() as boxes, service(
        tmp_path, dsn, tmp_path / "lake", urgent, boxes, full_refresh="every 3m"
    ) as own:  # fmt: skip
        own.start()
        settings = own.settings
        until(lambda: len(landed(settings)) == TABLES, 900)
        own_server.stop("immediate")
        stopped = time.time()
        until(lambda: all(boxes.acts(OUTAGE)[name] for name in CHANNELS), 150)
        seconds = {"told": time.time() - stopped}
        # Until each table was due at least once.
        until(lambda: time.time() - stopped > 185, 300)
        before = {name: len(records) for name, records in landed(settings).items()}
        again(own_server)
        back = time.time()
        until(lambda: all(len(boxes.acts(OUTAGE)[name]) == 2 for name in CHANNELS), 240)
        seconds["resolved"] = time.time() - back
        until(
            lambda: all(len(r) > before[name] for name, r in landed(settings).items()), 900
        )  # fmt: skip
        seconds["landed"] = time.time() - back
        print(seconds)
        after = landed(settings)
        assert boxes.acts() == {name: ["open", "resolve"] for name in CHANNELS}
        assert own.stop() == 0
    first = {name: records[before[name]] for name, records in after.items()}
    numbers = {name: int(name.removeprefix("public.t")) for name in first}
    missed = {first[name].scheduled for name in first}
    assert len(missed) == 1
    for name, records in after.items():
        dues = [record.scheduled for record in records]
        assert (name, len(dues)) == (name, len(set(dues)))
    last_urgent = max(r.began for name, r in first.items() if numbers[name] < URGENT)
    assert all(r.began >= last_urgent for name, r in first.items() if numbers[name] >= URGENT)
    assert seconds["told"] <= 90
    assert seconds["resolved"] <= 125
    assert differences(settings) == {}
