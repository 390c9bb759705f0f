"""The tables of a stream, and how one that cannot follow is brought back.

A table of a stream is

- *followed*: each batch is applied to it;
- *waiting* for a resync: it is copied, or compared with the source, in the snapshot of a temporary
  slot, and then follows. The others go on meanwhile, and its changes before the slot's position are
  left out. Its changes after that position that the stream has received too early are received
  again, from the temporary slot;
- *failed*: its error was reported. It is retried by a resync, after a pause that doubles with each
  failure.

`StreamedTables` moves tables between these states, `WaitingTables` has those that wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bronze.cdc import table_sync
from bronze.cdc.context import FollowedTable, StartedTables, StreamContext
from bronze.cdc.new_slot import NewSlot
from bronze.cdc.table_sync import SyncedTables
from bronze.errors import BronzeError, SourceBusy, TableRefused
from bronze.governance import lineage
from bronze.model.events import TableFailed, TableFollowed, TableRetried
from bronze.postgres.catalog.relations import Relation
from bronze.tables import selection
from bronze.tables.selection import Target

# Mostly a slot is created at once.
_SLOT_PATIENCE = 0.3
# How often a table that was altered while its slot was created is retried at once, with growing
# pauses.
_TRIES = 5
_TRY_PAUSE = 0.5
# How long a table that failed is not retried, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0


@dataclass(frozen=True)
class _WaitingTable:
    """A table that waits; ``due`` (monotonic) is when its slot may be created."""

    target: Target
    why: str
    tries: int = 0
    due: float = 0.0


class WaitingTables:
    """The tables that wait for a resync, and the slot that is being created for them."""

    def __init__(
        self, stream: StreamContext, on_failure: Callable[[Target, BronzeError], None]
    ) -> None:
        """No table yet; ``on_failure`` is called with each table that cannot be resynced."""
        self._stream, self._on_failure = stream, on_failure
        self._tables: dict[str, _WaitingTable] = {}
        self._new_slot: NewSlot | None = None
        self._left_out: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._tables)

    def __contains__(self, label: str) -> bool:
        return label in self._tables

    @property
    def creating_slot(self) -> bool:
        """Whether a slot is being created."""
        return self._new_slot is not None

    @property
    def targets(self) -> list[Target]:
        """The tables."""
        return [table.target for table in self._tables.values()]

    def add(self, targets: Iterable[Target], why: str) -> None:
        """Adds tables."""
        self._tables |= {target.label: _WaitingTable(target, why) for target in targets}

    def leave_out(self, oid: int, position: int) -> None:
        """Records that changes of a table were left out, in a batch that ends at a position."""
        self._left_out[oid] = position

    def left_out_since(self, synced: SyncedTables) -> dict[int, int]:
        """The synced tables that skipped changes after the slot's position: by oid the position
        up to which they skipped them.
        """
        return {
            oid: self._left_out[oid]
            for oid in synced.joined
            if self._left_out.get(oid, 0) > synced.position
        }

    def ready_slot(self, receive: Callable[[Iterable[int]], None], others: bool) -> NewSlot | None:
        """The slot, once it was created or has failed; call `sync` or `refuse` next.

        Begins to create one if a table is due. Notices say what it waits for.

        Args:
            receive: makes the stream receive the later changes of tables, given by their oids.
            others: whether other tables follow meanwhile.
        """
        if self._new_slot is None:
            self._new_slot = self._begin_slot(receive)
            if self._new_slot is None or not self._new_slot.wait(_SLOT_PATIENCE):
                return None
        elif not self._new_slot.wait(0):
            verb = "waits" if len(self._tables) == 1 else "wait"
            meanwhile = "The other tables are followed meanwhile." if others else ""
            self._new_slot.notify_waiting(f"{', '.join(self._tables)} {verb}", meanwhile)
            return None
        ready, self._new_slot = self._new_slot, None
        return ready

    def _begin_slot(self, receive: Callable[[Iterable[int]], None]) -> NewSlot | None:
        now = time.monotonic()
        due = [table for table in self._tables.values() if table.due <= now]
        if not due:
            return None
        existing = {relation.label: relation for relation in self._stream.relations()}
        targets: list[Target] = []
        for table in due:
            label = table.target.label
            if label in existing:
                target = replace(table.target, relation=existing[label])
                self._tables[label] = replace(table, target=target)
                targets.append(target)
            else:
                del self._tables[label]
                self._on_failure(table.target, dropped_error(label))
        if not targets:
            return None
        # Before the slot: a change that the stream does not receive is older than the slot.
        receive(target.relation.oid for target in targets)
        self._left_out = {}
        return table_sync.temporary_slot(self._stream, targets)

    def sync(self, new: NewSlot, others: bool) -> SyncedTables:
        """Syncs the tables of a slot. Those that were altered meanwhile wait for the next one.

        Raises:
            BronzeError: no table could be synced.
        """
        why: Mapping[str, str] = {label: table.why for label, table in self._tables.items()}
        synced = table_sync.sync_tables(self._stream, new, why, others)
        for target in new.targets:
            table = self._tables.pop(target.label)
            if target.label not in synced.changed:
                continue
            if table.tries < _TRIES:
                due = time.monotonic() + _TRY_PAUSE * (2**table.tries - 1)
                self._tables[target.label] = replace(table, tries=table.tries + 1, due=due)
            else:
                self._on_failure(target, altered_error(target.label))
        return synced

    def refuse(self, targets: Iterable[Target], error: BronzeError) -> None:
        """Removes tables because their slot could not be created: they failed."""
        for target in targets:
            del self._tables[target.label]
            self._on_failure(target, error)

    def close(self) -> None:
        """Ends the creation of a slot."""
        if self._new_slot:
            self._new_slot.close()
            self._new_slot = None


@dataclass
class _FailedTable:
    """A table that failed; it is retried when it is ``due`` (monotonic)."""

    target: Target
    pause: float
    due: float


class StreamedTables:
    """The tables of a stream, by their state.

    Attributes:
        history: the history that their positions belong to.
        followed: by oid those that are followed. One with an ``error`` has failed since.
        waiting: those that wait for a resync.
        failed: by label those that failed.
    """

    def __init__(
        self,
        stream: StreamContext,
        targets: Sequence[Target],
        started: StartedTables,
        record_rows: Callable[[], None],
    ) -> None:
        """The tables as they were started.

        Args:
            stream: the stream.
            targets: all of them.
            started: which of them follow, and which need a resync.
            record_rows: records what is known of the applied rows, before a table stops following.
        """
        self._stream, self._record_rows = stream, record_rows
        self.history, self.followed = started.history, started.followed
        self.failed: dict[str, _FailedTable] = {}
        self.waiting = WaitingTables(stream, self.refuse)
        for why, tables in started.to_resync.items():
            self.waiting.add(tables, why)
        for target in targets:
            if target.relation.oid not in self.followed and target.label not in self.waiting:
                self._retry_later(target)

    @property
    def following(self) -> list[FollowedTable]:
        """The followed tables that have not failed."""
        return [following for following in self.followed.values() if not following.error]

    @property
    def labels(self) -> set[str]:
        """The labels of all tables, in any state."""
        waiting = (target.label for target in self.waiting.targets)
        return {*(f.label for f in self.followed.values()), *self.failed, *waiting}

    # From followed or failed to waiting

    def resync(
        self,
        tables: Sequence[FollowedTable],
        why: str = "its columns or its place in the stream have changed",
    ) -> None:
        """Stops following tables, and has them resynced. One that was renamed or dropped fails.

        Raises:
            SourceBusy: one was dropped and created again; the slot knows the old one.
        """
        self._record_rows()
        now = {relation.oid: relation for relation in self._stream.relations()}
        refuse_recreated(tables, now.values())
        self._stream.record_lineage([lineage.end_stream(table.entry, None) for table in tables])
        targets: list[Target] = []
        for table in tables:
            target = self.followed.pop(table.oid).target
            relation = now.get(table.oid)
            if relation and relation.label == target.label:
                targets.append(self._with_relation(target, relation))
            else:
                error = moved_error(table, relation) if relation else dropped_error(target.label)
                self.refuse(target, error)
        self.sync_later(targets, why)

    def sync_later(self, targets: Sequence[Target], why: str) -> None:
        """Has tables synced. A table fails if it cannot be streamed, or if another table has its
        Bronze table.
        """
        free: list[Target] = []
        for target in targets:
            if other := self._owner_of_bronze_table(target, free):
                self.refuse(target, _same_bronze_table_error(target, other))
            else:
                free.append(target)
        self.waiting.add(table_sync.fit_for_resync(self._stream, free), why)
        for target in free:
            if target.label not in self.waiting:
                self._retry_later(target)

    def _owner_of_bronze_table(self, target: Target, more: Sequence[Target]) -> str:
        """The label of another table, followed, waiting or in ``more``, that has the same Bronze
        table; "" if there is none.
        """
        for other in [*(f.target for f in self.following), *self.waiting.targets, *more]:
            differs = other.label != target.label and other.relation.oid != target.relation.oid
            if differs and other.place == target.place:
                return other.label
        return ""

    def _with_relation(self, target: Target, relation: Relation) -> Target:
        """A table as it is now, with the config's key: its replica identity may have changed."""
        known = target.relation
        settings = self._stream.settings.table(target.source, known.schema, known.name)
        return replace(target, relation=relation, settings=settings)

    def retry_due(self) -> None:
        """Has the failed tables that are due synced, as the cause may have passed."""
        now = time.monotonic()
        waiting = self.waiting
        due = [f for f in self.failed.values() if f.target.label not in waiting and f.due <= now]
        if not due:
            return
        existing = {relation.label: relation for relation in self._stream.relations()}
        targets = []
        for failed in due:
            label, oid = failed.target.label, failed.target.relation.oid
            if label not in existing:
                # It may be created again.
                self._retry_later(failed.target)
                continue
            targets.append(self._with_relation(failed.target, existing[label]))
            followed = self.followed.get(oid)
            # A renamed table may already be followed under its new name.
            if followed and followed.label == label:
                del self.followed[oid]
        if targets:
            self._stream.notify(TableRetried(tuple(target.label for target in targets)))
            self.sync_later(targets, "it could not follow before")

    # From waiting to followed

    def join(self, new: NewSlot, synced: SyncedTables) -> None:
        """Notes which tables of a slot follow now: those that its sync did not add failed."""
        for target in new.targets:
            if target.relation.oid in synced.joined:
                if self.failed.pop(target.label, None):
                    self._stream.notify(TableFollowed(target.label))
            elif target.label not in synced.changed:
                self._retry_later(target)

    # To failed

    def stop_following(self, table: FollowedTable, error: BronzeError) -> None:
        """Stops following a table because of an error, and reports it."""
        table.error = error
        # If it cannot be written now, the next stream or run records it.
        with suppress(BronzeError):
            self._stream.record_lineage([lineage.end_stream(table.entry, error)])
        pause = self._retry_later(table.target)
        self._stream.notify(TableFailed(table.label, error.failure(), pause))

    def refuse(self, target: Target, error: BronzeError) -> None:
        """Reports a table that cannot be followed."""
        pause = self._retry_later(target)
        self._stream.notify_failure(target, error, pause)

    def _retry_later(self, target: Target) -> float:
        """Has a table retried; returns after how many seconds."""
        known = self.failed.get(target.label)
        pause = min(_LONGEST_PAUSE, known.pause * 2) if known else _FIRST_PAUSE
        self.failed[target.label] = _FailedTable(target, pause, time.monotonic() + pause)
        return pause


