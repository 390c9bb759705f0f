"""The circuit breaker: it opens after failures in a row, and exactly one probe may close it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bronze.operate import breaker
from bronze.operate.breaker import Breaker, Limits, Outcome
from tests.support.effort import examples

LIMITS = Limits(threshold=3, pause=60, longest=600)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """A moment, in seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def failed(*ends: float) -> Breaker:
    """A breaker after failures that ended at these seconds, one second after they began."""
    outcomes = [Outcome(at(second - 1), at(second), failed=True) for second in ends]
    return breaker.rebuild("orders", outcomes, LIMITS)


def test_it_opens_after_failures_in_a_row() -> None:
    """One failure less leaves it closed; a success in between starts the count again."""
    assert failed(1, 3).state(at(4)) == "closed"
    assert failed(1, 3, 5).state(at(6)) == "open"
    interrupted = breaker.end(failed(1, 3), Outcome(at(4), at(5), failed=False), LIMITS)
    assert interrupted == Breaker("orders")


def test_rests_double_up_to_the_longest() -> None:
    """Each failed probe doubles the rest, with a little jitter, which is the same every time."""
    current, rests = failed(1, 3, 5), []
    for _ in range(6):
        assert current.until is not None
        assert current.failed_at is not None
        rests.append((current.until - current.failed_at).total_seconds())
        current = breaker.begin(current, current.until)
        assert current.probe is not None
        ended = current.probe + timedelta(seconds=1)
        current = breaker.end(current, Outcome(current.probe, ended, failed=True), LIMITS)
    for rest, plain in zip(rests, (60, 120, 240, 480, 600, 600), strict=True):
        assert 0.8 * plain <= rest <= plain
    assert len(set(rests)) == len(rests)
    assert failed(1, 3, 5) == failed(1, 3, 5)


def test_only_one_probe_may_begin() -> None:
    """While the probe goes on, nothing else may begin; when it succeeds, the breaker closes."""
    opened = failed(1, 3, 5)
    assert not opened.may_begin(at(6))
    later = at(100)
    assert opened.state(later) == "half-open"
    probing = breaker.begin(opened, later)
    assert not probing.may_begin(later)
    assert breaker.end(probing, Outcome(later, at(101), failed=False), LIMITS) == Breaker("orders")


def test_a_late_success_of_older_work_closes_nothing() -> None:
    """Work that began before the failures and succeeds after them says nothing about now."""
    older = Outcome(at(0), at(6), failed=False)
    opened = failed(1, 3, 5)
    assert breaker.end(opened, older, LIMITS) == opened
    probing = breaker.begin(opened, at(100))
    assert breaker.end(probing, older, LIMITS) == probing
    counting = failed(1, 3)
    assert breaker.end(counting, Outcome(at(1), at(4), failed=False), LIMITS) == counting


class Breaking(RuleBasedStateMachine):
    """Work begins where the breaker allows it, ends well or badly, and time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.breaker = Breaker("orders")
        self.going: list[datetime] = []
        self.outcomes: list[Outcome] = []

    @rule(seconds=st.integers(1, 400))
    def pass_time(self, seconds: int) -> None:
        """The clock goes on."""
        self.now += seconds

    @precondition(lambda self: self.breaker.may_begin(at(self.now)))
    @rule()
    def begin(self) -> None:
        """Work begins."""
        self.breaker = breaker.begin(self.breaker, at(self.now))
        self.going.append(at(self.now))
        self.now += 1

    @precondition(lambda self: self.going)
    @rule(fails=st.booleans(), which=st.integers(0, 100))
    def end(self, fails: bool, which: int) -> None:
        """Work ends."""
        began = self.going.pop(which % len(self.going))
        outcome = Outcome(began, at(self.now), failed=fails)
        self.outcomes.append(outcome)
        self.breaker = breaker.end(self.breaker, outcome, LIMITS)
        self.now += 1

    @invariant()
    def the_records_give_the_same_breaker(self) -> None:
        """What a restart rebuilds from the outcomes differs only by a probe that goes on."""
        rebuilt = breaker.rebuild("orders", self.outcomes, LIMITS)
        assert replace(self.breaker, probe=rebuilt.probe) == rebuilt

    @invariant()
    def an_open_breaker_ends_its_rest(self) -> None:
        """It never rests longer than the longest pause."""
        if self.breaker.until is not None and self.breaker.failed_at is not None:
            rest = self.breaker.until - self.breaker.failed_at
            assert timedelta() < rest <= timedelta(seconds=LIMITS.longest)


TestBreaking = Breaking.TestCase
TestBreaking.settings = hypothesis_settings(max_examples=examples(50), deadline=None)
