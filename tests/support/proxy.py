"""Ways to get between bronze and its source: a TCP proxy that cuts or falls silent, and a gate that
stops reads.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import psycopg

from bronze.demo.server import Server
from tests.conftest import Source

PATIENCE = 60.0

GATE = """
CREATE FUNCTION gate(n int) RETURNS int LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN n; END $$
"""
"""A function that waits while the gate is closed; see `closed_gate`."""


def until(true: Callable[[], object]) -> None:
    """Waits for a condition that is sure to come; fails when it does not."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "what the test waits for did not come"
        time.sleep(0.02)


@dataclass(frozen=True)
class Gate:
    """A closed gate: whoever reads ``gate(…)`` waits until it is opened."""

    keeper: psycopg.Connection[Any]

    def waiting(self) -> list[int]:
        """The process ids of the sessions that wait, in the order of their beginning."""
        query = """
            SELECT a.pid FROM pg_stat_activity a JOIN pg_locks l USING (pid)
            WHERE l.locktype = 'advisory' AND NOT l.granted
              AND a.datname = current_database() ORDER BY a.backend_start
        """
        return [row[0] for row in self.keeper.execute(query)]

    def reached(self, count: int = 1) -> None:
        """Waits until ``count`` sessions wait at the gate."""
        until(lambda: len(self.waiting()) >= count)

    def open(self) -> None:
        """Lets everybody through; opening an open gate does nothing."""
        self.keeper.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def closed_gate(dsn: str) -> Iterator[Gate]:
    """Closes the gate of a database; it opens when the context ends, or before."""
    with psycopg.connect(dsn, autocommit=True) as keeper:
        keeper.execute("SELECT pg_advisory_lock(1)")
        yield Gate(keeper)


class Proxy:
    """Passes each connection to its port on to the next of its targets, in turn."""

    def __init__(self, *targets: tuple[str, int]) -> None:
        self._targets = cycle(targets)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._quiet = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.accept()

    def dsn(self, database: str) -> str:
        """The URL of a database behind the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def accept(self) -> None:
        """Accepts connections (again)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accepting, listener)

    def refuse(self) -> None:
        """Refuses new connections from now on; those that are there live on."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def stall(self) -> None:
        """Passes nothing more on over the connections that are there, which stay open all the same
        until they are cut.
        """
        with self._lock:
            self._quiet.set()
            self._quiet = threading.Event()

    def cut(self) -> None:
        """Cuts all connections that are there."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sock in (sock for pair in pairs for sock in pair):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends all of it."""
        self.refuse()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accepting(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(next(self._targets))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
                quiet = self._quiet
            self._start(self._passing, near, far, quiet)

    def _passing(self, near: socket.socket, far: socket.socket, quiet: threading.Event) -> None:
        back = threading.Thread(target=_pump, args=(far, near, quiet), daemon=True)
        back.start()
        _pump(near, far, quiet)
        back.join()
        near.close()
        far.close()


def _pump(source: socket.socket, sink: socket.socket, quiet: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            # What comes is still taken: a network that loses it lets neither side's buffers fill.
            if not quiet.is_set():
                sink.sendall(data)
        if quiet.is_set():
            return
    for sock in (source, sink):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(*servers: Server) -> Iterator[Proxy]:
    """A proxy before one server, or before several that take turns."""
    proxy = Proxy(*((server.host, server.port) for server in servers))
    try:
        yield proxy
    finally:
        proxy.close()


def sessions(connection: psycopg.Connection[Any]) -> list[int]:
    """The process ids of bronze's sessions in the connection's database."""
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'bronze%'
    """
    return [row[0] for row in connection.execute(query)]


def landed(source: Source, table: str) -> bool:
    """Whether the first version of a Bronze table is there."""
    return (source.table(table) / "_delta_log" / f"{0:020}.json").exists()
