"""Maintenance: optimizes tables (joins and clusters their files) and vacuums them.

The tables are found in the lake; the source is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from threading import Event

import uuid_utils

from bronze import failpoint, stopping
from bronze.config.sections.tables import TableSettings
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log, store
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.optimize import OptimizeResult, TableLayout
from bronze.delta.properties import TableProperties
from bronze.delta.read import remembered
from bronze.delta.storage import client
from bronze.errors import BronzeError, LakeError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.governance.run_log import RunTable
from bronze.maintenance import automatic, expiry
from bronze.model.locations import Place
from bronze.model.results import MaintainedTable, MaintainResult
from bronze.tables import lake
from bronze.tables.lake import LakeTable

Notify = Callable[[MaintainedTable], None]
Planned = Callable[[Sequence[RunTable]], None]

# The number of files at which a governance table is optimized after a run.
_MANY_FILES = 50


def maintain(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    upgrade: bool = False,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
    planned: Planned = lambda _: None,
    stop: Event | None = None,
) -> MaintainResult:
    """Optimizes tables, and deletes their old files and log entries.

    Governance tables are among them, as each run adds a file to them. Their rows do not change, but
    records of runs, alerts, requests and checkpoints are deleted after ``[maintain] history``.

    Args:
        settings: the config.
        tables: names of Bronze tables, source tables or governance tables; none means all tables of
            the lake.
        upgrade: also name the features of tables whose protocol has numbers alone, as bronze made
            them before; see `bronze.delta.commit.upgrade_protocol`.
        pool: an executor for the tasks, instead of the config's engine.
        notify: is called with the result of each table, in this thread.
        planned: is called with the tables before they are maintained.
        stop: ends the maintenance when it is set, from any thread: a commit that has begun is
            finished, and the other tables are stopped.

    Raises:
        ConfigError: a table does not exist.
        LakeError, LakeUnreachable: the lake cannot be read.
        Stopped: before the tables were known.
    """
    began = time.monotonic()
    with stopping.scope(stop):
        results = _maintain_tables(settings, tables, upgrade, pool, notify, planned)
    return MaintainResult(time.monotonic() - began, tuple(results))


def _maintain_tables(
    settings: Settings,
    tables: Sequence[str],
    upgrade: bool,
    pool: Executor | None,
    notify: Notify,
    planned: Planned,
) -> list[MaintainedTable]:
    chosen = lake.find(settings, _in_lake(settings), tables)
    planned([RunTable(table.source, table.label, table.target) for table in chosen])
    run = settings.run
    limit = budget.readers(run.memory, run.workers, run.workers, run.engine)
    context = nullcontext(pool) if pool else executors.executor(run.engine, limit, run.memory)
    results = []
    with context as running:
        workflows = [_maintain_table(settings, table, upgrade) for table in chosen]
        for result in executors.drive(running, workflows, limit):
            notify(result)
            results.append(result)
    return results


def maintain_governance(settings: Settings) -> tuple[str, ...]:
    """Joins the files of governance tables that have many: each run adds files, and reads them.

    Returns:
        Notes about errors.
    """
    notes = []
    try:
        places = _governance_with_many_files(settings)
    except BronzeError as error:
        return (f"governance tables were not optimized: {error.message}",)
    for place in places:
        try:
            state = log.read(place)
            if state is not None and len(state.files) >= _MANY_FILES:
                optimize.optimize_table(
                    place,
                    layout_wish(settings, TableSettings()),
                    batch_id=str(uuid_utils.uuid7()),
                    memory=budget.rewrite_memory(settings.run.memory, settings.run.workers),
                    each=map,
                )
        except BronzeError as error:
            name = place.url.rpartition("/")[2]
            notes.append(f"the files of {GOVERNANCE}.{name} were not joined: {error.message}")
    return tuple(notes)


def _governance_with_many_files(settings: Settings) -> list[Place]:
    """The governance tables whose files may be worth joining.

    Raises:
        LakeError, LakeUnreachable: they cannot be listed.
    """
    root = settings.place(GOVERNANCE, "")
    if not client.is_local(root):
        # A run adds files only to tables that it has just written.
        known = remembered.within(root).items()
        return [place for place, content in known if len(content.adds) >= _MANY_FILES]
    places = (settings.place(GOVERNANCE, name) for name in store.folders(root))
    # Listing the files is cheaper than reading the log of each table in each run.
    return [
        place
        for place in places
        if sum(path.endswith(".parquet") for path in store.listing(place)) >= _MANY_FILES
    ]


def _in_lake(settings: Settings) -> Iterator[LakeTable]:
    """The Bronze tables and the governance tables of the lake, without other writers' tables."""
    for schema in dict.fromkeys((settings.lake.schema_, GOVERNANCE)):
        for table in lake.tables_of(settings, schema):
            stopping.check()
            if table.error or table.is_bronze or (table.state and schema == GOVERNANCE):
                yield table


