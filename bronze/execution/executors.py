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
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from bronze import stopping
from bronze.errors import BronzeError, EngineLost, LakeUnreachable, SourceBusy
from bronze.execution import cluster, permits
from bronze.execution.parcel import Parcel
from bronze.execution.permits import Claim, Permits

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds to wait for a free connection if no task runs, and how many tasks may be put back in all.
_BUSY_DELAY = 1.0
_BUSY_TRIES = 60
# Seconds to wait for a task to end, between two calls of ``meanwhile``.
_PATIENCE = 0.5
# How often a task is performed in all, if a key of the lake is rotated each time.
_KEYS = 3
# How many tasks with ``here`` run at once.
_HERE = 8


@contextmanager
def executor(engine: str, workers: int, memory: int = 10**9) -> Iterator[Executor]:
    """The executor of a config's ``engine``: "threads", "processes" or "dask://host:port".

    Args:
        engine: the engine.
        workers: how many tasks run at once.
        memory: what each process of a cluster may take, in bytes.

    Raises:
        ConfigError: Dask is not installed, or the cluster cannot be used: see
            `bronze.execution.cluster`.
    """
    if engine == "threads":
        with ThreadPoolExecutor(workers, thread_name_prefix="bronze") as pool:
            yield pool
    elif engine == "processes":
        # Importing polars, pyarrow and numpy starts threads. A forked child, also one of a fork
        # server that has imported them, would have their locks without the threads.
        context = multiprocessing.get_context("spawn")
        # Without a lock, as a worker may be killed at any time.
        flag = context.Value("b", 0, lock=False)
        asked = StopFlag(flag)
        stopping.on_stop(asked, StopFlag.set)
        with ProcessPoolExecutor(workers, context, _begin, (flag,)) as processes:
            yield processes
    else:
        with cluster.connected(engine.removeprefix("dask://"), memory) as workers_of_cluster:
            yield workers_of_cluster


@dataclass(eq=False)
class StopFlag:
    """A flag that asks worker processes to stop: ``shared``, a byte of shared memory."""

    shared: Any

    def set(self, _seconds: float = 0.0) -> None:
        """Asks them to stop."""
        self.shared.value = 1

    def is_set(self) -> bool:
        """Whether they are asked to stop."""
        return bool(self.shared.value)


def _begin(stop: Any) -> None:
    """Begins a worker process, which ends when its parent is killed; it would wait forever
    otherwise.
    """
    stopping.stop_process_with(StopFlag(stop))
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="bronze parent", daemon=True).start()


@dataclass(frozen=True)
class Task:
    """A task for any worker: a function of a module, its argument, and the table it belongs to.

    With ``here`` it runs in a thread of this process at once, whatever the limit: it waits for the
    lake, and neither reads the source nor takes memory. ``absorb`` is called with its result, in
    the driver's thread; what it returns is the result that is kept.
    """

    work: Callable[[Any], Any]
    given: Any
    table: str
    here: bool = False
    absorb: Callable[[Any], Any] | None = None


Workflow = Generator[Sequence[Task], list[Any], T]
"""The work on one table: a generator that yields tasks, gets their results in the order of the
tasks (or the error of one of them), and returns the result of the table."""


def in_threads(table: str, *works: Callable[[], Any]) -> Workflow[list[Any]]:
    """What functions return that wait for the lake, each in a thread; see `Task`."""
    results = yield [Task(_call, work, table, here=True) for work in works]
    return results


def _call(work: Callable[[], T]) -> T:
    return work()


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
    priorities: Sequence[int] = (),
) -> Iterator[T]:
    """Runs workflows side by side, at most ``limit`` tasks at once; yields the result of each.

    The tasks of earlier workflows come first, and a workflow begins when there is room for its
    tasks. Drivers that share permits (`bronze.execution.permits`) run no more tasks together than
    these allow, the urgent ones first. A task that finds no free connection is put back, and
    afterwards fewer tasks run at once. After a task has failed, no further task of its workflow is
    started.

    When the work is asked to stop (`bronze.stopping`), no further task is started. What runs is
    waited for, and each workflow gets the error `Stopped` in place of results.

    Args:
        pool: the executor of the tasks.
        workflows: in the order of their priority.
        limit: how many tasks run at once.
        notify: is called with the number of a workflow and each result of its tasks, in this
            thread.
        meanwhile: is called at least twice a second while tasks run, in this thread.
        priorities: of the workflows, 1 being the most urgent; all are 1 without them.

    Raises:
        Exception: what a workflow raises, which ends the others too.
    """
    stages = [_Stage(workflow) for workflow in workflows]
    shared = permits.current(limit)
    driver = _Driver(pool, stages, limit, notify, priorities or [1] * len(stages), shared)
    stopping.on_stop(driver, _Driver.wake)
    with shared.claim(driver.wake) as claim:
        yield from driver.run(claim, meanwhile)


