"""Engines: a unit of work does the same wherever it runs, and the source sets the pace."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from bronze import stopping
from bronze.errors import (
    BronzeError,
    ConfigError,
    EngineLost,
    LakeError,
    LakeUnreachable,
    SourceBusy,
    Stopped,
    TableRefused,
)
from bronze.execution import executors
from bronze.execution.executors import Task, Workflow, drive, executor
from bronze.ingest.worker import read_unit
from bronze.model.units import Unit

TABLE = "public.t"


class Gauge:
    """Work that notes how much of it runs at once, and finds no connection above a limit.

    The first ``together`` calls wait for each other, so that they are certain to overlap.
    """

    def __init__(self, together: int = 1, slots: int = 99, fails: Sequence[int] = ()) -> None:
        self.slots = slots
        self.fails = fails
        self.running = self.most = self.refused = 0
        self.begun: list[int] = []
        self._lock = threading.Lock()
        self._together = together
        self._gate = threading.Barrier(together)

    def __call__(self, number: int) -> int:
        """Does one task."""
        with self._lock:
            first = len(self.begun) < self._together
            granted = self.running < self.slots
            self.begun.append(number)
            self.refused += not granted
            self.running += granted
            self.most = max(self.most, self.running)
        if first:
            self._gate.wait(30)
        if not granted:
            raise SourceBusy("full")
        time.sleep(0.002)
        with self._lock:
            self.running -= 1
        if number in self.fails:
            raise TableRefused(f"task {number}")
        return number


def tasks(work: Callable[[int], Any], numbers: Iterable[int]) -> list[Task]:
    """A task for each number."""
    return [Task(work, number, TABLE) for number in numbers]


def workflow(work: Callable[[int], Any], *stages: Iterable[int]) -> Workflow[list[list[Any]]]:
    """A workflow of some stages, which returns all that it was sent."""
    sent: list[list[Any]] = []
    for numbers in stages:
        sent += [(yield tasks(work, numbers))]
    return sent


def catching(work: Callable[[int], Any], numbers: Iterable[int]) -> Workflow[Any]:
    """A workflow of one stage, which returns its results, or the error that it was thrown."""
    try:
        return (yield tasks(work, numbers))
    except BronzeError as error:
        return error


def driven(workflows: Sequence[Workflow[Any]], limit: int, threads: int = 8) -> list[Any]:
    """What the workflows return, as they end."""
    with ThreadPoolExecutor(threads) as pool:
        return list(drive(pool, workflows, limit))


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_no_more_tasks_run_at_once_than_allowed(limit: int) -> None:
    """Each task runs once, and never more of them together than the limit, over all workflows."""
    gauge = Gauge(together=limit)
    workflows = [workflow(gauge, range(9)), workflow(gauge, range(9, 15), range(15, 20))]
    found = driven(workflows, limit)
    assert sorted(found) == [[list(range(9))], [list(range(9, 15)), list(range(15, 20))]]
    assert sorted(gauge.begun) == list(range(20))
    assert gauge.most == limit


def test_no_courses_are_no_work() -> None:
    """Nothing to do ends at once."""
    assert driven([], 3) == []


def test_workflows_without_tasks_end_at_once() -> None:
    """A workflow that returns without a task, or asks for none, still ends."""

    def nothing() -> Workflow[str]:
        return "nothing"
        yield []

    gauge = Gauge()
    empty = workflow(gauge, [], [], [])
    between = workflow(gauge, [], [1], [], [2])
    assert driven([nothing(), empty, between, nothing()], 2) == [
        "nothing",
        [[], [], []],
        "nothing",
        [[], [1], [], [2]],
    ]
    assert gauge.begun == [1, 2]


def test_results_are_in_the_order_of_the_tasks() -> None:
    """A workflow gets its results in the order of its tasks, however they end."""
    gates = [threading.Event() for _ in range(5)]

    def backwards(number: int) -> int:
        assert number == 4 or gates[number + 1].wait(30)
        gates[number].set()
        return number

    reported: list[tuple[int, Any]] = []
    with ThreadPoolExecutor(5) as pool:
        workflows = [workflow(backwards, []), workflow(backwards, range(5))]
        found = list(drive(pool, workflows, 5, lambda *one: reported.append(one)))
    assert found == [[[]], [[0, 1, 2, 3, 4]]]
    assert sorted(reported) == [(1, number) for number in range(5)]


def test_results_are_reported_in_the_calling_thread() -> None:
    """Results are reported in one thread, so that no lock is needed; an error is not a result."""
    threads = set()
    reported = []

    def hear(number: int, result: Any) -> None:
        threads.add(threading.get_ident())
        reported.append((number, result))

    gauge = Gauge(fails=[1])
    workflows = [catching(gauge, [0, 1]), workflow(gauge, [2], [3])]
    with ThreadPoolExecutor(2) as pool:
        list(drive(pool, workflows, 2, hear))
    assert threads == {threading.get_ident()}
    assert sorted(reported) == [(0, 0), (1, 2), (1, 3)]


def test_a_workflow_resumes_when_all_its_tasks_have_ended() -> None:
    """The workflow gets the results of all tasks, and may decide on the next tasks."""
    running: list[int] = []

    def halves(number: int) -> Workflow[list[int]]:
        found = []
        while number:
            parts = yield tasks(noted, [number, number])
            assert running == []
            found += parts
            number //= 2
        return found

    def noted(number: int) -> int:
        running.append(number)
        time.sleep(0.001)
        running.remove(number)
        return number

    assert driven([halves(9)], 8) == [[9, 9, 4, 4, 2, 2, 1, 1]]


def test_tasks_of_earlier_workflows_come_first() -> None:
    """Later tasks of a workflow run before tasks of later workflows."""
    gauge = Gauge()
    workflows = [
        workflow(gauge, [0, 1], [2]),
        workflow(gauge, [10, 11], [12]),
        workflow(gauge, [20]),
    ]
    assert driven(workflows, 1) == [[[0, 1], [2]], [[10, 11], [12]], [[20]]]
    assert gauge.begun == [0, 1, 2, 10, 11, 12, 20]


def test_a_workflow_begins_when_there_is_room_for_its_tasks() -> None:
    """Until then it does nothing, so that its time is its own; one without tasks ends at once."""
    gauge = Gauge()
    before: list[int] = []

    def noting(*numbers: int) -> Workflow[Any]:
        before.append(len(gauge.begun))
        return (yield tasks(gauge, numbers)) if numbers else None

    workflows = [noting(0, 1, 2), noting(), noting(3), noting(4)]
    assert driven(workflows, 1) == [[0, 1, 2], None, [3], [4]]
    assert before == [0, 3, 3, 4]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_full_source_slows_the_run_down(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that found no connection run again, with fewer at once, and all of them end well."""
    monkeypatch.setattr(executors, "_BUSY_DELAY", 0.001)
    gauge = Gauge(together=8, slots=slots)
    assert driven([workflow(gauge, range(20))], 8) == [[list(range(20))]]
    assert gauge.most == slots
    assert 8 - slots <= gauge.refused < 30