def _maintain_table(
    settings: Settings, table: LakeTable, upgrade: bool
) -> Workflow[MaintainedTable]:
    """The workflow of one table; an error is in the result."""
    began = time.monotonic()
    improved, expired, upgraded = OptimizeResult(), vacuum.VacuumResult(), None
    error = None
    try:
        stopping.check()
        state = table.state
        if state is None:
            raise table.error or LakeError(f"There is no table {table.target}.")
        schema, name = TableProperties.read(state.properties).source_table
        own = settings.table(table.source, schema, name) if name else TableSettings()
        wish = layout_wish(settings, own, (table.name, name))
        if table.schema == GOVERNANCE:
            history = settings.maintain.history
            expiry.expire_records(state.place, table.name, history, datetime.now(UTC))
        improved = yield from optimize_table(settings, state.place, wish, table.name)
        stopping.check()
        if upgrade:
            upgraded = commit.upgrade_protocol(state.place)
        expire = partial(vacuum.expire, state.place, settings.maintain.retention, (), time.time())
        if client.is_local(state.place):
            expired = expire()
        else:
            (expired,) = yield from executors.in_threads(table.name, expire)
    except BronzeError as caught:
        error = caught.failure()
    return MaintainedTable(
        target=table.target,
        version=improved.version,
        files_before=improved.files_before,
        files_after=improved.files_after,
        rewritten=improved.rewritten,
        expired_files=expired.files,
        expired_bytes=expired.bytes,
        expired_entries=expired.entries,
        seconds=time.monotonic() - began,
        error=error,
        upgraded=upgraded is not None,
    )


def layout_wish(settings: Settings, own: TableSettings, names: Sequence[str] = ()) -> TableLayout:
    """The layout that the config asks for: clustering columns, their kind, and file size.

    Args:
        settings: the config.
        own: the settings of the table.
        names: the names that queries call the table by.

    Raises:
        ConfigError: the query log cannot be read.
    """
    by = tuple(own.rename.get(name, name) for name in own.cluster_columns)
    auto = automatic.filters_of(settings, own, names) if own.cluster_by == "auto" else None
    return TableLayout(by, settings.maintain.file_size, liquid=own.liquid, auto=auto)


def optimize_table(
    settings: Settings, place: Place, wish: TableLayout, table: str, share: int = 1
) -> Workflow[OptimizeResult]:
    """The workflow of `bronze.delta.layout.optimize.optimize_table`, which uses one ``share``-th of
    the memory.
    """
    batch_id = str(uuid_utils.uuid7())
    steps = optimize.steps(
        place,
        wish,
        batch_id=batch_id,
        memory=budget.rewrite_memory(settings.run.memory, settings.run.workers) // share,
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
        done: OptimizeResult = end.value
        return done
    except BronzeError:
        # The files of tasks that had ended when another one failed or was stopped.
        with suppress(BronzeError):
            commit.discard(place, batch_id)
        raise
