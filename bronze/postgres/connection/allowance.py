"""The connections that a source allows this process: ``[source] pool.max``, over all its commands.

A connection counts until PostgreSQL has closed its session: PostgreSQL ends a session, and only
then the socket. A *lasting* connection, such as one that holds a snapshot, leaves room for a read:
reads end, and wait for no other connection, so that commands beside each other never wait for each
other for ever.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from bronze import stopping
from bronze.errors import ConfigError, SourceBusy
from bronze.model.locations import Origin
from bronze.postgres.connection.parameters import address

READ = 1
"""The connections that lasting ones leave free."""
COMMAND, STREAM = 1, 4
"""The most lasting connections of a run, verification or check; and of a stream: one for control
queries, one that streams, one that creates a slot for a table sync, and one for its snapshot.
"""

_TIMEOUT = 30
"""Seconds to wait for a connection, if the origin has no connect_timeout."""
_LOOK = 0.05
# A session that has not ended after this many seconds does not count any more: the connection may
# go through a pooler, which keeps it.
_LONGEST_ENDING = 5.0

_Key = tuple[str, str, Any]


@dataclass(eq=False)
class Allowance:
    """The connections of this process to one source."""

    used: int = 0
    lasting: int = 0
    ending: list[tuple[int, float, bool]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, most: int, lasting: bool) -> bool:
        """Takes a connection, if there is one."""
        self.forget_ended()
        if self.used >= most or (lasting and self.lasting >= most - READ):
            return False
        self.used += 1
        self.lasting += lasting
        return True

    def give_back(self, lasting: bool) -> None:
        """Gives back a connection whose session has ended."""
        self.used -= 1
        self.lasting -= lasting
        self.changed.notify_all()

    def forget_ended(self) -> None:
        """Gives back the connections whose sessions have ended since they were closed."""
        now, ending = time.monotonic(), self.ending
        self.ending = []
        for entry in ending:
            rest, since, lasting = entry
            if _has_ended(rest) or now - since > _LONGEST_ENDING:
                os.close(rest)
                self.give_back(lasting)
            else:
                self.ending.append(entry)


def _has_ended(rest: int) -> bool:
    """Whether the server has closed a socket; what it sent before is of no interest."""
    try:
        # libpq's sockets do not block.
        while os.read(rest, 65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


_allowances: dict[_Key, Allowance] = {}
_lock = threading.Lock()
reclaimers: list[Callable[[Origin], object]] = []
"""Functions that close a connection that is kept for later, when a source has no free one left."""


def is_same_source(one: Origin, other: Origin) -> bool:
    """Whether connections of two origins count together: their commands may differ."""
    return _key(one) == _key(other)


def _key(origin: Origin) -> _Key:
    return origin.name, origin.conninfo, origin.dsn


def _of(origin: Origin) -> Allowance:
    with _lock:
        return _allowances.setdefault(_key(origin), Allowance())


def _forget_all_ended() -> None:
    """Closes the sockets of all sources whose sessions have ended: one may not be used again."""
    with _lock:
        known = list(_allowances.values())
    for allowance in known:
        if allowance.ending:
            with allowance.changed:
                allowance.forget_ended()


@dataclass(eq=False)
class Lease:
    """A connection that a source allows, until it ``ends``."""

    allowance: Allowance
    lasting: bool
    is_over: bool = False

    def end(self, rest: int | None = None) -> None:
        """Gives it back: at once, or when the server has closed the socket ``rest``
        (a file descriptor, which is closed then).
        """
        with self.allowance.changed:
            if self.is_over:
                return
            self.is_over = True
            if rest is None:
                self.allowance.give_back(self.lasting)
            else:
                self.allowance.ending.append((rest, time.monotonic(), self.lasting))
            self.allowance.changed.notify_all()


def lease(origin: Origin, lasting: bool = False) -> Lease:
    """A connection to open; waits for a free one, at most as long as for a connection.

    Raises:
        SourceBusy: there is none.
        Stopped: the work is asked to stop meanwhile.
    """
    _forget_all_ended()
    allowance, most = _of(origin), origin.connections[1]
    timeout = origin.connect_timeout or _TIMEOUT
    until = time.monotonic() + timeout
    while True:
        with allowance.changed:
            if allowance.take(most, lasting):
                return Lease(allowance, lasting)
        stopping.check()
        if time.monotonic() > until:
            raise SourceBusy(
                f"All connections to {address(origin)} that [source] pool.max = {most} allows are"
                f" in use by this process, for {timeout} s.",
                hint="Raise pool.max, or run fewer commands at once. bronze retries by itself.",
            )
        for reclaim in reclaimers:
            reclaim(origin)
        with allowance.changed:
            allowance.changed.wait(_LOOK)


def check_least(origin: Origin, commands: int, streams: int) -> None:
    """Checks that commands and streams can work at once with the connections of a source.

    Raises:
        ConfigError: pool.max is too low.
    """
    least, most = COMMAND * commands + STREAM * streams + READ, origin.connections[1]
    if most < least:
        counts = (
            (commands, "a run or verification", "runs or verifications"),
            (streams, "a stream", "streams"),
        )
        what = " and ".join(
            one if count == 1 else f"{count} {many}" for count, one, many in counts if count
        )
        raise ConfigError(
            f"Source {origin.name} has [source] pool.max = {most}, and {what} need"
            f"{'s' if commands + streams == 1 else ''} at least {least} connections at once.",
            hint=f"Set pool.max to {least} or more.",
        )


class LeasedConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection that counts among those of its source."""

    lease: Lease | None = None

    def count(self, given: Lease) -> None:
        """Has the connection count until its session has ended."""
        self.lease = given
        weakref.finalize(self, given.end).atexit = False

    def close(self) -> None:
        """Closes the connection, and gives it back when the server has ended the session."""
        if self.lease is None or self.closed:
            super().close()
            rest = None
        else:
            rest = self._duplicate()
            super().close()
        if self.lease is not None:
            self.lease.end(rest)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Ends the transaction, and closes the connection."""
        try:
            super().__exit__(exc_type, exc_val, exc_tb)
        finally:
            # psycopg does not close a connection here that was lost.
            self.close()

    def _duplicate(self) -> int | None:
        # A query that still runs would write into a socket that nobody reads.
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return None
        with suppress(OSError, psycopg.Error):
            return os.dup(self.fileno())
        return None
