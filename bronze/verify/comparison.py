"""The comparison of Bronze tables with the source: bucket sums first, then the rows that differ.

In one snapshot PostgreSQL hashes every row; of Bronze every file is read and every row hashed from
its stored values (see `bronze.verify.rows.digests`). The digests of both sides are summed up by
buckets (see `bronze.verify.rows.buckets`). Only for buckets that differ the keys and digests of
rows are fetched and matched. With ``trust_hashes`` the row hashes stored in Bronze are taken
instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import stopping
from bronze.config.settings import Settings
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.errors import BronzeError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.ingest import units
from bronze.ingest.pipeline import Notify, lock_relief, worker_pool
from bronze.model.events import TableProgress
from bronze.model.files import StoredFile
from bronze.model.units import KnownRows
from bronze.verify import at_rest, evidence, file_check
from bronze.verify.claim import Claim
from bronze.verify.evidence import (
    FILE,
    ROW,
    BucketSums,
    FileTask,
    KeyLookup,
    RowSelection,
    SourceTask,
)
from bronze.verify.file_check import CheckedFile, FileCheckTask
from bronze.verify.repair import Damage
from bronze.verify.results import FaultyFile, VerifiedTable, status_of
from bronze.verify.rows import buckets
from bronze.verify.rows.buckets import Sums
from bronze.verify.rows.digests import Basis
from bronze.verify.rows.row_diff import (
    FAULTS,
    MAX_LISTED,
    Identity,
    RowDifferences,
    compare_rows,
    duplicates_of,
)

MAX_COMPARED = 10_000
"""How many rows that differ are told apart from those that differ at another look."""


@dataclass(frozen=True)
class Options:
    """How tables are compared. With ``repair`` the comparison also collects the damage."""

    repair: bool
    trust_hashes: bool


@dataclass
class Comparison:
    """The state of the comparison of one table.

    ``damage`` is what a repair works on; of the extra rows ``duplicates`` share their key with
    others. ``rows`` are the first rows that are missing, extra or different.
    """

    result: VerifiedTable
    options: Options
    damage: Damage = field(default_factory=Damage)
    duplicates: int = 0
    rows: set[Identity] = field(default_factory=set)

    @property
    def may_be_behind(self) -> bool:
        """Whether all that differs may be what the source has changed since Bronze was loaded."""
        result = self.result
        others = (result.altered, result.files, result.columns, result.bronze_files == 0)
        return result.status == "differs" and not any(others)

    @property
    def has_all_rows(self) -> bool:
        """Whether ``rows`` has all rows that differ."""
        result = self.result
        return result.missing + result.extra + result.different == len(self.rows)


def compare_tables(
    settings: Settings,
    claims: Sequence[Claim],
    options: Options,
    pool: Executor | None,
    notify: Notify,
) -> list[Comparison]:
    """Compares tables in parallel. The comparisons are in the order of the claims; errors of a
    table are in its result.
    """
    if not claims:
        return []
    limit = min(claim.context.readers for claim in claims)
    rows_read, bytes_read = [0] * len(claims), [0] * len(claims)
    comparisons: dict[str, Comparison] = {}

    def report_progress(number: int, outcome: object) -> None:
        if isinstance(outcome, BucketSums) and outcome.is_source:
            rows_read[number] += int(outcome.sums[:, 0].sum())
            bytes_read[number] += outcome.estimate
            share = bytes_read[number] / max(claims[number].size, 1)
            notify(TableProgress(claims[number].label, rows_read[number], share))

    origins = {claim.context.origin for claim in claims}
    with worker_pool(settings, pool, limit, origins) as workers:
        workflows = [_compare_table(settings, claim, options) for claim in claims]
        relief = lock_relief((claim.context.snapshot, claim.context.origin) for claim in claims)
        priorities = [claim.context.target.settings.priority for claim in claims]
        for comparison in executors.drive(
            workers, workflows, limit, report_progress, relief, priorities
        ):
            result = comparison.result
            notify(TableProgress(result.table, max(result.source_rows, 0), 1.0))
            comparisons[result.target] = comparison
    return [comparisons[claim.target] for claim in claims]


def _compare_table(settings: Settings, claim: Claim, options: Options) -> Workflow[Comparison]:
    """Compares one table; an error is in the result."""
    began = time.monotonic()
    result = VerifiedTable(
        claim.label,
        claim.target,
        "equal",
        claim.context.origin.name,
        trusted=options.trust_hashes,
    )
    comparison = Comparison(result, options)
    try:
        stopping.check()
        if claim.error:
            raise claim.error
        yield from _compare_sides(settings, claim, comparison)
        claim.context.snapshot.check_alive()
        result = comparison.result
        notes = (*result.notes, *claim.notes(result, comparison.duplicates))
        comparison.result = replace(result, notes=notes)
    except BronzeError as error:
        comparison.result = replace(
            comparison.result, status=status_of(error), error=error.failure()
        )
    comparison.result = replace(comparison.result, seconds=time.monotonic() - began)
    return comparison


def _compare_sides(settings: Settings, claim: Claim, comparison: Comparison) -> Workflow[None]:
    """Compares the bucket sums of both sides, then the rows of the buckets that differ."""
    sum_tasks, row_tasks = claim.source_tasks(comparison.options.trust_hashes)
    file_tasks = yield from _file_tasks(claim, comparison)
    source, bronze, file_tasks = yield from _sum_up(claim, comparison, sum_tasks, file_tasks)
    comparison.result = replace(
        comparison.result,
        source_rows=int(source[:, 0].sum()),
        bronze_rows=int(bronze[:, 0].sum()),
        bronze_files=len(file_tasks),
        **claim.position_fields(),
    )
    differing: npt.NDArray[np.bool_] = (source != bronze).any(axis=1)
    if claim.state is None:
        comparison.result = replace(comparison.result, missing=comparison.result.source_rows)
    elif differing.any():
        count = int(source[differing, 0].sum() + bronze[differing, 0].sum())
        shares = budget.rounds_of_named_rows(settings.run.memory, count)
        file_tasks = [replace(task, key=claim.key_names) for task in file_tasks]
        for share in range(shares):
            selection = RowSelection(differing, share, shares)
            yield from _compare_selection(claim, selection, row_tasks, file_tasks, comparison)
    comparison.result = replace(comparison.result, status=_status(claim, comparison))


def _status(claim: Claim, comparison: Comparison) -> Any:
    result = comparison.result
    extra = comparison.duplicates if claim.keeps_deleted else result.extra
    faults = (result.missing, result.different, extra, result.altered, result.files, result.columns)
    return "differs" if any(faults) or claim.state is None else "equal"


def _sum_up(
    claim: Claim,
    comparison: Comparison,
    sum_tasks: Sequence[SourceTask],
    file_tasks: Sequence[FileTask],
) -> Workflow[tuple[Sums, Sums, list[FileTask]]]:
    """The bucket sums of the source and of Bronze; and the tasks of the files that are readable.

    Unless hashes are trusted, files are checked in the same pass. Those of a history were checked
    before: its last versions are known only then.
    """
    label, trust_hashes = claim.label, comparison.options.trust_hashes
    check = not trust_hashes and not claim.has_history
    outcomes = yield [
        *(Task(evidence.source_sums, task, label) for task in sum_tasks),
        *(
            Task(file_check.check_file, task, label)
            for task in (_check_tasks(claim.state, claim.basis) if check else ())
        ),
        *(Task(evidence.file_sums, task, label) for task in ([] if check else file_tasks)),
    ]
    source, bronze = _totals(outcomes)
    if check:
        _add_file_faults(claim, comparison, [o for o in outcomes if isinstance(o, CheckedFile)])
        unreadable = {file.path for file in comparison.damage.unreadable}
        return source, bronze, [t for t in file_tasks if t.file.path not in unreadable]
    if trust_hashes:
        return source, bronze, _readable(comparison, file_tasks, outcomes[len(sum_tasks) :])
    return source, bronze, list(file_tasks)


def _totals(outcomes: Sequence[object]) -> tuple[Sums, Sums]:
    """The bucket sums of the source and of Bronze."""
    source, bronze = buckets.empty_sums(), buckets.empty_sums()
    for outcome in outcomes:
        if isinstance(outcome, BucketSums):
            side = source if outcome.is_source else bronze
            side += outcome.sums
        elif isinstance(outcome, CheckedFile) and outcome.sums is not None:
            bronze += outcome.sums
    return source, bronze


def _check_tasks(state: State | None, basis: Basis | None) -> list[FileCheckTask]:
    """The tasks that check the files of a Bronze table, if there is one."""
    if state is None:
        return []
    sizes = {item.path: item.size for item in vacuum.objects_of(state.place)}
    return at_rest.file_tasks(state, sizes, basis)


def _add_file_faults(claim: Claim, comparison: Comparison, checks: Sequence[CheckedFile]) -> None:
    if claim.state is None:
        return
    comparison.result, damage = at_rest.with_file_faults(claim.state, checks, comparison.result)
    comparison.damage.add_all(damage)


def _readable(
    comparison: Comparison, file_tasks: Sequence[FileTask], sums: Sequence[BucketSums]
) -> list[FileTask]:
    """The tasks of the files that could be read; the others are added to the faults."""
    readable = []
    for task, outcome in zip(file_tasks, sums, strict=True):
        if outcome.fault:
            faulty = FaultyFile(task.file.path, outcome.fault, max(task.file.rows, 0))
            result = comparison.result
            comparison.result = replace(result, files=(*result.files, faulty))
            comparison.damage.unreadable.append(task.file)
        else:
            readable.append(task)
    return readable


def _file_tasks(claim: Claim, comparison: Comparison) -> Workflow[list[FileTask]]:
    """The tasks that read the files of the Bronze table."""
    state = claim.state
    if state is None:
        return []
    stored: Sequence[StoredFile] = state.listed_files
    live: Sequence[npt.NDArray[np.int64] | None] = [None] * len(stored)
    if claim.has_history:
        stored, live = yield from _last_versions(claim, state, comparison)
    basis = None if comparison.options.trust_hashes else claim.basis
    return [
        FileTask(state.place, number, file, claim.layout, live=rows, basis=basis)
        for number, (file, rows) in enumerate(zip(stored, live, strict=True))
    ]


def _last_versions(
    claim: Claim, state: State, comparison: Comparison
) -> Workflow[tuple[Sequence[StoredFile], Sequence[npt.NDArray[np.int64]]]]:
    """The readable files of a history, and for each the rows that are live last versions."""
    units.check_history_fits(claim.context, sum(max(file.rows, 0) for file in state.listed_files))
    tasks = _check_tasks(state, None)
    if comparison.options.trust_hashes:
        # An unreadable file has to be known before: last versions are found over all files.
        tasks = [task for task in tasks if task.size != task.file.size]
    checks = yield [Task(file_check.check_file, task, claim.label) for task in tasks]
    _add_file_faults(claim, comparison, checks)
    unreadable = {file.path for file in comparison.damage.unreadable}
    stored = tuple(file for file in state.listed_files if file.path not in unreadable)
    known = KnownRows(
        state.place, state.version, stored, claim.layout, (), 0, versions=claim.key_names
    )
    (live,) = yield [Task(evidence.last_version_rows, known, claim.label)]
    return stored, live


def _compare_selection(
    claim: Claim,
    selection: RowSelection,
    row_tasks: Sequence[SourceTask],
    file_tasks: Sequence[FileTask],
    comparison: Comparison,
) -> Workflow[None]:
    """Fetches the selected rows of both sides, and matches them by key and digest."""
    label = claim.label
    outcomes: list[Any] = yield [
        *(
            Task(evidence.keyed_hashes_in_source, replace(task, selection=selection), label)
            for task in row_tasks
        ),
        *(
            Task(evidence.keyed_hashes_in_file, replace(task, selection=selection), label)
            for task in file_tasks
        ),
    ]
    source = evidence.concat_frames(outcomes[: len(row_tasks)])
    if file_tasks:
        bronze = evidence.concat_frames(outcomes[len(row_tasks) :])
    else:
        bronze = evidence.no_bronze_rows(source)
    differences = compare_rows(source, bronze, claim.key_names)
    duplicates = yield from _duplicates(claim, comparison, file_tasks, differences.extra)
    comparison.duplicates += duplicates.height
    if comparison.options.repair:
        _add_damage(comparison, file_tasks, differences, duplicates)
    faulty = replace(differences, extra=duplicates) if claim.keeps_deleted else differences
    comparison.result = _with_counts(claim, comparison.result, differences, faulty)
    limit = MAX_COMPARED - len(comparison.rows)
    comparison.rows |= set(differences.identities(claim.key_names, limit))


def _duplicates(
    claim: Claim,
    comparison: Comparison,
    file_tasks: Sequence[FileTask],
    extra: pl.DataFrame,
) -> Workflow[pl.DataFrame]:
    """The extra rows that share their key with another row, where it matters which they are."""
    key = claim.key_names
    needed = comparison.options.repair or claim.keeps_deleted
    if not needed or not key or claim.has_history or not extra.height:
        return extra.clear()
    keys = extra.select(key).unique()
    outcomes = yield [
        Task(evidence.keys_in_file, KeyLookup(task, keys), claim.label) for task in file_tasks
    ]
    return duplicates_of(extra, evidence.concat_frames(outcomes), key)


def _add_damage(
    comparison: Comparison,
    file_tasks: Sequence[FileTask],
    differences: RowDifferences,
    duplicates: pl.DataFrame,
) -> None:
    """Adds the rows to remove and the different rows to the damage."""
    surplus = _surplus_rows(comparison, file_tasks, differences.extra, duplicates)
    files = {task.number: task.file for task in file_tasks}
    for damaged, rows in (
        (comparison.damage.surplus, surplus),
        (comparison.damage.different, differences.different_in_bronze),
    ):
        for (number,), part in rows.partition_by(FILE, as_dict=True).items():
            damaged.setdefault(files[number], []).append(part[ROW].to_numpy())


def _surplus_rows(
    comparison: Comparison,
    file_tasks: Sequence[FileTask],
    extra: pl.DataFrame,
    duplicates: pl.DataFrame,
) -> pl.DataFrame:
    """The rows to remove: duplicates, and extra rows that are altered. Bronze never wrote the
    latter, so that they must not stay marked as deleted.
    """
    altered = {
        task.number: np.concatenate(comparison.damage.altered[task.file])
        for task in file_tasks
        if task.file in comparison.damage.altered
    }
    parts = [
        rows.filter(pl.col(ROW).is_in(pl.Series(altered[int(number)]).implode()))
        for (number,), rows in extra.partition_by(FILE, as_dict=True).items()
        if int(number) in altered
    ]
    if comparison.options.trust_hashes or not parts:
        return duplicates
    columns = [FILE, ROW]
    return pl.concat(
        [duplicates.select(columns), *(part.select(columns) for part in parts)]
    ).unique()


def _with_counts(
    claim: Claim, result: VerifiedTable, differences: RowDifferences, faulty: RowDifferences
) -> VerifiedTable:
    """The result with the differences of one share of rows; only the faulty ones are listed."""
    rows = list(result.rows)
    for fault in FAULTS:
        rows += faulty.faulty_rows(fault, claim.key_names, MAX_LISTED - len(rows))
    return replace(
        result,
        missing=result.missing + differences.missing.height,
        extra=result.extra + differences.extra.height,
        different=result.different + differences.different.height,
        rows=tuple(rows),
    )
