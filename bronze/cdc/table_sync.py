"""The sync of tables: their initial copy, or a comparison, in the snapshot of a replication slot.

The snapshot that is exported when a slot is created contains exactly the transactions that were
committed before the slot's position. A table that is copied in it, or compared with it, follows
from that position on. The initial copy uses the stream's own slot. A later sync uses a temporary
slot: the stream's changes before its position are left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import uuid_utils

from bronze import failpoint
from bronze.cdc import apply_table, checkpoints
from bronze.cdc.context import FollowedTable, StreamContext
from bronze.cdc.new_slot import NewSlot
from bronze.delta import log, positions
from bronze.delta.log import State
from bronze.errors import BronzeError, SourceRefused, TableRefused
from bronze.governance import lineage
from bronze.governance.lineage import LineageEntry
from bronze.ingest import pipeline
from bronze.ingest.table_run import TableRun
from bronze.model.events import (
    LoadEvent,
    QualityUnrecorded,
    Rewound,
    TableFailed,
    Waiting,
)
from bronze.postgres.catalog.types import TypeOptions
from bronze.postgres.connection import translation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.copy import snapshot
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import prerequisites, publication, rewind, slot, text_values
from bronze.postgres.replication.prerequisites import MissingPrerequisite
from bronze.tables import selection
from bronze.tables.selection import Target

# After this many seconds a notice says that the other tables wait.
_NOTICE_AFTER = 10.0


@dataclass(frozen=True)
class SyncedTables:
    """The result of a sync in the snapshot of a slot.

    ``joined`` are, by oid, the tables that follow from ``position`` on, ``changed`` the labels of
    those that were altered or rewritten before they were locked: they are as they were. The errors
    of the others were reported. Positions belong to the ``history``.
    """

    history: str
    position: int
    joined: dict[int, FollowedTable]
    changed: frozenset[str]


# Which tables can be streamed


def prepare_tables(
    connection: Connection, targets: Sequence[Target], slot_name: str, publication_name: str
) -> tuple[list[Target], tuple[MissingPrerequisite, ...]]:
    """The tables with the keys by which a stream identifies their rows, and the prerequisites that
    are not met.
    """
    relations = [target.relation for target in targets]
    identities = publication.replica_identities(connection, relations)
    keyed = [_with_identity_as_key(t, identities.get(t.label, ())) for t in targets]
    keys = {target.label: target.key for target in keyed}
    dropped = {target.label: selection.dropped_columns(target) for target in keyed}
    return keyed, prerequisites.missing_prerequisites(
        connection, relations, keys, publication_name, slot_name, dropped
    )


def _with_identity_as_key(target: Target, identity: tuple[str, ...]) -> Target:
    relation = target.relation
    full = len(identity) == len(relation.attributes)
    if target.settings.key or not identity or full or set(relation.key) <= set(identity):
        return target
    return replace(target, settings=target.settings.model_copy(update={"key": identity}))


def prerequisites_error(
    source: str, missing: Sequence[MissingPrerequisite]
) -> SourceRefused | None:
    """Why no table of a source can be streamed, None if some can."""
    general = [prerequisite for prerequisite in missing if not prerequisite.table]
    if not general:
        return None
    return SourceRefused(
        f"{source} cannot be streamed yet: " + " ".join(one.what for one in general),
        hint="Have this done: " + "; ".join(one.mend.rstrip(".;") for one in general),
    )


def unfit_tables(missing: Sequence[MissingPrerequisite]) -> dict[str, TableRefused]:
    """Why tables cannot be streamed, by their labels."""
    return {
        one.table: TableRefused(one.what, hint=one.mend, table=one.table)
        for one in reversed(missing)
        if one.table
    }


def fit_tables(stream: StreamContext, targets: Sequence[Target]) -> list[Target]:
    """The tables that can be streamed, with the keys that identify their rows. The errors of the
    others are reported.

    Raises:
        SourceRefused: a prerequisite of all of them is missing.
        TableRefused: no table can be streamed; this is the first one's error.
    """
    fit, unfit = _fit_and_unfit(stream, targets)
    if not fit:
        raise unfit[0][1]
    for target, error in unfit:
        stream.notify_failure(target, error)
    return fit


def fit_for_resync(stream: StreamContext, targets: Sequence[Target]) -> list[Target]:
    """As `fit_tables`, but reports all errors, also if no table can be streamed."""
    try:
        fit, unfit = _fit_and_unfit(stream, targets)
    except SourceRefused as error:
        fit, unfit = [], [(target, error) for target in targets]
    for target, refusal in unfit:
        stream.notify_failure(target, refusal)
    return fit


def _fit_and_unfit(
    stream: StreamContext, targets: Sequence[Target]
) -> tuple[list[Target], list[tuple[Target, BronzeError]]]:
    """The tables that can be streamed, and the errors of the others.

    Raises:
        SourceRefused: a prerequisite of all of them is missing.
    """
    keyed, missing = prepare_tables(stream.control, targets, stream.slot, stream.publication)
    if refusal := prerequisites_error(stream.origin.name, missing):
        raise refusal
    errors = unfit_tables(missing)
    fit = [target for target in keyed if target.label not in errors]
    return fit, [(target, errors[target.label]) for target in keyed if target.label in errors]


def without_refused(
    stream: StreamContext, targets: Sequence[Target], refused: Mapping[str, BronzeError]
) -> list[Target]:
    """The tables that are not ``refused`` (the errors by label). The errors are reported."""
    for target in targets:
        if target.label in refused:
            stream.notify_failure(target, refused[target.label])
    return [target for target in targets if target.label not in refused]


# The sync


def temporary_slot(stream: StreamContext, targets: Sequence[Target]) -> NewSlot:
    """Begins to create a temporary slot, in whose snapshot tables can be synced."""
    name = slot.temporary_name(stream.slot, uuid_utils.uuid4().hex[:8])
    return NewSlot(stream, targets, name, temporary=True)


def sync_tables(
    stream: StreamContext, new: NewSlot, why: Mapping[str, str], others: bool = False
) -> SyncedTables:
    """Copies the tables of a slot in its snapshot, or compares those that Bronze has.

    Args:
        stream: the stream.
        new: the slot, which was created.
        why: by label, why a table that Bronze has is compared.
        others: whether other tables follow already, and wait during the sync.

    Raises:
        BronzeError: no table could be synced.
    """
    stream.progress.published = new.published
    changed = snapshot.changed_relations(new.snapshot, stream.relations())
    unchanged = [target for target in new.targets if target.label not in changed]
    targets = without_refused(stream, unchanged, new.refused)
    placed, _, tables = plan_tables(stream, new.snapshot, targets)
    for table in tables:
        if table.plan and table.plan.mode == "changes":
            table.plan = table.plan.compare_all_rows(why[table.target.label])
    failpoint.reach("planned")
    joined = _load(stream, placed, tables, others) if tables else {}
    labels = {target.label for target in new.targets}
    return SyncedTables(placed.timeline, placed.position, joined, changed & labels)


def _load(
    stream: StreamContext, placed: Snapshot, tables: Sequence[TableRun], others: bool
) -> dict[int, FollowedTable]:
    notify = _notify_when_long(stream, tables) if others else stream.notify_load
    results = {r.table: r for r in pipeline.load_tables(stream.settings, tables, None, notify)}
    joined: dict[int, FollowedTable] = {}
    failed: list[LineageEntry] = []
    for table in tables:
        result = results[table.target.label]
        stream.totals.add_load(result)
        table.entry = lineage.with_result(table.entry, result)
        if result.error is None and result.version is not None:
            position = placed.position
            joined[table.target.relation.oid] = followed_table(
                stream, placed, table, floor=position, position=position, version=result.version
            )
        else:
            failed.append(table.entry)
            if result.error:
                stream.notify(TableFailed(result.table, result.error))
    if failure := pipeline.record_quality(stream.settings, tables):
        stream.notify(QualityUnrecorded(failure))
    stream.record_lineage([*failed, *(f.entry for f in joined.values())], begins=True)
    return joined


def _notify_when_long(stream: StreamContext, tables: Sequence[TableRun]) -> pipeline.Notify:
    """Passes on the progress; a notice says once that the other tables wait, if it takes long."""
    due = time.monotonic() + _NOTICE_AFTER
    labels = ", ".join(table.target.label for table in tables)

    def notify(progress: LoadEvent) -> None:
        nonlocal due
        if time.monotonic() > due:
            due = math.inf
            stream.notify(Waiting(f"The stream waits until all of {labels} is read."))
        stream.notify_load(progress)

    return notify


# Plans, and the tables that follow


def plan_tables(
    stream: StreamContext, source_snapshot: Snapshot, targets: Sequence[Target]
) -> tuple[Snapshot, State | None, list[TableRun]]:
    """The snapshot, with the history that its position belongs to; the checkpoints; and the plans
    of the tables.

    If the server's log ends before a position of ours, the server was put back to an earlier state.
    Then a new history begins, in which no table has a position yet.

    Raises:
        LakeUnreachable: the lake has disappeared since the stream began.
    """
    records = log.read(checkpoints.place(stream.settings))
    if records is None and stream.totals.position:
        raise checkpoints.lake_gone_error(stream.settings)
    history = checkpoints.history(records, source_snapshot.timeline, stream.slot)
    placed = replace(source_snapshot, timeline=history)
    tables = _plan_streamed_columns(stream, placed, targets)
    for table in tables:
        removed = table.plan and table.plan.state is None
        if removed and table.target.name in stream.totals.bronze_tables:
            table.plan, table.error = None, apply_table.vanished_error(table.target)
    states = [table.plan.state for table in tables if table.plan]
    known = [positions.read(state, history) or 0 for state in states if state]
    known.append(checkpoints.position(records, f"{history}/{stream.slot}"))
    if max(known) <= slot.server_position(stream.control).written:
        return placed, records, tables
    stream.notify(Rewound(rewind.rewound_error().message))
    checkpoints.give_up_positions(stream.settings, source_snapshot.timeline, stream.slot)
    return plan_tables(stream, source_snapshot, targets)


def _plan_streamed_columns(
    stream: StreamContext, placed: Snapshot, targets: Sequence[Target]
) -> list[TableRun]:
    slots = stream.settings.source[stream.origin.name].pool.readers
    batch_id = str(uuid_utils.uuid7())
    relations = [target.relation for target in targets]
    with translation.source_errors(stream.origin):
        streamed = publication.streamed_columns(placed.holder, relations, stream.publication)

    def with_streamed_columns(target: Target) -> Target:
        if not target.published:
            raise TableRefused(
                f"Table {target.label} was taken out of publication {stream.publication}.",
                hint="The next retry adds it again.",
                table=target.label,
            )
        return selection.with_columns_of(target, streamed.get(target.relation.oid, frozenset()))

    tables = pipeline.plan_tables(
        stream.settings, stream.origin, placed, targets, batch_id, slots, with_streamed_columns
    )
    return sorted(tables, key=lambda table: (table.target.settings.priority, -table.size))


def followed_table(
    stream: StreamContext,
    placed: Snapshot,
    table: TableRun,
    *,
    floor: int,
    position: int,
    version: int,
) -> FollowedTable:
    """A table that follows from now on; for ``floor``, ``position`` and ``version`` see
    `bronze.cdc.context.FollowedTable`.
    """
    plan = table.plan
    if plan is None:
        raise BronzeError("There is no plan.")
    relation, settings = plan.target.relation, plan.target.settings
    keyed = [(relation, plan.target.key)]
    identities = publication.identifying_columns_by_table(placed.holder, keyed)
    stream.totals.bronze_tables.add(plan.target.name)
    choices = TypeOptions(settings.decimals, settings.arrays, settings.timestamps)
    kinds = {attribute.name: attribute.type for attribute in relation.attributes}
    return FollowedTable(
        plan=plan,
        sent_columns=_sent_columns(stream, placed.holder, plan.target),
        texts=tuple(
            text_values.text_column(column, kinds[column.name], choices)
            for column in plan.contract.columns
            if column.name in kinds
        ),
        identity=identities.get(relation.oid, ()),
        floor=floor,
        position=position,
        version=version,
        entry=lineage.begin_stream(table.entry),
    )


_COLUMNS = """
SELECT a.attname, a.atttypid::int8, a.atttypmod FROM pg_attribute a
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def _sent_columns(
    stream: StreamContext, connection: Connection, target: Target
) -> tuple[tuple[str, int, int], ...]:
    """The columns as the stream describes them: a column list may lack what the config drops."""
    relation, dropped = target.relation, selection.dropped_columns(target)
    in_stream = publication.streamed_columns(connection, [relation], stream.publication)
    streamed = in_stream.get(relation.oid, frozenset())
    published = publication.find(connection, stream.publication)
    listed = published.attributes.get(relation.oid, streamed) if published else streamed
    sent = {
        attribute.name
        for attribute in relation.attributes
        if attribute.name in streamed
        and (attribute.name in listed or attribute.name not in dropped)
    }
    rows: list[Any] = connection.execute(_COLUMNS, [relation.oid]).fetchall()
    return tuple((name, kind, modifier) for name, kind, modifier in rows if name in sent)
