"""The checkpoints of a stream: which position all its tables have reached, and at which versions.

Each checkpoint is a row of ``governance.streams``. The last one's position, and those that the
tables had in their own logs then, are also app transactions of that table. A table without changes
has reached the checkpoint's position too, although the position in its own log is lower.

`StreamRecords` makes the checkpoints of a connection, and records the rest: figures and lineage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress

from bronze import failpoint
from bronze.cdc import apply_table
from bronze.cdc.context import FollowedTable, StartedTables, StreamContext
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, positions
from bronze.delta.commit import Change, Shape
from bronze.delta.log import State
from bronze.delta.positions import StreamPosition
from bronze.errors import BronzeError, LakeUnreachable
from bronze.governance import audit, lineage, writer
from bronze.governance.tables import streams
from bronze.governance.tables.streams import Checkpoint
from bronze.model.events import (
    AuditRecordsLost,
    BatchApplied,
    CheckpointMade,
    QualityUnrecorded,
    TableNote,
)
from bronze.model.locations import Place
from bronze.model.stamp import RowStamp
from bronze.postgres.replication import slot as replication_slot
from bronze.postgres.replication.batch import Batch
from bronze.postgres.replication.rewind import KnownTransactions


def place(settings: Settings) -> Place:
    """The table of the checkpoints."""
    return settings.place(GOVERNANCE, streams.NAME)


def lake_gone_error(settings: Settings) -> LakeUnreachable:
    """The error of a lake that had checkpoints of this stream, and has none any more."""
    return LakeUnreachable(
        f"The lake at {settings.lake.root} is gone: it has no checkpoint of this stream any more.",
        hint="Mount it, or move it back. If it was deleted on purpose, start the stream again.",
    )


def exists(settings: Settings) -> bool:
    """Whether there is a checkpoint.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    return log.read(place(settings)) is not None


def position(state: State | None, stream: str) -> int:
    """The position of a stream's last checkpoint; 0 if there is none.

    Args:
        state: the table of the checkpoints.
        stream: the history of the source's positions and the slot, as ``history/slot``.
    """
    return StreamPosition(stream).position(state)


def history(state: State | None, identity: str, slot: str) -> str:
    """The name of the history that a stream's positions belong to.

    Args:
        state: the table of the checkpoints.
        identity: of the source, as of `bronze.postgres.copy.snapshot.timeline_of`.
        slot: the slot's name.
    """
    era = positions.era(state, identity, slot)
    return f"{identity}+{era}" if era else identity


@commit.retry_conflicts
def give_up_positions(settings: Settings, identity: str, slot: str) -> None:
    """Begins a new `history`: earlier positions are not valid any more.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    table = place(settings)
    state = log.read(table)
    reached = positions.next_era(state, identity, slot)
    shape = None if state else Shape(streams.COLUMNS, ())
    commit.commit(table, state, Change("WRITE"), {}, shape=shape, reached=reached)


def known_transactions(state: State | None, stream: str) -> KnownTransactions:
    """The transactions that the last checkpoint knows; ``stream`` as for `position`."""
    recorded = StreamPosition(stream).checkpoint_time(state)
    return KnownTransactions(position(state, stream), recorded) if recorded else KnownTransactions()


def publication(state: State | None, stream: str) -> int | None:
    """The publication's oid at the last checkpoint; ``stream`` as for `position`."""
    return StreamPosition(stream).publication(state)


def floor(state: State | None, stream: str, oid: int, at: int, confirmed: int) -> int | None:
    """The position from which on a table needs transactions; None if the slot is past it.

    Args:
        state: the table of the checkpoints.
        stream: as for `position`.
        oid: the source table's oid.
        at: the position in the Bronze table's own log.
        confirmed: the later one of the slot's position and the last checkpoint's.
    """
    if at >= confirmed:
        return at
    recorded = StreamPosition(stream).table(state, oid)
    if recorded is None:
        return None
    reached, at_checkpoint = recorded
    # A Bronze table that was restored to an earlier version has a lower position than it had then.
    return reached if reached >= confirmed and at_checkpoint <= at else None