def test_a_source_without_free_connections_is_an_error_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After many tries a full source is an error of the workflows, not an endless loop."""
    monkeypatch.setattr(executors, "_BUSY_DELAY", 0)
    monkeypatch.setattr(executors, "_BUSY_TRIES", 5)
    gauge = Gauge(slots=0)
    found = driven([catching(gauge, [0]), catching(gauge, [1])], 2)
    assert [type(one) for one in found] == [SourceBusy, SourceBusy]
    assert gauge.refused == 7


def test_an_error_in_one_workflow_does_not_stop_the_others() -> None:
    """A failed task ends its own workflow only."""
    gauge = Gauge(fails=[1, 21])
    found = driven([catching(gauge, range(10 * i, 10 * i + 3)) for i in range(4)], 2)
    kinds = {str(one) if isinstance(one, TableRefused) else tuple(one) for one in found}
    assert kinds == {"task 1", (10, 11, 12), "task 21", (30, 31, 32)}


def test_after_a_failure_no_further_task_of_a_workflow_starts() -> None:
    """What is waiting of it is dropped; what is running is waited for before it hears of the error.

    Of several errors it is thrown the first.
    """
    begun = []
    fails, ends = threading.Event(), threading.Event()

    def one(number: int) -> int:
        begun.append(number)
        if number == 0:
            fails.wait(30)
            raise TableRefused("first")
        if number == 1:
            fails.set()
            ends.wait(30)
            raise TableRefused("second")
        ends.set()
        return number

    # Once the first has failed, the other workflow's task gets its place, and lets the second end.
    found = driven([catching(one, range(9)), catching(one, [100])], 2)
    assert begun in ([0, 1, 100], [1, 0, 100])
    assert [str(outcome) for outcome in found] in (["first", "[100]"], ["[100]", "first"])


def test_a_workflow_may_catch_an_error_and_continue() -> None:
    """After an error a workflow may ask for more, and its results are those of the new tasks."""
    gauge = Gauge(fails=[0, 3])

    def stubborn() -> Workflow[list[Any]]:
        seen: list[Any] = []
        for stage in ([0, 1], [2], [3], []):
            try:
                seen.append((yield tasks(gauge, stage)))
            except TableRefused as error:
                seen.append(str(error))
        return seen

    assert driven([stubborn()], 1) == [["task 0", [2], "task 3", []]]
    assert gauge.begun == [0, 2, 3]


def test_a_bug_is_the_error_of_its_workflow_alone() -> None:
    """An exception other than a BronzeError is a bug in bronze; the other workflows continue."""

    def broken(number: int) -> int:
        return 1 // number

    failed, fine = driven([catching(broken, [0]), workflow(broken, [1])], 1)
    assert isinstance(failed, BronzeError)
    assert "ZeroDivisionError inside bronze" in failed.message
    assert TABLE in failed.message
    assert failed.table == TABLE
    assert fine == [[1]]


@pytest.mark.parametrize(("limit", "begun"), [(1, 0), (4, 2)])
def test_an_error_of_a_workflow_itself_ends_all(limit: int, begun: int) -> None:
    """Those that have begun are closed, nothing further begins, and the error reaches the caller as
    it is.
    """
    gauge = Gauge()
    closed = []

    def waiting() -> Workflow[None]:
        try:
            yield tasks(gauge, [10, 11])
        finally:
            closed.append("waiting")

    def bursting() -> Workflow[None]:
        try:
            yield tasks(gauge, [0])
            raise KeyError("mine")
        finally:
            closed.append("bursting")

    workflows = [bursting(), waiting(), waiting()]
    with pytest.raises(KeyError, match="mine"):
        driven(workflows, limit)
    assert sorted(closed) == ["bursting", *["waiting"] * begun]
    assert gauge.begun == [0] or begun


def test_an_error_that_a_workflow_raises_ends_all() -> None:
    """A task's error that its workflow does not catch is raised to the caller."""
    with pytest.raises(TableRefused, match="task 0"):
        driven([workflow(Gauge(fails=[0]), [0])], 1)


