"""The socket beneath a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import Any

import psycopg


def cut(connection: psycopg.Connection[Any]) -> None:
    """Cuts a connection from another thread: whoever waits for an answer on it gets an error."""
    with suppress(OSError, psycopg.Error), _twin(connection) as twin:
        twin.shutdown(socket.SHUT_RDWR)


@contextmanager
def patience(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Cuts the connection if what is done with it takes longer.

    Raises:
        TimeoutError: it did.
    """
    late = Event()

    def end() -> None:
        late.set()
        cut(connection)

    timer = Timer(seconds, end)
    timer.start()
    try:
        yield
    except psycopg.OperationalError:
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def port(connection: psycopg.Connection[Any]) -> int:
    """Our own port; -1 for a Unix socket, as in pg_stat_activity."""
    with _twin(connection) as twin:
        name = twin.getsockname()
    return int(name[1]) if isinstance(name, tuple) else -1


def _twin(connection: psycopg.Connection[Any]) -> socket.socket:
    return socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
