"""Applies a batch of the stream to one table.

`apply_batch` is the workflow of one table and one batch:

1. `_current_state`: the Bronze table, which must be as the stream left it;
2. `bronze.cdc.net_changes.net_changes`, on a worker: one change for each key;
3. `bronze.ingest.diff.edit_table`, on workers: merge the net changes into the table's files;
4. `_commit`: the files and the batch's position, in one Delta transaction.

Its error is in the result. `bronze.cdc.apply_loop` decides what happens then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bronze import failpoint
from bronze.anomaly import outliers
from bronze.cdc.context import AppliedChanges, FollowedTable, UnrecordedQuality
from bronze.cdc.net_changes import net_changes
from bronze.cdc.row_changes import NetChanges, NetTask
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import audit_mark, commit, log, store
from bronze.delta.log import State
from bronze.delta.positions import TablePosition
from bronze.errors import BronzeError, CommitConflict, Overtaken, TableVanished
from bronze.execution import budget
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage
from bronze.governance.lineage import LineageEntry
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables.quality import TableFigures
from bronze.ingest import diff, watermarks
from bronze.ingest.diff import Difference, Edit
from bronze.ingest.load import in_store, record_rejected_values
from bronze.ingest.plan import Plan
from bronze.model.files import WrittenFile
from bronze.model.quality import QualityTotals
from bronze.model.stamp import RowStamp
from bronze.model.units import NO_FINDINGS, Enrichment
from bronze.postgres.catalog.types import SQL_ASCII
from bronze.postgres.replication.batch import Batch, TableChanges
from bronze.quality import checks, set_rules
from bronze.tables.selection import Target


def has_same_columns(following: FollowedTable, gathered: TableChanges) -> bool:
    """Whether the stream's columns are those of the table's contract, and identify its rows."""
    plan, described = following.plan, gathered.described
    # Each partition of a partitioned table has its own; the prerequisites check those.
    partitioned = plan.target.relation.kind == "partitioned"
    identified = partitioned or set(_identity(following, gathered)) <= described.identifying
    same = described.columns == following.sent_columns and not gathered.drifted
    return same and identified and bool(following.identity)


def _identity(following: FollowedTable, gathered: TableChanges) -> tuple[str, ...]:
    """The columns that identify a row, without those that the publication leaves out."""
    sent = {name for name, _, _ in gathered.described.columns}
    return tuple(name for name in following.identity if name in sent)


def apply_batch(
    settings: Settings,
    following: FollowedTable,
    gathered: TableChanges,
    batch: Batch,
    stamp: RowStamp,
) -> Workflow[AppliedChanges]:
    """The workflow that applies a batch to one table.

    Returns:
        What was done, or the error. After `LakeUnreachable` the batch may be applied again.
    """
    try:
        return (yield from _apply(settings, following, gathered, batch, stamp))
    except BronzeError as error:
        with suppress(BronzeError):
            commit.discard(following.target.place, stamp.batch_id)
        return AppliedChanges(following, error=error)


def _apply(
    settings: Settings,
    following: FollowedTable,
    gathered: TableChanges,
    batch: Batch,
    stamp: RowStamp,
) -> Workflow[AppliedChanges]:
    label, target = following.label, following.target
    stamp = replace(stamp, lineage=following.entry.record.lineage_id)
    place = target.place
    state = yield from in_store(place, label, partial(_current_state, following))
    (netted,) = yield [Task(net_changes, _job(settings, following, gathered, stamp, state), label)]
    failpoint.reach("netted")
    record_rejected_values(settings, target, stamp, netted.rejected)
    if netted.empty:
        following.entry = lineage.add_counts(following.entry, rows_read=netted.read)
        return AppliedChanges(following, netted.read)
    difference = Difference(netted.changes, deletes=netted.deletes, delete_others=netted.truncated)
    for attempt in commit.attempts():
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                state = yield from in_store(place, label, partial(_current_state, following))
            edit = yield from diff.edit_table(following.plan, stamp, difference, state)
            staged = difference.staged_files
            yield from in_store(
                place,
                label,
                partial(_commit, following, netted, edit, staged, batch, stamp, state),
            )
    following.findings += netted.findings
    quality = netted.findings.quality
    following.quality = _add_quality(following.quality, quality, stamp, batch)
    return AppliedChanges(
        following,
        netted.read,
        edit.inserted,
        edit.updated,
        edit.deleted,
        len(netted.rejected),
        netted.findings.outliers.count,
        quality.quarantined,
    )


def _current_state(following: FollowedTable) -> State:
    """The state of the Bronze table; the table's plan takes in what its maintenance has chosen.

    Raises:
        Overtaken: another writer has moved its position, or changed its rows.
        TableVanished: it does not exist any more.
    """
    plan = following.plan
    state = log.read(plan.target.place)
    if state is None:
        raise vanished_error(plan.target)
    if table_position(plan).stream_position(state) != following.position:
        raise commit.overtaken_error(plan.target.place)
    if foreign := watermarks.foreign_commits_reason(state):
        raise Overtaken(f"{foreign[0].upper()}{foreign[1:]}.", hint="All rows are compared.")
    following.plan = plan.with_chosen_columns(state)
    return state


def vanished_error(target: Target) -> TableVanished:
    """The error of a streamed table without its Bronze table, which was removed."""
    return TableVanished(
        f"The Bronze table {target.name} does not exist any more at {target.place.url}.",
        hint="Put it back; or start the stream again, which then loads the table again.",
        table=target.label,
    )


def table_position(plan: Plan) -> TablePosition:
    """Where the Bronze table of a plan has its position."""
    return TablePosition(plan.reached.name, plan.target.relation.oid)


def _job(
    settings: Settings,
    following: FollowedTable,
    gathered: TableChanges,
    stamp: RowStamp,
    state: State,
) -> NetTask:
    plan = following.plan
    return NetTask(
        table=following.label,
        gathered=gathered,
        floor=following.floor,
        columns=plan.contract.columns,
        texts=following.texts,
        row_key=plan.row_key,
        identity=_identity(following, gathered),
        into=plan.destination(stamp),
        stored=state.files,
        base=plan.contract.base,
        in_memory=budget.changes_in_memory(settings.run.memory),
        enrichment=enrichment_of_changes(plan.enrichment),
        any_bytes=plan.target.relation.encoding == SQL_ASCII,
    )


def _commit(
    following: FollowedTable,
    netted: NetChanges,
    edit: Edit,
    staged: Sequence[WrittenFile],
    batch: Batch,
    stamp: RowStamp,
    state: State,
) -> None:
    entry = lineage.add_counts(
        following.entry,
        rows_read=netted.read,
        rejected=len(netted.rejected),
        inserted=edit.inserted,
        updated=edit.updated,
        deleted=edit.deleted,
    )
    if stamp.audited and audit_mark.knows_more(state, stamp.audited):
        following.ahead_of_audit = state
    if edit.inserted or edit.updated or edit.deleted:
        entry = lineage.advance(entry, stamp.batch_id, batch.position, state.version + 1)
        facts = _commit_facts(following, netted, edit, batch, stamp, entry)
        try:
            following.version = commit.commit(
                following.target.place,
                state,
                edit.change,
                facts,
                shape=following.plan.shape,
                reached=table_position(following.plan).after_batch(batch.position, batch.committed),
                audited=stamp.audited,
            )
        except CommitConflict:
            # The next attempt needs the staged files again.
            staged_paths = {file.path for file in staged}
            _delete(
                following, [file for file in edit.commit_files if file.path not in staged_paths]
            )
            raise
        following.position = following.floor = batch.position
    following.entry = entry
    committed = {file.path for file in edit.commit_files}
    _delete(following, [file for file in staged if file.path not in committed])


def _commit_facts(
    following: FollowedTable,
    netted: NetChanges,
    edit: Edit,
    batch: Batch,
    stamp: RowStamp,
    entry: LineageEntry,
) -> dict[str, Any]:
    """What the commit says about the batch."""
    return {
        "batch_id": stamp.batch_id,
        "source": following.target.source,
        "table": following.label,
        "position": batch.position,
        "loaded_at": stamp.loaded_at.isoformat(),
        "mode": "stream",
        "rows": netted.read,
        "rejected": len(netted.rejected),
        "inserted": edit.inserted,
        "updated": edit.updated,
        "deleted": edit.deleted,
        **lineage.facts_of(entry, status="landed"),
    }


def _delete(following: FollowedTable, written: Sequence[WrittenFile]) -> None:
    with suppress(BronzeError):
        store.delete(following.target.place, [file.path for file in written])


def enrichment_of_changes(enrichment: Enrichment) -> Enrichment:
    """The enrichment of streamed rows, by that of the rows of a load."""
    criteria = set_rules.rules_of_changes(enrichment.quality.criteria)
    return replace(enrichment, quality=replace(enrichment.quality, criteria=criteria))


# What is recorded about the applied rows


def record_anomalies(
    settings: Settings, following: FollowedTable, stamp: RowStamp
) -> tuple[str, ...]:
    """Records the anomalies of a table's rows since the last call.

    Returns:
        Notes about them.
    """
    watch, findings = following.plan.enrichment.watch, following.findings
    following.findings = NO_FINDINGS
    if watch is None or findings is NO_FINDINGS:
        return ()
    return outliers.record_findings(settings, following.target, stamp, watch, findings, "stream")


def record_quality(settings: Settings, followings: Iterable[FollowedTable]) -> None:
    """Records the quality of the tables' rows since the last call.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    unrecorded = [(f, f.quality) for f in followings if f.quality and f.quality.scored.rows]
    graded = [
        TableFigures(
            source_table=following.label,
            target_table=following.target.full_name,
            stamp=quality.stamp,
            mode="stream",
            as_of=quality.as_of,
            landed=True,
            figures=checks.figures(
                enrichment_of_changes(following.plan.enrichment).quality,
                quality.scored,
                settings.quality_of(following.target.settings),
                quality.age,
            ),
        )
        for following, quality in unrecorded
    ]
    checks.record_figures(settings.place(GOVERNANCE, quality_table.NAME), graded)
    for following, _ in unrecorded:
        following.quality = None


def _add_quality(
    before: UnrecordedQuality | None, new: QualityTotals, stamp: RowStamp, batch: Batch
) -> UnrecordedQuality:
    seconds = batch.committed / 10**6
    scored = before.scored + new if before else new
    as_of = datetime.fromtimestamp(seconds, UTC)
    return UnrecordedQuality(scored, stamp, as_of, time.time() - seconds)