_Entry = tuple[int, int, Task]
"""The number of a workflow, the place of a task among its tasks, and the task."""


@dataclass(eq=False)
class _Driver(Generic[T]):
    """The state of `drive`; its arguments are there. ``begun`` workflows have begun."""

    pool: Executor
    stages: Sequence[_Stage[T]]
    limit: int
    notify: Callable[[int, Any], None]
    priorities: Sequence[int]
    permits: Permits
    waiting: list[_Entry] = field(default_factory=list)
    flying: dict[Future[Parcel[Any]], _Entry] = field(default_factory=dict)
    here: dict[Future[Parcel[Any]], _Entry] = field(default_factory=dict)
    ended: SimpleQueue[Future[Parcel[Any]]] = field(default_factory=SimpleQueue)
    begun: int = 0
    refused: int = 0
    _woken: threading.Event = field(default_factory=threading.Event)
    _threads: ThreadPoolExecutor | None = None

    def wake(self, _seconds: float = 0.0) -> None:
        """Has the driver look at once; from any thread."""
        self._woken.set()

    def run(self, claim: Claim, meanwhile: Callable[[], None]) -> Iterator[T]:
        """Runs the workflows, and yields their results."""
        try:
            while self.waiting or self.flying or self.here or self.begun < len(self.stages):
                if stopping.is_requested():
                    yield from self._stop()
                is_blocked = yield from self._submit(claim)
                if self.flying or self.here or is_blocked:
                    # Without a time limit an interrupt would be seen only when a task has ended.
                    self._woken.wait(_PATIENCE)
                self._woken.clear()
                meanwhile()
                # Others are served while results are worked on, which may be a long commit.
                self.permits.withdraw(claim)
                while not self.ended.empty():
                    future = self.ended.get()
                    if future in self.here:
                        entry = self.here.pop(future)
                    else:
                        entry = self.flying.pop(future)
                        self.permits.give_back(claim)
                    yield from self._end(entry, _outcome(future, entry[2]))
        finally:
            for future in self.flying:
                future.cancel()
            # One may be a commit, whose files must not be deleted before it is known whether it is.
            while not all(future.done() for future in self.here):
                with suppress(KeyboardInterrupt):
                    wait(self.here)
            if self._threads is not None:
                self._threads.shutdown()
            for stage in self.stages:
                stage.workflow.close()

    def _submit(self, claim: Claim) -> Generator[T, None, bool]:
        """Starts tasks; returns whether there is one that has to wait for a permit."""
        while len(self.flying) < self.limit and (self.waiting or self.begun < len(self.stages)):
            following = self.waiting[0][0] if self.waiting else self.begun
            ready = min(self.limit - len(self.flying), len(self.waiting) or 1)
            if not self.permits.take(claim, self.priorities[following], ready):
                return True
            while not self.waiting and self.begun < len(self.stages):
                self.begun += 1
                yield from self._advance(self.begun - 1)
            if not self.waiting:
                self.permits.give_back(claim)
                break
            entry = heapq.heappop(self.waiting)
            task = entry[2]
            future = self._send(task)
            self.flying[future] = entry
            future.add_done_callback(self._note_end)
        return False

    def _send(self, task: Task) -> Future[Parcel[Any]]:
        try:
            return self.pool.submit(_perform, task.work, Parcel(task.given), stopping.name())
        except BrokenExecutor as error:
            future: Future[Parcel[Any]] = Future()
            future.set_exception(error)
            return future

    def _note_end(self, future: Future[Parcel[Any]]) -> None:
        self.ended.put(future)
        self.wake()

    def _end(self, entry: _Entry, outcome: Any) -> Iterator[T]:
        """Records the result of a task, or its error, and resumes its workflow after the last."""
        number, place, task = entry
        if isinstance(outcome, BronzeError) and stopping.is_requested():
            outcome = stopping.error(task.table)
        elif isinstance(outcome, SourceBusy) and self.refused < _BUSY_TRIES:
            self.refused += 1
            self.limit = max(1, min(self.limit, len(self.flying)))
            heapq.heappush(self.waiting, entry)
            if not self.flying:
                self._woken.wait(_BUSY_DELAY)
            return
        stage = self.stages[number]
        stage.unfinished -= 1
        if isinstance(outcome, BronzeError):
            stage.error = stage.error or outcome
            stage.unfinished -= _withdraw(self.waiting, number)
        else:
            if task.absorb:
                outcome = task.absorb(outcome)
            stage.results[place] = outcome
            self.notify(number, outcome)
        if not stage.unfinished:
            yield from self._advance(number)

    def _stop(self) -> Iterator[T]:
        """Gives the error to all workflows of which no task runs."""
        for number, _, task in list(self.waiting):
            stage = self.stages[number]
            stage.error = stage.error or stopping.error(task.table)
            withdrawn = _withdraw(self.waiting, number)
            stage.unfinished -= withdrawn
            if withdrawn and not stage.unfinished:
                yield from self._advance(number)
        while self.begun < len(self.stages):
            self.begun += 1
            yield from self._advance(self.begun - 1)

    def _advance(self, number: int) -> Iterator[T]:
        """Resumes a workflow until its next tasks, or yields its result."""
        stage = self.stages[number]
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
                if tasks and stopping.is_requested():
                    stage.error, tasks = stopping.error(tasks[0].table), ()
        except StopIteration as end:
            yield end.value
            return
        stage.unfinished = len(tasks)
        for place, task in enumerate(tasks):
            if task.here:
                self._perform_here((number, place, task))
            else:
                heapq.heappush(self.waiting, (number, place, task))

    def _perform_here(self, entry: _Entry) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_HERE, thread_name_prefix="bronze here")
        task = entry[2]
        future = self._threads.submit(_perform, task.work, Parcel(task.given), stopping.name())
        self.here[future] = entry
        future.add_done_callback(self._note_end)


