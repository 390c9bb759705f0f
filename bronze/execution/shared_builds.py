"""Large values that threads build once and share, with few of them in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakSet

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


_all: WeakSet[SharedBuilds[Any, Any]] = WeakSet()


def drop_all() -> None:
    """Frees all values that are kept in this process."""
    for builds in list(_all):
        builds.drop(lambda _: True)


@dataclass
class _Build(Generic[V]):
    """A value that a thread is building; ``keep`` says whether it is kept for later calls."""

    future: Future[V] = field(default_factory=Future)
    keep: bool = True


class SharedBuilds(Generic[K, V]):
    """Builds the value of each key once, and keeps the values that were used last.

    Threads that need the same value share one build. Values of different keys are built at the
    same time. Values of the same ``group`` that are kept or being built are at most ``limit``
    together: where all are being built, a further build waits for one of them to end. The lock is
    free while a value is built.
    """

    def __init__(
        self,
        build: Callable[[K], V],
        limit: int,
        group: Callable[[K], Hashable] = lambda _: None,
    ) -> None:
        self._build = build
        self._limit = limit
        self._group = group
        self._changed = threading.Condition()
        # In the order of their use: the first one is dropped first.
        self._kept: dict[K, V] = {}
        self._builds: dict[K, _Build[V]] = {}
        _all.add(self)

    def get(self, key: K) -> V:
        """The value of a key: kept, or built by this thread or another one.

        Raises:
            Exception: what ``build`` raised, in all threads that wait for this build. The next call
                builds again.
        """
        with self._changed:
            while not (self._is_present(key) or self._make_room(key)):
                self._changed.wait()
            if key in self._kept:
                value = self._kept[key] = self._kept.pop(key)
                return value
            build = self._builds.get(key)
            is_first = build is None
            if build is None:
                build = self._builds[key] = _Build()
        if is_first:
            self._run(key, build)
        return build.future.result()

    def drop(self, matches: Callable[[K], bool]) -> None:
        """Frees the values of keys that match; one that is being built is not kept afterwards."""
        with self._changed:
            for key in [key for key in self._kept if matches(key)]:
                del self._kept[key]
            for key, build in self._builds.items():
                if matches(key):
                    build.keep = False
            self._changed.notify_all()

    def _is_present(self, key: K) -> bool:
        return key in self._kept or key in self._builds

    def _make_room(self, key: K) -> bool:
        """Drops values of the key's group, those used longest ago, until one more fits; returns
        whether it does.
        """
        group = self._group(key)
        kept = [other for other in self._kept if self._group(other) == group]
        builds = sum(self._group(other) == group for other in self._builds)
        for other in kept[: max(0, len(kept) + builds + 1 - self._limit)]:
            del self._kept[other]
        return builds < self._limit

    def _run(self, key: K, build: _Build[V]) -> None:
        """Builds a value, and passes it, or the error, to all that wait for it."""
        try:
            value = self._build(key)
        except BaseException as error:
            with self._changed:
                del self._builds[key]
                self._changed.notify_all()
            build.future.set_exception(error)
            return
        with self._changed:
            del self._builds[key]
            if build.keep:
                self._kept[key] = value
            self._changed.notify_all()
        build.future.set_result(value)
