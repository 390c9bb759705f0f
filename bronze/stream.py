"""Streaming: a copy of the tables first, then what changes in them, batch after batch.

    slot → copy in its snapshot → receive → net → merge → commit → record → confirm

Each table's commit holds the position up to which it has followed. Once all tables have landed a
batch, one record in ``governance.streams`` says so, and only then the slot may forget it. After a
crash the source sends again what was not recorded, and each table leaves out what it has. A table
that the stream cannot bring up to date (its columns have changed, the slot was lost) is compared
with the source, in the snapshot of a slot of its own, and follows from there.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import uniform
from typing import Any

import tenacity
import uuid_utils

from bronze import drift, engine, failpoint, follow, pipeline, prepare, tidy, units
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
from bronze.follow import Followed, Following
from bronze.landing import GOVERNANCE, Table
from bronze.model import Origin, Place, Stamp, StreamResult, TableResult
from bronze.prepare import Target
from bronze.source import connect, publication, replication, slot, snapshot, texts
from bronze.source.catalog import Relation
from bronze.source.connect import Connection
from bronze.source.replication import Batch, Receiver
from bronze.source.slot import Made
from bronze.source.snapshot import Snapshot
from bronze.source.types import Choices
from bronze.table import commit, files, log
from bronze.table.commit import Change, Position, Shape

_log = logging.getLogger(__name__)

_PATIENCE = 0.5
_LEAVING = 2.0
_GUARD_EVERY = 10.0
_LOOK_EVERY = 60.0
_LONGEST_PAUSE = 60.0
# A stream that has gone well for so long begins to count its interruptions anew.
_STEADY = 60.0
# Of the memory beside the libraries and the merging, a batch may take this share: one is landed,
# one is ready and one is gathered, and each grows as it is taken apart.
_SHARE = 20
_BASE = 420 * 10**6
_LEAST_BATCH = 4 * 2**20


@dataclass(frozen=True)
class Step:
    """What just happened: a batch landed, or (with no ``tables``) the stream is idle.

    ``lag_bytes`` is how much of the source's log is not landed yet; ``lag_seconds`` how long ago
    the last landed transaction was committed, 0 where nothing is left. ``note`` tells people what
    else there is to know.
    """

    position: int
    transactions: int = 0
    changes: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    tables: tuple[str, ...] = ()
    note: str = ""


Notify = Callable[[Step], None]


class _Stopped(Exception):
    """The stream was asked to stop while it copied."""


@dataclass
class _Tally:
    """What a stream has done since it began."""

    batches: int = 0
    transactions: int = 0
    changes: int = 0
    position: int = 0
    tables: dict[str, TableResult] = field(default_factory=dict)

    def copied(self, result: TableResult) -> None:
        """Adds what a copy did."""
        self._add(result.table, result)

    def followed(self, one: Followed) -> None:
        """Adds what a batch did to a table."""
        target = one.following.plan.target
        self._add(
            one.following.label,
            TableResult(
                table=target.label,
                target=f"{target.schema}.{target.name}",
                status="failed" if one.error else "landed",
                rows_read=one.read,
                inserted=one.inserted,
                updated=one.updated,
                deleted=one.deleted,
                rejected=one.rejected,
                version=one.following.version,
                error=one.error.failure() if one.error else None,
            ),
        )

    def _add(self, label: str, new: TableResult) -> None:
        old = self.tables.get(label)
        if old is None:
            self.tables[label] = new
            return
        self.tables[label] = replace(
            new,
            status="landed" if old.status == "landed" and not new.error else new.status,
            rows_read=old.rows_read + new.rows_read,
            inserted=old.inserted + new.inserted,
            updated=old.updated + new.updated,
            deleted=old.deleted + new.deleted,
            rejected=old.rejected + new.rejected,
            seconds=old.seconds + new.seconds,
            notes=tuple(dict.fromkeys((*old.notes, *new.notes))),
        )


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
    began, tally = time.monotonic(), _Tally()
    stop = stop or threading.Event()
    name = _source(settings, tables)
    own, published = settings.stream.names(name)
    failures, known = 0, False
    while not stop.is_set():
        started = time.monotonic()
        try:
            with _opened(settings, name, own, published, tables, known, stop) as session:
                session.tally, session.notify, session.copied = tally, notify, copied
                known = True
                session.begin()
                session.follow(until_caught_up)
            break
        except _Stopped:
            break
        except BronzeError as error:
            passing = error.retry or isinstance(error, LakeUnreachable)
            failures = 1 if time.monotonic() - started > _STEADY else failures + 1
            given_up = until_caught_up and failures > settings.run.max_retries
            if not known or not passing or given_up:
                raise
            pause = min(_LONGEST_PAUSE, settings.run.retry_delay * 2 ** (failures - 1))
            pause *= uniform(0.5, 1)  # noqa: S311 - so that many do not come back at once
            notify(Step(tally.position, note=f"{error.message} Again in {pause:.0f} s."))
            stop.wait(pause)
    return StreamResult(
        stream=own,
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
    own: str,
    published: str,
    wanted: Sequence[str],
    known: bool,
    stop: threading.Event,
) -> Iterator[_Session]:
    """A session: all that lasts as long as the connection does."""
    with ExitStack() as stack:
        origin = replace(settings.origin(name), application_name=f"bronze stream {own}")
        stack.callback(connect.forget, origin)
        control = stack.enter_context(connect.connect(origin))
        connect.locate(origin, control)
        with connect.mapped(origin):
            _claim(control, own, known, stop)
            found = prepare.found(control, name, settings.source[name].schema_)
            session = _Session(settings, origin, control, own, published, stack, stop)
            session.targets = _streamed(settings, name, found, wanted)
            yield session


def _claim(control: Connection, own: str, known: bool, stop: threading.Event) -> None:
    # The server may take a moment to notice that a session has gone, and a while after a cut.
    patience = max(_LEAVING, slot.timeout(control) * 2 if known else 0)
    until = time.monotonic() + patience
    while not slot.claim(control, own):
        if time.monotonic() >= until or stop.wait(_PATIENCE / 10):
            raise SourceRefused(
                f"Another copy of bronze is streaming from the slot {own}.",
                hint="Stop it first; or give this one a [stream] slot of its own.",
            )


def _streamed(
    settings: Settings, name: str, found: Sequence[Relation], wanted: Sequence[str]
) -> list[Target]:
    chosen = prepare.targets(settings, [(name, relation) for relation in found], wanted)
    streamed = [target for target in chosen if target.settings.pattern == "streaming"]
    if not streamed or (wanted and len(streamed) < len(chosen)):
        others = ", ".join(target.label for target in chosen if target not in streamed)
        raise ConfigError(
            f"The config does not have {others if wanted else 'any table'} streamed.",
            hint='Say so for each table: [tables.orders] pattern = "streaming"',
        )
    return streamed


class _Session:
    """One connection's time: what follows, and how far it is."""

    def __init__(
        self,
        settings: Settings,
        origin: Origin,
        control: Connection,
        own: str,
        published: str,
        stack: ExitStack,
        stop: threading.Event,
    ) -> None:
        self.settings, self.origin, self.control = settings, origin, control
        self.own, self.published, self.stack, self.stop = own, published, stack, stop
        self.tally = _Tally()
        self.notify: Notify = lambda _: None
        self.copied: pipeline.Notify = lambda _: None
        self.targets: list[Target] = []
        self.followings: dict[int, Following] = {}
        self.timeline = ""
        self.done = self.recorded = 0
        self.recorded_at = self.guarded_at = 0.0
        self.looked_at = time.monotonic()
        self.lag = 0
        self.batch_id = ""
        self.pool: Executor
        self.limit = units.readers(settings.run, settings.run.workers)

    # The beginning

    def begin(self) -> None:
        """Makes publication and slot, and brings all tables to a position on the stream."""
        targets = self._fit()
        publication.publish(self.control, self.published, [t.relation for t in targets])
        found = slot.find(self.control, self.own)
        if found and found.lost:
            self._say(f"The slot {self.own} was lost: all tables are compared with the source.")
            slot.drop(self.control, self.own)
            found = None
        if found is None:
            with self._sender() as sender:
                self._copy(targets, lambda: self._make(sender, self.own), "a new slot was made")
            self.done = min((f.floor for f in self.followings.values()), default=0)
        else:
            late = self._resume(targets, found.confirmed or 0)
            if late:
                self._copy_apart(late)
        if not self.followings:
            return
        self.record(None)

    def _fit(self) -> list[Target]:
        """The tables that can be streamed; those that cannot have failed.

        Raises:
            SourceRefused: something is missing that concerns all of them.
        """
        self.targets, wanting = follow.fitted(self.control, self.targets, self.own, self.published)
        general = [one for one in wanting if not one.table]
        if general:
            raise SourceRefused(
                f"{self.origin.name} cannot be streamed yet: "
                + " ".join(one.what for one in general),
                hint="Have this done: " + " ".join(one.mend for one in general),
            )
        for one in wanting:
            error = TableRefused(one.what, hint=one.mend, table=one.table)
            target = next(t for t in self.targets if t.label == one.table)
            self._failed(target, error)
        unfit = {one.table for one in wanting}
        fit = [target for target in self.targets if target.label not in unfit]
        if not fit:
            first = wanting[0]
            raise TableRefused(first.what, hint=first.mend, table=first.table)
        return fit

    def _resume(self, targets: Sequence[Target], confirmed: int) -> list[Target]:
        """Lets tables follow from where they are; returns those that cannot."""
        late: list[Target] = []
        with self._held(targets, None) as held:
            self.timeline = held.timeline
            recorded = log.read(self._book())
            known = recorded.position(commit.transaction(self._stream)) if recorded else None
            # What was recorded may not have been confirmed any more.
            self.done = max(confirmed, known or 0)
            for table in self._planned(held, targets):
                plan, target = table.plan, table.target
                if plan is None:
                    self._failed(target, table.error or BronzeError("There is no plan."))
                    continue
                at = follow.held(plan.state, plan) if plan.state else None
                if plan.mode != "changes" or plan.state is None or at is None:
                    late.append(target)
                    continue
                floor = self._floor(recorded, target, at, confirmed)
                if floor is None:
                    self._say(f"{target.label} is compared: the slot has moved on without it.")
                    late.append(target)
                    continue
                self._join(held, table, floor, at, plan.state.version)
        return late

    def _floor(
        self, recorded: log.State | None, target: Target, at: int, confirmed: int
    ) -> int | None:
        """Where a table goes on: what the slot still has must begin before it."""
        if at >= confirmed:
            return at
        if recorded is None:
            return None
        own = f"{commit.transaction(self._stream)}/{target.relation.oid}"
        complete, then = recorded.position(own), recorded.position(f"{own}/held")
        good = complete is not None and complete >= confirmed and then is not None and then <= at
        return complete if good else None

    # Copies

    def _copy_apart(self, targets: Sequence[Target], why: str = "") -> None:
        """Copies or compares in the snapshot of a slot that is there only for this."""
        with self._sender() as sender:
            name = f"{self.own[:50]}_{uuid_utils.uuid4().hex[:8]}"
            made = lambda: self._make(sender, name, temporary=True)  # noqa: E731
            self._copy(targets, made, why or "the stream does not tell how it came to be")

    @contextmanager
    def _sender(self) -> Iterator[Connection]:
        with slot.walsender(self.origin) as sender:
            yield sender

    def _make(self, sender: Connection, name: str, temporary: bool = False) -> tuple[str, int]:
        made: Made = slot.make(sender, name, temporary=temporary, failover=not temporary)
        failpoint.reach("slotted")
        return made.snapshot, made.position

    def _copy(
        self, targets: Sequence[Target], made: Callable[[], tuple[str, int]], why: str
    ) -> None:
        with self._held(targets, made) as held:
            self.timeline = held.timeline
            tables = self._planned(held, targets)
            for table in tables:
                if table.plan and table.plan.mode == "changes":
                    table.plan = table.plan.whole(why)
            failpoint.reach("planned")
            results = {
                result.table: result
                for result in pipeline.landed(self.settings, tables, None, self._copying)
            }
            for table in tables:
                result = results[table.target.label]
                self.tally.copied(result)
                self.followings.pop(table.target.relation.oid, None)
                if result.error is None and result.version is not None:
                    self._join(held, table, held.position, held.position, result.version)

    def _copying(self, progress: pipeline.Progress) -> None:
        if self.stop.is_set():
            raise _Stopped
        self.copied(progress)

    @contextmanager
    def _held(
        self, targets: Sequence[Target], made: Callable[[], tuple[str, int]] | None
    ) -> Iterator[Snapshot]:
        source = self.settings.source[self.origin.name]
        relations = [target.relation for target in targets if target.relation.readable]
        kind = "run" if made else "per-table"
        with (
            connect.connect(self.origin) as holder,
            snapshot.hold(self.origin, holder, relations, source.schema_, kind, made) as held,  # type: ignore[arg-type]
        ):
            yield held

    def _planned(self, held: Snapshot, targets: Sequence[Target]) -> list[Table]:
        slots = self.settings.source[self.origin.name].pool.readers
        batch = str(uuid_utils.uuid7())
        tables = pipeline.planned(
            self.settings, self.origin, held, targets, batch, slots, self._carried
        )
        return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))

    def _carried(self, target: Target) -> Target:
        """The table with those columns only that the stream carries."""
        relation = target.relation
        names = publication.carried(self.control, relation, self.published)
        kept = tuple(a for a in relation.attributes if a.name in names)
        return replace(target, relation=replace(relation, attributes=kept))

    def _join(self, held: Snapshot, table: Table, floor: int, at: int, version: int) -> None:
        plan = table.plan
        if plan is None:
            raise BronzeError("There is no plan.")
        relation = plan.target.relation
        own = plan.target.settings
        choices = Choices(own.decimals, own.arrays, own.timestamps)
        kinds = {attribute.name: attribute.type for attribute in relation.attributes}
        self.followings[relation.oid] = Following(
            plan=plan,
            described=_described(held.holder, relation),
            texts=tuple(
                texts.text(column, kinds[column.name], choices)
                for column in plan.settled.columns
                if column.name in kinds
            ),
            floor=floor,
            held=at,
            version=version,
        )

    # Following

    def follow(self, until_caught_up: bool) -> None:
        """Lands batch after batch."""
        if not self.followings:
            return
        with connect.mapped(self.origin):
            target = slot.horizon(self.control) if until_caught_up else None
        with (
            engine.executor("threads", self.limit) as self.pool,
            self._receiver() as receiver,
            tidy.Tidy(self.settings, self.pool) as tidying,
        ):
            receiver.confirm(self.recorded)
            while not self.stop.is_set():
                batch = receiver.take(_PATIENCE, self.done)
                if batch:
                    self._land(batch)
                    receiver.confirm(self.recorded)
                    tidying.touched([f for f in self.followings.values() if not f.error])
                elif receiver.idle > self.done:
                    self.done = receiver.idle
                self._watch(receiver)
                if target is not None and self.done >= target:
                    break
                if target is not None and not batch:
                    receiver.nudge()
            if self.done > self.recorded:
                self.record(None)
                receiver.confirm(self.recorded)

    def _receiver(self) -> Receiver:
        memory = self.settings.run.memory
        return Receiver(
            self.origin,
            slot.walsender(self.origin),
            self.own,
            self.published,
            [target.relation.oid for target in self.targets],
            interval=self.settings.stream.interval,
            memory=max(_LEAST_BATCH, (memory - _BASE) // _SHARE),
        )

    def _land(self, batch: Batch) -> None:
        """Lands a batch in all its tables; waits for a lake that cannot be written."""
        failures = 0
        while True:
            try:
                self._landed(batch)
                break
            except LakeUnreachable as error:
                failures += 1
                pause = min(_LONGEST_PAUSE, self.settings.run.retry_delay * 2 ** (failures - 1))
                self._say(f"{error.message} Again in {pause:.0f} s.")
                if self.stop.wait(pause):
                    raise
        replication.release(batch)
        self.done = max(self.done, batch.position)
        self.tally.batches += 1
        self.tally.transactions += batch.transactions
        self.tally.changes += batch.changes
        self.record(batch)

    def _landed(self, batch: Batch) -> None:
        misfits: list[Following] = []
        courses = []
        stamp = Stamp(str(uuid_utils.uuid7()), datetime.now(UTC), self.origin.name, "streaming")
        self.batch_id = stamp.batch_id
        for oid, gathered in batch.tables.items():
            following = self.followings.get(oid)
            if following is None or following.error or batch.position <= following.floor:
                continue
            if follow.fits(following, gathered):
                courses.append(follow.landing(self.settings, following, gathered, batch, stamp))
            else:
                misfits.append(following)
        for one in engine.drive(self.pool, courses, self.limit):
            if isinstance(one.error, (CommitConflict, Mismatch)):
                self._say(f"{one.following.label} is compared: {one.error.message}")
                misfits.append(one.following)
                continue
            one.following.error = one.error
            self.tally.followed(one)
        failpoint.reach("landed")
        if misfits:
            self._compare(misfits)

    def _compare(self, misfits: Sequence[Following]) -> None:
        """Tables that the stream cannot bring up to date are compared as they are now."""
        now = {relation.oid: relation for relation in self._found()}
        targets = []
        for following in misfits:
            target = following.plan.target
            if following.oid in now:
                targets.append(replace(target, relation=now[following.oid]))
            else:
                error = TableRefused(
                    f"Table {following.label} was dropped.",
                    hint="Its Bronze table stays as it was.",
                    table=following.label,
                )
                self._failed(target, error)
                self.followings.pop(following.oid, None)
        if targets:
            self._copy_apart(targets, "its columns or its place in the stream have changed")

    def _failed(self, target: Target, error: BronzeError) -> None:
        self.tally.copied(
            TableResult(
                table=target.label,
                target=f"{target.schema}.{target.name}",
                status="failed",
                error=error.failure(),
            )
        )
        self._say(f"{target.label} is not followed: {error.message} {error.hint}")

    # The record

    @property
    def _stream(self) -> str:
        return f"{self.timeline}/{self.own}"

    def _book(self) -> Place:
        return self.settings.place(GOVERNANCE, book.NAME)

    def record(self, batch: Batch | None) -> None:
        """Records the position, and with it that all tables have landed what is before it."""
        seconds = max(0.0, time.time() - batch.committed / 10**6) if batch else 0.0
        self._measure()
        following = [f for f in self.followings.values() if not f.error]
        versions = {f.name: f.version if f.held <= self.done else None for f in following}
        record = book.Record(
            stream=self.own,
            source=self.origin.name,
            position=self.done,
            committed=batch.committed if batch else None,
            batch_id=self.batch_id if batch else "",
            transactions=batch.transactions if batch else 0,
            changes=batch.changes if batch else 0,
            lag_bytes=self.lag,
            lag_seconds=seconds,
            tables=json.dumps(versions),
        )
        marks = [(str(f.oid), max(self.done, f.held)) for f in following]
        marks += [(f"{f.oid}/held", f.held) for f in following]
        _enter(self._book(), record, Position(self._stream, self.done, tuple(marks)))
        failpoint.reach("recorded")
        self.recorded, self.recorded_at = self.done, time.monotonic()
        self.tally.position = self.done
        self.notify(
            Step(
                self.done,
                record.transactions,
                record.changes,
                self.lag,
                seconds,
                tuple(f.name for f in following if batch and f.oid in batch.tables),
            )
        )

    def _measure(self) -> None:
        with connect.mapped(self.origin):
            self.lag = max(0, slot.horizon(self.control) - self.done)

    # The guard

    def _watch(self, receiver: Receiver) -> None:
        now = time.monotonic()
        if self.done > self.recorded and now - self.recorded_at > self.settings.stream.heartbeat:
            self.record(None)
            receiver.confirm(self.recorded)
        if now - self.guarded_at > _GUARD_EVERY:
            self.guarded_at = now
            self._guard()
        if now - self.looked_at > _LOOK_EVERY:
            self.looked_at = now
            self._look()

    def _guard(self) -> None:
        with connect.mapped(self.origin):
            found = slot.find(self.control, self.own)
        if found is None or found.lost:
            raise SourceBusy(f"The slot {self.own} was lost.", hint="It is made anew.")
        budget = self.settings.stream.wal_budget
        if found.retained > budget:
            left = f", {found.safe_wal_size} bytes before it is lost" if found.safe_wal_size else ""
            self._say(
                f"The slot {self.own} makes the server keep {found.retained} bytes of its log"
                f" ({found.wal_status}{left}); [stream] wal_budget is {budget}."
            )

    def _look(self) -> None:
        """Looks for what the stream does not tell: partitions that came, went or were emptied."""
        now = {relation.oid: relation for relation in self._found()}
        exchanged = [
            following
            for oid, following in self.followings.items()
            if oid in now
            and now[oid].kind == "partitioned"
            and drift.parts(now[oid], True) != drift.parts(following.plan.target.relation, True)
        ]
        if exchanged:
            self._compare(exchanged)
        names = {relation.label: relation.oid for relation in now.values()}
        for oid, following in self.followings.items():
            if names.get(following.label, oid) != oid and not following.error:
                raise SourceBusy(
                    f"Table {following.label} was made anew.", hint="It is compared and followed."
                )

    def _found(self) -> tuple[Relation, ...]:
        schemas = self.settings.source[self.origin.name].schema_
        with connect.mapped(self.origin):
            return prepare.found(self.control, self.origin.name, schemas)

    def _say(self, note: str) -> None:
        _log.warning("%s", note)
        self.notify(Step(self.done, lag_bytes=self.lag, note=note))


_DESCRIBED = """
SELECT a.attname, a.atttypid::int8, a.atttypmod FROM pg_attribute a
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def _described(holder: Connection, relation: Relation) -> tuple[tuple[str, int, int], ...]:
    """The columns as the stream describes them."""
    kept = {attribute.name for attribute in relation.attributes}
    rows: list[Any] = holder.execute(_DESCRIBED, [relation.oid]).fetchall()
    return tuple((name, kind, modifier) for name, kind, modifier in rows if name in kept)


@tenacity.retry(
    retry=tenacity.retry_if_exception(commit.lost_race),
    stop=tenacity.stop_after_attempt(8),
    wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=2),
    reraise=True,
)
def _enter(place: Place, record: book.Record, reached: Position) -> None:
    state = log.read(place)
    file = files.write([book.frame(record)], place, str(uuid_utils.uuid7()), ())
    if file is None:
        raise BronzeError("A record is empty.")
    change = Change("WRITE", [file], parameters={"mode": "Append"})
    shape = None if state else Shape(book.COLUMNS, ())
    commit.commit(place, state, change, {"batch_id": record.batch_id}, shape=shape, reached=reached)
