"""How many tasks run at once, over all drivers that share the permits; the urgent ones first."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

_PATIENCE = 8
"""After this many permits for others, a claim counts as one priority more urgent: none starves."""

_order = itertools.count(1)


@dataclass(eq=False)
class Claim:
    """A driver that takes permits, one for each of its tasks.

    ``wake`` is called, in any thread, when it may be its turn. ``priority`` is that of its next
    task (1 is the most urgent), None while it wants no permit; ``ready`` how many tasks it could
    begin now. Since it got the last one, ``passed`` is how many others got while it wanted one, and
    ``order`` when it first did.
    """

    wake: Callable[[], None]
    in_use: int = 0
    priority: int | None = None
    ready: int = 0
    order: int | None = None
    passed: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among the claims: the smallest is served first."""
        return (self.priority or 0) - self.passed // _PATIENCE, self.order or 0


@dataclass(eq=False)
class Permits:
    """Permits for tasks. ``limit`` may be changed at any time: what runs goes on, and the next task
    begins when fewer than the new limit run.
    """

    limit: int
    _claims: list[Claim] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set_limit(self, limit: int) -> None:
        """Raises or lowers the limit, which is at least 1."""
        with self._lock:
            self.limit = max(1, limit)
        self._wake_next()

    @property
    def in_use(self) -> int:
        """How many tasks run."""
        with self._lock:
            return self._in_use()

    @property
    def wanting(self) -> int:
        """How many drivers wait for a permit."""
        with self._lock:
            return sum(claim.priority is not None for claim in self._claims)

    @property
    def wanted(self) -> int:
        """How many permits all tasks would take that run or could begin now."""
        with self._lock:
            ready = sum(claim.ready for claim in self._claims if claim.priority is not None)
            return self._in_use() + ready

    @contextmanager
    def claim(self, wake: Callable[[], None]) -> Iterator[Claim]:
        """A driver's claim, whose permits are given back in the end."""
        opened = Claim(wake)
        with self._lock:
            self._claims.append(opened)
        try:
            yield opened
        finally:
            with self._lock:
                self._claims.remove(opened)
            self._wake_next()

    def take(self, claim: Claim, priority: int, ready: int = 1) -> bool:
        """Takes a permit for a task; if there is none for it now, the claim is woken when it is its
        turn. ``ready`` is how many tasks could begin, this one included.
        """
        with self._lock:
            if claim.order is None:
                claim.order = next(_order)
            claim.priority, claim.ready = priority, ready
            is_served = self._in_use() < self.limit and self._next() is claim
            if is_served:
                claim.in_use += 1
                claim.priority, claim.order, claim.passed = None, None, 0
                for other in self._claims:
                    other.passed += other.priority is not None
        # Another one may have become the next: there are more permits, or this is less urgent now.
        self._wake_next()
        return is_served

    def give_back(self, claim: Claim) -> None:
        """Gives back the permit of a task that has ended."""
        with self._lock:
            claim.in_use -= 1
        self._wake_next()

    def withdraw(self, claim: Claim) -> None:
        """Notes that a driver takes no permit for now; it keeps its place among the claims."""
        with self._lock:
            claim.priority = None
        self._wake_next()

    def _in_use(self) -> int:
        return sum(claim.in_use for claim in self._claims)

    def _next(self) -> Claim | None:
        """The claim that is served next."""
        wanting = [claim for claim in self._claims if claim.priority is not None]
        return min(wanting, key=lambda claim: claim.rank, default=None)

    def _wake_next(self) -> None:
        with self._lock:
            following = self._next() if self._in_use() < self.limit else None
        if following:
            following.wake()


_shared: ContextVar[Permits | None] = ContextVar("bronze_permits", default=None)


@contextmanager
def sharing(permits: Permits | None) -> Iterator[None]:
    """Has the drivers of this thread share permits with others; without them, as around it."""
    token = _shared.set(permits or _shared.get())
    try:
        yield
    finally:
        _shared.reset(token)


def current(limit: int) -> Permits:
    """The permits that are shared, or else a driver's own."""
    return _shared.get() or Permits(limit)
