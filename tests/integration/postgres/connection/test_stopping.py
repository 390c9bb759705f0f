"""Connections of work that is asked to stop: queries are canceled, and silent servers cut off."""

from __future__ import annotations

import os
import signal
import threading
import time

import psycopg
import pytest
from psycopg import errors as pg

from bronze import stopping
from bronze.errors import Stopped
from bronze.postgres.connection import connect, translation
from tests.conftest import Source


def test_a_query_is_canceled_and_others_are_not(source: Source) -> None:
    """The error is that of a stop; connections of other work are not touched."""
    origin = source.settings().origin("test")
    stop = threading.Event()
    with connect.connect(origin) as other, stopping.scope(stop), connect.connect(origin) as mine:
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(pg.QueryCanceled), stopping.unstoppable():
            mine.execute("SELECT pg_sleep(60)")
        with pytest.raises(Stopped), translation.source_errors(origin):
            mine.execute("SELECT pg_sleep(60)")
        other.execute("SELECT pg_sleep(0.5)")
        with pytest.raises(Stopped):
            connect.connect(origin)


def test_a_server_that_does_not_answer_is_cut_off(source: Source) -> None:
    """A frozen session does not hear of a cancellation."""
    origin = source.settings().origin("test")
    stop = threading.Event()
    began = time.monotonic()
    with stopping.scope(stop), connect.connect(origin) as mine:
        pid = mine.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            stop.set()
            with pytest.raises(psycopg.OperationalError):
                mine.execute("SELECT 1")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - began < 15


def test_what_comes_too_late_is_discarded() -> None:
    """A call that cannot be woken is left behind, and its result is closed when it comes."""
    stop, gate, discarded = threading.Event(), threading.Event(), threading.Event()

    def work() -> bool:
        stop.set()
        return gate.wait(30)

    with stopping.scope(stop), pytest.raises(Stopped):
        stopping.call(work, lambda _: discarded.set())
    gate.set()
    assert discarded.wait(30)
    with stopping.scope(threading.Event()):
        assert stopping.call(lambda: 1) == 1
        with pytest.raises(ZeroDivisionError):
            stopping.call(lambda: 1 // 0)
