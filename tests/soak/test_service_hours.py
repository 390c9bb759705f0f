"""The demo's ten tables under load with faults, for BRONZE_SOAK_MINUTES: what was late is in
governance.alerts, what is there happened, each alert was told once, and all is equal at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest

from bronze.config.settings import Settings
from bronze.demo import inventory
from bronze.demo.server import running, start
from bronze.errors import BronzeError
from bronze.governance.records import rows_of
from bronze.governance.tables import alerts as alerts_table
from bronze.operate.alerts import store
from tests.conftest import FAST, ROOM
from tests.soak.test_service_lake import send
from tests.support.content import differences
from tests.support.service_process import CHANNELS, Inboxes, Service, inboxes, service
from tests.support.serving import runs_of, until

MINUTES = float(os.environ.get("BRONZE_SOAK_MINUTES", "10"))
pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(MINUTES * 60 + 900)]

STREAMED = ("inventory", "orders", "order_details")
LOADED = tuple(name for name in inventory.SIZES if name not in STREAMED)
EVERY, SLA = 30, 20
# What looks personal, and is not protected here.
CLEAR = {
    "suppliers": ("contact_name", "contact_number", "email"),
    "customers": ("customer_name", "email", "phone", "birth_date", "last_ip"),
    "orders": ("client_ip",),
}
# What is looked at every few seconds may be shorter than that, or seen that much later.
BLUR = timedelta(seconds=45)
# A message that came so long before a kill may not have been recorded as sent, and is sent again.
UNRECORDED = timedelta(seconds=5)
EXPLAIN = {
    "source_unreachable", "lake_unreachable", "process_crashed", "stream_down", "table_failed",
    "table_quarantined", "freshness", "config_invalid",
}  # fmt: skip
Span = tuple[datetime, datetime]


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass
class Faults:
    """What is done to a service, and when it was done, by its kind."""

    own: Service
    boxes: Inboxes
    dsn: str
    stop: Callable[[], object]
    start: Callable[[], object]
    freeze: Callable[[int], None]
    spans: dict[str, list[Span]] = field(default_factory=dict)

    def play(self, kind: str, seconds: float) -> None:
        """Does it for a while."""
        began = now()
        getattr(self, kind)(seconds)
        self.spans.setdefault(kind, []).append((began, now()))

    def source_stops(self, seconds: float) -> None:
        """The server is stopped."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def source_freezes(self, seconds: float) -> None:
        """The server answers nothing."""
        self.freeze(signal.SIGSTOP)
        time.sleep(seconds)
        self.freeze(signal.SIGCONT)

    def lake_is_renamed(self, seconds: float) -> None:
        """The folder of the lake is not there."""
        lake = Path(self.own.settings.lake.root)
        lake.rename(lake.with_name("away"))
        time.sleep(seconds)
        assert not lake.exists()
        lake.with_name("away").rename(lake)

    def process_dies(self, seconds: float) -> None:
        """The service is killed, and started after a while."""
        self.own.kill()
        time.sleep(seconds / 3)
        self.own.start()

    def table_is_locked(self, seconds: float) -> None:
        """Somebody holds a lock on one table."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("LOCK TABLE tests.products IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)

    def slack_refuses(self, seconds: float) -> None:
        """A channel answers that it has too much to do, while the service is killed."""
        self.boxes.slack.answer(429, "", Retry_After="5")
        self.process_dies(seconds)
        time.sleep(seconds / 3)
        self.boxes.slack.answer(200, "ok")


KINDS = (
    "source_stops", "process_dies", "table_is_locked", "lake_is_renamed", "source_freezes",
    "slack_refuses",
)  # fmt: skip


@contextmanager
def business(dsn: str) -> Iterator[None]:
    """Days of business until the block ends; it goes on after the server was away."""
    stopped = threading.Event()

    def work() -> None:
        for day in itertools.count():
            if stopped.wait(1):
                return
            with suppress(psycopg.Error, BronzeError):
                inventory.change_day(dsn, seed=day)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_ten_tables_under_load_with_faults(tmp_path: Path) -> None:
    """Outages of the source and the lake, a lock, kills, a channel that refuses: in turn."""
    dice = random.Random(17)  # noqa: S311 - a load, no secret
    with running(tmp_path / "data", settings={**FAST, **ROOM}) as server, inboxes() as boxes:
        dsn = inventory.create(server.dsn(), scale=0.002)
        head = f'[source]\nname = "DE"\ndsn = "{dsn}"\nschema = "{inventory.SCHEMA}"'
        with service(
            tmp_path, head, tmp_path / "lake", _tables(), boxes, full_refresh=f"every {EVERY}s"
        ) as own:  # fmt: skip
            own.start()
            until(lambda: differences(own.settings) == {}, 120)
            faults = Faults(
                own, boxes, dsn,
                lambda: server.stop("immediate"),
                lambda: start(server.data, port=server.port, settings={**FAST, **ROOM}),
                lambda number: send(server, number),
            )  # fmt: skip
            end = time.monotonic() + MINUTES * 60
            with business(dsn):
                for kind in itertools.cycle(KINDS):
                    time.sleep(dice.uniform(10, 30))
                    faults.play(kind, dice.uniform(30, 60))
                    if time.monotonic() > end:
                        break
            until(lambda: differences(own.settings) == {}, 180)
            until(lambda: not _open(own.settings), 240)
            assert own.run("verify").returncode == 0
            assert own.stop() == 0
        _judge(own.settings, boxes, faults)


def _tables() -> str:
    streamed = "".join(f'[tables.{t}]\npattern = "streaming"\nsla = "{SLA}s"\n' for t in STREAMED)
    loaded = "".join(f'[tables.{t}]\nsla = "{SLA}s"\n' for t in LOADED)
    clear = "".join(
        f"[tables.{table}.protect]\n" + "".join(f'{column} = "clear"\n' for column in columns)
        for table, columns in CLEAR.items()
    )
    return f'[breaker]\npause = "10s"\nlongest = "10s"\n{streamed}{loaded}{clear}'


def _open(settings: Settings) -> list[object]:
    """The open alerts, but for those that stay so for some minutes: what came and went, a crash."""
    stored = (store.load(settings) or {}).values()
    return [
        a.key for a in stored if a.is_open and not a.recurring and a.key[0] != "process_crashed"
    ]


def _openings(settings: Settings) -> dict[str, tuple[str, str, datetime, datetime]]:
    """The openings of alerts by their id: kind, subject, since when, and until when it was so."""
    rows = rows_of(store.place(settings), alerts_table.COLUMNS)
    assert rows is not None
    opened = rows.filter(pl.col("alert_id") != "").sort("recorded_timestamp")
    return {
        row["alert_id"]: (
            row["kind"], row["subject"], row["since_timestamp"], row["resolved_timestamp"] or now()
        )
        for row in opened.iter_rows(named=True)
    }  # fmt: skip


def late_spans(settings: Settings) -> dict[str, list[Span]]:
    """When tables that are loaded were late, computed from their runs alone."""
    landed: dict[str, list[tuple[datetime, datetime]]] = {}
    for record in runs_of(settings):
        if record.status in ("landed", "unchanged") and record.as_of and record.ended:
            landed.setdefault(record.source_table, []).append((record.as_of, record.ended))
    spans: dict[str, list[Span]] = {}
    for table in (f"{inventory.SCHEMA}.{name}" for name in LOADED):
        landings = sorted(landed[table])
        due = int(landings[0][1].timestamp()) // EVERY * EVERY + EVERY
        while due < landings[-1][0].timestamp():
            moment = datetime.fromtimestamp(due, UTC)
            done = min(ended for as_of, ended in landings if as_of >= moment)
            if done > moment + timedelta(seconds=SLA):
                spans.setdefault(f"DE.{table}", []).append((moment + timedelta(seconds=SLA), done))
            due += EVERY
    return spans


def _meets(one: Span, other: Span, blur: timedelta = BLUR) -> bool:
    return one[0] - blur <= other[1] and other[0] - blur <= one[1]


def _judge(settings: Settings, boxes: Inboxes, faults: Faults) -> None:
    openings, lates = _openings(settings), late_spans(settings)
    print(Counter(kind for kind, *_ in openings.values()))
    print({kind: len(spans) for kind, spans in faults.spans.items()})
    print("late", {table: len(spans) for table, spans in lates.items()})
    untold = [
        (table, span)
        for table, spans in lates.items()
        for span in spans
        if not any(
            kind in EXPLAIN
            and subject in (table, "DE", "service", settings.lake.root)
            and _meets(span, (since, resolved))
            for kind, subject, since, resolved in openings.values()
        )
    ]
    assert untold == []
    every = [span for spans in faults.spans.values() for span in spans]
    causes = {
        "source_unreachable": ("source_stops", "source_freezes"),
        "lake_unreachable": ("lake_is_renamed",),
        "process_crashed": ("process_dies", "slack_refuses"),
        "channel": ("slack_refuses",),
    }
    for kind, subject, since, resolved in openings.values():
        spans = every
        if kind in causes:
            spans = [span for name in causes[kind] for span in faults.spans.get(name, [])]
        elif kind == "freshness" and subject in lates:
            spans = lates[subject]
        assert any(_meets((since, resolved), span) for span in spans), (kind, subject, since)
    for kind, spans in faults.spans.items():
        told = [alert for alert, names in causes.items() if kind in names and alert != "channel"]
        for span in spans if told else ():
            assert any(
                alert in told and _meets((since, resolved), span)
                for alert, _, since, resolved in openings.values()
            ), (kind, span)
    _judge_messages(boxes, faults, set(openings))


def _judge_messages(boxes: Inboxes, faults: Faults, known: set[str]) -> None:
    kills = [b for k in ("process_dies", "slack_refuses") for b, _ in faults.spans.get(k, [])]
    seen: dict[tuple[str, str], datetime] = {}
    for request in boxes.pager.requests:
        event = json.loads(request.body)
        key = event["dedup_key"], event["event_action"]
        at = datetime.fromtimestamp(request.at, UTC)
        before = seen.get(key)
        is_excused = before and any(timedelta() <= kill - before < UNRECORDED for kill in kills)
        assert before is None or is_excused, (key, before, at)
        seen[key] = at
        assert event["dedup_key"] in known
    assert {alert for alert, act in seen if act == "trigger"} == known
    assert all(boxes.sent(name) for name in CHANNELS)
