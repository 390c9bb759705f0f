"""The load of one table: read its rows, write or merge them, commit them in one transaction.

`load_table` is a workflow of `bronze.execution.executors`: it yields tasks, receives their results,
and returns what was done to the table. Where it fails, it deletes the files that it did not commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeVar, cast

from bronze import failpoint, stopping
from bronze.anomaly import outliers
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, store
from bronze.delta.commit import Change
from bronze.delta.layout import optimize
from bronze.delta.log import State
from bronze.delta.storage import client
from bronze.errors import (
    BronzeError,
    CommitConflict,
    EngineLost,
    Mismatch,
    QualityRefused,
    SnapshotLost,
    Stopped,
)
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage, writer
from bronze.governance.tables import rejected_values as rejected_table
from bronze.governance.tables.anomaly.profiles import Scope
from bronze.ingest import diff, quality_gate, table_run
from bronze.ingest.diff import Difference, Edit
from bronze.ingest.plan import Plan
from bronze.ingest.table_run import TableRun
from bronze.ingest.worker import read_unit, train_model
from bronze.maintenance import automatic, maintain
from bronze.model.anomaly import Outliers
from bronze.model.files import WrittenFile
from bronze.model.locations import Place
from bronze.model.results import Status, TableResult
from bronze.model.stamp import RowStamp
from bronze.model.units import KnownRows, RejectedValue, UnitResult
from bronze.postgres.connection.translation import STANDBY_HINT
from bronze.printable import count
from bronze.quality import checks
from bronze.rows import fingerprint
from bronze.tables import known_rows
from bronze.tables.selection import Target

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What a commit changed, and the files that it added."""

    version: int
    inserted: int
    updated: int
    deleted: int
    written: tuple[WrittenFile, ...]

    @property
    def has_changes(self) -> bool:
        """Whether rows or files of the table changed."""
        return bool(self.inserted or self.updated or self.deleted or self.written)


def load_table(settings: Settings, table: TableRun) -> Workflow[TableResult]:
    """The load of one table: train, read, record, check, commit, optimize.

    1. A worker trains the anomaly model where that is due, beside the reading of other tables.
    2. Workers read the units of the plan, and write their rows to files that are not committed yet.
    3. Rejected values are recorded first: no commit may be without the record of its own.
    4. The quality gate checks the rows that were read.
    5. One commit replaces the table's rows, or merges the differences.
    6. The table is optimized where it needs that.

    Returns:
        What was done to the table; its error where only this table failed, or was stopped.

    Raises:
        SnapshotLost: the connection to the source was lost, and with it the snapshot that all
            tables share.
        EngineLost: the cluster that works for all tables was lost.
    """
    table.begin()
    if stopping.is_requested():
        return stopped_result(table)
    try:
        if table.error or table.plan is None:
            return _failed_result(table, table.error or _unplanned_error(table))
        plan = table.plan = yield from _with_model(table.plan)
        table.results = yield from _read(table, plan)
        table.end_stage("read")
        failpoint.reach("read")
        record_rejected_values(settings, table.target, table.stamp, table.rejected)
        failpoint.reach("booked")
        quality_gate.check_quality(settings, table, plan)
        write = _replace_all if plan.mode == "load" else _merge
        outcome = yield from write(settings, table, plan)
        table.end_stage("write")
        failpoint.reach("landed")
        known_rows.drop_index(plan.target.place)
        with stopping.unstoppable():
            notes = table.plan.notes + _record_anomalies(settings, table, outcome)
        notes += yield from _optimize(settings, table, outcome.has_changes)
        table.end_stage("optimize")
        return _result(table, outcome, notes)
    except Stopped:
        discard(table.target.place, table.stamp.batch_id)
        return stopped_result(table)
    except BronzeError as error:
        if isinstance(error, SnapshotLost) and table.snapshot.since.standby:
            error.hint = error.hint or STANDBY_HINT
        if isinstance(error, SnapshotLost | EngineLost):
            raise
        if error.retry and not isinstance(error, CommitConflict) and not table.snapshot.alive():
            raise SnapshotLost(
                f"The connection to the source {table.origin.name} was lost during the run:"
                f" {error.message}",
                hint=error.hint,
            ) from error
        return _failed_result(table, error)


