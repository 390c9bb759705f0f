"""A circuit breaker: what fails again and again rests, and is then tried once.

::

    closed ──failures in a row──▶ open ──rest──▶ half-open ──the probe succeeds──▶ closed
                                   ▲                │
                                   └──it fails──────┘  the next rest is twice as long

A breaker is a value: the functions below give the next one. The same outcomes in the same order
give the same breaker, jitter included, so that it is rebuilt from the records of runs after a
restart. The pattern is of M. Nygard, "Release It!".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Literal

State = Literal["closed", "open", "half-open"]

_JITTER = 0.2


@dataclass(frozen=True)
class Limits:
    """After how many failures in a row a breaker opens, and how long it rests then: the first
    ``pause`` and the ``longest`` one, in seconds.
    """

    threshold: int = 5
    pause: float = 60
    longest: float = 3600


@dataclass(frozen=True)
class Outcome:
    """How one piece of work ended: when it began and ended, and whether it failed."""

    began: datetime
    ended: datetime
    failed: bool


@dataclass(frozen=True)
class Breaker:
    """What is known about one subject: a source, the lake, a table, a channel.

    ``failures`` are those in a row, the last at ``failed_at``. ``until`` is when the rest ends,
    None while it is closed. ``probe`` is when the one piece of work began that may close it.
    """

    subject: str
    failures: int = 0
    failed_at: datetime | None = None
    until: datetime | None = None
    probe: datetime | None = None

    def state(self, now: datetime) -> State:
        """Closed: work goes on; open: nothing is tried; half-open: one probe is tried."""
        if self.until is None:
            return "closed"
        return "half-open" if now >= self.until else "open"

    def may_begin(self, now: datetime) -> bool:
        """Whether work may begin: while it is closed, or as the one probe."""
        return self.state(now) == "closed" or (self.state(now) == "half-open" and not self.probe)


def begin(breaker: Breaker, now: datetime) -> Breaker:
    """The breaker after work has begun, which `Breaker.may_begin` has allowed."""
    return breaker if breaker.until is None else replace(breaker, probe=now)


def end(breaker: Breaker, outcome: Outcome, limits: Limits) -> Breaker:
    """The breaker after work has ended.

    Work that began before the last failure tells nothing newer than that failure does: its success
    changes nothing, and while the breaker is not closed only its probe counts.
    """
    is_probe = breaker.probe is not None and outcome.began >= breaker.probe
    if breaker.until is not None and not is_probe:
        return breaker
    if not outcome.failed:
        is_older = breaker.failed_at is not None and outcome.began < breaker.failed_at
        return breaker if is_older and not is_probe else Breaker(breaker.subject)
    failed = replace(breaker, failures=breaker.failures + 1, failed_at=outcome.ended, probe=None)
    if failed.failures < limits.threshold:
        return failed
    return replace(failed, until=outcome.ended + timedelta(seconds=_rest(failed, limits)))


def reset(breaker: Breaker) -> Breaker:
    """The breaker closed, as an operator wants it."""
    return Breaker(breaker.subject)


def rebuild(subject: str, outcomes: Iterable[Outcome], limits: Limits) -> Breaker:
    """The breaker after all outcomes, in the order in which they ended."""
    breaker = Breaker(subject)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.ended):
        if breaker.may_begin(outcome.began):
            breaker = begin(breaker, outcome.began)
        breaker = end(breaker, outcome, limits)
    return breaker


def _rest(breaker: Breaker, limits: Limits) -> float:
    """The seconds of a rest: twice that of the one before, up to the longest, or a little less, so
    that many that failed together are not tried together.
    """
    doubled = limits.pause * 2.0 ** min(breaker.failures - limits.threshold, 32)
    # Not by the time: a record of a run has another one than the process that saw it fail, by some
    # milliseconds.
    seed = f"{breaker.subject} {breaker.failures}"
    jitter = Random(seed).uniform(1 - _JITTER, 1)  # noqa: S311 - no secret depends on it
    return min(doubled, limits.longest) * jitter
