"""One limit of memory for all that a process does at once: streams, runs, verifications,
maintenance. Sizes are in bytes.

The libraries count once (`bronze.execution.budget.LIBRARIES`), and so does what a service keeps for
itself (`budget.SERVICE`). The rest is divided:

- each stream has a share always: a like part of the rest, and at least `budget.LEAST_SHARE`;
- each other work *leases* a share for its time: all that is free, except the least shares of those
  that may begin beside it. So a work alone has nearly all of the memory.

A work computes with the memory of its share and of the libraries, as if it were alone in a process
with this limit (`Share.memory`). A work for which there is no share waits: the urgent ones are
served first, and none is passed for ever.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bronze import stopping
from bronze.errors import ConfigError
from bronze.execution import allocator, budget
from bronze.stopping import Signal

_PATIENCE = 8
"""After this many shares for others, a claim counts as one priority more urgent: none starves."""
_LOOK = 0.2
"""Seconds between two looks at whether a work that waits is asked to stop."""

# From how much memory for works on, more of them go on at once.
_GOOD_SHARE = 3 * budget.LEAST_SHARE

_order = itertools.count(1)


@dataclass(frozen=True)
class Share:
    """The memory of one work.

    ``memory`` is the limit that the work has to keep, as if it were alone, libraries included. To
    have more for such a work, whatever else goes on, the process needs ``parts`` times as much.
    """

    memory: int
    parts: int


@dataclass(eq=False)
class Claim:
    """A work that wants a share, or has one of ``size``, without the libraries; 0 while it waits.

    ``passed`` is how many others got one while it waited.
    """

    work: str
    priority: int
    order: int = field(default_factory=lambda: next(_order))
    size: int = 0
    passed: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among those that wait: the smallest is served first."""
        return self.priority - self.passed // _PATIENCE, self.order


def least_memory(streams: int, reserved: int = 0) -> int:
    """The least memory of a process with so many streams; its other works wait for each other."""
    return budget.LIBRARIES + budget.SERVICE + reserved + budget.LEAST_SHARE * (streams + 1)


def check_least(limit: int, streams: int, reserved: int = 0) -> None:
    """Checks that streams, and other works one after another, fit into the memory of a process of
    which some is ``reserved``.

    Raises:
        ConfigError: the memory is too small for them.
    """
    least = least_memory(streams, reserved)
    if limit < least:
        beside = f" beside {streams} stream{'s' if streams > 1 else ''}" if streams else ""
        raise ConfigError(
            f"[run] memory is {_text(limit)}, and a service that runs, verifies and maintains"
            f" tables{beside} needs at least {_text(least)}.",
            hint=f'Set [run] memory to "{_text(least)}" or more.',
        )