def _unplanned_error(table: TableRun) -> BronzeError:
    return BronzeError(
        f"Table {table.target.label} was not planned.",
        hint="This is a bug in bronze: report it.",
    )


def _with_model(plan: Plan) -> Workflow[Plan]:
    """The plan with the anomaly model of the table, which is trained where it has to be."""
    if plan.pending is None:
        return plan
    label = plan.target.label
    (trained,) = yield [Task(train_model, plan.pending.training, label)]
    with stopping.unstoppable():
        return plan.monitored(plan.pending.record(trained))


def _read(table: TableRun, plan: Plan) -> Workflow[list[UnitResult]]:
    """Reads the units of a plan.

    Raises:
        SnapshotLost: the rows may be incomplete.
    """
    absorb, label = diff.SeenMasks(plan.units).absorb, table.target.label
    results = yield [Task(read_unit, unit, label, absorb=absorb) for unit in plan.units]
    table.snapshot.check_alive()
    return results


def in_store(
    place: Place, label: str, work: Callable[[], T], sweep: State | None = None
) -> Workflow[T]:
    """What a function returns that makes requests to the lake: other tables go on meanwhile, where
    each is a round trip. The files of runs that died are deleted from the table ``sweep``, too.
    """
    works: list[Callable[[], Any]] = [work]
    if sweep:
        works.append(lambda: commit.sweep(sweep, time.time()))
    if client.is_local(place):
        result, *_ = [work() for work in works]
    else:
        result, *_ = yield from executors.in_threads(label, *works)
    return cast("T", result)


def _replace_all(settings: Settings, table: TableRun, plan: Plan) -> Workflow[Outcome]:
    """Replaces all rows of the table; commits only the position where they are the same."""
    place = plan.target.place
    data = [file for part in table.results for file in part.files]
    if (yield from _has_same_rows(table, plan)):
        version = yield from in_store(
            place, table.target.label, lambda: _keep(table, plan, data), plan.state
        )
        return Outcome(version, 0, 0, 0, ())
    version = yield from in_store(
        place,
        table.target.label,
        lambda: commit.replace(
            place,
            plan.shape,
            data,
            plan.reached,
            _commit_facts(table, inserted=table.rows),
            lambda state: _another_run_committed(state, plan),
            table.stamp.audited,
        ),
        plan.state,
    )
    return Outcome(version, table.rows, 0, 0, tuple(data))


def _keep(table: TableRun, plan: Plan, data: Sequence[WrittenFile]) -> int:
    """Commits the position of a table that has the same rows, and deletes those that were read."""
    version = commit.commit(
        plan.target.place,
        plan.state,
        Change("WRITE"),
        _commit_facts(table),
        shape=plan.shape,
        reached=plan.reached,
        audited=table.stamp.audited,
    )
    store.delete(plan.target.place, [file.path for file in data])
    return version


def _has_same_rows(table: TableRun, plan: Plan) -> Workflow[bool]:
    """Whether the Bronze table has the rows that were read, by their number and the sum of their
    fingerprints; false where its files have to be rewritten anyway.
    """
    state = plan.state
    if state is None or plan.contract.rewrite or plan.contract.reload or plan.doubting:
        return False
    known = KnownRows(plan.target.place, state.version, state.files, plan.shape.columns, (), 0)
    (bronze,) = yield [Task(known_rows.row_count_and_sum, known, table.target.label)]
    source_sum = reduce(fingerprint.sum_of_totals, (part.sum for part in table.results), 0)
    return bool(bronze == (table.rows, source_sum))


