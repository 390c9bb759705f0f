"""Verification at rest: whether each file is what the Delta log says, and each row as written.

The source is not read; only a repair needs it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from urllib.parse import unquote

from bronze import stopping
from bronze.config.settings import Settings
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.errors import BronzeError, LakeError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.ingest.pipeline import Notify, worker_pool
from bronze.model.events import TableProgress
from bronze.printable import count
from bronze.tables import evolution, row_format
from bronze.verify import file_check
from bronze.verify.file_check import CheckedFile, FileCheckTask
from bronze.verify.inventory import ExpectedTable
from bronze.verify.repair import Damage
from bronze.verify.results import FaultyFile, FaultyRow, VerifiedTable, status_of
from bronze.verify.rows.digests import Basis
from bronze.verify.rows.row_diff import MAX_LISTED


def verify_at_rest(
    settings: Settings, tables: Sequence[ExpectedTable], pool: Executor | None, notify: Notify
) -> list[VerifiedTable]:
    """The result of each table; see `bronze.verify.verify.verify`."""
    run = settings.run
    limit = budget.readers(run.memory, run.workers, run.workers, run.engine)
    sizes = [_size(table) for table in tables]
    rows_read, bytes_read = [0] * len(tables), [0] * len(tables)

    def report_progress(number: int, outcome: object) -> None:
        if isinstance(outcome, CheckedFile):
            rows_read[number] += outcome.rows
            bytes_read[number] += outcome.file.size
            share = bytes_read[number] / max(sizes[number], 1)
            notify(TableProgress(tables[number].name, rows_read[number], share))

    results: dict[str, VerifiedTable] = {}
    with worker_pool(settings, pool, limit, ()) as workers:
        workflows = [_verify_table(table) for table in tables]
        for result in executors.drive(workers, workflows, limit, report_progress):
            results[result.target] = result
    return [results[table.target] for table in tables]


def _size(table: ExpectedTable) -> int:
    """The bytes of a table's files, for the progress; an error is in the table's result."""
    with suppress(BronzeError):
        return sum(file.size for file in table.state.listed_files) if table.state else 0
    return 0


def _verify_table(table: ExpectedTable) -> Workflow[VerifiedTable]:
    """Verifies one table; an error is in the result."""
    began = time.monotonic()
    result = VerifiedTable(table.label, table.target, "failed", source=table.source)
    try:
        stopping.check()
        if table.state is None:
            raise table.error or LakeError(f"There is no Bronze table {table.target}.")
        result = yield from _check_files(table.state, result)
        if table.state.version < table.version:
            cut_off = (
                f"the Delta log ends at version {table.state.version}, but"
                f" governance.data_lineage records version {table.version}"
            )
            result = replace(
                result,
                status="differs",
                foreign=(*result.foreign, cut_off),
                notes=(*result.notes, cut_off),
            )
    except BronzeError as error:
        result = replace(result, status=status_of(error), error=error.failure())
    return replace(result, seconds=time.monotonic() - began)


def _check_files(state: State, result: VerifiedTable) -> Workflow[VerifiedTable]:
    """Checks all files of a table."""
    objects = list(vacuum.objects_of(state.place))
    sizes = {item.path: item.size for item in objects}
    checks: list[CheckedFile] = yield [
        Task(file_check.check_file, task, result.table) for task in file_tasks(state, sizes, None)
    ]
    result, _ = with_file_faults(state, checks, result)
    strays = vacuum.unnamed_files(state, objects)
    has_faults = result.files or result.altered or result.columns or result.foreign
    return replace(
        result,
        status="differs" if has_faults else "equal",
        bronze_rows=sum(check.live for check in checks),
        version=state.version,
        stray_files=len(strays),
        stray_bytes=sum(stray.size for stray in strays),
    )


def with_file_faults(
    state: State, checks: Sequence[CheckedFile], result: VerifiedTable
) -> tuple[VerifiedTable, Damage]:
    """The result with the faults of checked files, and the damage for a repair to work on."""
    damage = Damage()
    for check in checks:
        if check.fault:
            (damage.misdescribed if check.is_read else damage.unreadable).append(check.file)
        for rows, numbers in (
            (damage.altered, check.altered),
            (damage.altered_deleted, check.altered_deleted),
        ):
            if len(numbers):
                rows[check.file] = [numbers]
    altered_deleted = sum(len(check.altered_deleted) for check in checks)
    notes = [*result.notes]
    if altered_deleted:
        notes.append(
            f"{count(altered_deleted, 'altered row is', 'altered rows are')} deleted in the source:"
            " the original values are unknown"
        )
    columns = row_format.foreign_column_changes(state.columns, state.properties)
    if columns:
        notes.append(f"another writer has changed the table's columns: {', '.join(columns)}")
    if state.foreign:
        notes.append(f"another writer has changed the table: {'; '.join(state.foreign)}")
    return (
        replace(
            result,
            altered=altered_deleted + sum(len(check.altered) for check in checks),
            rows=_altered_rows(checks),
            files=tuple(
                FaultyFile(check.file.path, check.fault, max(check.file.rows, 0))
                for check in checks
                if check.fault
            ),
            columns=columns,
            foreign=state.foreign,
            bronze_files=sum(check.is_read for check in checks),
            gone_rows=sum(check.rows - check.live for check in checks),
            notes=tuple(notes),
        ),
        damage,
    )


def _altered_rows(checks: Sequence[CheckedFile]) -> tuple[FaultyRow, ...]:
    rows = [
        FaultyRow("altered", key, check.file.path, what)
        for check in checks
        for key, what in check.listed
    ]
    return tuple(rows[:MAX_LISTED])


def file_tasks(state: State, sizes: Mapping[str, int], basis: Basis | None) -> list[FileCheckTask]:
    """The tasks that check the files of a table.

    Args:
        state: the table.
        sizes: the sizes in bytes of the objects in the table's folder, by path.
        basis: what the digests of its rows are computed from, if bucket sums are needed.
    """
    form = row_format.row_format_of(state.columns, state.properties, state.partition)
    layout = row_format.columns_as_written(state.columns, state.properties)
    key = evolution.key(state.properties)
    return [
        FileCheckTask(
            place=state.place,
            file=file,
            size=sizes.get(file.path, sizes.get(unquote(file.path))),
            layout=layout,
            form=form,
            key=key if set(key) <= dict(layout).keys() else (),
            basis=basis,
        )
        for file in state.listed_files
    ]
