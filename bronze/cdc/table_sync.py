"""How tables join a stream: from where they are, or by a copy in the snapshot of a slot.

A snapshot that was exported when a slot was made shows what was committed before the slot's
position, and nothing else. So a table that is copied in it, or compared with it, goes on with the
transactions from that position on. The stream's own slot serves for its first copy. Later ones
have a slot that is there for them alone: what the stream brings of earlier transactions is left
out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uuid_utils

from bronze import failpoint
from bronze.cdc import apply, checkpoints
from bronze.cdc.apply import FollowedTable
from bronze.cdc.context import StreamContext
from bronze.cdc.new_slot import NewSlot, publish
from bronze.delta import log, positions
from bronze.delta.log import State
from bronze.errors import BronzeError, SourceRefused, TableRefused
from bronze.governance import lineage
from bronze.governance.lineage import LineageEntry
from bronze.ingest import pipeline
from bronze.ingest.table_run import TableRun
from bronze.model.events import LoadEvent, Notice, Resynced, TableFailed, Waiting
from bronze.postgres.catalog.types import TypeOptions
from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import snapshot
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import publication, rewind, slot, text_values
from bronze.tables import selection
from bronze.tables.selection import Target

# After so many seconds people are told that the others wait for a copy.
_LONG = 10.0


@dataclass(frozen=True)
class SyncedTables:
    """What came of tables that were copied, or compared, in the snapshot of a slot.

    ``joined`` are by oid those that follow from ``position`` on, ``changed`` the labels of those
    that were altered or rewritten before they were locked: they were left as they are. Of the
    others the stream was told.
    """

    history: str
    position: int
    joined: dict[int, FollowedTable]
    changed: frozenset[str]


def begin(
    stream: StreamContext, targets: Sequence[Target]
) -> tuple[str, dict[int, FollowedTable], dict[str, list[Target]]]:
    """Makes publication and slot, and brings the tables to positions on the stream.

    Returns:
        The history that positions belong to; by oid the tables that follow; and, by the reason,
        those that have to be copied or compared in the snapshot of a slot of their own. Of the
        others the stream has been told.

    Raises:
        Stopped: the slot was waited for, and the stream is to end.
        SourceRefused: something is missing at the source that concerns all of them.
        TableRefused: no table can be streamed; this is why the first one cannot.
    """
    fit = _fit_tables(stream, targets)
    slot.end_abandoned(stream.control, stream.slot)
    found = slot.find(stream.control, stream.slot)
    why = ""
    if found and found.lost:
        why = f"the slot {stream.slot} was lost"
    elif found and _is_recreated(stream):
        # Older servers cannot decode what was written while there was none.
        why = f"the publication {stream.publication} was created again"
    if why:
        stream.tell(Resynced((), why))
        slot.drop(stream.control, stream.slot)
        found = None
    if found is not None:
        fit = _published(stream, fit)
        history, joined, late = _resume(stream, fit, found.confirmed or 0)
        return history, joined, {UNTOLD: late}
    with closing(NewSlot(stream, fit, stream.slot, temporary=False)) as new:
        new.wait_or_stop("The stream waits")
        done = sync_tables(
            stream, new, dict.fromkeys((t.label for t in fit), "a new slot was made")
        )
    stream.progress.done = done.position
    return done.history, done.joined, {ALTERED: [t for t in fit if t.label in done.changed]}


UNTOLD = "the stream does not tell how it came to be"
ALTERED = "it was altered before it was locked"


def _published(stream: StreamContext, targets: Sequence[Target]) -> list[Target]:
    """Publishes tables, and notes how; those that somebody has locked are told, and left out.

    Raises:
        SourceRefused, SourceBusy, TableRefused
    """
    refused, published = publish(stream.origin, stream.control, stream.publication, targets)
    stream.progress.published = published.oid
    return _accepted(stream, published.targets, refused)


def _accepted(
    stream: StreamContext, targets: Sequence[Target], refused: Mapping[str, BronzeError]
) -> list[Target]:
    for target in targets:
        if target.label in refused:
            stream.failed(target, refused[target.label])
    return [target for target in targets if target.label not in refused]


def _is_recreated(stream: StreamContext) -> bool:
    """Whether the publication is not the one that the stream was recorded with."""
    records = log.read(checkpoints.place(stream.settings))
    history = checkpoints.history(records, snapshot.timeline_of(stream.control), stream.slot)
    known = checkpoints.publication(records, f"{history}/{stream.slot}")
    now = publication.oid_of(stream.control, stream.publication)
    return now is None or known not in (None, now)


def another_slot(stream: StreamContext, targets: Sequence[Target]) -> NewSlot:
    """Asks for a temporary slot, in whose snapshot tables can be copied or compared."""
    name = slot.temporary_name(stream.slot, uuid_utils.uuid4().hex[:8])
    return NewSlot(stream, targets, name, temporary=True)


def fit_tables_again(stream: StreamContext, targets: Sequence[Target]) -> list[Target]:
    """Those that can be streamed by now, of tables that have to be copied or compared; the others
    are told.
    """
    try:
        fit, unfit = _sorted(stream, targets)
    except SourceRefused as error:
        fit, unfit = [], [(target, error) for target in targets]
    for target, refused in unfit:
        stream.failed(target, refused)
    return fit


def _fit_tables(stream: StreamContext, targets: Sequence[Target]) -> list[Target]:
    """The tables that can be streamed, with the keys that tell their rows apart.

    Raises:
        TableRefused: none can; this is why the first one cannot.
    """
    fit, unfit = _sorted(stream, targets)
    if not fit:
        raise unfit[0][1]
    for target, refused in unfit:
        stream.failed(target, refused)
    return fit


def _sorted(
    stream: StreamContext, targets: Sequence[Target]
) -> tuple[list[Target], list[tuple[Target, BronzeError]]]:
    """The tables that can be streamed, and why others cannot.

    Raises:
        SourceRefused: something is missing at the source that concerns all of them.
    """
    keyed, wanting = apply.prepare_tables(stream.control, targets, stream.slot, stream.publication)
    if refused := apply.prerequisites_error(stream.origin.name, wanting):
        raise refused
    why = apply.unfit_tables(wanting)
    fit = [target for target in keyed if target.label not in why]
    return fit, [(target, why[target.label]) for target in keyed if target.label in why]


def _resume(
    stream: StreamContext, targets: Sequence[Target], confirmed: int
) -> tuple[str, dict[int, FollowedTable], list[Target]]:
    """Lets tables follow from where they are; tells those that cannot, too."""
    joined: dict[int, FollowedTable] = {}
    late: list[Target] = []
    ends: set[tuple[int, int]] = set()
    left: list[LineageEntry] = []
    with _snapshot(stream) as taken:
        held, records, tables = _plan_tables(stream, taken, targets)
        stream_id = f"{held.timeline}/{stream.slot}"
        # What was recorded may not have been confirmed any more.
        stream.progress.done = max(confirmed, checkpoints.position(records, stream_id))
        for table in tables:
            plan, target = table.plan, table.target
            if plan is None:
                error = table.error or BronzeError("There is no plan.")
                stream.failed(target, error)
                left.append(lineage.end_stream(table.entry, error))
                continue
            at = apply.table_position(plan).streamed(plan.state) if plan.state else None
            if plan.mode != "changes" or plan.state is None or at is None:
                for note in plan.notes if plan.state else ():
                    stream.tell(Notice(f"{target.label}: {note}"))
                late.append(target)
                continue
            oid = target.relation.oid
            floor = checkpoints.floor(records, stream_id, oid, at, stream.progress.done)
            if floor is None:
                stream.tell(Resynced((target.label,), "its position is behind the slot's"))
                late.append(target)
                continue
            joined[oid] = _following(stream, held, table, floor, at, plan.state.version)
            last = apply.table_position(plan).last_transaction(plan.state)
            ends |= {last} if last and last[0] > confirmed else set()
        stream.progress.past = replace(
            checkpoints.known_transactions(records, stream_id), ends=tuple(sorted(ends))
        )
        stream.remember([*left, *(f.entry for f in joined.values())], begins=True)
        return held.timeline, joined, late


def _plan_tables(
    stream: StreamContext, held: Snapshot, targets: Sequence[Target]
) -> tuple[Snapshot, State | None, list[TableRun]]:
    """The snapshot in its history of positions, the records, and the tables' plans.

    A server whose log is shorter than a position of ours was put back to an earlier state. Then
    another history begins, in which no table has a position yet.

    Raises:
        LakeUnreachable: the lake was there, and is gone.
    """
    records = log.read(checkpoints.place(stream.settings))
    if records is None and stream.totals.position:
        raise checkpoints.lake_gone_error(stream.settings)
    history = checkpoints.history(records, held.timeline, stream.slot)
    placed = replace(held, timeline=history)
    tables = _plan_in_snapshot(stream, placed, targets)
    for table in tables:
        if table.plan and table.plan.state is None and table.target.name in stream.totals.names:
            table.plan, table.error = None, apply.vanished_error(table.target)
    states = [table.plan.state for table in tables if table.plan]
    known = [positions.read(state, history) or 0 for state in states if state]
    known.append(checkpoints.position(records, f"{history}/{stream.slot}"))
    if max(known) <= slot.server_position(stream.control).written:
        return placed, records, tables
    stream.tell(Notice(rewind.rewound_error().message))
    checkpoints.give_up_positions(stream.settings, held.timeline, stream.slot)
    return _plan_tables(stream, held, targets)


def sync_tables(
    stream: StreamContext, new: NewSlot, why: Mapping[str, str], others: bool = False
) -> SyncedTables:
    """Copies the tables of a slot, or compares those that are there, in its snapshot.

    Args:
        stream: the stream.
        new: the slot, which is there.
        why: by the tables' labels, why those that are there are compared.
        others: whether other tables follow already, which wait so long.

    Raises:
        BronzeError: nothing could be done at all.
    """
    taken = new.held
    stream.progress.published = new.published
    changed = snapshot.changed_relations(taken, stream.found())
    left = [target for target in new.targets if target.label not in changed]
    held, _, tables = _plan_tables(stream, taken, _accepted(stream, left, new.refused))
    for table in tables:
        if table.plan and table.plan.mode == "changes":
            table.plan = table.plan.compare_all_rows(why[table.target.label])
    failpoint.reach("planned")
    joined = _load(stream, held, tables, others) if tables else {}
    known = {target.label for target in new.targets}
    return SyncedTables(held.timeline, held.position, joined, changed & known)


def _load(
    stream: StreamContext, held: Snapshot, tables: Sequence[TableRun], others: bool
) -> dict[int, FollowedTable]:
    notify = _notify_when_long(stream, tables) if others else stream.copying
    results = {r.table: r for r in pipeline.load_tables(stream.settings, tables, None, notify)}
    joined: dict[int, FollowedTable] = {}
    left: list[LineageEntry] = []
    for table in tables:
        result = results[table.target.label]
        stream.totals.copied(result)
        table.entry = lineage.with_result(table.entry, result)
        if result.error is None and result.version is not None:
            at = held.position
            oid = table.target.relation.oid
            joined[oid] = _following(stream, held, table, at, at, result.version)
        else:
            left.append(table.entry)
            if result.error:
                stream.tell(TableFailed(result.table, result.error))
    if failure := pipeline.record_quality(stream.settings, tables):
        stream.tell(Notice(f"Quality figures were not recorded: {failure.message}"))
    stream.remember([*left, *(f.entry for f in joined.values())], begins=True)
    return joined


def _notify_when_long(stream: StreamContext, tables: Sequence[TableRun]) -> pipeline.Notify:
    """Tells of a copy, and once it takes long that others wait for it."""
    due = time.monotonic() + _LONG
    named = ", ".join(table.target.label for table in tables)

    def notify(progress: LoadEvent) -> None:
        nonlocal due
        if time.monotonic() > due:
            due = math.inf
            stream.tell(Waiting(f"The stream waits until all of {named} is read."))
        stream.copying(progress)

    return notify


@contextmanager
def _snapshot(stream: StreamContext) -> Iterator[Snapshot]:
    """What the source has now. No table is locked, as none of them is read."""
    schemas = stream.settings.source[stream.origin.name].schema_
    with (
        connect.connect(stream.origin) as holder,
        snapshot.hold(stream.origin, holder, [], schemas, "per-table") as held,
    ):
        yield held


def _plan_in_snapshot(
    stream: StreamContext, held: Snapshot, targets: Sequence[Target]
) -> list[TableRun]:
    slots = stream.settings.source[stream.origin.name].pool.readers
    batch = str(uuid_utils.uuid7())

    def with_streamed_columns(target: Target) -> Target:
        """The table with those columns only that the stream carries."""
        if not target.published:
            raise TableRefused(
                f"Table {target.label} was taken out of publication {stream.publication}.",
                hint="It is put back when it is tried again.",
                table=target.label,
            )
        # This connection has the tables' locks: others queue up behind whoever waits for them.
        names = publication.streamed_columns(held.holder, target.relation, stream.publication)
        return selection.with_columns_of(target, names)

    tables = pipeline.plan_tables(
        stream.settings, stream.origin, held, targets, batch, slots, with_streamed_columns
    )
    return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))


def _following(
    stream: StreamContext, held: Snapshot, table: TableRun, floor: int, at: int, version: int
) -> FollowedTable:
    plan = table.plan
    if plan is None:
        raise BronzeError("There is no plan.")
    relation, own = plan.target.relation, plan.target.settings
    identity = publication.identifying_columns_by_table(held.holder, [(relation, plan.target.key)])
    stream.totals.names.add(plan.target.name)
    choices = TypeOptions(own.decimals, own.arrays, own.timestamps)
    kinds = {attribute.name: attribute.type for attribute in relation.attributes}
    return FollowedTable(
        plan=plan,
        described=_described(stream, held.holder, plan.target),
        texts=tuple(
            text_values.text_column(column, kinds[column.name], choices)
            for column in plan.contract.columns
            if column.name in kinds
        ),
        identity=identity.get(relation.oid, ()),
        floor=floor,
        held=at,
        version=version,
        entry=lineage.begin_stream(table.entry),
    )


_DESCRIBED = """
SELECT a.attname, a.atttypid::int8, a.atttypmod FROM pg_attribute a
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def _described(
    stream: StreamContext, holder: Connection, target: Target
) -> tuple[tuple[str, int, int], ...]:
    """The columns as the stream describes them; a column list may be without those not taken."""
    relation, out = target.relation, selection.dropped_columns(target)
    carried = publication.streamed_columns(holder, relation, stream.publication)
    published = publication.find(holder, stream.publication)
    sent = published.attributes.get(relation.oid, carried) if published else carried
    kept = {
        a.name
        for a in relation.attributes
        if a.name in carried and (a.name in sent or a.name not in out)
    }
    rows: list[Any] = holder.execute(_DESCRIBED, [relation.oid]).fetchall()
    return tuple((name, kind, modifier) for name, kind, modifier in rows if name in kept)
