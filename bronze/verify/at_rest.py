"""The proof of Bronze tables at rest: their files are what the log says, and their rows what their
checksums say. The source is asked for nothing but a repair.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from urllib.parse import unquote

from bronze.config.settings import Settings
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.errors import BronzeError, LakeError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.ingest.pipeline import Notify, worker_pool
from bronze.model.events import TableProgress
from bronze.tables import evolution, row_format
from bronze.verify import file_check, inventory
from bronze.verify.digests import Basis
from bronze.verify.file_check import Inspected, Resting
from bronze.verify.inventory import Lying
from bronze.verify.repair import Damage
from bronze.verify.results import FaultyFile, FaultyRow, VerifiedTable
from bronze.verify.row_diff import LISTED


def verify_at_rest(
    settings: Settings, tables: Sequence[str], pool: Executor | None, notify: Notify
) -> list[VerifiedTable]:
    """What was found out about each table; see `bronze.verify.verify.verify`.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    chosen = inventory.resting_tables(settings, tables)
    run = settings.run
    limit = budget.readers(run.memory, run.workers, run.workers)
    sizes = [_size(one) for one in chosen]
    done = [[0, 0] for _ in chosen]

    def told(number: int, outcome: object) -> None:
        if isinstance(outcome, Inspected):
            done[number][0] += outcome.rows
            done[number][1] += outcome.file.size
            share = done[number][1] / max(sizes[number], 1)
            notify(TableProgress(chosen[number].name, done[number][0], share))

    results: dict[str, VerifiedTable] = {}
    with worker_pool(settings, pool, limit, ()) as workers:
        courses = [_look(one) for one in chosen]
        for result in executors.drive(workers, courses, limit, told):
            results[result.target] = result
    return [results[one.target] for one in chosen]


def _size(one: Lying) -> int:
    """The bytes of a table's files, for the progress; an error is in the table's result."""
    with suppress(BronzeError):
        return sum(file.size for file in one.state.named) if one.state else 0
    return 0


def _look(one: Lying) -> Workflow[VerifiedTable]:
    """The course of one table; what hinders it is in the result."""
    began = time.monotonic()
    target = one.target
    result = VerifiedTable(one.label, target, "failed", source=one.source)
    try:
        if one.state is None:
            raise one.error or LakeError(f"There is no Bronze table {target}.")
        result = yield from _inspected(one.state, result)
        if one.state.version < one.version:
            said = (
                f"the log ends at version {one.state.version}, and governance.data_lineage has"
                f" version {one.version}"
            )
            result = replace(
                result,
                status="differs",
                foreign=(*result.foreign, said),
                notes=(*result.notes, said),
            )
    except BronzeError as error:
        result = replace(result, status="failed", error=error.failure())
    return replace(result, seconds=time.monotonic() - began)


def _inspected(state: State, result: VerifiedTable) -> Workflow[VerifiedTable]:
    objects = list(vacuum.lying(state.place))
    sizes = {found.path: found.size for found in objects}
    parts: list[Inspected] = yield [
        Task(file_check.inspect, task, result.table) for task in tasks(state, sizes, None)
    ]
    result, _ = with_file_findings(state, parts, result)
    strays = vacuum.strays(state, objects)
    wrong = result.files or result.altered or result.columns or result.foreign
    return replace(
        result,
        status="differs" if wrong else "equal",
        bronze_rows=sum(part.live for part in parts),
        version=state.version,
        stray_files=len(strays),
        stray_bytes=sum(stray.size for stray in strays),
    )


def with_file_findings(
    state: State, parts: Sequence[Inspected], result: VerifiedTable
) -> tuple[VerifiedTable, Damage]:
    """The result with what files say of themselves, and what of it can be mended."""
    damage = Damage()
    for part in parts:
        if part.fault:
            (damage.stale if part.read else damage.lost).append(part.file)
        for some, numbers in ((damage.altered, part.altered), (damage.gone, part.gone)):
            if len(numbers):
                some[part.file] = [numbers]
    faulty = [FaultyFile(p.file.path, p.fault, max(p.file.rows, 0)) for p in parts if p.fault]
    rows = [
        FaultyRow("altered", key, part.file.path, what)
        for part in parts
        for key, what in part.named
    ]
    gone = sum(len(part.gone) for part in parts)
    notes = [*result.notes]
    if gone:
        notes.append(
            f"{gone:,} of the altered rows have gone from the source: nobody can tell what they"
            " were"
        )
    meddled = row_format.foreign_column_changes(state.columns, state.properties)
    if meddled:
        notes.append(f"another writer has changed the table's columns: {', '.join(meddled)}")
    if state.foreign:
        notes.append(f"another writer has changed the table: {'; '.join(state.foreign)}")
    return (
        replace(
            result,
            altered=gone + sum(len(part.altered) for part in parts),
            rows=tuple(rows[:LISTED]),
            files=tuple(faulty),
            columns=meddled,
            foreign=state.foreign,
            bronze_files=sum(part.read for part in parts),
            gone_rows=sum(part.rows - part.live for part in parts),
            notes=tuple(notes),
        ),
        damage,
    )


def tasks(state: State, sizes: Mapping[str, int], basis: Basis | None) -> list[Resting]:
    """The files of a table, each to be held against the log and its own rows.

    Args:
        state: the table.
        sizes: the sizes of what lies in its folder, by the path.
        basis: what the digests of its rows are made of, if they are to be summed up.
    """
    form = row_format.row_format_of(state.columns, state.properties, state.partition)
    layout = row_format.columns_as_written(state.columns, state.properties)
    key = evolution.key(state.properties)
    return [
        Resting(
            place=state.place,
            file=file,
            size=sizes.get(file.path, sizes.get(unquote(file.path))),
            layout=layout,
            form=form,
            key=key if set(key) <= dict(layout).keys() else (),
            basis=basis,
        )
        for file in state.named
    ]
