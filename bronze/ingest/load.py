"""The load of one table: its rows are read, written or merged, and committed in one transaction.

`load_table` is a workflow of `bronze.execution.executors`: it yields tasks, goes on with their
results, and returns what was done to the table. What it wrote and did not commit is deleted when it
fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import tenacity

from bronze import failpoint
from bronze.anomaly import outliers
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change
from bronze.delta.layout import optimize
from bronze.delta.log import State
from bronze.errors import BronzeError, CommitConflict, Mismatch, QualityRefused, SnapshotLost
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage
from bronze.governance.tables import quality as quality_book
from bronze.governance.tables import rejected_values as book
from bronze.governance.tables.profiles import Scope
from bronze.governance.tables.quality import Graded
from bronze.ingest import diff, table_run
from bronze.ingest.diff import Difference, Edit
from bronze.ingest.plan import Plan
from bronze.ingest.table_run import TableRun
from bronze.ingest.worker import read_unit
from bronze.maintenance import maintain
from bronze.model.anomaly import Outliers
from bronze.model.files import DataFile
from bronze.model.locations import Place
from bronze.model.results import TableResult
from bronze.model.stamp import Stamp
from bronze.model.units import Known, Rejected
from bronze.quality import checks
from bronze.rows import fingerprint
from bronze.tables import known_rows
from bronze.tables.selection import Target

_TRIES = 6


@dataclass(frozen=True)
class Outcome:
    """What a commit did, and of which files it is made."""

    version: int
    inserted: int
    updated: int
    deleted: int
    written: tuple[DataFile, ...]

    @property
    def changed(self) -> bool:
        """Whether the table has other rows than before, or others of them."""
        return bool(self.inserted or self.updated or self.deleted or self.written)


def load_table(settings: Settings, table: TableRun) -> Workflow[TableResult]:
    """The load of one table: read, record, check, commit, optimize.

    1. The units of the plan read rows on workers, and write them to files beside the table.
    2. Values that Delta cannot hold are recorded, so that no commit is without them.
    3. Rules and the gate are applied to what was read.
    4. One commit replaces the table's rows, or merges the differences.
    5. The layout is improved where that is needed.

    Returns:
        What was done; a failure of this table alone is in it.

    Raises:
        SnapshotLost: the source went away, and with it the snapshot that all tables share.
    """
    try:
        if table.error or table.plan is None:
            return _failed_result(table, table.error or BronzeError("There is no plan."))
        plan = table.plan
        table.written = yield _read_tasks(table, plan)
        failpoint.reach("read")
        record_rejected_values(settings, table.target, table.stamp, table.rejected)
        failpoint.reach("booked")
        _check_quality(settings, table, plan)
        if plan.state:
            commit.sweep(plan.state, time.time())
        write = _replace_all if plan.mode == "load" else _merge
        outcome = yield from write(settings, table, plan)
        failpoint.reach("landed")
        known_rows.forget(plan.target.place)
        notes = table.plan.notes + _record_anomalies(settings, table, outcome)
        notes += yield from _optimize(settings, table, outcome.changed)
        return _result(table, outcome, notes)
    except BronzeError as error:
        if error.retry and not isinstance(error, CommitConflict) and not table.held.alive():
            raise SnapshotLost(
                f"The source {table.origin.name} went away in the middle of the run:"
                f" {error.message}",
                hint=error.hint,
            ) from error
        return _failed_result(table, error)


def _read_tasks(table: TableRun, plan: Plan) -> list[Task]:
    return [Task(read_unit, unit, table.target.label) for unit in plan.units]


def _replace_all(settings: Settings, table: TableRun, plan: Plan) -> Workflow[Outcome]:
    """All rows become the table's whole content, unless they are that already."""
    place, state = plan.target.place, plan.state
    data = [file for part in table.written for file in part.files]
    if state is not None and not (plan.contract.rewrite or plan.contract.reload or plan.doubting):
        whole = Known(place, state.version, state.files, plan.shape.columns, (), 0)
        ((rows, total),) = yield [Task(known_rows.total, whole, table.target.label)]
        read = reduce(fingerprint.added, (part.sum for part in table.written), 0)
        if (rows, total) == (table.rows, read):
            version = commit.commit(
                place,
                state,
                Change("WRITE"),
                _commit_facts(table),
                shape=plan.shape,
                reached=plan.reached,
                audited=table.stamp.audited,
            )
            store.delete(place, [file.path for file in data])
            return Outcome(version, 0, 0, 0, ())
    version = commit.replace(
        place,
        plan.shape,
        data,
        plan.reached,
        _commit_facts(table, inserted=table.rows),
        lambda state: _another_run_committed(state, plan),
        table.stamp.audited,
    )
    return Outcome(version, table.rows, 0, 0, tuple(data))


