"""One session for the statements of a test: a session of its own for each costs more than most."""

from __future__ import annotations

import re
import select
import threading
from collections.abc import Sequence
from typing import Any

import psycopg

# Sessions take these settings as they start.
_DEFAULTS = re.compile(r"\balter\s+(database|role|user|system)\b", re.IGNORECASE)


class Session:
    """Runs statements, each as if in a session of its own."""

    def __init__(self, dsn: str) -> None:
        """Connects with the first statement."""
        self._dsn = dsn
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def execute(self, statement: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Runs one statement, committed; returns its rows, if it has any."""
        if not self._lock.acquire(blocking=False):
            # The session waits, maybe for this statement.
            return execute_once(self._dsn, statement, arguments)
        try:
            rows = _run(self._connected(), statement, arguments)
            if _DEFAULTS.search(statement):
                self._close()
            else:
                self._connected().execute("DISCARD ALL")
            return rows
        except BaseException:
            self._close()
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the session; the next statement begins another one."""
        with self._lock:
            self._close()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection and _ended(self._connection):
            self._close()
        if not self._connection:
            # Tables change between statements, which prepared statements do not survive.
            self._connection = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)
        return self._connection

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


def execute_once(dsn: str, statement: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Runs one statement, committed, in a new session; returns its rows, if it has any."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return _run(connection, statement, arguments)


def _run(
    connection: psycopg.Connection[Any], statement: str, arguments: Sequence[Any]
) -> list[tuple[Any, ...]]:
    cursor = connection.execute(statement, arguments or None)
    return cursor.fetchall() if cursor.description else []


def _ended(connection: psycopg.Connection[Any]) -> bool:
    # An idle server sends nothing before it ends the session.
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
