"""Values that threads build once and share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from bronze.execution.shared_builds import SharedBuilds

TIMEOUT = 20
# Long enough that a thread which is not held up would have ended.
MOMENT = 0.05


class Builder:
    """Builds a value for each key, once its gate is opened."""

    def __init__(self, *closed: str) -> None:
        self.gates = {key: threading.Event() for key in closed}
        self.begun = {key: threading.Event() for key in closed}
        self.builds: Counter[str] = Counter()
        self.errors: dict[str, BaseException] = {}
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, key: str) -> str:
        """The value of a key."""
        with self._lock:
            self.builds[key] += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if key in self.gates:
                self.begun[key].set()
                assert self.gates[key].wait(TIMEOUT)
            if key in self.errors:
                raise self.errors.pop(key)
            return key.upper()
        finally:
            with self._lock:
                self.running -= 1


def waits(future: Future[str]) -> bool:
    """Whether a call has not returned."""
    try:
        future.result(MOMENT)
    except FutureTimeout:
        return True
    return False


def test_values_of_different_keys_are_built_at_the_same_time() -> None:
    """A build that takes long holds up no build of another key."""
    builder = Builder("slow")
    shared = SharedBuilds(builder, 2)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(shared.get, "slow")
        assert builder.begun["slow"].wait(TIMEOUT)
        assert pool.submit(shared.get, "quick").result(TIMEOUT) == "QUICK"
        assert not slow.done()
        builder.gates["slow"].set()
        assert slow.result(TIMEOUT) == "SLOW"


def test_threads_that_need_the_same_value_share_one_build() -> None:
    """All that ask while a value is being built get this one, and so do later calls."""
    builder = Builder("a")
    shared = SharedBuilds(builder, 2)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(shared.get, "a") for _ in range(8)]
        assert builder.begun["a"].wait(TIMEOUT)
        builder.gates["a"].set()
        values = [call.result(TIMEOUT) for call in calls]
    assert values == ["A"] * 8
    assert shared.get("a") is values[0]
    assert builder.builds == {"a": 1}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_reaches_all_who_wait_and_the_next_call_builds_again(
    error: BaseException,
) -> None:
    """Whoever waits for a build that fails gets its error; it leaves nothing behind."""
    builder = Builder("a")
    builder.errors["a"] = error
    shared = SharedBuilds(builder, 1)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(shared.get, "a") for _ in range(4)]
        assert builder.begun["a"].wait(TIMEOUT)
        assert all(map(waits, calls))
        builder.gates["a"].set()
        assert [call.exception(TIMEOUT) for call in calls] == [error] * 4
    assert shared.get("a") == "A"
    assert shared.get("b") == "B"
    assert builder.builds == {"a": 2, "b": 1}


def test_no_more_values_than_the_limit_are_kept_or_built() -> None:
    """Kept values make room for builds; a build too many waits for another one to end."""
    builder = Builder("a", "b")
    shared = SharedBuilds(builder, 2)
    shared.get("old")
    with ThreadPoolExecutor() as pool:
        a, b = pool.submit(shared.get, "a"), pool.submit(shared.get, "b")
        assert all(begun.wait(TIMEOUT) for begun in builder.begun.values())
        c = pool.submit(shared.get, "c")
        again = pool.submit(shared.get, "a")
        assert waits(c)
        assert builder.builds == {"old": 1, "a": 1, "b": 1}
        builder.gates["a"].set()
        assert [call.result(TIMEOUT) for call in (a, again, c)] == ["A", "A", "C"]
        assert not b.done()
        builder.gates["b"].set()
        assert b.result(TIMEOUT) == "B"
    shared.get("c")
    shared.get("b")
    assert builder.builds == {"old": 1, "a": 1, "b": 1, "c": 1}
    shared.get("old")
    assert builder.builds["old"] == 2


def test_a_running_build_evicts_a_kept_value() -> None:
    """While one of two places is used by a build, one value is kept beside it."""
    builder = Builder("slow")
    shared = SharedBuilds(builder, 2)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(shared.get, "slow")
        assert builder.begun["slow"].wait(TIMEOUT)
        for key in ("a", "b", "b", "a"):
            assert shared.get(key) == key.upper()
        assert builder.builds == {"slow": 1, "a": 2, "b": 1}
        builder.gates["slow"].set()
        assert slow.result(TIMEOUT) == "SLOW"


def test_the_value_used_longest_ago_is_dropped_first() -> None:
    """A use counts, not the build."""
    builder = Builder()
    shared = SharedBuilds(builder, 2)
    for key in ("a", "b", "a", "c", "a", "c", "b"):
        assert shared.get(key) == key.upper()
    assert builder.builds == {"a": 1, "b": 2, "c": 1}


def test_dropped_values_are_built_again() -> None:
    """So is one that was dropped while it was being built, which those who wait still get."""
    builder = Builder("b")
    shared = SharedBuilds(builder, 3)
    drop: Callable[[str], bool] = ["a", "b"].__contains__
    shared.get("a")
    shared.get("c")
    with ThreadPoolExecutor() as pool:
        b = pool.submit(shared.get, "b")
        assert builder.begun["b"].wait(TIMEOUT)
        shared.drop(drop)
        builder.gates["b"].set()
        assert b.result(TIMEOUT) == "B"
    for key in "abc":
        shared.get(key)
    assert builder.builds == {"a": 2, "b": 2, "c": 1}


def test_concurrent_builds_never_exceed_the_limit() -> None:
    """Every thread gets its value, and never are more built at once than the limit."""
    builder = Builder()
    shared = SharedBuilds(builder, 2)
    keys = [f"k{i % 7}" for i in range(700)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(shared.get, keys, timeout=TIMEOUT)) == [key.upper() for key in keys]
    assert builder.most <= 2


def test_groups_do_not_take_room_from_each_other() -> None:
    """Each group keeps as many values as the limit, those that it used last."""
    builder = Builder("b3")
    shared = SharedBuilds(builder, 2, lambda key: key[0])
    for key in ("a1", "b1", "a2", "b2", "a1", "b1"):
        shared.get(key)
    assert builder.builds == {"a1": 1, "a2": 1, "b1": 1, "b2": 1}
    with ThreadPoolExecutor() as pool:
        building = pool.submit(shared.get, "b3")
        assert builder.begun["b3"].wait(TIMEOUT)
        for key in ("a1", "a2", "a3", "a3", "a2", "b1"):
            shared.get(key)
        builder.gates["b3"].set()
        building.result(TIMEOUT)
    shared.get("b2")
    assert builder.builds == {"a1": 1, "a2": 1, "a3": 1, "b1": 1, "b2": 2, "b3": 1}