def test_a_caller_that_stops_closes_the_workflows() -> None:
    """Whoever stops listening leaves no generator behind, nor a task that has not begun."""
    gauge = Gauge()
    closed = []

    def waiting() -> Workflow[None]:
        try:
            yield tasks(gauge, range(10, 99))
        finally:
            closed.append(True)

    workflows: list[Workflow[Any]] = [workflow(gauge, [0]), waiting()]
    with ThreadPoolExecutor(1) as pool:
        # More is asked for than the pool can run: what it has not begun is called back.
        running: Any = drive(pool, workflows, 50)
        assert next(running) == [[0]]
        running.close()
    assert closed == [True]
    assert len(gauge.begun) < 30


def test_tasks_that_wait_for_the_lake_do_not_hold_up_others() -> None:
    """With one permit, a task in a thread of its own waits for a task that begins after it; its
    result and its error go to its workflow.
    """
    reached = threading.Event()

    def waiting() -> Workflow[Any]:
        number, *_ = yield from executors.in_threads(TABLE, lambda: reached.wait(30), int)
        try:
            yield from executors.in_threads(TABLE, failing)
        except LakeError as error:
            return number, str(error)

    def failing() -> None:
        raise LakeError("no")

    def reading() -> Workflow[Any]:
        yield [Task(lambda _: reached.set(), None, TABLE)]
        return "read"

    with ThreadPoolExecutor(1) as pool:
        results = list(drive(pool, [waiting(), reading()], 1))
    assert sorted(map(str, results)) == ["(True, 'no')", "read"]


def test_a_workflow_that_is_closed_has_no_task_in_a_thread() -> None:
    """What it had begun in the lake has ended by then, though another workflow failed."""
    seen: list[str] = []
    begun = threading.Event()

    def commit() -> None:
        begun.set()
        time.sleep(0.2)
        seen.append("committed")

    def committing() -> Workflow[None]:
        try:
            yield from executors.in_threads(TABLE, commit)
        finally:
            seen.append("closed")

    def failing() -> Workflow[None]:
        yield [Task(lambda _: begun.wait(30), None, TABLE)]
        raise RuntimeError

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError):
        list(drive(pool, [committing(), failing()], 1))
    assert seen == ["committed", "closed"]