def _merge(settings: Settings, table: TableRun, plan: Plan) -> Workflow[Outcome]:
    """Merges the differences between the source and the table into it.

    After a foreign commit in between, the same differences are merged into the files that are
    there now. Where the table would not get as many rows as the source has, all rows are read and
    compared again.
    """
    place, label = plan.target.place, table.target.label
    in_memory = budget.changes_in_memory(settings.run.memory)
    difference = diff.difference_of(plan, table.stamp, table.results, in_memory)
    # Tables that are read while this one is committed need the memory of its index.
    known_rows.drop_index(place)
    for attempt in commit.attempts():
        with attempt:
            state = yield from in_store(place, label, partial(_current, plan))
            if (
                state is None
                or _another_run_committed(state, plan)
                or _have_doubtful_rows_moved(state, plan)
            ):
                raise commit.overtaken_error(place)
            edit = yield from diff.edit_table(plan, table.stamp, difference, state)
            if _row_counts_differ(table, plan, difference, edit, state):
                _delete_files(table, edit.commit_files)
                plan = table.compare_all_rows(plan)
                table.results = yield from _read(table, plan)
                quality_gate.check_quality(settings, table, plan)
                difference = diff.difference_of(plan, table.stamp, table.results, in_memory)
                edit = yield from diff.edit_table(plan, table.stamp, difference, state)
                if _row_counts_differ(table, plan, difference, edit, state):
                    raise _wrong_row_count(table, difference, edit)
            staged = difference.staged_files
            commit_edit = partial(_commit, table, plan, edit, staged, state)
            version = yield from in_store(place, label, commit_edit, plan.state)
            return Outcome(version, edit.inserted, edit.updated, edit.deleted, edit.commit_files)
    raise AssertionError("the last attempt raises")


def _current(plan: Plan) -> State | None:
    return log.current(plan.state) if plan.state else log.read(plan.target.place)


def _row_counts_differ(
    table: TableRun, plan: Plan, difference: Difference, edit: Edit, state: State
) -> bool:
    """Whether the table would not have as many rows as the source, in one and the same snapshot.

    A cursor column may not show all changes; two rows may share a fingerprint.
    """
    comparable = difference.missing and table.snapshot.name is not None
    if not comparable or plan.state is None or state.version != plan.state.version:
        return False
    return difference.bronze_rows + edit.growth != difference.source_rows


def _wrong_row_count(table: TableRun, difference: Difference, edit: Edit) -> Mismatch:
    return Mismatch(
        f"Table {table.target.label} has {count(difference.source_rows, 'row')} in the source, but"
        f" would have {difference.bronze_rows + edit.growth} in Bronze.",
        hint="Nothing was committed. Run again; if the error comes again, report it as a bug.",
        table=table.target.label,
    )


def _commit(
    table: TableRun, plan: Plan, edit: Edit, staged: Sequence[WrittenFile], state: State
) -> int:
    place = plan.target.place
    counts = {"inserted": edit.inserted, "updated": edit.updated, "deleted": edit.deleted}
    try:
        version = commit.commit(
            place,
            state,
            edit.change,
            _commit_facts(table, **counts),
            shape=plan.shape,
            reached=plan.reached,
            audited=table.stamp.audited,
            compared=plan.state.version if plan.state and plan.mode == "compare" else None,
        )
    except CommitConflict:
        # After any other error the commit may exist. Staged files are merged by the next attempt.
        kept = {file.path for file in staged}
        _delete_files(table, [file for file in edit.commit_files if file.path not in kept])
        raise
    needed = {file.path for file in edit.commit_files}
    _delete_files(table, [file for file in staged if file.path not in needed])
    failpoint.reach("cleaned")
    return version


def _delete_files(table: TableRun, written: Sequence[WrittenFile]) -> None:
    with suppress(BronzeError):
        store.delete(table.target.place, [file.path for file in written])


def _another_run_committed(state: State | None, plan: Plan) -> bool:
    """Whether another run of bronze has committed to the table since the plan was made."""

    def positions(table: State | None) -> list[int | None]:
        return [table.position(name) if table else None for name, _ in plan.reached.transactions]

    return positions(state) != positions(plan.state)


def _have_doubtful_rows_moved(state: State, plan: Plan) -> bool:
    """Whether rows to check are in other files now; they are identified by file and position, and
    a merge would not find them.
    """
    if not plan.doubting or plan.state is None:
        return False
    return not {file.identity for file in plan.state.files} <= {f.identity for f in state.files}


def _commit_facts(table: TableRun, **counts: int) -> dict[str, Any]:
    """What a commit records of its run, with the numbers of rows ``inserted`` and so on."""
    mode = table.plan.mode if table.plan else ""
    created = table.plan is not None and table.plan.state is None
    done = {"rows_read": table.rows, "rejected": len(table.rejected), **counts}
    status = "landed" if created or any(counts.values()) else "unchanged"
    return {
        "batch_id": table.stamp.batch_id,
        "source": table.origin.name,
        "table": table.target.label,
        "snapshot": table.snapshot.name,
        "position": table.snapshot.position,
        "loaded_at": table.stamp.loaded_at.isoformat(),
        "mode": mode,
        "rows": table.rows,
        "rejected": len(table.rejected),
        **counts,
        **lineage.facts_of(table.entry, mode=mode, status=status, **done),
    }


