"""The streams of the service: one of each source that has streamed tables, in a thread.

A stream connects again by itself after an error that passes. One that ends with an error is begun
again after a pause, which is longer after each failure in a row.

The stream of a source goes on without a table that is paused. The slot is that of all tables and
does not wait for it, so that it is compared with the source again (resynced) when it comes back.
Where all streamed tables of a source are paused, its slot is dropped: the server would keep its log
for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import uniform

from bronze.api import recorded
from bronze.api.display import progress
from bronze.api.display.log_lines import LOG
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.execution.memory_shares import Share
from bronze.model.events import (
    BatchApplied,
    CheckpointMade,
    Heard,
    LoadEvent,
    SlotRetains,
    StreamEvent,
    TableFailed,
    TableFollowed,
    TableProgress,
    Waiting,
)
from bronze.model.results import Failure
from bronze.operate.tables.catalog import ServedTable, only
from bronze.operate.view import Running, StreamFacts

_LONGEST_PAUSE = 60.0
_RATE_SHARE = 0.3
_LEAST_RATE = 0.01
_RATE_OVER = 300.0


def pause_after(failures: int, delay: float) -> float:
    """The seconds before a stream begins again after so many failures in a row."""
    most = min(_LONGEST_PAUSE, max(delay, 1.0) * 2.0 ** min(failures - 1, 16))
    return uniform(0, most)  # noqa: S311 - full jitter: many do not come back at once


def facts_after(facts: StreamFacts, event: StreamEvent, now: datetime) -> StreamFacts:
    """What is known of a stream after an event."""
    if isinstance(event, BatchApplied):
        return replace(
            facts,
            as_of=max(facts.as_of or event.committed, event.committed),
            lag_bytes=event.lag_bytes,
            lag_seconds=event.lag_seconds,
            changes=facts.changes + event.changes,
            changes_per_second=_rate(facts, event.changes, now),
        )
    if isinstance(event, CheckpointMade):
        quiet = replace(facts, lag_bytes=event.lag_bytes)
        return replace(quiet, changes_per_second=_rate(facts, 0, now))
    if isinstance(event, Heard):
        return replace(
            facts,
            as_of=event.as_of or facts.as_of,
            heard=event.at,
            lag_seconds=0.0 if event.as_of else facts.lag_seconds,
            changes_per_second=_rate(facts, 0, now),
            tables=event.tables,
            error="",
            error_kind="",
            retry_at=None,
        )
    if isinstance(event, SlotRetains):
        known = replace(facts, slot=event.slot, retained=event.bytes, left=event.bytes_left)
        return known if event.bytes_left is not None else replace(known, lost_in=None)
    if isinstance(event, Waiting) and not event.tables and event.error:
        again = event.again_in
        retry_at = None if again is None else now + timedelta(seconds=again)
        kind = event.error.kind
        return replace(facts, error=event.error.message, error_kind=kind, retry_at=retry_at)
    return facts


def lost_in(earlier: tuple[datetime, int], event: SlotRetains, now: datetime) -> float | None:
    """In how many seconds a slot is lost, if the server goes on to keep its log at the rate since
    an ``earlier`` look (when, and how many bytes it kept).
    """
    seconds, grown = (now - earlier[0]).total_seconds(), event.bytes - earlier[1]
    if event.bytes_left is None or seconds <= 0 or grown <= 0:
        return None
    return event.bytes_left * seconds / grown


def _rate(facts: StreamFacts, changes: int, now: datetime) -> float:
    """The changes per second, the newest counting most."""
    seconds = (now - (facts.heard or facts.began)).total_seconds()
    if seconds <= 0:
        return facts.changes_per_second
    rate = facts.changes_per_second + _RATE_SHARE * (changes / seconds - facts.changes_per_second)
    return rate if rate > _LEAST_RATE else 0.0


@dataclass(eq=False)
class Stream:
    """The stream of a source, from its beginning to its end.

    ``names`` are the tables to follow by key, none for all. ``failed`` are the tables that are not
    followed, by label, with their errors.
    """

    source: str
    names: tuple[str, ...]
    tables: tuple[ServedTable, ...]
    began: datetime
    facts: StreamFacts
    share: Share
    until_caught_up: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    failed: dict[str, Failure] = field(default_factory=dict)
    progress: dict[str, Running] = field(default_factory=dict)
    error: Failure | None = None
    exit_code: int = 0
    has_ended: bool = False
    _looks: list[tuple[datetime, int]] = field(default_factory=list)

    @property
    def fault(self) -> Failure | None:
        """Why it has ended as a whole; None while it goes on, and where some tables have failed."""
        return None if self.error in self.failed.values() else self.error

    def _note_log_kept(self, event: SlotRetains, now: datetime) -> None:
        """Notes in how long the slot is lost, at the rate of the last minutes."""
        looks = [look for look in self._looks if (now - look[0]).total_seconds() < _RATE_OVER]
        if looks:
            self.facts = replace(self.facts, lost_in=lost_in(looks[0], event, now))
        self._looks = [*looks, (now, event.bytes)]

    def begin(
        self, settings: Settings, now: Callable[[], datetime], end: Callable[[Stream], None]
    ) -> threading.Thread:
        """Begins it; ``end`` is called in its thread when it has ended."""

        def perform() -> None:
            try:
                self._follow(only(settings, self.source), now)
            except BronzeError as error:
                self.error, self.exit_code = error.failure(), error.exit_code
            except BaseException as error:
                # Messages of libraries may quote values.
                name = type(error).__name__
                self.error = Failure(name, f"A fault inside bronze: {name}.", "Report it.")
                self.exit_code = 70
            self.progress = {}
            self.has_ended = True
            end(self)

        thread = threading.Thread(target=perform, name=f"bronze stream {self.source}", daemon=True)
        thread.start()
        return thread

    def _follow(self, settings: Settings, now: Callable[[], datetime]) -> None:
        show = progress.stream_log(quiet=False)

        def note(event: StreamEvent) -> None:
            show(event)
            self._note(event, now())

        done = recorded.follow(
            settings,
            self.names,
            until_caught_up=self.until_caught_up,
            stop=self.stop,
            notify=note,
            copied=lambda event: self._note_copy(event, now()),
            share=self.share,
        )
        self.exit_code = done.exit_code
        self.error = next((t.error for t in done.tables if t.error), done.unrecorded)

    def _note(self, event: StreamEvent, now: datetime) -> None:
        self.facts = facts_after(self.facts, event, now)
        if isinstance(event, SlotRetains):
            self._note_log_kept(event, now)
        elif isinstance(event, TableFailed):
            self.failed = {**self.failed, event.table: event.error}
        elif isinstance(event, TableFollowed):
            self.failed = {k: e for k, e in self.failed.items() if k != event.table}

    def _note_copy(self, event: LoadEvent, now: datetime) -> None:
        """Notes the progress of a table that is copied or compared, and logs its end."""
        progress.log_event(event)
        if isinstance(event, TableProgress):
            known = self.progress.get(event.table) or Running("stream", "", now)
            running = replace(known, rows=event.rows, share=event.share)
            self.progress = {**self.progress, event.table: running}
        else:
            self.progress = {k: r for k, r in self.progress.items() if k != event.table}


def begin(
    settings: Settings,
    source: str,
    tables: Sequence[ServedTable],
    followed: Sequence[ServedTable],
    now: datetime,
    share: Share,
    until_caught_up: bool,
) -> Stream:
    """The stream of a source that begins now.

    Args:
        settings: the config.
        source: the source.
        tables: all its streamed tables.
        followed: those that are not paused; without a paused one the stream follows new ones, too.
        now: the time.
        share: its share of the memory.
        until_caught_up: whether it ends when it has caught up.
    """
    names = () if len(followed) == len(tables) else tuple(table.key for table in followed)
    labels = tuple(table.label for table in followed)
    facts = StreamFacts(source, now, slot=settings.stream.names(source)[0], tables=labels)
    return Stream(source, names, tuple(followed), now, facts, share, until_caught_up)


def drop_slot(settings: Settings, source: str, tables: Sequence[ServedTable]) -> bool:
    """Drops the slot of a source whose streamed tables are all paused; whether it is gone. An error
    is logged, and the alert about the log that the slot retains remains.
    """
    try:
        slot = recorded.drop(only(settings, source), [table.key for table in tables])
    except BronzeError as error:
        LOG.warning("slot not dropped", source=source, error=error.message)
        return False
    LOG.warning("all streamed tables are paused: their slot is dropped", slot=slot)
    return True
