"""Work that is repeated in a thread of its own."""

from __future__ import annotations

import threading

import pytest

from bronze.operate.service import timing
from bronze.operate.service.timing import Routine
from tests.support.serving import until


class Panic(BaseException):
    """What a fault in Rust is raised as: no Exception."""


def test_a_fault_ends_no_routine_and_is_known_until_the_work_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither an exception nor a panic of a library; the time of the last success stays."""
    monkeypatch.setattr(timing, "_AFTER_FAULT", 0.0)
    faults: list[BaseException] = [Panic(), ValueError()]
    seen: list[tuple[float, str]] = []
    done = threading.Event()

    def work() -> float | None:
        seen.append((routine.done_at, routine.fault))
        if faults:
            raise faults.pop(0)
        done.set()
        return None

    routine = Routine("test", work)
    routine.start()
    assert done.wait(5)
    until(lambda: routine.done_at)
    assert seen == [(0.0, ""), (0.0, "Panic"), (0.0, "ValueError")]
    assert routine.fault == ""
    assert routine.join(5)
