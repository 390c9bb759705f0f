"""Where units of work run: on any `concurrent.futures.Executor`.

A unit holds all that it needs, so threads, processes and a Dask cluster do the same. Only the
number of units in flight is decided here: it never exceeds what the source allows, and shrinks
when the source has no connection left.
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

# How long to wait for a connection slot before a unit is tried again, and how often.
_BUSY_DELAY = 1.0
_BUSY_TRIES = 60
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
        # A forked child would inherit the locks of our libraries' threads.
        context = multiprocessing.get_context("spawn")
        made = ProcessPoolExecutor(workers, context, _end_with_parent)
        with made as processes:
            yield processes
    else:
        with _dask(engine.removeprefix("dask://")) as cluster:
            yield cluster


def _end_with_parent() -> None:
    """Ends this process when the one that it works for is killed: otherwise it waits for ever."""
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
    """Something that any worker can do: a function of a module, and what it is given."""

    work: Callable[[Any], Any]
    given: Any
    table: str


Workflow = Generator[Sequence[Task], list[Any], T]
"""What becomes of one table: it yields the tasks that it needs done, is sent their results in
the tasks' order (or thrown the error of one of them), and at last returns what came of it."""


@dataclass
class _Stage(Generic[T]):
    """Where a course is: its tasks that are not done yet, and the results of the others."""

    course: Workflow[T]
    results: list[Any] = field(default_factory=list)
    begun: bool = False
    left: int = 0
    error: BronzeError | None = None


def drive(
    pool: Executor,
    courses: Sequence[Workflow[T]],
    limit: int,
    told: Callable[[int, Any], None] = lambda *_: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[T]:
    """Runs courses side by side, at most ``limit`` tasks at once; yields what each returns.

    The tasks of earlier courses come first. A task that finds no free connection is put back, and
    from then on one task less runs at once. Of a course in which a task has failed no further
    task is begun.

    Args:
        pool: where the tasks run.
        courses: in the order of their urgency.
        limit: how many tasks run at once.
        told: is told of each result, with its course's number, from this thread.
        meanwhile: is called at least twice a second as long as tasks run, from this thread.

    Raises:
        Exception: what a course raises ends the others too.
    """
    stages = [_Stage(course) for course in courses]
    waiting: list[tuple[int, int, Task]] = []
    flying: dict[Future[Parcel[Any]], tuple[int, int, Task]] = {}
    refused = 0
    try:
        for number in range(len(stages)):
            yield from _advanced(stages, number, waiting)
        while waiting or flying:
            while waiting and len(flying) < limit:
                entry = heapq.heappop(waiting)
                task = entry[2]
                flying[pool.submit(_done, task.work, Parcel(task.given))] = entry
            # Without a time limit an interrupt would be seen only when a task has ended.
            ended = wait(flying, _PATIENCE, FIRST_COMPLETED).done
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
                stage.left -= 1
                if isinstance(outcome, BronzeError):
                    stage.error = stage.error or outcome
                    stage.left -= _withdrawn(waiting, number)
                else:
                    stage.results[place] = outcome
                    told(number, outcome)
                if not stage.left:
                    yield from _advanced(stages, number, waiting)
    finally:
        for future in flying:
            future.cancel()
        for stage in stages:
            stage.course.close()


def _advanced(
    stages: Sequence[_Stage[T]], number: int, waiting: list[tuple[int, int, Task]]
) -> Iterator[T]:
    """Takes a course to its next tasks, or yields what it returns."""
    stage = stages[number]
    try:
        tasks: Sequence[Task] = ()
        while not tasks:
            if stage.error:
                error, stage.error = stage.error, None
                tasks = stage.course.throw(error)
            elif stage.begun:
                tasks = stage.course.send(stage.results)
            else:
                stage.begun, tasks = True, next(stage.course)
            stage.results = [None] * len(tasks)
    except StopIteration as end:
        yield end.value
        return
    stage.left = len(tasks)
    for place, task in enumerate(tasks):
        heapq.heappush(waiting, (number, place, task))


def _withdrawn(waiting: list[tuple[int, int, Task]], number: int) -> int:
    kept = [entry for entry in waiting if entry[0] != number]
    count = len(waiting) - len(kept)
    waiting[:] = kept
    heapq.heapify(waiting)
    return count


def _done(work: Callable[[Any], T], given: Parcel[Any]) -> Parcel[T]:
    """Does a task where it has arrived."""
    return Parcel(work(given.content))


def _outcome(future: Future[Parcel[Any]], task: Task) -> Any:
    try:
        return future.result().content
    except BronzeError as error:
        return error
    except Exception as error:  # a fault of ours in one table must not stop the others
        # Where it was is told, not what was said: the messages of libraries quote cells.
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.debug("a task of table %s failed: %s\n%s", task.table, type(error).__name__, where)
        return BronzeError(
            f"Table {task.table} could not be taken: {type(error).__name__} inside bronze.",
            hint="This is a bug in it: run again with BRONZE_DEBUG=1 and report what it prints.",
            table=task.table,
        )
