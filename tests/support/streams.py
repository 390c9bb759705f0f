"""Streams in tests: run until they have caught up, or in a thread, and proven."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.model.events import StreamEvent
from bronze.model.results import StreamResult
from tests.conftest import Source
from tests.support import feed
from tests.support.content import differences

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now())"
STREAMED: Mapping[str, Any] = {"t": {"pattern": "streaming"}}


def settings(source: Source, tables: Mapping[str, Any] = STREAMED, **more: Any) -> Settings:
    """A config in which tables are streamed, gathered for no time at all; ``more`` is of [run]."""
    return source.settings(tables=tables, stream={"interval": 0}, run=more)


def caught_up(given: Settings, notes: list[str] | None = None) -> StreamResult:
    """Streams until all that is committed has landed."""

    def told(step: StreamEvent) -> None:
        if step.message and notes is not None:
            notes.append(step.message)

    result = stream.stream(given, until_caught_up=True, notify=told)
    assert [table.error for table in result.tables if table.error] == []
    return result


def proven(source: Source, given: Settings, *tables: str) -> None:
    """The tables equal the source, and their feeds are true."""
    assert differences(given) == {}
    for name in tables or ("t",):
        assert feed.faults(source.table(name)) == []


def rows(source: Source, name: str = "t") -> pl.DataFrame:
    """The rows that a Bronze table shows as there."""
    return pl.read_delta(str(source.table(name))).filter(pl.col("record_status") == "ACTIVE")


def version(source: Source, name: str = "t") -> int:
    """A Bronze table's version."""
    return int(pl.read_delta(str(source.table(name))).height and table_state(source, name).version)


def table_state(source: Source, name: str = "t") -> log.State:
    """The Bronze table as its log has it."""
    state = log.read(settings(source).place("bronze", f"bz_{name}"))
    assert state is not None
    return state


@contextmanager
def streaming(given: Settings, tables: Sequence[str] = ()) -> Iterator[list[StreamEvent]]:
    """A stream in a thread, stopped at the end; gives the messages that it has sent so far."""
    stop, steps, failures = threading.Event(), list[StreamEvent](), list[BaseException]()

    def work() -> None:
        try:
            stream.stream(given, tables, stop=stop, notify=steps.append)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield steps
    finally:
        stop.set()
        thread.join(60)
        # Whatever else has failed: a stream that has ended is the reason.
        if failures:
            raise failures[0]


def until(
    true: Callable[[], object], patience: float = 30, told: Callable[[], object] = lambda: None
) -> None:
    """Waits until a condition is true; ``told`` returns the context of a timeout."""
    end = time.monotonic() + patience
    began = time.monotonic()
    while not true():
        now = time.monotonic()
        assert now < end, told()
        # What costs much to find out is left to those who are waited for, for as long.
        time.sleep(max(0.02, now - began))
        began = time.monotonic()


LOOSE: Mapping[str, Any] = {"t": {"pattern": "streaming", "key": ["id"]}}
