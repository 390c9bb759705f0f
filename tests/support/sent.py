"""Work that is sent as to another process, without the seconds that one needs to begin."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Sent(ThreadPoolExecutor):
    """Threads to which work, and from which its results, travel as bytes."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedules a call of what arrives."""
        carried = pickle.dumps((fn, args, kwargs))
        return super().submit(_received, carried)


def _received(carried: bytes) -> Any:
    work, args, kwargs = pickle.loads(carried)  # noqa: S301 - our own bytes
    return pickle.loads(pickle.dumps(work(*args, **kwargs)))  # noqa: S301 - our own bytes
