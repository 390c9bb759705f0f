"""One line's time of a stream: the tables that follow, batch after batch, and what watches them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import uuid_utils

from bronze import failpoint
from bronze.cdc import apply, checkpoints, table_sync
from bronze.cdc.apply import FollowedTable
from bronze.cdc.context import Stopped, StreamContext
from bronze.cdc.new_slot import NewSlot
from bronze.cdc.resync import Resync, dropped_error
from bronze.errors import (
    BronzeError,
    CommitConflict,
    ConfigError,
    LakeUnreachable,
    Mismatch,
    SourceBusy,
    SourceRewound,
    TableRefused,
    TableVanished,
)
from bronze.execution import budget, executors
from bronze.execution.periodic import Periodic
from bronze.governance import audit, lineage
from bronze.governance.tables import streams as book
from bronze.maintenance.background import BackgroundMaintenance
from bronze.model.events import (
    BatchApplied,
    CheckpointMade,
    Notice,
    Resynced,
    SlotRetains,
    TableAdded,
    TableFailed,
    TableFollowed,
    TableRetried,
    Waiting,
)
from bronze.model.stamp import RowStamp
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect, sockets, translation
from bronze.postgres.copy import snapshot
from bronze.postgres.replication import publication, slot
from bronze.postgres.replication.batch import Batch, release
from bronze.postgres.replication.receiver import Receiver
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.tables import selection
from bronze.tables.selection import Target

_PATIENCE, _BRIEF = 0.5, 0.05
_GUARD_EVERY = 10.0
_LOOK_EVERY = 60.0
_LINEAGE_EVERY = 3600.0
# The books of anomalies and quality grow by a file each time.
_RECORD_EVERY = 60.0
_LONGEST_PAUSE = 60.0
# How long a table that failed is left alone, at first and at most.
_FIRST_REST, _LONGEST_REST = 60.0, 3600.0
# Of the memory beside the libraries and the merging, a batch may take this share: one is landed,
# one is ready and one is gathered, and each grows as it is taken apart.
_SHARE = 20
_BASE = 420 * 10**6
_LEAST_BATCH = 4 * 2**20


@dataclass
class _Failing:
    """A table that does not follow, and when it is tried again."""

    target: Target
    pause: float
    due: float


class Session:
    """One line's time: the tables that follow, and how far they have come."""

    def __init__(
        self, stream: StreamContext, targets: Sequence[Target], wanted: Sequence[str] = ()
    ) -> None:
        """Brings the tables onto the stream; ``wanted`` are names to follow only, none for all."""
        self._stream, self._settings, self._wanted = stream, stream.settings, wanted
        self._failing: dict[str, _Failing] = {}
        self._resync = Resync(stream, self._fails_by)
        self._history, self._followings, late = table_sync.begin(stream, targets)
        for why, some in late.items():
            self._resync.add(some, why)
        for target in targets:
            if target.relation.oid not in self._followings and target.label not in self._resync:
                self._fails(target)
        run = self._settings.run
        self._limit = budget.readers(run.memory, run.workers, run.workers)
        self._largest = budget.largest_change(run.memory, self._limit)
        self._recorded = 0
        self._heartbeat = Periodic(self._settings.stream.heartbeat, self._record_idle)
        self._anomalies = Periodic(_RECORD_EVERY, self._record_anomalies)
        self._quality = Periodic(_RECORD_EVERY, self._record_quality)
        self._periodic = (
            self._heartbeat,
            Periodic(_LINEAGE_EVERY, self._record_lineage),
            Periodic(_GUARD_EVERY, self._guard, done_at=0.0),
            self._anomalies,
            self._quality,
            Periodic(_LOOK_EVERY, self._look),
        )
        self._last: RowStamp | None = None
        self._audited = audit.mark(self._settings)
        self._labels: frozenset[str] = frozenset()
        if self._followings:
            self._record(None, "")

    @property
    def _following(self) -> list[FollowedTable]:
        return [following for following in self._followings.values() if not following.error]

    def follow(self, until_caught_up: bool) -> None:
        """Lands batch after batch.

        Raises:
            SourceRewound: positions mean something else from now on.
        """
        try:
            self._follow(until_caught_up)
        except SourceRewound:
            stream = self._stream
            checkpoints.give_up_positions(
                self._settings, snapshot.timeline_of(stream.control), stream.slot
            )
            raise
        finally:
            self._remember_last()

    def _follow(self, until_caught_up: bool) -> None:
        stream = self._stream
        target = slot.committed_position(stream.control) if until_caught_up else None
        with (
            executors.executor("threads", self._limit) as pool,
            self._receiver() as receiver,
            BackgroundMaintenance(
                self._settings, pool, checkpoints.place(self._settings)
            ) as maintenance,
            closing(self._resync),
        ):
            receiver.confirm(self._recorded)
            while self._left(until_caught_up) and not stream.stop.is_set():
                joined_at = self._join(pool, receiver, until_caught_up)
                if target is not None:
                    target = max(target, joined_at)
                patience = _BRIEF if self._resync.pending else _PATIENCE
                batch = receiver.take(patience, stream.progress.done)
                if batch:
                    self._land(pool, batch)
                    receiver.confirm(self._recorded)
                    targets = [one.plan.target for one in self._following]
                    maintenance.touched({t.place: t.settings for t in targets})
                elif receiver.idle > stream.progress.done:
                    stream.progress.done = receiver.idle
                self._watch(receiver)
                if target is None:
                    self._try_again()
                if target is not None and stream.progress.done >= target and not self._resync:
                    break
                if target is not None and not batch:
                    receiver.nudge()
            if stream.progress.done > self._recorded:
                self._record(None, "")
                receiver.confirm(self._recorded)

    def _left(self, until_caught_up: bool) -> bool:
        """Whether any table follows, or may follow again."""
        failing = self._failing and not until_caught_up
        return bool(self._followings or self._resync or failing)

    def _receiver(self) -> Receiver:
        stream, memory = self._stream, self._settings.run.memory
        sender = slot.walsender(stream.origin)
        stream.sessions.append(slot.session_of(sender))
        set_aside = [target.relation.oid for target in self._resync.targets]
        return self._receiving(
            sender,
            stream.slot,
            [*self._followings, *set_aside],
            max(_LEAST_BATCH, (memory - _BASE) // _SHARE),
            stream.progress.past,
        )

    def _receiving(
        self,
        sender: connect.Connection,
        name: str,
        oids: Iterable[int],
        memory: int,
        past: KnownTransactions | None = None,
    ) -> Receiver:
        stream = self._stream
        return Receiver(
            stream.origin,
            sender,
            name,
            stream.publication,
            oids,
            interval=self._settings.stream.interval,
            memory=memory,
            largest=self._largest,
            past=past,
            # Nobody answers there either, and who waits for it would wait for ever.
            lost=lambda: sockets.cut(stream.control),
        )

    def _land(self, pool: Executor, batch: Batch) -> None:
        """Lands a batch in all its tables, and records it."""
        stream = self._stream
        stamp = self._apply(pool, batch)
        stream.progress.done = max(stream.progress.done, batch.position)
        stream.totals.batches += 1
        stream.totals.transactions += batch.transactions
        stream.totals.changes += batch.changes
        self._record(batch, stamp.batch_id)

    def _apply(self, pool: Executor, batch: Batch) -> RowStamp:
        """Lands a batch in all its tables; waits for a lake that cannot be written."""
        stream, failures = self._stream, 0
        stamp = RowStamp(
            str(uuid_utils.uuid7()), datetime.now(UTC), stream.origin.name, "streaming"
        )
        stamp = replace(stamp, audited=self._audited)
        while True:
            try:
                self._landed(pool, batch, stamp)
                break
            except LakeUnreachable as error:
                failures += 1
                pause = min(_LONGEST_PAUSE, self._settings.run.retry_delay * 2 ** (failures - 1))
                stream.tell(Waiting(error.message, pause))
                if stream.stop.wait(pause):
                    raise Stopped from error
        release(batch)
        self._last = stamp
        return stamp

    def _record_anomalies(self) -> None:
        """Enters what was found out about the last batches' rows into the books."""
        if self._last is None:
            return
        for following in self._followings.values():
            for note in apply.record_anomalies(self._settings, following, self._last):
                self._stream.tell(Notice(f"{following.label}: {note}"))

    def _record_quality(self) -> None:
        """Enters how the rows fared since it was done last; what hinders that is told, and the
        stream goes on: it is tried again.
        """
        try:
            apply.record_quality(self._settings, self._followings.values())
        except BronzeError as error:
            self._stream.tell(Notice(f"Quality figures were not recorded: {error.message}"))

    def _landed(self, pool: Executor, batch: Batch, stamp: RowStamp) -> None:
        stream = self._stream
        misfits: list[FollowedTable] = []
        unreachable: list[LakeUnreachable] = []
        courses = []
        for oid, gathered in batch.tables.items():
            following = self._followings.get(oid)
            # One that failed may have been set aside again by now, under another name too.
            if following is None or following.error:
                self._resync.leave_out(oid, batch.position)
                continue
            if batch.position <= following.floor:
                continue
            if gathered.oversize:
                stream.tell(_too_large(following, gathered.oversize, self._largest))
                misfits.append(following)
            elif apply.has_same_columns(following, gathered):
                courses.append(apply.apply_batch(self._settings, following, gathered, batch, stamp))
            else:
                misfits.append(following)
        for one in executors.drive(pool, courses, self._limit):
            if isinstance(one.error, (CommitConflict, Mismatch)):
                stream.tell(Resynced((one.following.label,), one.error.message))
                misfits.append(one.following)
                continue
            if isinstance(one.error, TableVanished) and not checkpoints.exists(self._settings):
                unreachable.append(checkpoints.lake_gone_error(self._settings))
                continue
            if isinstance(one.error, LakeUnreachable):
                unreachable.append(one.error)
                continue
            stream.totals.followed(one)
            if one.error:
                self._gives_up(one.following, one.error)
        failpoint.reach("landed")
        # Only now: what raises while others are landed would leave their files lying about.
        if unreachable:
            raise unreachable[0]
        if misfits:
            self._compare(misfits)

    def _compare(
        self,
        misfits: Sequence[FollowedTable],
        why: str = "its columns or its place in the stream have changed",
    ) -> None:
        """Tables that the stream cannot bring up to date are compared as they are now.

        Raises:
            SourceBusy: one was made anew, which is another one for the slot.
        """
        self._anomalies.run()
        self._quality.run()
        now = {relation.oid: relation for relation in self._stream.found()}
        _refuse_remade(misfits, now.values())
        self._stream.remember([lineage.end_stream(following.entry, None) for following in misfits])
        there: list[Target] = []
        for following in misfits:
            target, relation = (
                self._followings.pop(following.oid).plan.target,
                now.get(following.oid),
            )
            if relation and relation.label == target.label:
                there.append(self._as_now(target, relation))
            else:
                error = (
                    _left_error(following, relation) if relation else dropped_error(target.label)
                )
                self._fails_by(target, error)
        self._set_aside(there, why)

    def _set_aside(self, targets: Sequence[Target], why: str) -> None:
        """Has tables copied or compared, if they can be streamed, and no other table is followed
        into the same Bronze table.
        """
        free: list[Target] = []
        for target in targets:
            if other := self._owner(target, free):
                self._fails_by(target, _occupied(target, other))
            else:
                free.append(target)
        self._resync.add(table_sync.fit_tables_again(self._stream, free), why)
        for target in free:
            if target.label not in self._resync:
                self._fails(target)

    def _owner(self, target: Target, more: Sequence[Target]) -> str:
        """The label of another table, of those that are followed and some ``more``, that is taken
        into a target's Bronze table; "" if there is none.
        """
        for one in [*(f.plan.target for f in self._following), *self._resync.targets, *more]:
            is_other = one.label != target.label and one.relation.oid != target.relation.oid
            if is_other and one.place == target.place:
                return one.label
        return ""

    # Tables that are copied or compared

    def _join(self, pool: Executor, receiver: Receiver, until_caught_up: bool) -> int:
        """Copies or compares the tables that were set aside, once the slot for it is there.

        Returns:
            The position from which on they follow; 0 where none has come.

        Raises:
            SourceError: there is no slot, and nobody waits for it to be tried again.
        """
        ready = self._resync.ready(receiver.want, bool(self._following))
        if ready is None:
            return 0
        with closing(ready):
            if isinstance(ready.error, BronzeError) and not (until_caught_up and ready.error.retry):
                self._resync.refuse(ready.targets, ready.error)
                return 0
            done = self._resync.copy(ready, bool(self._following))
            if done.history != self._history:
                raise SourceBusy("The source was put back to an earlier state.", hint="Begun anew.")
            self._followings |= done.joined
            if behind := self._resync.behind(done):
                self._catch_up(pool, ready, behind)
        for target in ready.targets:
            if target.relation.oid in done.joined:
                if self._failing.pop(target.label, None):
                    self._stream.tell(TableFollowed(target.label))
            elif target.label not in done.changed:
                self._fails(target)
        return max((following.floor for following in done.joined.values()), default=0)

    def _catch_up(self, pool: Executor, ready: NewSlot, behind: Mapping[int, int]) -> None:
        """Lands what was left out of tables after the position of their slot, from that slot.

        Nothing is recorded meanwhile: whoever dies here leaves tables that are compared again.

        Raises:
            Stopped: the stream is to end.
        """
        stream, end, reached = self._stream, max(behind.values()), 0
        with self._receiving(ready.take_sender(), ready.name, behind, _LEAST_BATCH) as receiver:
            while reached < end:
                if stream.stop.is_set():
                    raise Stopped
                batch = receiver.take(_BRIEF, end - 1)
                if batch:
                    self._apply(pool, batch)
                    reached = batch.position
                else:
                    reached = receiver.idle
                    receiver.nudge()

    def _as_now(self, target: Target, relation: Relation) -> Target:
        """A table as it is now; which key its replica identity gives it is to be seen again."""
        known = target.relation
        own = self._settings.table(target.source, known.schema, known.name)
        return replace(target, relation=relation, settings=own)

    # Tables that failed

    def _gives_up(self, following: FollowedTable, error: BronzeError) -> None:
        following.error = error
        # What cannot be written yet is entered by whoever comes next.
        with suppress(BronzeError):
            self._stream.remember([lineage.end_stream(following.entry, error)])
        self._stream.tell(TableFailed(following.label, error.failure()))
        self._fails(following.plan.target)

    def _fails_by(self, target: Target, error: BronzeError) -> None:
        self._stream.failed(target, error)
        self._fails(target)

    def _fails(self, target: Target) -> None:
        known = self._failing.get(target.label)
        pause = min(_LONGEST_REST, known.pause * 2) if known else _FIRST_REST
        self._failing[target.label] = _Failing(target, pause, time.monotonic() + pause)

    def _try_again(self) -> None:
        """Compares tables that failed some time ago, as the failure may have passed."""
        now = time.monotonic()
        failing = (one for one in self._failing.values() if one.target.label not in self._resync)
        due = [one for one in failing if one.due <= now]
        if not due:
            return
        there = {relation.label: relation for relation in self._stream.found()}
        targets = []
        for one in due:
            label, oid = one.target.label, one.target.relation.oid
            if label not in there:
                # It may come back under its name.
                self._fails(one.target)
                continue
            targets.append(self._as_now(one.target, there[label]))
            known = self._followings.get(oid)
            # Under another name the same table may be followed by now.
            if known and known.label == label:
                del self._followings[oid]
        if not targets:
            return
        self._stream.tell(TableRetried(tuple(target.label for target in targets)))
        self._set_aside(targets, "it could not follow before")

    def _record(self, batch: Batch | None, batch_id: str) -> None:
        """Records the position, and with it that all tables have landed what is before it."""
        stream = self._stream
        moment, first = slot.server_position(stream.control), not stream.totals.position
        stream.progress.lag = max(0, moment.flushed - stream.progress.done)
        set_aside = [target.full_name for target in self._resync.targets]
        entry = book.Checkpoint(
            stream=stream.slot,
            source=stream.origin.name,
            position=stream.progress.done,
            committed=batch.committed if batch else None,
            batch_id=batch_id,
            transactions=batch.transactions if batch else 0,
            changes=batch.changes if batch else 0,
            lag_bytes=stream.progress.lag,
            lag_seconds=max(0.0, time.time() - batch.committed / 10**6) if batch else 0.0,
            tables=checkpoints.versions(self._following, stream.progress.done, set_aside),
        )
        checkpoints.record(
            self._settings,
            self._history,
            entry,
            moment.clock,
            self._following,
            stream.progress.published,
            first,
        )
        failpoint.reach("recorded")
        self._recorded = stream.progress.done
        self._heartbeat.postpone()
        stream.totals.position = stream.progress.done
        if batch is None:
            stream.tell(CheckpointMade(entry.position, entry.lag_bytes))
            return
        tables = tuple(f.name for f in self._following if f.oid in batch.tables)
        stream.tell(
            BatchApplied(
                entry.position,
                entry.transactions,
                entry.changes,
                entry.lag_bytes,
                entry.lag_seconds,
                tables,
            )
        )

    def _remember_last(self) -> None:
        """Enters what became of each table; what cannot be is entered by the next stream or run."""
        stream = self._stream
        stream.totals.unrecorded = None
        try:
            if not checkpoints.exists(self._settings):
                raise checkpoints.lake_gone_error(self._settings)
            self._anomalies.run()
            self._quality.run()
            stream.remember(
                [lineage.end_stream(f.entry, f.error) for f in self._followings.values()]
            )
            self._attest()
        except BronzeError as error:
            stream.totals.unrecorded = error.failure()

    def _attest(self) -> None:
        """Says which tables knew of records that the audit log has not."""
        doubted = {
            f.plan.target.full_name: f.doubted for f in self._followings.values() if f.doubted
        }
        if self._audited is None or not doubted:
            return
        for note in audit.records_lost(self._settings, self._audited, doubted):
            self._stream.tell(Notice(note))
        for following in self._followings.values():
            following.doubted = None

    # The guard

    def _watch(self, receiver: Receiver) -> None:
        """Does what is due beside the batches."""
        recorded = self._recorded
        for periodic in self._periodic:
            periodic.poll()
        if self._recorded != recorded:
            receiver.confirm(self._recorded)

    def _record_idle(self) -> None:
        if self._stream.progress.done > self._recorded:
            self._record(None, "")

    def _record_lineage(self) -> None:
        self._stream.remember([following.entry for following in self._following])
        with suppress(BronzeError):
            # Tried again in an hour; that nothing can be recorded is said in the end.
            self._attest()
        self._audited = audit.mark(self._settings)

    def _guard(self) -> None:
        """Says when the slot makes the server keep too much of its log.

        Raises:
            SourceBusy: the slot was lost.
        """
        stream = self._stream
        found = slot.find(stream.control, stream.slot)
        if found is None or found.lost:
            raise SourceBusy(f"The slot {stream.slot} was lost.", hint="It is made anew.")
        budget = self._settings.stream.wal_budget
        if found.retained > budget:
            stream.tell(
                SlotRetains(
                    stream.slot, found.retained, budget, found.wal_status, found.safe_wal_size
                )
            )

    def _look(self) -> None:
        """Looks for what the stream does not tell, or only with the next row: in the catalog, and
        in the publication.

        Raises:
            SourceBusy: a table was made anew, which is another one for the slot.
        """
        stream = self._stream
        now = {relation.oid: relation for relation in stream.found()}
        _refuse_remade(self._following, now.values())
        for one in self._following:
            if one.oid not in now or now[one.oid].label != one.label:
                self._gives_up(one, _left_error(one, now.get(one.oid)))
        self._follow_new(now.values())
        following = self._following
        with translation.source_errors(stream.origin):
            relations = [now[one.oid] for one in following]
            covered = publication.fingerprints_of(stream.control, stream.publication, relations)
            keyed = [(now[one.oid], one.plan.target.key) for one in following]
            telling = publication.identifying_columns_by_table(stream.control, keyed)
        changed: dict[str, list[FollowedTable]] = {}
        for one in following:
            if why := _change_of(one, now[one.oid], covered.get(one.oid, "")):
                changed.setdefault(why, []).append(one)
            elif telling.get(one.oid) != one.identity:
                changed.setdefault("what tells its rows apart has changed", []).append(one)
        for why, some in changed.items():
            stream.tell(Resynced(tuple(one.label for one in some), why))
            self._compare(some, why)

    def _follow_new(self, found: Collection[Relation]) -> None:
        """Has tables copied that have come since the stream began, or have come back."""
        stream = self._stream
        for one in self._failing.values():
            if any(r.label == one.target.label and r.oid != one.target.relation.oid for r in found):
                one.due = 0.0
        labels = frozenset(relation.label for relation in found)
        if labels == self._labels:
            return
        self._labels = labels
        known = {following.label for following in self._followings.values()}
        known |= {*self._failing, *(target.label for target in self._resync.targets)}
        mine = [(stream.origin.name, relation) for relation in found if self._wants(relation)]
        if not mine:
            return
        try:
            chosen = selection.select_targets(self._settings, mine, ())
        except ConfigError as error:
            stream.tell(Notice(f"{error.message} {error.hint}"))
            return
        new = [
            target
            for target in chosen
            if target.settings.pattern == "streaming" and target.label not in known
        ]
        for target in new:
            stream.tell(TableAdded(target.label))
        if new:
            self._set_aside(new, "it has come since the stream began")

    def _wants(self, relation: Relation) -> bool:
        """Whether a table is among those that the stream was started for."""
        label = relation.label
        names = {relation.name, label, f"{self._stream.origin.name}.{label}"}
        return not self._wanted or not names.isdisjoint(self._wanted)


def _left_error(following: FollowedTable, now: Relation | None) -> TableRefused:
    """The error of a table that is not there any more under its name."""
    return TableRefused(
        f"Table {following.label} was renamed to {now.label}."
        if now
        else f"Table {following.label} was dropped, or moved to another schema.",
        hint="Its Bronze table stays as it was. To go on with it under another name, give that"
        f' name a section of its own with target = "{following.name}".',
        table=following.label,
    )


def _occupied(target: Target, other: str) -> TableRefused:
    """The error of a table whose Bronze table another one is followed into."""
    return TableRefused(
        f"Table {target.label} would become {target.full_name}, as {other} does already.",
        hint=f'Give one another name: [tables.{selection.toml(target.label)}] target = "bz_…"',
        table=target.label,
    )


def _change_of(following: FollowedTable, now: Relation, covered: str) -> str:
    """What has changed of a table that the stream may not have told of; "" if nothing has."""
    target = following.plan.target
    known = target.relation
    if why := definition.definition_change(known.definition, now.definition, storage=True):
        return why
    if covered != target.published:
        return "its publication or its replica identity has changed"
    if now.key != known.key:
        return "its key has changed"
    names = {(a.number, a.name) for a in now.attributes}
    if not {(a.number, a.name) for a in known.attributes} <= names:
        return "its columns have changed"
    return ""


def _too_large(following: FollowedTable, size: int, largest: int) -> Resynced:
    why = f"a change of it has {size:,} bytes, and [run] memory allows {largest:,} in a change"
    return Resynced((following.label,), why)


def _refuse_remade(followings: Iterable[FollowedTable], now: Iterable[Relation]) -> None:
    names = {relation.label: relation.oid for relation in now}
    for following in followings:
        if names.get(following.label, following.oid) != following.oid:
            raise SourceBusy(
                f"Table {following.label} was made anew.", hint="It is compared and followed."
            )