def refuse_recreated(tables: Iterable[FollowedTable], now: Iterable[Relation]) -> None:
    """Raises an error if a table was dropped and another one created under its name.

    Raises:
        SourceBusy: so it was. The stream starts again: the slot knows the old table.
    """
    oids = {relation.label: relation.oid for relation in now}
    for table in tables:
        if oids.get(table.label, table.oid) != table.oid:
            raise SourceBusy(
                f"Table {table.label} was dropped and created again.",
                hint="The new table is compared with Bronze, and followed.",
            )


def moved_error(table: FollowedTable, now: Relation | None) -> TableRefused:
    """The error of a table that does not exist any more under its name; ``now`` is what it is."""
    return TableRefused(
        f"Table {table.label} was renamed to {now.label}."
        if now
        else f"Table {table.label} was dropped, or moved to another schema.",
        hint="Its Bronze table stays as it was. To go on with it under another name, give that"
        f' name a section of its own with target = "{table.target.name}".',
        table=table.label,
    )


def dropped_error(label: str) -> TableRefused:
    """The error of a table that does not exist any more."""
    return TableRefused(
        f"Table {label} was dropped.", hint="Its Bronze table stays as it was.", table=label
    )


def altered_error(label: str) -> TableRefused:
    """The error of a table that was altered each time that it was to be synced."""
    return TableRefused(
        f"Table {label} was altered or rewritten each time before it could be read.",
        hint="It is retried later; its Bronze table stays as it was.",
        table=label,
    )


def _same_bronze_table_error(target: Target, other: str) -> TableRefused:
    return TableRefused(
        f"Table {target.label} would become {target.full_name}, as {other} does already.",
        hint=f'Give one another name: [tables.{selection.toml(target.label)}] target = "bz_…"',
        table=target.label,
    )
