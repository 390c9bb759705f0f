"""What the threads of the service share: what is known, what runs, and what is wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

from bronze.config.sections.serve import BreakerSettings
from bronze.config.settings import Settings
from bronze.execution import budget
from bronze.execution.memory_shares import MemoryShares
from bronze.execution.permits import Permits
from bronze.governance import actor
from bronze.governance.tables.controls import ControlRecord
from bronze.model.results import Failure
from bronze.operate.alerts.life import Key
from bronze.operate.facts.half_hours import worst_values
from bronze.operate.service.capacity.windows import Limit
from bronze.operate.service.streams import Stream
from bronze.operate.service.timing import Clock
from bronze.operate.service.works import Work
from bronze.operate.tables import requests
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.tables.guards import Guards
from bronze.operate.tables.requests import TableRequests
from bronze.operate.tables.states import TableState
from bronze.operate.view import (
    DrillFacts,
    LakeSlow,
    Live,
    PermitFacts,
    Resources,
    Running,
    StreamFacts,
)
from bronze.version import VERSION

UNREAD = "what ran before has not been read from the lake yet"


@dataclass(frozen=True)
class Trouble:
    """Something that only the service itself knows to be wrong: since when, until when it is told,
    and a sentence.
    """

    since: datetime
    until: datetime
    text: str


def streaming_sources(settings: Settings) -> set[str]:
    """The sources that may have streamed tables, by the config."""
    found: set[str] = set()
    for key, table in settings.tables.items():
        if table.pattern == "streaming":
            named = {name for name in settings.source if key.startswith(f"{name}.")}
            found |= named or set(settings.source)
    return found


def copy_memory(settings: Settings) -> int:
    """The memory that is set aside for copies of the lake, in bytes."""
    return budget.COPY if settings.backup.root else 0


@dataclass(eq=False)
class Board:
    """What is known. Whoever reads or changes it has the lock of ``changed``, and notifies it.

    ``tables`` are by source, None for a source that was not listed yet; ``missing`` the names of
    tables that the config has and no source, with when that was noticed; ``states`` are by key,
    those of chores by name, ``streams`` by source. ``unread`` says why nothing begins, "" if it
    may. ``troubles`` are by the kind of their alert, ``faults`` (since when, and a sentence) by the
    key of theirs, ``outcomes`` the errors of what has ended, for ``--once``. ``has_new_records``
    says that work has ended since its records were last read.
    """

    settings: Settings
    clock: Clock
    once: bool
    began: datetime
    service: str = field(default_factory=lambda: uuid4().hex)
    changed: threading.Condition = field(
        default_factory=lambda: threading.Condition(threading.RLock())
    )
    permits: Permits = field(default_factory=lambda: Permits(1))
    shares: MemoryShares = field(init=False)
    guards: Guards = field(default_factory=lambda: Guards(BreakerSettings()))
    tables: dict[str, tuple[ServedTable, ...] | None] = field(default_factory=dict)
    source_errors: dict[str, Failure] = field(default_factory=dict)
    missing: dict[str, datetime] = field(default_factory=dict)
    states: dict[str, TableState] = field(default_factory=dict)
    controls: list[ControlRecord] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    resources: Resources | None = None
    usage: tuple[tuple[datetime, float], ...] = ()
    limit: Limit | None = None
    unread: str = UNREAD
    config_error: str = ""
    lake_error: str = ""
    lake_slow: LakeSlow | None = None
    lake_seen: bool = False
    troubles: dict[str, Trouble] = field(default_factory=dict)
    faults: dict[Key, tuple[datetime, str]] = field(default_factory=dict)
    outcomes: list[Failure | None] = field(default_factory=list)
    has_new_records: bool = False
    is_dirty: bool = True
    is_stopping: bool = False
    drill: DrillFacts | None = None

    def __post_init__(self) -> None:
        self.shares = MemoryShares(*self._parts_of_memory())

    def divide_memory(self) -> None:
        """Divides the memory again, as the config has changed.

        Raises:
            ConfigError: it is too small.
        """
        self.shares.divide(*self._parts_of_memory())

    def _parts_of_memory(self) -> tuple[int, int, int, int]:
        """The memory, how many streams and other works share it, and what copies need of it."""
        serve = self.settings.serve
        chores = bool(serve.schedule.maintain) + bool(serve.schedule.verify)
        streams = len(streaming_sources(self.settings))
        return self.settings.run.memory, streams, serve.runs + chores, copy_memory(self.settings)

    def note_outcomes(self, errors: Iterable[Failure | None]) -> None:
        """Notes how work has ended, for ``--once``; a service would collect them for ever."""
        if self.once:
            self.outcomes.extend(errors)

    def touch(self) -> None:
        """Has the loop look again; under the lock."""
        self.is_dirty = True
        self.changed.notify_all()

    @property
    def now(self) -> datetime:
        """The time of the wall clock."""
        return self.clock.now()

    @property
    def reaches_all(self) -> bool:
        """Whether the lake and all sources answer, and all streams work."""
        with self.changed:
            is_away = self.unread or self.lake_error or self.source_errors
            return not is_away and not any(stream.fault for stream in self.streams.values())

    def state(self, key: str) -> TableState:
        """The state of a table or chore."""
        return self.states.setdefault(key, TableState())

    def all_tables(self) -> list[ServedTable]:
        """The tables of all sources that are known."""
        return [table for tables in self.tables.values() for table in tables or ()]

    def requests(self, tables: Iterable[ServedTable]) -> dict[str, TableRequests]:
        """What operators have asked of tables, by key."""
        return requests.of_tables(tables, self.controls, self.now)

    def note_usage(self, shares: Iterable[tuple[datetime, float]]) -> None:
        """Adds shares of the resources to the largest ones of each half hour; under the lock."""
        self.usage = worst_values([*self.usage, *shares], self.now)

    def live(self) -> Live:
        """What the service knows now, as a value."""
        with self.changed:
            now = self.now
            return Live(
                service=self.service,
                host=actor.host(),
                pid=os.getpid(),
                version=VERSION,
                began=self.began,
                at=now,
                running=self._running(),
                waiting={**self.waiting, **self._not_followed()},
                retries={
                    key: state.retry_at
                    for key, state in self.states.items()
                    if state.retry_at and not state.running
                },
                streams=self._stream_facts(),
                breakers=dict(self.guards.breakers),
                resources=self.resources,
                usage=self.usage,
                permits=self._permit_facts(),
                config_error=self.config_error,
                lake_error=self.lake_error,
                lake_slow=self.lake_slow,
                unread=self.unread,
                source_errors=dict(self.source_errors),
                is_stopping=self.is_stopping,
                drill=self.drill,
            )

    def _running(self) -> dict[str, Running]:
        found: dict[str, Running] = {}
        for work in self.works:
            found.update(work.progress)
        for stream in self.streams.values():
            for table in stream.tables:
                if table.label in stream.progress:
                    found[table.key] = stream.progress[table.label]
        return found

    def _not_followed(self) -> dict[str, str]:
        return {
            table.key: f"it is not followed: {stream.failed[table.label].message}"
            for stream in self.streams.values()
            for table in stream.tables
            if table.label in stream.failed
        }

    def _stream_facts(self) -> dict[str, StreamFacts]:
        return {source: stream.facts for source, stream in self.streams.items()}

    def _permit_facts(self) -> PermitFacts | None:
        if self.limit is None:
            return None
        return PermitFacts(
            self.permits.in_use,
            self.permits.limit,
            self.permits.wanted,
            self.limit.cap,
            self.limit.window,
        )
