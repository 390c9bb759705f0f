"""Executors of tasks (threads, processes, Dask), and the driver that runs workflows on them.

A task has everything it needs, so that all executors give the same results. The driver decides
only how many tasks run at once: never more than the source allows, and fewer when the source has no
connection left.
"""

from __future__ import annotations

import heapq
import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from bronze.errors import BronzeError, ConfigError, SourceBusy
from bronze.execution.parcel import Parcel
from bronze.library_errors import error_text

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds to wait for a free connection if no task runs, and how many tasks may be put back in all.
_BUSY_DELAY = 1.0
_BUSY_TRIES = 60
# Seconds to wait for a task to end, between two calls of ``meanwhile``.
_PATIENCE = 0.5


@contextmanager
def executor(engine: str, workers: int) -> Iterator[Executor]:
    """The executor of a config's ``engine``: "threads", "processes" or "dask://host:port".

    Raises:
        ConfigError: Dask is not installed, or its scheduler does not answer.
    """
    if engine == "threads":
        with ThreadPoolExecutor(workers, thread_name_prefix="bronze") as pool:
            yield pool
    elif engine == "processes":
        # Importing polars, pyarrow and numpy starts threads. A forked child, also one of a fork
        # server that has imported them, would have their locks without the threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _end_with_parent) as processes:
            yield processes
    else:
        with _dask(engine.removeprefix("dask://")) as cluster:
            yield cluster


def _end_with_parent() -> None:
    """Ends this worker process when its parent is killed; it would wait forever otherwise."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="bronze parent", daemon=True).start()


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "The engine dask:// needs the package distributed.",
            hint="pip install 'bronze[dask]', here and on the workers.",
        ) from None
    try:
        client: Any = Client(f"tcp://{address}", timeout="10s", set_as_default=False)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigError(
            f"The Dask scheduler at {address} does not answer: {error_text(error)}.",
            hint="Check [run] engine.",
        ) from None
    with client, client.get_executor() as cluster:
        yield cluster


@dataclass(frozen=True)
class Task:
    """A task for any worker: a function of a module, its argument, and the table it belongs to."""

    work: Callable[[Any], Any]
    given: Any
    table: str


Workflow = Generator[Sequence[Task], list[Any], T]
"""The work on one table: a generator that yields tasks, gets their results in the order of the
tasks (or the error of one of them), and returns the result of the table."""


@dataclass
class _Stage(Generic[T]):
    """The state of a workflow: the results of its current tasks, and how many are unfinished."""

    workflow: Workflow[T]
    results: list[Any] = field(default_factory=list)
    is_started: bool = False
    unfinished: int = 0
    error: BronzeError | None = None


def drive(
    pool: Executor,
    workflows: Sequence[Workflow[T]],
    limit: int,
    notify: Callable[[int, Any], None] = lambda *_: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[T]:
    """Runs workflows side by side, at most ``limit`` tasks at once; yields the result of each.

    The tasks of earlier workflows come first, and a workflow begins when there is room for its
    tasks. A task that finds no free connection is put back, and afterwards fewer tasks run at once.
    After a task has failed, no further task of its workflow is started.

    Args:
        pool: the executor of the tasks.
        workflows: in the order of their priority.
        limit: how many tasks run at once.
        notify: is called with the number of a workflow and each result of its tasks, in this
            thread.
        meanwhile: is called at least twice a second while tasks run, in this thread.

    Raises:
        Exception: what a workflow raises, which ends the others too.
    """
    stages = [_Stage(workflow) for workflow in workflows]
    waiting: list[tuple[int, int, Task]] = []
    flying: dict[Future[Parcel[Any]], tuple[int, int, Task]] = {}
    refused = begun = 0
    try:
        while waiting or flying or begun < len(stages):
            while begun < len(stages) and len(waiting) + len(flying) < limit:
                begun += 1
                yield from _advance(stages, begun - 1, waiting)
            while waiting and len(flying) < limit:
                entry = heapq.heappop(waiting)
                task = entry[2]
                flying[pool.submit(_perform, task.work, Parcel(task.given))] = entry
            # Without a time limit an interrupt would be seen only when a task has ended.
            ended = wait(flying, _PATIENCE, FIRST_COMPLETED).done if flying else ()
            meanwhile()
            for future in ended:
                number, place, task = entry = flying.pop(future)
                outcome = _outcome(future, task)
                if isinstance(outcome, SourceBusy) and refused < _BUSY_TRIES:
                    refused += 1
                    limit = max(1, min(limit, len(flying)))
                    heapq.heappush(waiting, entry)
                    if not flying:
                        time.sleep(_BUSY_DELAY)
                    continue
                stage = stages[number]
                stage.unfinished -= 1
                if isinstance(outcome, BronzeError):
                    stage.error = stage.error or outcome
                    stage.unfinished -= _withdraw(waiting, number)
                else:
                    stage.results[place] = outcome
                    notify(number, outcome)
                if not stage.unfinished:
                    yield from _advance(stages, number, waiting)
    finally:
        for future in flying:
            future.cancel()
        for stage in stages:
            stage.workflow.close()


def _advance(
    stages: Sequence[_Stage[T]], number: int, waiting: list[tuple[int, int, Task]]
) -> Iterator[T]:
    """Resumes a workflow until its next tasks, or yields its result."""
    stage = stages[number]
    try:
        tasks: Sequence[Task] = ()
        while not tasks:
            if stage.error:
                error, stage.error = stage.error, None
                tasks = stage.workflow.throw(error)
            elif stage.is_started:
                tasks = stage.workflow.send(stage.results)
            else:
                stage.is_started, tasks = True, next(stage.workflow)
            stage.results = [None] * len(tasks)
    except StopIteration as end:
        yield end.value
        return
    stage.unfinished = len(tasks)
    for place, task in enumerate(tasks):
        heapq.heappush(waiting, (number, place, task))


def _withdraw(waiting: list[tuple[int, int, Task]], number: int) -> int:
    """Removes the waiting tasks of a workflow; returns how many."""
    kept = [entry for entry in waiting if entry[0] != number]
    count = len(waiting) - len(kept)
    waiting[:] = kept
    heapq.heapify(waiting)
    return count


def _perform(work: Callable[[Any], T], given: Parcel[Any]) -> Parcel[T]:
    """Performs a task, on the worker."""
    return Parcel(work(given.content))


def _outcome(future: Future[Parcel[Any]], task: Task) -> Any:
    """The result of a task, or its error."""
    try:
        return future.result().content
    except BronzeError as error:
        return error
    except Exception as error:  # a bug that concerns one table does not stop the others
        # Only the place is logged, not the message: those of libraries quote values.
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.debug("a task of table %s failed: %s\n%s", task.table, type(error).__name__, where)
        return BronzeError(
            f"Table {task.table} could not be processed: {type(error).__name__} inside bronze.",
            hint="This is a bug in bronze: run again with BRONZE_DEBUG=1 and report the output.",
            table=task.table,
        )
