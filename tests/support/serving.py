"""A service in a thread of the test, with clocks of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from bronze.config.settings import Settings
from bronze.governance.tables.runs import Command, RunRecord
from bronze.operate.alerts.alerting import Advisors
from bronze.operate.alerts.delivery import TERMS
from bronze.operate.facts.resources import Meter
from bronze.operate.history import History
from bronze.operate.service.service import Service
from bronze.operate.service.timing import Clock
from bronze.operate.view import Resources

PATIENCE = 12.0


@dataclass
class Hands:
    """A clock that a test sets: it shows ``at`` when it is made, and goes on from there."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _began: float = field(default_factory=time.monotonic)

    @property
    def clock(self) -> Clock:
        """The clock of the service."""
        return Clock(now=self.now)

    def now(self) -> datetime:
        """What it shows."""
        return self.at + timedelta(seconds=time.monotonic() - self._began)

    def move(self, **by: float) -> None:
        """Moves the hands."""
        self.at += timedelta(**by)


@dataclass
class Serving:
    """A service that runs in a thread, and ``code``, what it ended with."""

    service: Service
    settings: Settings
    stop: threading.Event = field(default_factory=threading.Event)
    hangup: threading.Event = field(default_factory=threading.Event)
    code: int | None = None

    def look(self) -> None:
        """Has requests and the config read now."""
        self.service._watch.controls.kick()
        self.service._looked_at_config = -1e9

    def runs(self, command: Command = "run") -> list[RunRecord]:
        """The runs of tables that the lake has records of, the earliest first."""
        return runs_of(self.settings, command)

    def landed(self, table: str) -> list[RunRecord]:
        """The runs of a table that have landed or found nothing new."""
        done = ("landed", "unchanged")
        return [r for r in self.runs() if r.source_table == table and r.status in done]


def runs_of(settings: Settings, command: Command = "run") -> list[RunRecord]:
    """The runs of tables that a lake has records of, the earliest first."""
    history = History(settings)
    history.refresh()
    known = [record for records in history.all_runs(command).values() for record in records]
    return sorted(known, key=lambda record: record.began)


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.05)


class _Meter(Meter):
    """The process of the tests has taken what earlier tests needed: low priority would wait."""

    def measure(self, settings: Settings) -> Resources:
        """What is measured, with a memory that is enough."""
        return replace(super().measure(settings), memory=0)


@contextmanager
def serving(
    settings: Settings, hands: Hands | None = None, *, once: bool = False
) -> Iterator[Serving]:
    """A service, until the block ends."""
    hands = hands or Hands()
    own = Serving(Service(settings, once, hands.clock, TERMS, Advisors()), settings)
    own.service._meter = _Meter()

    def run() -> None:
        own.code = own.service.run(own.stop, own.hangup)

    thread = threading.Thread(target=run, name="test service")
    thread.start()
    try:
        yield own
        if once:
            thread.join(PATIENCE)
    finally:
        own.stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
