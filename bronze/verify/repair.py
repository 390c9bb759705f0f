"""Repair: removes damaged rows and files from a Bronze table, then loads what differs.

First the table loses what a comparison cannot update: rows that exist more than once, rows that
bronze never wrote, and files that are missing or unreadable. Then a load compares all rows with the
source, in the snapshot of the verification, and the rows in Bronze with their own hashes; only what
differs is written. Lost earlier versions of a history, and rows that were deleted in the source,
cannot be restored; the notes of the result say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import uuid_utils

from bronze.config.settings import Settings
from bronze.delta import commit, files, log, properties, store
from bronze.delta.commit import Change, Shape
from bronze.delta.layout import optimize
from bronze.delta.log import State
from bronze.delta.write import merge
from bronze.delta.write.merge_job import Merge, Merged
from bronze.errors import BronzeError, CommitConflict, TableRefused
from bronze.execution import executors
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage
from bronze.ingest import pipeline
from bronze.ingest.pipeline import Notify, worker_pool
from bronze.ingest.table_run import TableRun
from bronze.model.files import StoredFile
from bronze.model.locations import Destination
from bronze.model.results import Failure, TableResult
from bronze.model.units import KnownRows
from bronze.printable import count
from bronze.tables import duplicate_keys, row_format
from bronze.tables.selection import Target
from bronze.verify.claim import Claim, with_streamed_columns
from bronze.verify.results import VerifiedTable

Rows = dict[StoredFile, list[npt.NDArray[np.int64]]]
"""Numbers of rows, by the file that has them."""


@dataclass
class Damage:
    """The faults of a Bronze table that a repair works on.

    ``surplus`` rows are to be removed. ``altered`` rows are not as bronze wrote them, ``different``
    rows not as in the source: a comparison updates both. ``altered_deleted`` are altered rows that
    are marked as deleted, so the source does not have them. ``unreadable`` files are to be
    removed, ``misdescribed`` files, about which the log is wrong, to be rewritten.
    """

    surplus: Rows = field(default_factory=dict)
    altered: Rows = field(default_factory=dict)
    different: Rows = field(default_factory=dict)
    altered_deleted: Rows = field(default_factory=dict)
    unreadable: list[StoredFile] = field(default_factory=list)
    misdescribed: list[StoredFile] = field(default_factory=list)

    def add_all(self, other: Damage) -> None:
        """Adds other damage of the same table."""
        for rows, more in (
            (self.surplus, other.surplus),
            (self.altered, other.altered),
            (self.different, other.different),
            (self.altered_deleted, other.altered_deleted),
        ):
            for file, numbers in more.items():
                rows.setdefault(file, []).extend(numbers)
        self.unreadable += other.unreadable
        self.misdescribed += other.misdescribed

    def with_different_removed(self) -> Damage:
        """The same damage, with the different rows to be removed as well."""
        damage = Damage(unreadable=self.unreadable, misdescribed=self.misdescribed)
        for rows in (self.surplus, self.different):
            damage.add_all(Damage(surplus=rows))
        return damage

    def rows_to_remove(self, history: bool) -> Rows:
        """The rows to remove. In a history these are altered versions too: no update replaces a
        version.
        """
        damage = Damage()
        for rows in (self.surplus, self.altered_deleted, *([self.altered] if history else [])):
            damage.add_all(Damage(surplus=rows))
        return damage.surplus


@dataclass(frozen=True)
class RepairResult:
    """What a repair did to a table.

    It removed ``removed`` rows (``removed_deleted`` of them were marked as deleted) and the
    ``removed_files``, with ``file_rows`` rows by the log; then ``load`` compared the table with the
    source. ``has_removal`` says that it committed a removal, even one of no rows. ``error`` is why
    it is incomplete, ``unrecorded`` why there is no record of it in governance.data_lineage.
    """

    removed: int = 0
    removed_deleted: int = 0
    removed_files: tuple[str, ...] = ()
    file_rows: int = 0
    has_history: bool = False
    is_streamed: bool = False
    load: TableResult | None = None
    error: Failure | None = None
    unrecorded: Failure | None = None
    has_removal: bool = False

    @property
    def is_loaded(self) -> bool:
        """Whether the load succeeded."""
        return self.load is not None and self.load.error is None

    def with_error(self, error: BronzeError) -> RepairResult:
        """The same result with an error; the first one is kept."""
        return replace(self, error=self.error or error.failure())


def repair_tables(
    settings: Settings,
    damaged: Sequence[tuple[Claim, Damage]],
    pool: Executor | None,
    notify: Notify,
) -> dict[str, RepairResult]:
    """Repairs tables. The results are by the name of the Bronze table; errors are in them."""
    results: dict[str, RepairResult] = {}
    if not damaged:
        return results
    batch_id = str(uuid_utils.uuid7())
    try:
        store.prove_writable(settings.place(settings.lake.schema_, ""))
    except BronzeError as error:
        return {claim.target: RepairResult(error=error.failure()) for claim, _ in damaged}
    limit = min(claim.context.readers for claim, _ in damaged)
    with worker_pool(settings, pool, limit, ()) as workers:
        workflows = [_remove_damage(claim, damage, batch_id) for claim, damage in damaged]
        results.update(executors.drive(workers, workflows, limit))
    # Removed rows have to be loaded again, even if the removal failed half-way.
    to_load = [
        claim
        for claim, _ in damaged
        if results[claim.target].error is None or results[claim.target].has_removal
    ]
    _load(settings, to_load, results, pool, notify)
    return results


def _load(
    settings: Settings,
    claims: Sequence[Claim],
    results: dict[str, RepairResult],
    pool: Executor | None,
    notify: Notify,
) -> None:
    """Compares all rows of tables with the source, and loads what differs; updates ``results``."""
    batch_id = str(uuid_utils.uuid7())
    tables: list[TableRun] = []
    for claim in claims:
        try:
            tables += _plan_table(settings, claim, batch_id)
        except BronzeError as error:
            results[claim.target] = results[claim.target].with_error(error)
    if not tables:
        return
    ledger = lineage.LineageLedger(settings)
    entries = {table.entry.record.target_table: table.entry for table in tables}
    try:
        for load in pipeline.load_tables(settings, tables, pool, notify):
            result = results[load.target]
            results[load.target] = replace(result, load=load, error=result.error or load.error)
            ledger.add(lineage.with_result(entries[load.target], load))
    except BronzeError as error:
        for target in entries:
            if results[target].load is None:
                results[target] = results[target].with_error(error)
    ledger.unwritten = pipeline.record_quality(settings, tables)
    _, unrecorded = ledger.write()
    for target in entries:
        results[target] = replace(results[target], unrecorded=unrecorded)


def _plan_table(settings: Settings, claim: Claim, batch_id: str) -> list[TableRun]:
    """The run of one table that compares all rows. A streamed table is compared by its key."""
    context = claim.context
    slots = settings.source[context.origin.name].pool.readers

    def as_full_load(target: Target) -> Target:
        target = with_streamed_columns(context, target)
        if not claim.is_streamed:
            return target
        full = {"pattern": "full_refresh", "key": claim.key.source_names}
        return replace(target, settings=target.settings.model_copy(update=full))

    snapshot, targets = context.snapshot, [context.target]
    return pipeline.plan_tables(
        settings, context.origin, snapshot, targets, batch_id, slots, as_full_load, doubting=True
    )


def _remove_damage(
    claim: Claim, damage: Damage, batch_id: str
) -> Workflow[tuple[str, RepairResult]]:
    """Removes unreadable files, then surplus rows, then duplicates; an error is in the result."""
    place = claim.context.target.place
    result = RepairResult(has_history=claim.has_history, is_streamed=claim.is_streamed)
    try:
        _check_repairable(claim)
        if damage.unreadable:
            _remove_files(claim, damage.unreadable, batch_id)
            inside = tuple(f.path for f in damage.unreadable if not files.is_outside(f.path))
            result = replace(
                result,
                removed_files=inside,
                file_rows=sum(max(file.rows, 0) for file in damage.unreadable),
                has_removal=True,
            )
        rows: Rows = {file: [] for file in damage.misdescribed}
        if rows := rows | damage.rows_to_remove(claim.has_history):
            removed = yield from _remove_rows(claim, rows, batch_id)
            deleted = sum(len(part) for parts in damage.altered_deleted.values() for part in parts)
            result = replace(result, removed=removed, removed_deleted=deleted, has_removal=True)
        duplicates = yield from _remove_duplicates(claim, batch_id)
        return claim.target, replace(result, removed=result.removed + duplicates)
    except BronzeError as error:
        with suppress(BronzeError):
            commit.discard(place, batch_id)
        return claim.target, result.with_error(error)


def _check_repairable(claim: Claim) -> None:
    """Raises the error of a claim, or that its table is streamed and has no Bronze table yet."""
    if claim.error:
        raise claim.error
    if claim.state is None and claim.is_streamed:
        raise TableRefused(
            f"The streamed table {claim.label} has no Bronze table yet.",
            hint="`bronze stream` makes its initial copy.",
            table=claim.label,
        )


def _remove_files(claim: Claim, unreadable: list[StoredFile], batch_id: str) -> None:
    """Removes files from the table, in a commit without changes for the change data feed: their
    rows are unknown, and the load that follows commits what they are.
    """
    state = _current_state(claim, unreadable)
    _commit(claim, state, Change("DELETE", removed=unreadable, is_data=False), batch_id)


def _remove_rows(claim: Claim, rows: Rows, batch_id: str) -> Workflow[int]:
    """Rewrites files without some rows; returns how many live rows were removed."""
    place = claim.context.target.place
    state = _current_state(claim, list(rows))
    into = Destination(
        place=place,
        columns=row_format.columns_as_written(state.columns, state.properties),
        key=(),
        stats=tuple(n for n in optimize.statistics(state) if n in dict(state.columns)),
        stamp=replace(claim.context.stamp, batch_id=batch_id),
    )
    jobs = [
        Merge(
            into=into,
            file=file,
            changes=(),
            gone=np.unique(np.concatenate([np.empty(0, np.int64), *numbers])),
            on_delete="remove",
            rewrite=True,
        )
        for file, numbers in rows.items()
    ]
    merged: list[Merged] = yield [Task(merge.merge, job, claim.label) for job in jobs]
    change = Change(
        "DELETE",
        added=[one.file for one in merged if one.file and one.edits],
        # A file without rows is not written again, even if the log says that it has rows.
        removed=[one.old for one in merged if one.edits or not one.file],
        feed=[one.feed for one in merged if one.feed],
        quiet=[(one.old, one.file) for one in merged if one.file and not one.edits],
    )
    _commit(claim, state, change, batch_id)
    return sum(one.deleted for one in merged)


def _remove_duplicates(claim: Claim, batch_id: str) -> Workflow[int]:
    """Leaves one row of each key: a comparison finds rows by key, and would leave the others."""
    state = log.read(claim.context.target.place)
    if state is None or claim.has_history or not claim.key_names:
        return 0
    known = KnownRows(state.place, state.version, state.files, claim.layout, claim.key_names, 0)
    (twins,) = yield [Task(duplicate_keys.surplus_rows, known, claim.label)]
    rows = {file: [numbers] for file, numbers in twins if len(numbers)}
    return (yield from _remove_rows(claim, rows, batch_id)) if rows else 0


def _commit(claim: Claim, state: State, change: Change, batch_id: str) -> None:
    """Commits a removal, with the property that makes the next load compare all rows."""
    columns = row_format.columns_as_written(state.columns, state.properties)
    compare_all = ((properties.CUT, "true"),)
    shape = Shape(columns, optimize.statistics(state), state.partition, compare_all)
    facts = {
        "batch_id": batch_id,
        "source": claim.context.origin.name,
        "table": claim.label,
        "mode": "repair",
    }
    commit.commit(state.place, state, change, facts, shape=shape)


def _current_state(claim: Claim, needed: Sequence[StoredFile]) -> State:
    """The table's current state, which must still have the needed files.

    Raises:
        CommitConflict: another writer has replaced them.
    """
    place = claim.context.target.place
    state = log.read(place)
    if state is None or not {file.identity for file in needed} <= {
        file.identity for file in state.listed_files
    }:
        raise CommitConflict(
            f"Another writer committed to the table at {place.url} first.",
            hint="Verify again: this step of the repair was not committed.",
        )
    return state


def with_repair(
    after: VerifiedTable, repairs: Mapping[str, RepairResult], before: VerifiedTable
) -> VerifiedTable:
    """The result of a table after its repair, with what the repair did; ``before`` is the result
    before it.
    """
    repair = repairs.get(after.target)
    if repair is None:
        return after
    load = repair.load
    counts = (load.inserted, load.updated, load.deleted) if load else ()
    has_changed = repair.error is None or repair.has_removal or any(counts)
    notes = [note for note in before.notes if note.startswith(_REPAIRED)]
    notes += [*([_summary(repair, counts)] if has_changed else []), *_losses(repair)]
    if repair.is_streamed and (repair.error is None or repair.has_removal):
        notes.append("the next `bronze stream` resyncs this table once")
    if repair.error and repair.has_removal and not repair.is_loaded:
        rows = repair.removed + repair.file_rows
        notes.append(
            f"{count(rows, 'row was', 'rows were')} removed and not loaded again: verify again"
        )
    return replace(
        after,
        # The rows that are left may be equal though others are missing.
        status="failed" if repair.error and after.status == "equal" else after.status,
        repaired=before.repaired + repair.removed + sum(counts),
        notes=(*notes, *after.notes),
        error=after.error or repair.error or repair.unrecorded,
    )


_REPAIRED = "repaired: "


def _summary(repair: RepairResult, counts: Sequence[int]) -> str:
    summary = f"{_REPAIRED}{count(repair.removed, 'row')} removed"
    if repair.removed_files:
        summary += f", {count(len(repair.removed_files), 'file')} removed"
    if counts:
        summary += ", {:,} inserted, {:,} updated, {:,} deleted".format(*counts)
    return summary


def _losses(repair: RepairResult) -> list[str]:
    """Notes on what a repair cannot restore."""
    names = ", ".join(repair.removed_files)
    losses = []
    if names and repair.has_history:
        losses.append(
            f"the earlier versions of rows in {names} are lost"
            f" ({count(repair.file_rows, 'version')} by the log): the source has only the current"
            " ones"
        )
    elif names:
        losses.append(
            f"rows of {names} that are deleted in the source are lost, and the load_timestamp of"
            " its other rows"
        )
    if repair.removed_deleted and not repair.has_history:
        lost = count(
            repair.removed_deleted,
            "altered row that is deleted in the source is lost",
            "altered rows that are deleted in the source are lost",
        )
        losses.append(f"{lost}; earlier versions of the table keep the values until vacuum")
    if repair.removed and repair.has_history:
        losses.append(
            f"{count(repair.removed, 'altered version is', 'altered versions are')} lost from the"
            " history; earlier versions of the table keep the values until vacuum"
        )
    return losses
