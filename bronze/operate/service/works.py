"""What the service runs in threads: runs of tables, verifications, and maintenance of the lake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import uuid_utils

from bronze.api import recorded
from bronze.api.display import progress
from bronze.api.display.log_lines import LOG
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.execution.memory_shares import MemoryShares, Share
from bronze.execution.permits import Permits
from bronze.governance.run_log import Cause
from bronze.governance.tables.runs import Command
from bronze.model.events import LoadEvent, TableFailed, TableProgress
from bronze.model.results import Failure
from bronze.operate.tables import catalog
from bronze.operate.tables.catalog import ServedTable, only
from bronze.operate.tables.guards import Blame
from bronze.operate.tables.states import CHORE_PRIORITY
from bronze.operate.view import Running

# Seconds to wait until a stream has landed what a verification compares; and between two looks.
_STREAMED_WITHIN = 60.0
_LOOK = 0.2


@dataclass(frozen=True)
class Ended:
    """How work ended: the error of each table that failed, by key, and that of the whole; and what
    each failed table's error is of.
    """

    failures: Mapping[str, Failure]
    error: Failure | None
    exit_code: int
    blames: Mapping[str, Blame] = field(default_factory=dict)


@dataclass(eq=False)
class Work:
    """One piece of work in a thread.

    ``tables`` are those of a run, none of a verification or maintenance. ``due`` is when the
    monotonic clock says that it takes too long. For a verification, ``loadable`` are the tables
    that it may bring up to date, and ``streamed`` says up to when everything of the source's stream
    has landed, None where that is unknown. ``progress`` is by the key of a table.
    """

    command: Command
    source: str
    tables: tuple[ServedTable, ...]
    cause: Cause
    began: datetime
    due: float
    loadable: tuple[ServedTable, ...] = ()
    streamed: Callable[[], datetime | None] = lambda: None
    work_id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    stop: threading.Event = field(default_factory=threading.Event)
    is_too_long: bool = False
    is_probe: bool = False
    progress: dict[str, Running] = field(default_factory=dict)
    ended: Ended | None = None

    @property
    def name(self) -> str:
        """What it is, for people."""
        subject = self.source or "the lake"
        return f"{self.command} of {subject}"

    @property
    def priority(self) -> int:
        """That of its most urgent table."""
        return min((table.settings.priority for table in self.tables), default=CHORE_PRIORITY)

    def begin(
        self,
        settings: Settings,
        permits: Permits,
        shares: MemoryShares,
        blame: Callable[[str, Failure], Blame],
        end: Callable[[Work], None],
    ) -> threading.Thread:
        """Begins it.

        Args:
            settings: the config.
            permits: what its tasks share with those of others.
            shares: where it gets its share of the memory, or waits for one.
            blame: says what an error of work on a source is of; it may take seconds.
            end: is called in its thread when it has ended.
        """
        self.progress = {
            table.key: Running(self.command, self.work_id, self.began, due=self.cause.scheduled)
            for table in self.tables
        }

        def perform() -> None:
            try:
                with shares.lease(
                    self.name, self.priority, stop=self.stop, notify=LOG.info
                ) as share:
                    self.ended = _perform(settings, permits, share, self)
            except BronzeError as error:
                self.ended = self._failed(error.failure(), error.exit_code)
            except BaseException as error:
                # Messages of libraries may quote values.
                name = type(error).__name__
                failure = Failure(name, f"A fault inside bronze: {name}.", "Report it.")
                self.ended = self._failed(failure, 70)
            self._blame(blame)
            end(self)

        thread = threading.Thread(target=perform, name=f"bronze {self.command}", daemon=True)
        thread.start()
        return thread

    def _failed(self, failure: Failure, exit_code: int) -> Ended:
        return Ended({table.key: failure for table in self.tables}, failure, exit_code)

    def _blame(self, blame: Callable[[str, Failure], Blame]) -> None:
        if self.ended is None or self.stop.is_set():
            return
        # Most often many tables have failed for one reason, which is probed once.
        found: dict[str, Blame] = {}
        for failure in self.ended.failures.values():
            if failure.kind not in found:
                found[failure.kind] = blame(self.source, failure)
        blames = {key: found[failure.kind] for key, failure in self.ended.failures.items()}
        self.ended = replace(self.ended, blames=blames)

    def note(self, event: LoadEvent) -> None:
        """Notes the progress of a table, and logs its end."""
        progress.log_event(event)
        for table in self.tables:
            if table.label != event.table or table.key not in self.progress:
                continue
            running = self.progress[table.key]
            if isinstance(event, TableProgress):
                running = replace(running, rows=event.rows, share=event.share)
                self.progress = {**self.progress, table.key: running}
            else:
                self.progress = {k: r for k, r in self.progress.items() if k != table.key}


def _perform(settings: Settings, permits: Permits, share: Share, work: Work) -> Ended:
    if work.command == "run":
        return _run(only(settings, work.source), permits, share, work)
    if work.command == "verify":
        return _verify(only(settings, work.source), permits, share, work)
    return _maintain(settings, permits, share, work)


def _run(settings: Settings, permits: Permits, share: Share, work: Work) -> Ended:
    # A name that the source does not know would refuse the whole run.
    listed = {table.key for table in catalog.listed(settings, work.source)}
    names = [table.key for table in work.tables if table.key in listed]
    missing = {
        table.key: _missing_failure(table) for table in work.tables if table.key not in listed
    }
    if not names:
        return Ended(missing, None, 1)
    done = recorded.run(
        settings,
        names,
        pool=None,
        notify=work.note,
        cause=work.cause,
        stop=work.stop,
        permits=permits,
        share=share,
    )
    errors = {result.table: result.error for result in done.tables if result.error}
    failures = {table.key: errors[table.label] for table in work.tables if table.label in errors}
    failures |= missing
    if done.unrecorded:
        LOG.error("unrecorded", error=done.unrecorded.message)
    for note in done.notes:
        LOG.warning(note)
    return Ended(failures, done.unrecorded, done.exit_code)


def _missing_failure(table: ServedTable) -> Failure:
    text = f"Table {table.label} is no longer in the source {table.source}."
    return Failure("TableRefused", text, "Its Bronze table stays as it is.", "42P01")


def _verify(settings: Settings, permits: Permits, share: Share, work: Work) -> Ended:
    def show(event: LoadEvent) -> None:
        if isinstance(event, TableFailed):
            progress.log_event(event)

    def refresh(labels: Sequence[str]) -> None:
        """Loads tables, or waits until their changes have landed."""
        moment, until = datetime.now(UTC), time.monotonic() + _STREAMED_WITHIN
        tables = [table for table in work.loadable if table.label in labels]
        names = [table.key for table in tables if not table.is_streamed]
        if names:
            # A table that cannot be loaded stays as it is, and is compared as it is.
            with suppress(BronzeError):
                recorded.run(
                    settings,
                    names,
                    pool=None,
                    notify=show,
                    stop=work.stop,
                    permits=permits,
                    share=share,
                )
        while any(table.is_streamed for table in tables) and time.monotonic() < until:
            landed = work.streamed()
            if (landed is not None and landed >= moment) or work.stop.wait(_LOOK):
                return

    done = recorded.verify(
        settings,
        (),
        repair=False,
        at_rest=False,
        trust_hashes=False,
        pool=None,
        notify=show,
        cause=work.cause,
        stop=work.stop,
        permits=permits,
        share=share,
        refresh=refresh,
    )
    for table in done.tables:
        if table.status == "differs":
            LOG.error("differs", table=table.table, target=table.target)
    LOG.info("verified", source=work.source, tables=len(done.tables), exit_code=done.exit_code)
    first = next((table.error for table in done.tables if table.error), None)
    return Ended({}, first or done.unrecorded, done.exit_code)


def _maintain(settings: Settings, permits: Permits, share: Share, work: Work) -> Ended:
    done = recorded.maintain(
        settings,
        (),
        pool=None,
        notify=lambda _: None,
        cause=work.cause,
        stop=work.stop,
        permits=permits,
        share=share,
    )
    for table in done.tables:
        if table.error:
            LOG.error("not maintained", target=table.target, error=table.error.message)
    LOG.info("maintained", tables=len(done.tables), exit_code=done.exit_code)
    first = next((table.error for table in done.tables if table.error), None)
    return Ended({}, first or done.unrecorded, done.exit_code)