def _merge(settings: Settings, table: TableRun, plan: Plan) -> Workflow[Outcome]:
    """The differences between source and table become changes of the table.

    Another writer may commit meanwhile: then the same differences are merged into the files that
    are there now. Where the table would not get as many rows as the source has, all rows are read
    and compared once more.
    """
    difference = diff.difference_of(plan, table.stamp, table.written)
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(commit.lost_race),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
        reraise=True,
    ):
        with attempt:
            state = log.read(plan.target.place)
            if (
                state is None
                or _another_run_committed(state, plan)
                or _doubted_rows_moved(state, plan)
            ):
                raise commit.overtaken(plan.target.place)
            if plan.state and plan.state.is_same(state):
                # It knows already what it has read of the log.
                state = plan.state
            edit = yield from diff.edit_table(plan, table.stamp, difference, state)
            if _row_counts_differ(table, plan, difference, edit, state):
                _delete_files(table, edit.written)
                plan = table.begin_again(plan)
                table.written = yield _read_tasks(table, plan)
                _check_quality(settings, table, plan)
                difference = diff.difference_of(plan, table.stamp, table.written)
                edit = yield from diff.edit_table(plan, table.stamp, difference, state)
                if _row_counts_differ(table, plan, difference, edit, state):
                    raise _wrong_row_count(table, difference, edit)
            version = _commit(table, plan, edit, difference.staged, state)
            return Outcome(version, edit.inserted, edit.updated, edit.deleted, edit.written)
    raise AssertionError("the last attempt raises")


def _row_counts_differ(
    table: TableRun, plan: Plan, found: Difference, edit: Edit, state: State
) -> bool:
    """Whether the table would not have as many rows as the source.

    A cursor column may have passed over rows; two rows may share a fingerprint.
    """
    comparable = found.gone and table.held.name is not None
    if not comparable or plan.state is None or state.version != plan.state.version:
        return False
    return found.live + edit.growth != found.there


def _wrong_row_count(table: TableRun, found: Difference, edit: Edit) -> Mismatch:
    return Mismatch(
        f"Table {table.target.label} has {found.there} rows, and {found.live + edit.growth} would"
        " be in Bronze.",
        hint="Nothing was committed. Run again; if it is said again, report it as a bug.",
        table=table.target.label,
    )


