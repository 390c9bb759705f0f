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
from bronze.config.settings import GOVERNANCE, Settings, TableSettings
from bronze.delta import log, properties, store
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.optimize import Improved, Wish
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.model.locations import Place
from bronze.model.results import MaintainedTable, MaintainResult
from bronze.tables import evolution

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
    chosen = in_lake(settings, tables, books=True)
    run = settings.run
    limit = budget.readers(run.memory, run.workers, run.workers)
    given = nullcontext(pool) if pool else executors.executor(settings.run.engine, limit)
    results = []
    with given as running:
        courses = [_maintained(settings, state) for _, state in chosen]
        for result in executors.drive(running, courses, limit):
            notify(result)
            results.append(result)
    return MaintainResult(time.monotonic() - began, tuple(results))


def books(settings: Settings) -> tuple[str, ...]:
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
                    wished(settings, TableSettings()),
                    batch_id=str(uuid_utils.uuid7()),
                    memory=budget.for_rewriting(settings.run.memory, settings.run.workers),
                    each=map,
                )
        except BronzeError as error:
            notes.append(f"the files of {GOVERNANCE}.{name} were not joined: {error.message}")
    return tuple(notes)


def in_lake(
    settings: Settings, tables: Sequence[str], books: bool = False
) -> list[tuple[str, State]]:
    """The Bronze tables of these names (theirs, or those of the source's tables); all if none.
    With ``books`` the tables in which is remembered what happened are among them.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    found = list(_found(settings, books))
    unknown = [name for name in tables if not any(name in _names(state) for _, state in found)]
    if unknown:
        raise ConfigError(
            f"There is no Bronze table {unknown[0]} in {settings.lake.root}.",
            hint=f"There are {', '.join(sorted(name for name, _ in found)) or 'none'}.",
        )
    return [pair for pair in found if not tables or set(_names(pair[1])) & set(tables)]


def _found(settings: Settings, books: bool) -> Iterator[tuple[str, State]]:
    """The Bronze tables in the lake, or the books too: what else lies there is left alone."""
    schemas = (settings.lake.schema_, GOVERNANCE) if books else (settings.lake.schema_,)
    for schema in dict.fromkeys(schemas):
        for name in store.folders(settings.place(schema, "")):
            state = log.read(settings.place(schema, name))
            if state is not None and (
                properties.TABLE in state.properties or (books and schema == GOVERNANCE)
            ):
                yield name, state


def _names(state: State) -> tuple[str, ...]:
    label = state.properties.get(properties.TABLE, "")
    return _name(state), label, evolution.table_of(state.properties)[1]


def _name(state: State) -> str:
    return state.place.url.rpartition("/")[2]


def _maintained(settings: Settings, state: State) -> Workflow[MaintainedTable]:
    began = time.monotonic()
    known, name = state.properties, _name(state)
    schema, table = evolution.table_of(known)
    own = (
        settings.table(known.get(properties.SOURCE, ""), schema, table)
        if table
        else TableSettings()
    )
    improved, expired = Improved(), vacuum.Expired()
    error = None
    try:
        wish = wished(settings, own)
        improved = yield from improvement(settings, state.place, wish, name)
        expired = vacuum.expire(state.place, settings.maintain.retention, (), time.time())
    except BronzeError as caught:
        error = caught.failure()
    return MaintainedTable(
        target=".".join(state.place.url.split("/")[-2:]),
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


def wished(settings: Settings, own: TableSettings) -> Wish:
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