@pytest.mark.parametrize(
    ("refusals", "renewed", "calls"), [(2, True, 3), (3, True, 3), (1, False, 1)]
)
def test_a_task_whose_upload_met_a_rotated_key_is_performed_again(
    refusals: int, renewed: bool, calls: int
) -> None:
    """Three times in all; where there is no new key its error is final."""
    made: list[int] = []

    def work(_: object) -> str:
        made.append(1)
        if len(made) <= refusals:
            error = LakeUnreachable("refused")
            error.is_key_renewed = renewed
            raise error
        return "written"

    def writing() -> Workflow[Any]:
        try:
            return (yield [Task(work, None, TABLE)])
        except LakeUnreachable as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        (result,) = drive(pool, [writing()], 1)
    assert result == (["written"] if refusals < calls else "refused")
    assert len(made) == calls


def test_after_a_stop_no_further_task_begins() -> None:
    """What runs ends, and each workflow gets an error: also those that have not begun, and those
    that would go on after an error.
    """
    stop, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        stop.set()
        return number

    def stubborn() -> Workflow[list[Any]]:
        seen: list[Any] = []
        for number in (10, 11):
            try:
                seen.append((yield tasks(work, [number])))
            except Stopped:
                seen.append("stopped")
        return seen

    workflows = [catching(work, [0, 1, 2]), stubborn(), catching(work, [20])]
    with stopping.scope(stop):
        first, second, third = driven(workflows, 1)
    assert begun == [0]
    assert isinstance(first, Stopped)
    assert second == ["stopped", "stopped"]
    assert isinstance(third, Stopped)


def test_a_long_task_ends_when_it_is_stopped() -> None:
    """In a thread of a pool it finds the event of the command that it works for."""
    stop = threading.Event()

    def work(_: int) -> None:
        threading.Timer(0.1, stop.set).start()
        stopping.sleep(60)

    began = time.monotonic()
    with stopping.scope(stop):
        (outcome,) = driven([catching(work, [0])], 1)
    assert isinstance(outcome, Stopped)
    assert time.monotonic() - began < 30


class Caught(Executor):
    """Runs units here and now, and keeps them."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a unit."""
        self.units.append(args[1].content)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(fn, *args, **kwargs)


def test_every_engine_runs_tasks() -> None:
    """Engines get a plain function of a module, which any process can import."""
    assert pickle.loads(pickle.dumps(read_unit)) is read_unit  # noqa: S301 - our own bytes


def test_a_missing_scheduler_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cluster that does not answer is said to be so."""
    import distributed

    def impatient(address: str, **options: Any) -> Any:
        return client(address, **{**options, "timeout": "200ms"})

    client: Any = distributed.Client
    monkeypatch.setattr(distributed, "Client", impatient)
    with (
        pytest.raises(ConfigError, match="does not answer") as caught,
        executor("dask://127.0.0.1:1", 1),
    ):
        pass
    assert "engine" in caught.value.hint


def test_a_pool_that_is_broken_is_an_error_of_each_table() -> None:
    """Tasks that ran when a worker process was killed, and those that cannot be sent afterwards,
    are lost with a sentence.
    """

    class Broken(Executor):
        sent = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.sent += 1
            if self.sent > 1:
                raise BrokenProcessPool
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool())
            return future

    found = list(drive(Broken(), [catching(abs, [1, 2]), catching(abs, [3])], 1))
    assert [type(error) for error in found] == [EngineLost, EngineLost]
    assert f"killed while table {TABLE} was worked on" in str(found[0])


def test_the_driver_keeps_what_a_task_makes_of_its_result() -> None:
    """What is large in a result is merged at once, before the other results come."""
    seen: list[int] = []

    def absorb(result: int) -> int:
        seen.append(result)
        return -result

    def workflow() -> executors.Workflow[list[int]]:
        return (yield [Task(abs, number, "t", absorb=absorb) for number in (1, 2)])

    with ThreadPoolExecutor(1) as pool:
        (kept,) = executors.drive(pool, [workflow()], 1)
    assert kept == [-1, -2]
    assert seen == [1, 2]
