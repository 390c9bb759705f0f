"""Stopping: a command that is asked to stop ends within a second or two.

A command enters a `scope` with the event that asks it to stop. All that works for it finds the
scope by itself: its own thread, and the tasks of its executors (`within`). Long work calls `check`,
and what waits without looking, such as a query, leaves a function that wakes it (`on_stop`). It is
called again and again, as the same thread may begin to wait once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

from bronze.errors import Stopped

T = TypeVar("T")

_LOOK = 0.2
"""Seconds between two looks at the event, and between two calls that wake what waits."""


class Signal(Protocol):
    """What asks to stop: an event of a thread, or a flag that several processes see."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(eq=False)
class Scope:
    """What works for one command in this process, until it ends."""

    signal: Signal
    name: str = field(default_factory=lambda: uuid4().hex)
    _wakers: WeakKeyDictionary[Any, Callable[[Any, float], None]] = field(
        default_factory=WeakKeyDictionary
    )
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        _scopes[self.name] = self
        threading.Thread(target=self._watch, name="bronze stop", daemon=True).start()

    def end(self) -> None:
        """Wakes nothing any more."""
        self._ended.set()

    def add(self, owner: Any, wake: Callable[[Any, float], None]) -> None:
        """Adds a function as of `on_stop`."""
        with self._lock:
            self._wakers[owner] = wake

    def _watch(self) -> None:
        while not self.signal.is_set():
            if self._ended.wait(_LOOK):
                return
        began = time.monotonic()
        while not self._ended.is_set():
            with self._lock:
                wakers = list(self._wakers.items())
            for owner, wake in wakers:
                wake(owner, time.monotonic() - began)
            del wakers
            self._ended.wait(_LOOK)


_scopes: WeakValueDictionary[str, Scope] = WeakValueDictionary()
_current: ContextVar[Scope | None] = ContextVar("bronze_stop", default=None)
_of_process: Scope | None = None


@contextmanager
def scope(stop: Signal | None) -> Iterator[None]:
    """Has the work of the block stop when ``stop`` is set; without it, as the block around it."""
    if stop is None:
        yield
        return
    opened = Scope(stop)
    token = _current.set(opened)
    try:
        yield
    finally:
        _current.reset(token)
        opened.end()


@contextmanager
def unstoppable() -> Iterator[None]:
    """Has the work of the block go on although it is asked to stop: it ends other work."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Has the work of the block stop with the scope of that name, which another thread entered."""
    token = _current.set(_scopes.get(name))
    try:
        yield
    finally:
        _current.reset(token)


def stop_process_with(signal: Signal) -> None:
    """Has all work of this process stop with a signal; it works for one command alone."""
    global _of_process
    _of_process = Scope(signal)


def current() -> Scope | None:
    """The scope of the work of this thread, if it can be stopped."""
    return _current.get() or _of_process


def name() -> str:
    """The name of the current scope, for `within`; "" without one."""
    opened = current()
    return opened.name if opened else ""


def is_requested() -> bool:
    """Whether the work of this thread is asked to stop."""
    opened = current()
    return opened is not None and opened.signal.is_set()


def check() -> None:
    """Ends work that is asked to stop.

    Raises:
        Stopped: it is.
    """
    if is_requested():
        raise error()


def error(table: str = "") -> Stopped:
    """The error of work that was asked to stop; ``table`` is the label of its table."""
    subject = f"Table {table} was" if table else "The command was"
    return Stopped(
        f"{subject} stopped before the end.",
        hint="What had landed before stays, nothing half-written is visible; run it again.",
        table=table,
    )


def on_stop(owner: Any, wake: Callable[[Any, float], None]) -> None:
    """Has ``wake`` called with ``owner`` when this work is asked to stop, in another thread,
    several times a second, with the seconds since then; as long as something else refers to
    ``owner``.
    """
    opened = current()
    if opened is not None:
        opened.add(owner, wake)


def sleep(seconds: float) -> None:
    """Waits.

    Raises:
        Stopped: the work is asked to stop meanwhile.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _LOOK))
    check()


def call(work: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> T:
    """The result of a function that waits and cannot be woken: it is left behind by a stop.

    Args:
        work: runs in a thread of its own, where it can be stopped.
        discard: is called with a result that comes too late.

    Raises:
        Stopped: the work is asked to stop.
        Exception: what the function raises.
    """
    if current() is None:
        return work()
    check()
    results: list[T] = []
    errors: list[BaseException] = []
    lock, done, is_left = threading.Lock(), threading.Event(), threading.Event()

    def perform() -> None:
        try:
            result = work()
        except BaseException as failure:  # the caller raises it
            errors.append(failure)
        else:
            with lock:
                if not is_left.is_set():
                    results.append(result)
            if is_left.is_set():
                discard(result)
        done.set()

    threading.Thread(target=perform, name="bronze call", daemon=True).start()
    try:
        while not done.wait(_LOOK):
            check()
    except BaseException:
        with lock:
            is_left.set()
        for result in results:
            discard(result)
        raise
    if errors:
        raise errors[0]
    return results[0]
