"""Maintenance: files are joined and clustered, and what nobody needs any more is deleted.

The tables are found in the lake; the source is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext

import uuid_utils

from bronze import failpoint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.config.tables import TableSettings
from bronze.delta import log, store
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.optimize import Improved, Wish
from bronze.errors import BronzeError, LakeError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.model.locations import Place
from bronze.model.results import MaintainedTable, MaintainResult
from bronze.tables import evolution, lake
from bronze.tables.lake import LakeTable

Notify = Callable[[MaintainedTable], None]

_FULL_BOOK = 50


def maintain(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
) -> MaintainResult:
    """Improves the layout of Bronze tables, and expires their old files and log entries.

    The tables in which is remembered what happened are among them, as each run adds a file to them:
    their files are joined, their records stay as they are.

    Args:
        settings: the config.
        tables: names of Bronze tables, of the source's, or of those of ``governance``; none takes
            all that are in the lake.
        pool: where to run the work instead of the config's engine.
        notify: is told of each table, from this thread.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    began = time.monotonic()
    chosen = lake.find(settings, _in_lake(settings), tables)
    run = settings.run
    limit = budget.readers(run.memory, run.workers, run.workers)
    given = nullcontext(pool) if pool else executors.executor(settings.run.engine, limit)
    results = []
    with given as running:
        courses = [_maintained(settings, one) for one in chosen]
        for result in executors.drive(running, courses, limit):
            notify(result)
            results.append(result)
    return MaintainResult(time.monotonic() - began, tuple(results))


def maintain_governance(settings: Settings) -> tuple[str, ...]:
    """Joins the files of the books that have many: each run adds some to them, and reads them.

    Returns:
        What hindered it.
    """
    notes = []
    try:
        names = store.folders(settings.place(GOVERNANCE, ""))
    except BronzeError as error:
        return (f"the books were not looked through: {error.message}",)
    for name in names:
        place = settings.place(GOVERNANCE, name)
        try:
            # Not each book is to be opened in each run.
            if sum(path.endswith(".parquet") for path in store.listing(place)) < _FULL_BOOK:
                continue
            state = log.read(place)
            if state is not None and len(state.files) >= _FULL_BOOK:
                optimize.improve(
                    place,
                    layout_wish(settings, TableSettings()),
                    batch_id=str(uuid_utils.uuid7()),
                    memory=budget.for_rewriting(settings.run.memory, settings.run.workers),
                    each=map,
                )
        except BronzeError as error:
            notes.append(f"the files of {GOVERNANCE}.{name} were not joined: {error.message}")
    return tuple(notes)


def _in_lake(settings: Settings) -> Iterator[LakeTable]:
    """The Bronze tables in the lake, and the books: what else lies there is left alone."""
    for schema in dict.fromkeys((settings.lake.schema_, GOVERNANCE)):
        for one in lake.opened(settings, schema):
            if one.error or one.is_bronze or (one.state and schema == GOVERNANCE):
                yield one


def _maintained(settings: Settings, one: LakeTable) -> Workflow[MaintainedTable]:
    """The course of one table; what hinders it is in the result."""
    began = time.monotonic()
    improved, expired = Improved(), vacuum.Expired()
    error = None
    try:
        if one.state is None:
            raise one.error or LakeError(f"There is no table {one.target}.")
        schema, table = evolution.table_of(one.state.properties)
        own = settings.table(one.source, schema, table) if table else TableSettings()
        improved = yield from improvement(
            settings, one.state.place, layout_wish(settings, own), one.name
        )
        expired = vacuum.expire(one.state.place, settings.maintain.retention, (), time.time())
    except BronzeError as caught:
        error = caught.failure()
    return MaintainedTable(
        target=one.target,
        version=improved.version,
        files_before=improved.files_before,
        files_after=improved.files_after,
        rewritten=improved.rewritten,
        expired_files=expired.files,
        expired_bytes=expired.bytes,
        expired_entries=expired.entries,
        seconds=time.monotonic() - began,
        error=error,
    )


def layout_wish(settings: Settings, own: TableSettings) -> Wish:
    """How the config wants a table to lie."""
    by = tuple(own.rename.get(name, name) for name in own.cluster_by)
    return Wish(by, settings.maintain.file_size)


def improvement(
    settings: Settings, place: Place, wish: Wish, table: str, share: int = 1
) -> Workflow[Improved]:
    """The course of `bronze.delta.layout.optimize.improve`; of the memory it takes one
    ``share``-th.
    """
    steps = optimize.steps(
        place,
        wish,
        batch_id=str(uuid_utils.uuid7()),
        memory=budget.for_rewriting(settings.run.memory, settings.run.workers) // share,
    )
    try:
        work, jobs = next(steps)
        while True:
            try:
                results = yield [Task(work, job, table) for job in jobs]
            except BronzeError as error:
                work, jobs = steps.throw(error)
            else:
                failpoint.reach("rewritten")
                work, jobs = steps.send(results)
    except StopIteration as end:
        done: Improved = end.value
        return done
