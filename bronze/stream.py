"""Streaming: a copy of the tables first, then what changes in them, batch after batch.

    slot → copy in its snapshot → receive → net → merge → commit → record → confirm

Each table's commit holds the position up to which it has followed. Once all tables have landed a
batch, one record in ``governance.streams`` says so, and only then the slot may forget it. After a
crash the source sends again what was not recorded, and each table leaves out what it has. A table
that the stream cannot bring up to date (its columns have changed, the slot was lost) is compared
with the source, in the snapshot of a slot of its own, and follows from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from random import uniform

import uuid_utils

from bronze import drift, engine, failpoint, follow, join, pipeline, prepare, record, tidy, units
from bronze.books import streams as book
from bronze.config import Settings
from bronze.errors import (
    BronzeError,
    CommitConflict,
    ConfigError,
    LakeUnreachable,
    Mismatch,
    SourceBusy,
    SourceRefused,
    TableRefused,
)
from bronze.follow import Following
from bronze.line import Line, Notify, Step, Stopped, Tally
from bronze.model import Stamp, StreamResult
from bronze.prepare import Target
from bronze.source import connect, publication, replication, slot
from bronze.source.catalog import Relation
from bronze.source.connect import Connection
from bronze.source.replication import Batch, Receiver

__all__ = ["Notify", "Step", "drop", "stream"]

_PATIENCE = 0.5
_LEAVING = 2.0
_LONGEST_LEAVING = 120.0
_GUARD_EVERY = 10.0
_LOOK_EVERY = 60.0
_LONGEST_PAUSE = 60.0
# A stream that has gone well for so long, or landed anything, counts its interruptions anew.
_STEADY = 60.0
# How the rows fared is entered so often.
_GRADE_EVERY = 60.0
# Of the memory beside the libraries and the merging, a batch may take this share: one is landed,
# one is ready and one is gathered, and each grows as it is taken apart.
_SHARE = 20
_BASE = 420 * 10**6
_LEAST_BATCH = 4 * 2**20


def stream(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    until_caught_up: bool = False,
    stop: threading.Event | None = None,
    notify: Notify = lambda _: None,
    copied: pipeline.Notify = lambda _: None,
) -> StreamResult:
    """Follows the tables of one source whose pattern is "streaming".

    Args:
        settings: the config.
        tables: names to follow only; none follows all that the config has streamed.
        until_caught_up: ends when all is landed that was committed before the call.
        stop: ends the stream once it is set; the batch in hand is finished.
        notify: is told of each batch, from this thread.
        copied: is told of the progress of copies, from this thread.

    Raises:
        ConfigError: nothing is to be streamed, or it is of several sources.
        SourceRefused: something is missing at the source; the error says what, and the mend.
        SourceError, LakeError: nothing could be done at all.
    """
    began, tally = time.monotonic(), Tally()
    stop = stop or threading.Event()
    name = _source(settings, tables)
    failures, known = 0, False
    mine: list[slot.Session] = []
    while not stop.is_set():
        started, landed = time.monotonic(), tally.batches
        try:
            with _opened(settings, name, stop, tally, notify, copied, mine) as line:
                targets = _streamed(line, tables)
                known = True
                session = _Session(line, targets)
                try:
                    session.follow(until_caught_up)
                finally:
                    session.grade()
            break
        except Stopped:
            break
        except BronzeError as error:
            passing = error.retry or isinstance(error, LakeUnreachable)
            well = tally.batches > landed or time.monotonic() - started > _STEADY
            failures = 1 if well else failures + 1
            given_up = until_caught_up and failures > settings.run.max_retries
            if not known or not passing or given_up:
                raise
            pause = min(_LONGEST_PAUSE, settings.run.retry_delay * 2 ** (failures - 1))
            pause *= uniform(0.5, 1)  # noqa: S311 - so that many do not come back at once
            notify(Step(tally.position, note=f"{error.message} Again in {pause:.0f} s."))
            stop.wait(pause)
    return StreamResult(
        stream=settings.stream.names(name)[0],
        position=tally.position,
        seconds=time.monotonic() - began,
        batches=tally.batches,
        transactions=tally.transactions,
        changes=tally.changes,
        tables=tuple(tally.tables.values()),
    )


def drop(settings: Settings, tables: Sequence[str] = ()) -> str:
    """Drops slot and publication; returns the slot's name. The Bronze tables stay as they are.

    Raises:
        SourceBusy: somebody streams from the slot.
        SourceError
    """
    name = _source(settings, tables)
    own, published = settings.stream.names(name)
    origin = settings.origin(name)
    with connect.mapped(origin), connect.connect(origin) as connection:
        slot.drop(connection, own)
        publication.unpublish(connection, published)
    return own


def _source(settings: Settings, tables: Sequence[str]) -> str:
    """The one source that is meant."""
    if len(settings.source) == 1:
        return next(iter(settings.source))
    named = {name for name in settings.source for t in tables if t.startswith(f"{name}.")}
    named |= {
        name
        for name in settings.source
        for t, own in settings.tables.items()
        if not tables and own.pattern == "streaming" and t.startswith(f"{name}.")
    }
    if len(named) == 1:
        return named.pop()
    raise ConfigError(
        "One stream follows one source, and the config has several.",
        hint="Name its tables as source.schema.table; run a stream for each source.",
    )


@contextmanager
def _opened(
    settings: Settings,
    name: str,
    stop: threading.Event,
    tally: Tally,
    notify: Notify,
    copied: pipeline.Notify,
    mine: list[slot.Session],
) -> Iterator[Line]:
    """A line; ``mine`` are the sessions at the server of the last one, and then of this one."""
    own, published = settings.stream.names(name)
    with ExitStack() as stack:
        origin = replace(settings.origin(name), application_name=f"bronze stream {own}")
        stack.callback(connect.forget, origin)
        control = stack.enter_context(connect.connect(origin))
        connect.locate(origin, control)
        with connect.mapped(origin):
            # Where a connection fell silent, the server keeps its session for hours.
            slot.end(control, mine)
            _claim(control, own, bool(mine), stop)
            mine[:] = [slot.session(control)]
            yield Line(settings, origin, control, own, published, stop, tally, notify, copied, mine)


def _claim(control: Connection, own: str, known: bool, stop: threading.Event) -> None:
    # The server may take a moment to notice that a session has gone, and a while after a cut.
    cut = slot.timeout(control) * 2 or _LONGEST_LEAVING
    patience = cut if known else _LEAVING
    until = time.monotonic() + patience
    while not slot.claim(control, own):
        if stop.wait(_PATIENCE / 10):
            raise Stopped
        if time.monotonic() >= until:
            raise SourceRefused(
                f"Another copy of bronze is streaming from the slot {own}.",
                hint="Stop it first; or give this one a [stream] slot of its own.",
            )


def _streamed(line: Line, wanted: Sequence[str]) -> list[Target]:
    found = [(line.origin.name, relation) for relation in line.found()]
    chosen = prepare.targets(line.settings, found, wanted)
    streamed = [target for target in chosen if target.settings.pattern == "streaming"]
    if not streamed or (wanted and len(streamed) < len(chosen)):
        others = ", ".join(target.label for target in chosen if target not in streamed)
        raise ConfigError(
            f"The config does not have {others if wanted else 'any table'} streamed.",
            hint='Say so for each table: [tables.orders] pattern = "streaming"',
        )
    return streamed


class _Session:
    """One line's time: the tables that follow, and how far they have come."""

    def __init__(self, line: Line, targets: Sequence[Target]) -> None:
        """Brings the tables onto the stream."""
        self._line, self._settings = line, line.settings
        self._history, self._followings = join.begun(line, targets)
        self._limit = units.readers(self._settings.run, self._settings.run.workers)
        self._recorded = 0
        self._recorded_at = self._guarded_at = 0.0
        self._looked_at = self._graded_at = time.monotonic()
        if self._followings:
            self._record(None, "")

    @property
    def _following(self) -> list[Following]:
        return [following for following in self._followings.values() if not following.error]

    def follow(self, until_caught_up: bool) -> None:
        """Lands batch after batch."""
        line = self._line
        target = slot.settled(line.control) if until_caught_up else None
        with (
            engine.executor("threads", self._limit) as pool,
            self._receiver() as receiver,
            tidy.Tidy(self._settings, pool) as tidying,
        ):
            receiver.confirm(self._recorded)
            while self._followings and not line.stop.is_set():
                batch = receiver.take(_PATIENCE, line.done)
                if batch:
                    self._land(pool, batch)
                    receiver.confirm(self._recorded)
                    tidying.touched(self._following)
                elif receiver.idle > line.done:
                    line.done = receiver.idle
                self._watch(receiver)
                if target is not None and line.done >= target:
                    break
                if target is not None and not batch:
                    receiver.nudge()
            if line.done > self._recorded:
                self._record(None, "")
                receiver.confirm(self._recorded)

    def grade(self) -> None:
        """Enters how the rows fared since it was done last; what hinders that is told, and the
        stream goes on: it is tried again.
        """
        try:
            follow.book_quality(self._settings, self._followings.values())
        except BronzeError as error:
            self._line.say(f"How the rows fared could not be entered: {error.message}")

    def _receiver(self) -> Receiver:
        line, memory = self._line, self._settings.run.memory
        sender = slot.walsender(line.origin)
        line.mine.append(slot.session(sender))
        return Receiver(
            line.origin,
            sender,
            line.slot,
            line.publication,
            self._followings,
            interval=self._settings.stream.interval,
            memory=max(_LEAST_BATCH, (memory - _BASE) // _SHARE),
            # Nobody answers there either, and who waits for it would wait for ever.
            lost=lambda: connect.cut(line.control),
        )

    def _land(self, pool: Executor, batch: Batch) -> None:
        """Lands a batch in all its tables; waits for a lake that cannot be written."""
        line, failures = self._line, 0
        stamp = Stamp(str(uuid_utils.uuid7()), datetime.now(UTC), line.origin.name, "streaming")
        while True:
            try:
                self._landed(pool, batch, stamp)
                break
            except LakeUnreachable as error:
                failures += 1
                pause = min(_LONGEST_PAUSE, self._settings.run.retry_delay * 2 ** (failures - 1))
                line.say(f"{error.message} Again in {pause:.0f} s.")
                if line.stop.wait(pause):
                    raise Stopped from error
        replication.release(batch)
        line.done = max(line.done, batch.position)
        line.tally.batches += 1
        line.tally.transactions += batch.transactions
        line.tally.changes += batch.changes
        self._record(batch, stamp.batch_id)

    def _landed(self, pool: Executor, batch: Batch, stamp: Stamp) -> None:
        line = self._line
        misfits: list[Following] = []
        unreachable: list[LakeUnreachable] = []
        courses = []
        for oid, gathered in batch.tables.items():
            following = self._followings.get(oid)
            if following is None or following.error or batch.position <= following.floor:
                continue
            if follow.fits(following, gathered):
                courses.append(follow.landing(self._settings, following, gathered, batch, stamp))
            else:
                misfits.append(following)
        for one in engine.drive(pool, courses, self._limit):
            if isinstance(one.error, (CommitConflict, Mismatch)):
                line.say(f"{one.following.label} is compared: {one.error.message}")
                misfits.append(one.following)
                continue
            if isinstance(one.error, LakeUnreachable):
                unreachable.append(one.error)
                continue
            one.following.error = one.error
            line.tally.followed(one)
        failpoint.reach("landed")
        # Only now: what raises while others are landed would leave their files lying about.
        if unreachable:
            raise unreachable[0]
        if misfits:
            self._compare(misfits)

    def _compare(self, misfits: Sequence[Following]) -> None:
        """Tables that the stream cannot bring up to date are compared as they are now."""
        self.grade()
        now = {relation.oid: relation for relation in self._line.found()}
        targets = []
        for following in misfits:
            target = self._followings.pop(following.oid).plan.target
            if following.oid in now:
                targets.append(replace(target, relation=now[following.oid]))
            else:
                error = TableRefused(
                    f"Table {following.label} was dropped.",
                    hint="Its Bronze table stays as it was.",
                    table=following.label,
                )
                self._line.failed(target, error)
        if targets:
            why = "its columns or its place in the stream have changed"
            self._followings |= join.compared(self._line, targets, why)

    def _record(self, batch: Batch | None, batch_id: str) -> None:
        """Records the position, and with it that all tables have landed what is before it."""
        line = self._line
        line.lag = max(0, slot.horizon(line.control) - line.done)
        entry = book.Record(
            stream=line.slot,
            source=line.origin.name,
            position=line.done,
            committed=batch.committed if batch else None,
            batch_id=batch_id,
            transactions=batch.transactions if batch else 0,
            changes=batch.changes if batch else 0,
            lag_bytes=line.lag,
            lag_seconds=max(0.0, time.time() - batch.committed / 10**6) if batch else 0.0,
            tables=record.versions(self._following, line.done),
        )
        record.enter(self._settings, self._history, entry, self._following)
        failpoint.reach("recorded")
        self._recorded, self._recorded_at = line.done, time.monotonic()
        line.tally.position = line.done
        changed = tuple(f.name for f in self._following if batch and f.oid in batch.tables)
        line.notify(
            Step(
                entry.position,
                entry.transactions,
                entry.changes,
                entry.lag_bytes,
                entry.lag_seconds,
                changed,
            )
        )

    # The guard

    def _watch(self, receiver: Receiver) -> None:
        now = time.monotonic()
        behind = self._line.done > self._recorded
        if behind and now - self._recorded_at > self._settings.stream.heartbeat:
            self._record(None, "")
            receiver.confirm(self._recorded)
        if now - self._guarded_at > _GUARD_EVERY:
            self._guarded_at = now
            self._guard()
        if now - self._graded_at > _GRADE_EVERY:
            self._graded_at = now
            self.grade()
        if now - self._looked_at > _LOOK_EVERY:
            self._looked_at = now
            self._look()

    def _guard(self) -> None:
        """Says when the slot makes the server keep too much of its log.

        Raises:
            SourceBusy: the slot was lost.
        """
        line = self._line
        found = slot.find(line.control, line.slot)
        if found is None or found.lost:
            raise SourceBusy(f"The slot {line.slot} was lost.", hint="It is made anew.")
        budget = self._settings.stream.wal_budget
        if found.retained > budget:
            left = f", {found.safe_wal_size} bytes before it is lost" if found.safe_wal_size else ""
            line.say(
                f"The slot {line.slot} makes the server keep {found.retained} bytes of its log"
                f" ({found.wal_status}{left}); [stream] wal_budget is {budget}."
            )

    def _look(self) -> None:
        """Looks for what the stream does not tell: partitions that came, went or were emptied.

        Raises:
            SourceBusy: a table was made anew, which is another one for the slot.
        """
        now = {relation.oid: relation for relation in self._line.found()}
        names = {relation.label: relation.oid for relation in now.values()}
        for following in self._following:
            if names.get(following.label, following.oid) != following.oid:
                raise SourceBusy(
                    f"Table {following.label} was made anew.", hint="It is compared and followed."
                )
        exchanged = [f for f in self._following if f.oid in now and _exchanged(f, now[f.oid])]
        if exchanged:
            self._compare(exchanged)


def _exchanged(following: Following, now: Relation) -> bool:
    known = following.plan.target.relation
    return now.kind == "partitioned" and drift.parts(now, True) != drift.parts(known, True)
