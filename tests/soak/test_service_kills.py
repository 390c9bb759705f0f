"""The service is killed at random, again and again: its alerts, silences and breakers stay as they
were, and the lake equals the source.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.governance.records import rows_of
from bronze.governance.tables import alerts as alerts_table
from bronze.operate import beat
from bronze.operate.alerts import store
from bronze.operate.tables import guards
from bronze.operate.tables.guards import table_subject
from bronze.operate.view import Live
from tests.conftest import Source
from tests.support.content import differences
from tests.support.service_process import CHANNELS, Inboxes, Service, inboxes, service
from tests.support.serving import runs_of, until

pytestmark = [pytest.mark.soak, pytest.mark.slow]

KILLS = int(os.environ.get("BRONZE_SOAK_SERVICE_KILLS", "10"))
# How long before a kill a message may have come that was not recorded as sent.
_UNRECORDED = 5.0
# How many of the kills come after a start that has begun to work; the others come at any time.
_BEGUN = 0.7
STANDING, SILENCED, CRASHED = "public.bad", "public.quiet", "process_crashed"
CONFIG = """
[breaker]
threshold = 2
pause = "5h"
longest = "5h"
[tables.live]
pattern = "streaming"
sla = "5m"
"""


@contextmanager
def load(dsn: str) -> Iterator[None]:
    """Inserts, updates and deletes in two tables until the block ends."""
    stopped = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            number = 1000
            while not stopped.wait(0.02):
                number += 1
                for table in ("live", "word"):
                    connection.execute(f"INSERT INTO {table} VALUES ({number}, 'new')")
                    connection.execute(f"UPDATE {table} SET word = 'x' WHERE id = {number // 2}")
                    connection.execute(f"DELETE FROM {table} WHERE id = {number - 50}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def make(source: Source) -> None:
    """Two tables that change, and two views that cannot be read."""
    for table in ("live", "word"):
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {table} SELECT g, 'w' FROM generate_series(1, 1000) g")
    for view in ("bad", "quiet"):
        source.execute(f"CREATE VIEW {view} AS SELECT 1 / 0 AS id")


def rests(settings: Settings) -> dict[str, datetime]:
    """Until when the breakers of the two views are open."""
    live = beat.read(settings)
    subjects = [table_subject(f"test.{table}") for table in (STANDING, SILENCED)]
    known = live.breakers if live else {}
    return {s: rest for s in subjects if s in known and (rest := known[s].until)}


def sent_twice(boxes: Inboxes) -> dict[tuple[str, str], list[float]]:
    """When PagerDuty got each event, of those that it got more than once."""
    seen: dict[tuple[str, str], list[float]] = {}
    for request, sent in zip(list(boxes.pager.requests), boxes.sent("pager"), strict=False):
        key = json.loads(request.body)["dedup_key"]
        seen.setdefault((sent.act, key), []).append(request.at)
    return {key: times for key, times in seen.items() if len(times) > 1}


def repeated(boxes: Inboxes, killed: list[float]) -> list[tuple[str, str]]:
    """The events that PagerDuty got again, though they were not sent just before a kill."""
    return [
        key
        for key, times in sent_twice(boxes).items()
        if not all(any(0 <= k - at < _UNRECORDED for k in killed) for at in times[:-1])
    ]


def triggered(boxes: Inboxes) -> set[str]:
    """The alerts that PagerDuty was told of."""
    events = [json.loads(request.body) for request in list(boxes.pager.requests)]
    return {event["dedup_key"] for event in events if event["event_action"] == "trigger"}


def openings(settings: Settings) -> dict[str, tuple[str, str]]:
    """All openings of alerts that are not silenced by their id: the kind and the subject."""
    rows = rows_of(store.place(settings), alerts_table.COLUMNS)
    assert rows is not None
    opened = rows.filter((pl.col("alert_id") != "") & ~pl.col("subject").str.ends_with(SILENCED))
    return {row["alert_id"]: (row["kind"], row["subject"]) for row in opened.to_dicts()}


def release(own: Service) -> None:
    """Closes the breaker of the table that is loaded, as its runbook says, if it was in flight at
    two crashes in a row; it is open for no other reason.
    """

    def live() -> Live | None:
        known = beat.read(own.settings)
        is_own = known and own.process and known.pid == own.process.pid and not known.unread
        return known if is_own else None

    until(live, 90)
    known, key = live(), "test.public.word"
    assert known is not None
    breaker = known.breakers.get(table_subject(key))
    if breaker and breaker.until:
        runs = [run for run in runs_of(own.settings) if run.source_table == "public.word"]
        assert len(guards.crashes(runs)) >= guards.POISON
        assert own.run("reset", key, "--reason", "it was not the table").returncode == 0


@pytest.mark.timeout(max(600, KILLS * 60))
def test_a_service_that_is_killed_at_random_forgets_and_repeats_nothing(
    source: Source, tmp_path: Path
) -> None:
    """While the source changes, with an open alert, a silence and two open breakers."""
    make(source)
    head = (
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = ["live", "word", "bad", "quiet"]'
    )
    dice = random.Random(7)  # noqa: S311 - a load, no secret
    killed: list[float] = []
    with inboxes() as boxes, service(tmp_path, head, source.lake, CONFIG, boxes) as own:
        assert (
            own.run(
                "alerts", "silence", f"*:*{SILENCED}", "--until", "5h", "--reason", "known"
            ).returncode
            == 0
        )
        own.start()
        until(lambda: all(boxes.acts(STANDING)[name] for name in CHANNELS), 120)
        settings = own.settings

        until(lambda: len(rests(settings)) == 2, 60)
        before = rests(settings)
        with load(source.dsn):
            for _ in range(KILLS):
                if dice.random() < _BEGUN:
                    until(own.has_begun, 120)
                time.sleep(dice.uniform(0.5, 9))
                assert own.is_alive(), own.log.read_text()[-2000:]
                own.kill()
                killed.append(time.time())
                own.start()
        until(lambda: all(CRASHED in str(boxes.sent(name)) for name in CHANNELS), 90)
        document = settings.model_dump(by_alias=True, exclude_unset=True)
        document["source"]["test"]["tables"] = ["live", "word"]
        healthy = loading.parse(document)
        release(own)
        until(lambda: differences(healthy) == {}, 90)
        after = rests(settings)
        assert after.keys() == before.keys()
        for subject, end in after.items():
            assert abs(end - before[subject]) < timedelta(seconds=2)
        until(lambda: set(openings(settings)) == triggered(boxes), 60)
        stored = store.load(settings) or {}
        assert own.stop() == 0
    print(len(killed), "kills", Counter(kind for kind, _ in openings(settings).values()))
    print(len(sent_twice(boxes)), "messages were sent again, whose records were lost in a kill")
    opened = {key: alert for key, alert in stored.items() if alert.opened}
    assert {key for key in opened if STANDING in key[1]} == {
        ("table_quarantined", "test.public.bad")
    }
    assert boxes.acts(STANDING) == {name: ["open"] for name in CHANNELS}
    assert boxes.acts(SILENCED) == {name: [] for name in CHANNELS}
    assert repeated(boxes, killed) == []
