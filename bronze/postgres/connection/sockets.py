"""The socket of a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import Any

import psycopg


def cut_connection(connection: psycopg.Connection[Any]) -> None:
    """Cuts a connection from another thread; a thread that waits for an answer gets an error."""
    with suppress(OSError, psycopg.Error), _duplicate(connection) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@contextmanager
def time_limit(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Cuts the connection if the block takes longer.

    Raises:
        TimeoutError: the time has run out.
    """
    expired = Event()

    def expire() -> None:
        expired.set()
        cut_connection(connection)

    timer = Timer(seconds, expire)
    timer.start()
    try:
        yield
    except psycopg.OperationalError:
        if expired.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def local_port(connection: psycopg.Connection[Any]) -> int:
    """The local TCP port; -1 for a Unix socket, as in pg_stat_activity."""
    with _duplicate(connection) as duplicate:
        address = duplicate.getsockname()
    return int(address[1]) if isinstance(address, tuple) else -1


def _duplicate(connection: psycopg.Connection[Any]) -> socket.socket:
    return socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