def _withdraw(waiting: list[_Entry], number: int) -> int:
    """Removes the waiting tasks of a workflow; returns how many."""
    kept = [entry for entry in waiting if entry[0] != number]
    count = len(waiting) - len(kept)
    waiting[:] = kept
    heapq.heapify(waiting)
    return count


def _perform(work: Callable[[Any], T], given: Parcel[Any], scope: str) -> Parcel[T]:
    """Performs a task, on the worker; ``scope`` is the name of the scope that stops it. It is
    performed again if a key of the lake was rotated while it wrote a file.
    """
    with stopping.within(scope):
        for _ in range(_KEYS - 1):
            try:
                return Parcel(work(given.content))
            except LakeUnreachable as error:
                if not error.is_key_renewed:
                    raise
        return Parcel(work(given.content))


def _outcome(future: Future[Parcel[Any]], task: Task) -> Any:
    """The result of a task, or its error."""
    try:
        return future.result().content
    except BronzeError as error:
        return error
    except BrokenExecutor:
        return EngineLost(
            f"A worker process was killed while table {task.table} was worked on.",
            hint="Most often the machine had too little memory: lower [run] workers, or use the"
            " engine threads. What had landed before stays, nothing half-written is visible; run"
            " again.",
            table=task.table,
        )
    except Exception as error:  # a bug that concerns one table does not stop the others
        # Only the place is logged, not the message: those of libraries quote values.
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.debug("a task of table %s failed: %s\n%s", task.table, type(error).__name__, where)
        return BronzeError(
            f"Table {task.table} could not be processed: {type(error).__name__} inside bronze.",
            hint="This is a bug in bronze: run again with BRONZE_DEBUG=1 and report the output.",
            table=task.table,
        )
