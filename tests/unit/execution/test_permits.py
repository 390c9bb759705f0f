"""Permits: how many tasks run at once over several drivers, and who is served first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bronze.execution import permits as shared
from bronze.execution.executors import Task, Workflow, drive
from bronze.execution.permits import Claim, Permits
from tests.support.effort import examples

TABLE = "public.t"


class PermitsMachine(RuleBasedStateMachine):
    """Drivers take and give back permits in any order, while the limit changes."""

    @initialize(limit=st.integers(1, 5), drivers=st.integers(1, 5))
    def begin(self, limit: int, drivers: int) -> None:
        """Opens the claims."""
        self.permits = Permits(limit)
        self.stack = ExitStack()
        self.woken: set[int] = set()
        self.priorities: dict[int, int] = {}
        self.claims = [
            self.stack.enter_context(self.permits.claim(partial(self.woken.add, n)))
            for n in range(drivers)
        ]

    @rule(number=st.integers(0, 4), priority=st.integers(1, 9))
    def take(self, number: int, priority: int) -> None:
        """One driver wants a permit."""
        number %= len(self.claims)
        self.woken.discard(number)
        before = self.permits.in_use
        if self.permits.take(self.claims[number], priority):
            assert before < self.permits.limit
            self.priorities.pop(number, None)
        else:
            self.priorities[number] = priority
            assert before >= self.permits.limit or len(self.priorities) > 1

    @rule(number=st.integers(0, 4))
    def give_back(self, number: int) -> None:
        """A task ends."""
        claim = self.claims[number % len(self.claims)]
        if claim.in_use:
            self.permits.give_back(claim)

    @rule(number=st.integers(0, 4))
    def withdraw(self, number: int) -> None:
        """A driver has other work than to start tasks."""
        number %= len(self.claims)
        self.permits.withdraw(self.claims[number])
        self.priorities.pop(number, None)

    @rule(limit=st.integers(1, 5))
    def change(self, limit: int) -> None:
        """The limit is raised or lowered."""
        self.permits.set_limit(limit)

    @invariant()
    def whoever_is_next_was_woken(self) -> None:
        """No permit is free while all that want one sleep."""
        if hasattr(self, "permits") and self.priorities:
            assert self.permits.wanting == len(self.priorities)
            if self.permits.in_use < self.permits.limit:
                assert self.woken & set(self.priorities)

    def teardown(self) -> None:
        """All claims end."""
        if hasattr(self, "stack"):
            self.stack.close()
            assert self.permits.in_use == 0


TestPermits = PermitsMachine.TestCase
TestPermits.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


def opened(stack: ExitStack, permits: Permits, count: int) -> list[Claim]:
    """Claims that nobody wakes."""
    return [stack.enter_context(permits.claim(lambda: None)) for _ in range(count)]


def test_urgent_claims_are_served_first_and_none_starves() -> None:
    """The least urgent one is served too, at the latest after some permits for each priority."""
    permits = Permits(1)
    with ExitStack() as stack:
        urgent, low = opened(stack, permits, 2)
        assert permits.take(urgent, 1)
        served = 0
        assert not permits.take(low, 9)
        while True:
            assert not permits.take(urgent, 1)
            permits.give_back(urgent)
            if permits.take(low, 9):
                break
            assert permits.take(urgent, 1)
            served += 1
            assert served < 100
        assert served > 10


def test_equally_urgent_claims_take_turns() -> None:
    """Whoever waits for longest."""
    permits = Permits(1)
    with ExitStack() as stack:
        claims = opened(stack, permits, 3)
        order = []
        for _ in range(9):
            (winner,) = [number for number, claim in enumerate(claims) if permits.take(claim, 2)]
            order.append(winner)
            permits.give_back(claims[winner])
        assert order == [0, 1, 2] * 3


class Running:
    """Counts the tasks that run at once, over all drivers."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.names: list[str] = []
        self.lock = threading.Lock()
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def __call__(self, name: str) -> str:
        """Does one task, when it is let through."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.names.append(name)
        self.begun.release()
        assert self.gate.acquire(timeout=30)
        with self.lock:
            self.now -= 1
        return name


def workflow(work: Any, name: str, count: int) -> Workflow[int]:
    """A workflow of one stage."""
    results = yield [Task(work, name, TABLE) for _ in range(count)]
    return len(results)


def drivers(
    permits: Permits, work: Running, pool: ThreadPoolExecutor, *given: tuple[str, int, int]
) -> Iterator[Any]:
    """Futures of drivers with a name, a priority and a number of tasks, each in its own thread."""

    def run(name: str, priority: int, count: int) -> list[int]:
        with shared.sharing(permits), ThreadPoolExecutor(8) as tasks:
            flow = [workflow(work, name, count)]
            return list(drive(tasks, flow, 8, priorities=[priority]))

    for one in given:
        yield pool.submit(run, *one)


def test_drivers_share_permits_and_the_urgent_one_is_served_first() -> None:
    """A running driver gets its next permit after an urgent one that came later."""
    permits, work = Permits(2), Running()
    with ThreadPoolExecutor(2) as pool:
        (low,) = drivers(permits, work, pool, ("low", 5, 6))
        for _ in range(2):
            assert work.begun.acquire(timeout=30)
        (urgent,) = drivers(permits, work, pool, ("urgent", 1, 3))
        while permits.wanting < 2:
            threading.Event().wait(0.01)
        for left in reversed(range(9)):
            work.gate.release()
            # The last two have begun before.
            assert left < 2 or work.begun.acquire(timeout=30)
        assert (low.result(30), urgent.result(30)) == ([6], [3])
    assert work.most == 2
    assert work.names[2:5].count("urgent") >= 2
    assert permits.in_use == permits.wanting == 0


def test_the_limit_changes_while_tasks_run() -> None:
    """Raising it starts tasks at once; a lowered one holds as soon as tasks have ended."""
    permits, work = Permits(1), Running()
    with ThreadPoolExecutor(2) as pool:
        done = list(drivers(permits, work, pool, ("a", 2, 8), ("b", 2, 8)))
        assert work.begun.acquire(timeout=30)
        permits.set_limit(4)
        for _ in range(3):
            assert work.begun.acquire(timeout=30)
        permits.set_limit(2)
        work.gate.release(2)
        assert not work.begun.acquire(timeout=0.7)
        work.gate.release(1)
        assert work.begun.acquire(timeout=30)
        assert work.now == 2
        work.gate.release(99)
        assert [future.result(30) for future in done] == [[8], [8]]
    assert work.most == 4