@commit.retry_conflicts
def record(
    settings: Settings,
    history: str,
    checkpoint: Checkpoint,
    clock: int,
    following: Iterable[FollowedTable],
    published: int,
    first: bool,
) -> None:
    """Commits a checkpoint.

    Args:
        settings: the config.
        history: that of the source's positions.
        checkpoint: the checkpoint.
        clock: the server's time, in microseconds since 1970.
        following: the tables that follow.
        published: the publication's oid.
        first: whether it is the first one of this process: the lake may have none yet.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    reached = StreamPosition(f"{history}/{checkpoint.stream}").checkpoint(
        checkpoint.position, clock, published, [(f.oid, f.position) for f in following]
    )
    table = place(settings)
    state = log.read(table)
    if state is None and not first:
        raise lake_gone_error(settings)
    facts = {"batch_id": checkpoint.batch_id}
    frame = streams.frame(checkpoint)
    writer.commit_rows(table, state, streams.COLUMNS, frame, facts, reached=reached)


class StreamRecords:
    """What a stream records in the governance tables, on one connection.

    Attributes:
        position: that of the last checkpoint of this connection; 0 if there is none.
        last_stamp: the stamp of the last batch that was applied.
        audit_mark: the newest record of the audit log, which the tables' commits refer to.
    """

    def __init__(self, stream: StreamContext, started: StartedTables) -> None:
        """Records for the tables that are in ``started.followed`` at the time of each call."""
        self._stream, self._settings = stream, stream.settings
        self._history, self._followed = started.history, started.followed
        self.position = 0
        self.last_stamp: RowStamp | None = None
        self.audit_mark = audit.mark(self._settings)

    @property
    def _following(self) -> list[FollowedTable]:
        return [following for following in self._followed.values() if not following.error]

    def record_checkpoint(self, batch: Batch | None, batch_id: str, waiting: Iterable[str]) -> None:
        """Records that all tables have applied what comes before the stream's position.

        Args:
            batch: the batch that was just applied, None if there was none.
            batch_id: its id.
            waiting: the full names of the Bronze tables that wait for a resync.

        Raises:
            LakeError, LakeUnreachable: it cannot be written.
        """
        stream, following = self._stream, self._following
        server, first = replication_slot.server_position(stream.control), not stream.totals.position
        stream.progress.lag = max(0, server.flushed - stream.progress.done)
        checkpoint = self._checkpoint(batch, batch_id, waiting)
        published = stream.progress.published
        record(self._settings, self._history, checkpoint, server.clock, following, published, first)
        failpoint.reach("recorded")
        self.position = stream.totals.position = checkpoint.position
        if batch is None:
            stream.notify(CheckpointMade(checkpoint.position, checkpoint.lag_bytes))
            return
        stream.notify(
            BatchApplied(
                position=checkpoint.position,
                transactions=checkpoint.transactions,
                changes=checkpoint.changes,
                lag_bytes=checkpoint.lag_bytes,
                lag_seconds=checkpoint.lag_seconds,
                tables=tuple(f.target.name for f in following if f.oid in batch.tables),
                committed=streams.moment(batch.committed),
            )
        )

    def _checkpoint(self, batch: Batch | None, batch_id: str, waiting: Iterable[str]) -> Checkpoint:
        stream, done = self._stream, self._stream.progress.done
        # A table that waits, or is ahead of the position, has no version there.
        versions: dict[str, int | None] = dict.fromkeys(waiting)
        for following in self._following:
            reached = following.position <= done
            versions[following.target.full_name] = following.version if reached else None
        return Checkpoint(
            stream=stream.slot,
            source=stream.origin.name,
            position=done,
            committed=batch.committed if batch else None,
            batch_id=batch_id,
            transactions=batch.transactions if batch else 0,
            changes=batch.changes if batch else 0,
            lag_bytes=stream.progress.lag,
            lag_seconds=max(0.0, time.time() - batch.committed / 10**6) if batch else 0.0,
            tables=json.dumps(versions),
        )

    def record_figures(self) -> None:
        """Records the anomalies and the quality of the rows since the last call.

        If the quality cannot be recorded, that is reported, and the next call tries again.

        Raises:
            LakeError, LakeUnreachable: the anomalies cannot be written.
        """
        stamp = self.last_stamp
        for following in self._followed.values():
            for note in (
                apply_table.record_anomalies(self._settings, following, stamp) if stamp else ()
            ):
                self._stream.notify(TableNote(following.label, note))
        try:
            apply_table.record_quality(self._settings, self._followed.values())
        except BronzeError as error:
            self._stream.notify(QualityUnrecorded(error.failure()))

    def record_lineage(self) -> None:
        """Records what the tables have read and written up to now.

        Raises:
            LakeError, LakeUnreachable: it cannot be written.
        """
        self._stream.record_lineage([following.entry for following in self._following])
        # The next call tries again, and an error of the last one is reported.
        with suppress(BronzeError):
            self._report_lost_audit_records()
        self.audit_mark = audit.mark(self._settings)

    def record_end(self) -> None:
        """Records that the tables stop following. If that fails, the next stream or run does it,
        and the stream's result has the error.
        """
        totals = self._stream.totals
        totals.unrecorded = None
        try:
            if not exists(self._settings):
                raise lake_gone_error(self._settings)
            self.record_figures()
            tables = self._followed.values()
            self._stream.record_lineage([lineage.end_stream(f.entry, f.error) for f in tables])
            self._report_lost_audit_records()
        except BronzeError as error:
            totals.unrecorded = error.failure()

    def _report_lost_audit_records(self) -> None:
        """Reports tables that name audit records which the audit log does not have."""
        tables = self._followed.values()
        states = {f.target.full_name: f.ahead_of_audit for f in tables if f.ahead_of_audit}
        if self.audit_mark is None or not states:
            return
        for note in audit.records_lost(self._settings, self.audit_mark, states):
            self._stream.notify(AuditRecordsLost(note))
        for following in tables:
            following.ahead_of_audit = None