def _record_anomalies(settings: Settings, table: TableRun, outcome: Outcome) -> tuple[str, ...]:
    """Records the anomalies among the rows that were committed; returns notes for the result."""
    plan = table.plan
    if plan is None or plan.enrichment.watch is None:
        return ()
    findings = table.findings
    if not outcome.has_changes:
        findings = replace(findings, outliers=Outliers())
    scope: Scope = "changes" if plan.mode == "changes" else "whole"
    return outliers.record_findings(
        settings, table.target, table.stamp, plan.enrichment.watch, findings, scope
    )


def record_rejected_values(
    settings: Settings, target: Target, stamp: RowStamp, rejected: Sequence[RejectedValue]
) -> None:
    """Appends values that Delta cannot hold to ``governance.rejected_values``."""
    if not rejected:
        return
    place = settings.place(GOVERNANCE, rejected_table.NAME)
    frame = rejected_table.frame(
        rejected, stamp=stamp, source_table=target.label, target_table=target.full_name
    )
    writer.append_rows(place, rejected_table.COLUMNS, frame, stamp.batch_id)


def discard(place: Place, batch_id: str) -> None:
    """Deletes the files of a batch that no commit has."""
    known_rows.drop_index(place)
    with suppress(BronzeError):
        commit.discard(place, batch_id)


def stopped_result(table: TableRun) -> TableResult:
    """The result of a table whose load was stopped, or has not begun, when the run was stopped."""
    return _unloaded_result(table, stopping.error(table.target.label), "stopped")


def _failed_result(table: TableRun, error: BronzeError) -> TableResult:
    discard(table.target.place, table.stamp.batch_id)
    return _unloaded_result(table, error, "failed")


def _unloaded_result(table: TableRun, error: BronzeError, status: Status) -> TableResult:
    table.error = error
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status=status,
        rows_read=table.rows,
        seconds=time.monotonic() - table.began,
        error=error.failure(),
        stages=table.stages,
        notes=checks.example_notes(table.figures) if isinstance(error, QualityRefused) else (),
    )


def _optimize(settings: Settings, table: TableRun, changed: bool) -> Workflow[tuple[str, ...]]:
    """Optimizes the table where it needs that; an error of it is a note, as all rows are there.

    What this run has written whole stays as it is: a later run joins its files where they are
    small and many. Only a table that is to be clustered may need it at once, where its load did not
    write clusters.
    """
    written_whole = changed and table.plan is not None and table.plan.mode == "load"
    clustered = bool(table.target.settings.cluster_by)
    if not settings.maintain.auto or (written_whole and not clustered):
        return ()
    place = table.target.place
    try:
        names = (table.target.name, table.target.relation.name)
        layout = maintain.layout_wish(settings, table.target.settings, names)
        planned = table.plan.state if table.plan else None
        # Where nothing changed, the files are those of the plan.
        state = log.recent(place) if changed or planned is None else planned
        if state is not None and optimize.is_needed(state, layout):
            done = yield from maintain.optimize_table(settings, place, layout, table.target.label)
            if done.choice:
                return (automatic.choice_note(done.choice),)
    except Stopped:
        # All rows are there; the next run optimizes the table.
        return ()
    except BronzeError as error:
        return (f"the table was not optimized: {error.message}",)
    return ()


def _result(table: TableRun, outcome: Outcome, notes: tuple[str, ...]) -> TableResult:
    existed = table.plan is not None and table.plan.state is not None
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status="unchanged" if existed and not outcome.has_changes else "landed",
        rows_read=table.rows,
        inserted=outcome.inserted,
        updated=outcome.updated,
        deleted=outcome.deleted,
        rejected=len(table.rejected),
        anomalies=table.findings.outliers.count if outcome.has_changes else 0,
        version=outcome.version,
        files=len(outcome.written),
        bytes=sum(file.size for file in outcome.written),
        seconds=time.monotonic() - table.began,
        schema_changes=table_run.schema_changes(table.plan),
        notes=notes,
        as_of=table.snapshot.taken,
        stages=table.stages,
        **quality_gate.result_fields(table),
    )