def _commit(
    table: TableRun, plan: Plan, edit: Edit, staged: Sequence[DataFile], state: State
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
        # Only then it is certain that nobody needs them. What is staged is needed again.
        kept = {file.path for file in staged}
        _delete_files(table, [file for file in edit.written if file.path not in kept])
        raise
    needed = {file.path for file in edit.written}
    _delete_files(table, [file for file in staged if file.path not in needed])
    failpoint.reach("cleaned")
    return version


def _delete_files(table: TableRun, written: Sequence[DataFile]) -> None:
    with suppress(BronzeError):
        store.delete(table.target.place, [file.path for file in written])


def _another_run_committed(state: State | None, plan: Plan) -> bool:
    """Whether another run of ours has committed since the plan was made."""

    def held(one: State | None, name: str) -> int | None:
        return one.position(name) if one else None

    names = [name for name, _ in plan.reached.transactions]
    return any(held(state, name) != held(plan.state, name) for name in names)


def _doubted_rows_moved(state: State, plan: Plan) -> bool:
    """Whether rows that are doubted lie in other files now: they are known by their places alone,
    and would not be found.
    """
    if not plan.doubting or plan.state is None:
        return False
    return not {file.path for file in plan.state.files} <= {file.path for file in state.files}


def _commit_facts(table: TableRun, **counts: int) -> dict[str, Any]:
    mode = table.plan.mode if table.plan else ""
    made = table.plan is not None and table.plan.state is None
    done = {"rows_read": table.rows, "rejected": len(table.rejected), **counts}
    status = "landed" if made or any(counts.values()) else "unchanged"
    return {
        "batch_id": table.stamp.batch_id,
        "source": table.origin.name,
        "table": table.target.label,
        "snapshot": table.held.name,
        "position": table.held.position,
        "loaded_at": table.stamp.loaded_at.isoformat(),
        "mode": mode,
        "rows": table.rows,
        "rejected": len(table.rejected),
        **counts,
        **lineage.told(table.entry, mode=mode, status=status, **done),
    }


def _record_anomalies(settings: Settings, table: TableRun, outcome: Outcome) -> tuple[str, ...]:
    """Enters what was found out about the rows that have landed."""
    plan = table.plan
    if plan is None or plan.enrichment.watch is None:
        return ()
    findings = table.findings
    if not outcome.changed:
        findings = replace(findings, outliers=Outliers())
    scope: Scope = "changes" if plan.mode == "changes" else "whole"
    return outliers.told(
        settings, table.target, table.stamp, plan.enrichment.watch, findings, scope
    )


def record_rejected_values(
    settings: Settings, target: Target, stamp: Stamp, rejected: Sequence[Rejected]
) -> None:
    """Enters values that Delta cannot hold into ``governance.rejected_values``."""
    if not rejected:
        return
    place = settings.place(GOVERNANCE, book.NAME)
    frame = book.frame(
        rejected, stamp=stamp, source_table=target.label, target_table=target.full_name
    )
    file = files.write([frame], place, stamp.batch_id, ())
    if file:
        commit.append(place, book.COLUMNS, file, {"batch_id": stamp.batch_id})


def _check_quality(settings: Settings, table: TableRun, plan: Plan) -> None:
    """Holds the rows that were read against what is demanded of them.

    Raises:
        QualityRefused: they are not to land.
    """
    demanded = settings.demanded(table.target.settings)
    age = time.time() - table.stamp.loaded_at.timestamp()
    quality = plan.enrichment.quality
    table.figures = checks.figures(quality, table.findings.quality, demanded, age)
    # They have been counted; those of all tables of a run would not fit into its memory.
    for i, part in enumerate(table.written):
        lighter = replace(part.findings, quality=replace(part.findings.quality, prints=()))
        table.written[i] = replace(part, findings=lighter)
    said = checks.against(table.figures) if demanded.on_failure == "stop" else ""
    if said:
        raise QualityRefused(
            f"The rows of table {table.target.label} are not good enough: {said}.",
            hint="Nothing of it landed, its Bronze table is as it was. `bronze quality` shows all"
            ' figures; on_failure = "land" lets such rows land.',
            table=table.target.label,
        )


def record_quality(settings: Settings, tables: Sequence[TableRun]) -> None:
    """Enters how the rows fared that have landed, or were refused, into ``governance.quality``."""
    graded = [
        Graded(
            source_table=table.target.label,
            target_table=table.target.full_name,
            stamp=table.stamp,
            mode=table.plan.mode,
            as_of=table.stamp.loaded_at,
            landed=table.error is None,
            figures=table.figures,
        )
        for table in tables
        if table.figures
        and table.plan
        and (table.error is None or isinstance(table.error, QualityRefused))
    ]
    checks.enter(settings.place(GOVERNANCE, quality_book.NAME), graded)


def discard(place: Place, batch_id: str) -> None:
    """Deletes what was written for a table and will not land; what did land is kept."""
    known_rows.forget(place)
    with suppress(BronzeError):
        commit.discard(place, batch_id)


def _failed_result(table: TableRun, error: BronzeError) -> TableResult:
    table.error = error
    discard(table.target.place, table.stamp.batch_id)
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status="failed",
        rows_read=table.rows,
        seconds=time.monotonic() - table.began,
        error=error.failure(),
    )


def _quality_fields(table: TableRun) -> dict[str, Any]:
    found = table.findings.quality
    score = round(found.total / found.rows, 2) if found.rows else None
    return {"score": score, "quarantined": found.quarantined}


def _optimize(settings: Settings, table: TableRun, changed: bool) -> Workflow[tuple[str, ...]]:
    """Improves the layout where the table needs it; what hinders that is told, and no failure."""
    if not settings.maintain.auto:
        return ()
    place = table.target.place
    try:
        wish = maintain.wished(settings, table.target.settings)
        known = table.plan.state if table.plan else None
        # Where nothing has changed, the files are those that were found.
        state = log.read(place) if changed or known is None else known
        if state is not None and optimize.needed(state, wish):
            yield from maintain.improvement(settings, place, wish, table.target.label)
    except BronzeError as error:
        return (f"the layout was not improved: {error.message}",)
    return ()


def _result(table: TableRun, outcome: Outcome, notes: tuple[str, ...]) -> TableResult:
    same = not outcome.changed and table.plan is not None and table.plan.state is not None
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status="unchanged" if same else "landed",
        rows_read=table.rows,
        inserted=outcome.inserted,
        updated=outcome.updated,
        deleted=outcome.deleted,
        rejected=len(table.rejected),
        anomalies=table.findings.outliers.count if outcome.changed else 0,
        version=outcome.version,
        files=len(outcome.written),
        bytes=sum(file.size for file in outcome.written),
        seconds=time.monotonic() - table.began,
        schema_changes=table_run.schema_changes(table.plan),
        notes=notes,
        **_quality_fields(table),
    )
