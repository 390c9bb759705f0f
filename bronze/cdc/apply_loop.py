"""The apply loop: applies the changes that a stream receives, on one connection.

`Session.follow` repeats these steps:

1. `_join_waiting_tables`: tables that wait for a resync are synced once their slot was created;
2. `_receive_batch`: the receiver's next batch, of whole transactions;
3. `_apply_batch`: its changes are applied to each table; a table's commit has the new position;
4. `_record_checkpoint`: one record says that all tables have reached the position;
5. ``receiver.confirm``: the slot may forget what comes before it;
6. `_run_periodic`: what is due of figures and lineage, and the checks of the slot and the catalog;
7. `bronze.cdc.resync.StreamedTables.retry_due`: tables that failed are retried after a pause.

A process that dies between these steps loses nothing, and applies nothing twice: the server sends
again what was not confirmed, and each table leaves out what its own position says that it has.

What happens after an error:

- a table's columns changed, or a change of it exceeds the memory; another writer committed to its
  Bronze table, or the changes do not fit it: the table is resynced;
- any other error of one table: the table fails, and is retried later;
- the lake is unreachable: the same batch is applied again after a pause;
- connection or slot are lost, or a table was recreated: `bronze.cdc.stream` connects again;
- the source was put back to an earlier state: the same, and all tables are resynced.

`_apply_to_tables` decides about the errors of tables; the last two kinds leave `Session.follow`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import uuid_utils

from bronze import failpoint
from bronze.cdc import apply_table, checkpoints
from bronze.cdc.catalog_watch import CatalogWatch
from bronze.cdc.checkpoints import StreamRecords
from bronze.cdc.context import (
    AppliedChanges,
    FollowedTable,
    StartedTables,
    Stopped,
    StreamContext,
)
from bronze.cdc.new_slot import NewSlot
from bronze.cdc.resync import StreamedTables
from bronze.errors import (
    BronzeError,
    CommitConflict,
    LakeUnreachable,
    Mismatch,
    SourceBusy,
    SourceRewound,
    TableVanished,
)
from bronze.execution import budget, executors
from bronze.execution.executors import Workflow
from bronze.execution.periodic import Periodic
from bronze.maintenance.background import BackgroundMaintenance
from bronze.model.events import Heard, Resynced, Waiting
from bronze.model.stamp import RowStamp
from bronze.postgres.connection import connect, sockets
from bronze.postgres.copy import snapshot
from bronze.postgres.replication import slot
from bronze.postgres.replication.batch import Batch, release
from bronze.postgres.replication.landed import LandedMoment
from bronze.postgres.replication.receiver import Receiver
from bronze.postgres.replication.rewind import KnownTransactions
from bronze.tables.selection import Target

# How long to wait for a batch, while a slot is being created and otherwise.
_SHORT_PATIENCE, _PATIENCE = 0.05, 0.5
_SLOT_INTERVAL = 10.0
_CATALOG_INTERVAL = 60.0
_LINEAGE_INTERVAL = 3600.0
_HEARD_INTERVAL = 1.0
# The tables of anomalies and quality grow by a file each time.
_FIGURES_INTERVAL = 60.0
_LONGEST_PAUSE = 60.0
# The share of the memory, without that of libraries and merges, for the messages of a batch: one
# batch is applied, one is ready, one is being received, and each grows as it is parsed.
_SHARE = 20
_BASE = 420 * 10**6
_LEAST_BATCH = 4 * 2**20
# While the stream is behind, a batch has at least this many bytes of messages, spooled beyond its
# memory: each batch rewrites the files that it changes, however few of their rows.
_BATCH_BEHIND = 32 * 2**20


class Session:
    """One connection of a stream: the tables that follow, and the position that they have."""

    def __init__(
        self,
        stream: StreamContext,
        targets: Sequence[Target],
        started: StartedTables,
        names: Sequence[str] = (),
    ) -> None:
        """Begins with the tables as they were started.

        Args:
            stream: the stream.
            targets: all tables that are to be followed.
            started: which of them follow, and which need a resync.
            names: new tables are followed if they have one of these names; none means all.
        """
        self._stream, self._settings = stream, stream.settings
        run = self._settings.run
        self._limit = budget.readers(run.memory, run.workers, run.workers)
        self._largest_change = budget.largest_change(
            run.memory, self._limit, self._settings.memory_parts
        )
        self._records = StreamRecords(stream, started)
        self._landed, self._heard_at = LandedMoment(stream.control), 0.0
        self._tables = StreamedTables(stream, targets, started, self._records.record_figures)
        watch = CatalogWatch(stream, self._tables, names)
        self._checkpoint = Periodic(self._settings.stream.heartbeat, self._record_idle_checkpoint)
        self._periodic = (
            self._checkpoint,
            Periodic(_LINEAGE_INTERVAL, self._records.record_lineage),
            Periodic(_SLOT_INTERVAL, watch.check_slot, done_at=0.0),
            Periodic(_FIGURES_INTERVAL, self._records.record_figures),
            Periodic(_CATALOG_INTERVAL, watch.check_tables),
        )
        if self._tables.followed:
            self._record_checkpoint(None, "")

    def follow(self, until_caught_up: bool) -> None:
        """Repeats the steps of the loop until the stream is to end.

        Args:
            until_caught_up: whether to end when all that was committed before this call is applied.

        Raises:
            SourceRewound: the source was put back to an earlier state. Positions in the lake are
                not valid any more.
            BronzeError: the connection cannot be used any more.
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
            self._records.record_end()

    def _follow(self, until_caught_up: bool) -> None:
        stream, tables = self._stream, self._tables
        end = slot.committed_position(stream.control) if until_caught_up else None
        # Only what this connection has sent shows that the source was not put back.
        sent = 0
        with (
            executors.executor("threads", self._limit) as pool,
            self._stream_receiver() as receiver,
            BackgroundMaintenance(
                self._settings, pool, checkpoints.place(self._settings)
            ) as maintenance,
            closing(tables.waiting),
        ):
            receiver.confirm(self._records.position)
            heard = Periodic(_HEARD_INTERVAL, lambda: self._notify_heard(receiver), done_at=0.0)
            while self._has_tables(until_caught_up) and not stream.stop.is_set():
                joined_at = self._join_waiting_tables(pool, receiver, until_caught_up)
                end = end if end is None else max(end, joined_at)
                batch = self._receive_batch(receiver, end)
                sent = max(sent, batch.position if batch else receiver.idle)
                if batch:
                    stamp = self._apply_batch(pool, batch)
                    stream.progress.done = max(stream.progress.done, batch.position)
                    stream.totals.add_batch(batch)
                    self._record_checkpoint(batch, stamp.batch_id)
                    receiver.confirm(self._records.position)
                    targets = [following.target for following in tables.following]
                    maintenance.add({t.place: t.settings for t in targets})
                if not stream.stop.is_set():
                    # The end has records of its own: a stop does not wait for both.
                    self._run_periodic(receiver)
                heard.poll()
                if end is None:
                    tables.retry_due()
                elif sent >= end and not tables.waiting:
                    break
                elif not batch:
                    receiver.nudge()
            self._record_idle_checkpoint()
            receiver.confirm(self._records.position)

    def _has_tables(self, until_caught_up: bool) -> bool:
        """Whether a table follows, or may follow later."""
        may_be_retried = self._tables.failed and not until_caught_up
        return bool(self._tables.followed or self._tables.waiting or may_be_retried)

    # Step 1: tables that wait for a resync

    def _join_waiting_tables(
        self, pool: Executor, receiver: Receiver, until_caught_up: bool
    ) -> int:
        """Syncs the tables that wait, once their slot was created.

        Returns:
            The position from which on they follow; 0 if none was synced.

        Raises:
            SourceBusy, SourceError: the slot cannot be created; retrying is for the caller.
        """
        tables, others = self._tables, bool(self._tables.following)
        new = tables.waiting.ready_slot(receiver.want, others)
        if new is None:
            return 0
        with closing(new):
            if isinstance(new.error, BronzeError) and not (until_caught_up and new.error.retry):
                tables.waiting.refuse(new.targets, new.error)
                return 0
            synced = tables.waiting.sync(new, others)
            if synced.history != tables.history:
                raise SourceBusy(
                    "The source was put back to an earlier state.", hint="The stream starts again."
                )
            tables.followed |= synced.joined
            if left_out := tables.waiting.left_out_since(synced):
                self._apply_left_out(pool, new, left_out)
        tables.join(new, synced)
        return max((following.floor for following in synced.joined.values()), default=0)

    def _apply_left_out(self, pool: Executor, new: NewSlot, left_out: Mapping[int, int]) -> None:
        """Applies changes after the position of a temporary slot that the stream had received
        before the tables joined, from that slot.

        There is no checkpoint meanwhile: if the process dies here, the tables are resynced.

        Raises:
            Stopped: the stream is to end.
        """
        end, reached = max(left_out.values()), 0
        sender = new.take_sender()
        with self._receiver(sender, new.name, left_out, _LEAST_BATCH) as receiver:
            while reached < end:
                if self._stream.stop.is_set():
                    raise Stopped
                batch = receiver.take(_SHORT_PATIENCE, end - 1)
                if batch:
                    self._apply_batch(pool, batch)
                    reached = batch.position
                else:
                    reached = receiver.idle
                    receiver.nudge()

    # Step 2: receiving

    def _stream_receiver(self) -> Receiver:
        """The receiver of the stream's own slot."""
        stream, memory = self._stream, self._settings.run.memory
        sender = slot.walsender(stream.origin)
        stream.sessions.append(slot.session_of(sender))
        waiting = [target.relation.oid for target in self._tables.waiting.targets]
        return self._receiver(
            sender,
            stream.slot,
            [*self._tables.followed, *waiting],
            max(_LEAST_BATCH, (memory - _BASE) // _SHARE),
            _BATCH_BEHIND,
            stream.progress.past,
        )

    def _receiver(
        self,
        sender: connect.Connection,
        slot_name: str,
        oids: Iterable[int],
        memory: int,
        size: int = 0,
        past: KnownTransactions | None = None,
    ) -> Receiver:
        stream = self._stream
        return Receiver(
            stream.origin,
            sender,
            slot_name,
            stream.publication,
            oids,
            interval=self._settings.stream.interval,
            memory=memory,
            size=size,
            largest=self._largest_change,
            past=past,
            # The server does not answer there either: a query would wait for ever.
            lost=lambda: sockets.cut_connection(stream.control),
            stop=stream.stop,
        )

    def _receive_batch(self, receiver: Receiver, end: int | None) -> Batch | None:
        """The next batch, None if there is none yet; or if the server has sent all transactions
        before ``end``, and no table waits.
        """
        progress, waiting = self._stream.progress, self._tables.waiting
        patience = _SHORT_PATIENCE if waiting.creating_slot else _PATIENCE
        beyond = progress.done if end is None or waiting else min(progress.done, end - 1)
        batch = receiver.take(patience, beyond)
        if batch is None:
            progress.done = max(progress.done, receiver.idle)
        return batch

    # Step 3: applying

    def _apply_batch(self, pool: Executor, batch: Batch) -> RowStamp:
        """Applies a batch to its tables; again after a pause, as long as the lake is unreachable.

        Raises:
            Stopped: the stream is to end during a pause.
        """
        stream, failures = self._stream, 0
        stamp = RowStamp(
            str(uuid_utils.uuid7()),
            datetime.now(UTC),
            stream.origin.name,
            "streaming",
            audited=self._records.audit_mark,
        )
        while True:
            try:
                self._apply_to_tables(pool, batch, stamp)
                break
            except LakeUnreachable as error:
                failures += 1
                pause = min(_LONGEST_PAUSE, self._settings.run.retry_delay * 2 ** (failures - 1))
                stream.notify(Waiting(error.message, pause, error.failure()))
                if stream.stop.wait(pause):
                    raise Stopped from error
        release(batch)
        self._records.last_stamp = stamp
        return stamp

    def _apply_to_tables(self, pool: Executor, batch: Batch, stamp: RowStamp) -> None:
        """Applies a batch to its tables, once.

        Raises:
            LakeUnreachable: some tables may have applied it; they leave it out next time.
        """
        workflows, to_resync = self._workflows(batch, stamp)
        unreachable: list[LakeUnreachable] = []
        for applied in executors.drive(pool, workflows, self._limit):
            following, error = applied.following, applied.error
            if isinstance(error, TableVanished) and not checkpoints.exists(self._settings):
                error = checkpoints.lake_gone_error(self._settings)
            if isinstance(error, LakeUnreachable):
                unreachable.append(error)
            elif isinstance(error, CommitConflict | Mismatch):
                self._stream.notify(Resynced((following.label,), error.message))
                to_resync.append(following)
            else:
                self._stream.totals.add_changes(applied)
                if error:
                    self._tables.stop_following(following, error)
        failpoint.reach("landed")
        # Only after the loop: an error in it would leave unfinished files of other tables.
        if unreachable:
            raise unreachable[0]
        if to_resync:
            self._tables.resync(to_resync)

    def _workflows(
        self, batch: Batch, stamp: RowStamp
    ) -> tuple[list[Workflow[AppliedChanges]], list[FollowedTable]]:
        """The workflows of the tables that a batch is applied to, and the tables whose changes
        cannot be applied.
        """
        workflows, to_resync = [], []
        for oid, gathered in batch.tables.items():
            following = self._tables.followed.get(oid)
            # A table that failed may be waiting again, also under another name.
            if following is None or following.error:
                self._tables.waiting.leave_out(oid, batch.position)
            elif batch.position <= following.floor:
                continue
            elif gathered.oversize:
                why = (
                    f"a change of it has {gathered.oversize:,} bytes, and [run] memory allows"
                    f" {self._largest_change:,} in a change"
                )
                self._stream.notify(Resynced((following.label,), why))
                to_resync.append(following)
            elif not apply_table.has_same_columns(following, gathered):
                to_resync.append(following)
            else:
                workflows.append(
                    apply_table.apply_batch(self._settings, following, gathered, batch, stamp)
                )
        return workflows, to_resync

    # Step 4: the checkpoint

    def _record_checkpoint(self, batch: Batch | None, batch_id: str) -> None:
        """Records that all tables have applied what comes before the stream's position."""
        waiting = [target.full_name for target in self._tables.waiting.targets]
        self._records.record_checkpoint(batch, batch_id, waiting)
        self._checkpoint.postpone()

    # Step 6: what is done from time to time

    def _run_periodic(self, receiver: Receiver) -> None:
        recorded = self._records.position
        for periodic in self._periodic:
            periodic.poll()
        if self._records.position != recorded:
            receiver.confirm(self._records.position)

    def _notify_heard(self, receiver: Receiver) -> None:
        """Reports that the source was heard since the last report, if it was."""
        if receiver.heard_at <= self._heard_at:
            return
        stream, self._heard_at = self._stream, receiver.heard_at
        as_of = self._landed.moment(stream.progress.done)
        at = datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._heard_at)
        tables = tuple(following.label for following in self._tables.following)
        stream.notify(Heard(at, as_of, tables))

    def _record_idle_checkpoint(self) -> None:
        """Records a checkpoint if the position has moved since the last one."""
        if self._stream.progress.done > self._records.position:
            self._record_checkpoint(None, "")
