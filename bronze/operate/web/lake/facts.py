"""What pages show beside the view and have to read from the lake. It is kept for a while, and read
by one thread at a time; an error is a sentence on the page. Where the lake is slow, a page shows
what was read before, and does not wait for more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Generic, TypeVar

from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.commit import facts_of
from bronze.errors import BronzeError
from bronze.governance import audit_state
from bronze.governance.tables.audit_log import AuditRecord
from bronze.operate import controls
from bronze.operate.alerts import deadline, store
from bronze.operate.alerts.life import Alert, Silence
from bronze.operate.view import Day, TableView
from bronze.operate.web.lake import daily
from bronze.quality import latest
from bronze.quality.latest import LatestFigures

KEPT = 15.0
"""For how many seconds something that was read is shown."""
FIGURES_KEPT = 60.0
"""For how many seconds quality figures are: streams record them as often."""
DAYS_KEPT = 300.0
"""For how many seconds the days of a table are: they are made from many records."""
_ANSWERED_WITHIN = 3.0
_MOST_READS = 16
_VERSIONS = 20
_RECORDS = 200
_ENTRIES = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Reading(Generic[T]):
    """Something that was read, or the sentence why it was not."""

    value: T
    error: str = ""


@dataclass(frozen=True)
class Version:
    """A version of a Bronze table: what was committed, when, how many rows it changed, and how the
    columns changed.
    """

    number: int
    at: datetime | None
    operation: str
    rows: int
    changes: tuple[str, ...]


@dataclass
class Facts:
    """Reads of one lake."""

    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _kept: dict[Hashable, tuple[float, Reading[Any]]] = field(default_factory=dict)
    _reads: dict[Hashable, Future[Any]] = field(default_factory=dict)
    _guard: Lock = field(default_factory=Lock)

    def versions(self, target: str) -> Reading[tuple[Version, ...]]:
        """The last versions of a Bronze table, the newest first."""
        return self._read(("versions", target), lambda: _versions(self.settings, target), ())

    def quality(self, target: str) -> Reading[LatestFigures | None]:
        """The latest quality figures of a Bronze table, None if there are none."""

        def read() -> LatestFigures | None:
            return latest.figures_of(self.settings, target)

        return self._read(("quality", target), read, None, FIGURES_KEPT)

    def days(self, table: TableView, now: datetime) -> Reading[Sequence[Day]]:
        """The last 90 days of a table."""

        def read() -> Sequence[Day]:
            return daily.days_of(self.settings, table, now)

        return self._read(("days", table.target), read, (), DAYS_KEPT)

    def silences(self) -> Reading[tuple[Silence, ...]]:
        """The silences that have not ended."""

        def read() -> tuple[Silence, ...]:
            now = datetime.now(UTC)
            silences = controls.silences(controls.read(self.settings))
            return tuple(silence for silence in silences if silence.until > now)

        return self._read("silences", read, ())

    def resolved(self) -> Reading[tuple[Alert, ...]]:
        """The last resolved alert of each kind and subject, the newest first."""

        def read() -> tuple[Alert, ...]:
            known = (store.load(self.settings) or {}).values()
            resolved = [(alert.resolved, alert) for alert in known if alert.resolved]
            resolved.sort(key=lambda pair: pair[0], reverse=True)
            return tuple(alert for _, alert in resolved if alert.state == "resolved")[:_ENTRIES]

        return self._read("resolved", read, ())

    def audit(self) -> Reading[tuple[AuditRecord, ...]]:
        """The latest records of the audit log, the newest first."""

        def read() -> tuple[AuditRecord, ...]:
            state = log.read(audit_state.place(self.settings))
            records = audit_state.records_of(state)[0] if state else []
            return tuple(reversed(records[-_RECORDS:]))

        return self._read("audit", read, ())

    def _read(
        self, key: Hashable, read: Callable[[], T], nothing: T, kept: float = KEPT
    ) -> Reading[T]:
        with self._guard:
            known = self._kept.get(key)
            if known and self.clock() - known[0] < kept:
                return known[1]
            before: T = known[1].value if known else nothing
            work = self._reads.get(key)
            if work is None and len(self._reads) >= _MOST_READS:
                return Reading(before, f"The lake has not answered {_MOST_READS} reads yet.")
            if work is None:
                work = self._reads[key] = deadline.start(
                    lambda: self._keep(key, read, before), "bronze-web-read"
                )
        try:
            reading: Reading[T] = work.result(_ANSWERED_WITHIN)
        except TimeoutError:
            # It goes on: who looks again sees what it has read.
            text = f"The lake has not answered within {_ANSWERED_WITHIN:g} s: look again."
            return Reading(before, text)
        return reading

    def _keep(self, key: Hashable, read: Callable[[], T], before: T) -> Reading[T]:
        try:
            try:
                reading = Reading(read())
            except BronzeError as error:
                # What was read before is better than nothing.
                reading = Reading(before, error.message)
            with self._guard:
                self._kept[key] = (self.clock(), reading)
            return reading
        finally:
            with self._guard:
                del self._reads[key]


def _versions(settings: Settings, target: str) -> tuple[Version, ...]:
    schema, _, name = target.partition(".")
    place = settings.place(schema, name)
    state = log.read(place)
    if state is None:
        return ()
    first = max(state.version - _VERSIONS + 1, 0)
    entries = log.entries(place, range(state.version, first - 1, -1))
    return tuple(_version(number, actions) for number, actions in entries if actions is not None)


def _version(number: int, actions: Any) -> Version:
    info: Mapping[str, Any] = next(
        (action["commitInfo"] for action in actions if "commitInfo" in action), {}
    )
    facts = facts_of(info)
    at = info.get("timestamp")
    lineage = facts.get("lineage")
    counts = [facts.get(name) for name in ("inserted", "updated", "deleted")]
    return Version(
        number,
        datetime.fromtimestamp(at / 1000, UTC) if isinstance(at, int | float) else None,
        str(facts.get("mode") or info.get("operation", "")),
        sum(count for count in counts if isinstance(count, int)),
        _changes(lineage.get("schema_changes") if isinstance(lineage, dict) else None),
    )


def _changes(value: object) -> tuple[str, ...]:
    """The schema changes of a commit, which may be of another writer."""
    try:
        changes = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return ()
    return tuple(map(str, changes)) if isinstance(changes, list) else ()