class MemoryShares:
    """The shares of the memory of a process; from any thread.

    ``stream`` is the share of each stream; ``at_once`` is how many other works have room at the
    same time.
    """

    def __init__(self, limit: int, streams: int, works: int, reserved: int = 0) -> None:
        """Divides the memory.

        Args:
            limit: [run] memory, in bytes, of the whole process.
            streams: how many streams there are.
            works: how many runs, verifications and maintenances there may be at once, at least 1.
            reserved: what copies of the lake need, which no work gets.

        Raises:
            ConfigError: the memory is too small for them.
        """
        # What a work has freed is for the others.
        allocator.return_memory_early()
        self._claims: list[Claim] = []
        self._changed = threading.Condition()
        self.divide(limit, streams, works, reserved)

    def divide(self, limit: int, streams: int, works: int, reserved: int = 0) -> None:
        """Divides the memory again, as the config has changed; the arguments are as above.

        Works that go on keep their shares, and others wait for them. Streams are to be started
        again if ``stream`` is less than before.

        Raises:
            ConfigError: the memory is too small for them; nothing has changed.
        """
        check_least(limit, streams, reserved)
        rest = limit - budget.LIBRARIES - budget.SERVICE - reserved
        all_works = streams + works
        of_stream = max(budget.LEAST_SHARE, min(rest // all_works, _beside_work(rest, streams)))
        with self._changed:
            self.limit = limit
            self.stream = _share(of_stream, all_works)
            self._pool = rest - streams * of_stream
            # Where there is little memory, few have a good share rather than many the least one.
            self.at_once = max(1, min(works, -(-self._pool // _GOOD_SHARE)))
            self._least = max(budget.LEAST_SHARE, self._pool // (2 * self.at_once))
            self._parts = 2 * all_works
            self._changed.notify_all()

    @contextmanager
    def lease(
        self,
        work: str,
        priority: int = 2,
        *,
        stop: Signal | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Share]:
        """The share of a work, until the end of the block; waits for one.

        Args:
            work: what it is, for sentences, such as "the run of orders".
            priority: the smallest is served first.
            stop: ends the waiting when it is set.
            notify: is called with a sentence why it has to wait, if it has to.

        Raises:
            Stopped: it was asked to stop before it got a share.
        """
        claim = self.claim(work, priority)
        try:
            share = self.take(claim)
            if share is None:
                notify(self._sentence(claim))
            while share is None:
                if stop is not None and stop.is_set():
                    raise stopping.error()
                with self._changed:
                    self._changed.wait(_LOOK)
                share = self.take(claim)
            yield share
        finally:
            self.give_back(claim)

    def claim(self, work: str, priority: int) -> Claim:
        """Notes that a work wants a share."""
        claim = Claim(work, priority)
        with self._changed:
            self._claims.append(claim)
        return claim

    def take(self, claim: Claim) -> Share | None:
        """The share of a claim; None while it has to wait."""
        with self._changed:
            if not claim.size:
                if self._next() is not claim or self._free() < self._least:
                    return None
                others = max(0, self.at_once - len(self._leased()) - 1)
                claim.size = max(self._least, self._free() - others * self._least)
                for other in self._waiting():
                    other.passed += 1
                self._changed.notify_all()
            return _share(claim.size, self._parts)

    def give_back(self, claim: Claim) -> None:
        """Gives back the share of a work that has ended, or does not want one any more."""
        if claim.size:
            allocator.return_free_memory()
        with self._changed:
            self._claims.remove(claim)
            claim.size = 0
            self._changed.notify_all()

    @property
    def free(self) -> int:
        """The memory that no work has leased."""
        with self._changed:
            return self._free()

    @property
    def room(self) -> int:
        """How many works more could begin now, behind those that wait."""
        with self._changed:
            by_memory = self._free() // self._least
            by_number = self.at_once - len(self._leased())
            return max(0, min(by_memory, by_number) - len(self._waiting()))

    def why_full(self) -> str:
        """A sentence why no other work can begin now; "" if there is room."""
        return "" if self.room else self._sentence(None)

    def _sentence(self, waiting: Claim | None) -> str:
        with self._changed:
            works = [*self._leased(), *(c for c in self._waiting() if c is not waiting)]
        names = ", ".join(claim.work for claim in works)
        return f"[run] memory = {_text(self.limit)} has no room beside {names}"

    def _free(self) -> int:
        return self._pool - sum(claim.size for claim in self._claims)

    def _leased(self) -> list[Claim]:
        return [claim for claim in self._claims if claim.size]

    def _waiting(self) -> list[Claim]:
        return [claim for claim in self._claims if not claim.size]

    def _next(self) -> Claim | None:
        """The claim that is served next."""
        return min(self._waiting(), key=lambda claim: claim.rank, default=None)


def _beside_work(rest: int, streams: int) -> int:
    """The most that each stream may have, so that another work has room beside them."""
    return (rest - budget.LEAST_SHARE) // max(streams, 1)


def _share(size: int, parts: int) -> Share:
    return Share(budget.LIBRARIES + size, parts)


def _text(size: int) -> str:
    return f"{-(-size // 10**6)}MB"
