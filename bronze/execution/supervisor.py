"""Tells systemd how the service is, by the protocol of sd_notify(3): a datagram for each state.

Without ``NOTIFY_SOCKET`` in the environment nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

_PER_WATCHDOG = 3
"""How often the service is heard within the time of the watchdog."""


@dataclass
class Supervisor:
    """The supervisor of this process: ``address`` is its socket, "" if there is none; ``interval``
    are the seconds between signs of life, 0 if it does not watch.
    """

    address: str = ""
    interval: float = 0.0
    _heard: float = field(default=float("-inf"), repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Supervisor:
        """The supervisor that an environment names."""
        # systemd names the process that it watches: a child is not meant.
        is_meant = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environment.get("WATCHDOG_USEC", "") if is_meant else ""
        interval = int(usec) / 1e6 / _PER_WATCHDOG if usec.isdecimal() else 0.0
        return cls(environment.get("NOTIFY_SOCKET", ""), interval)

    def ready(self) -> None:
        """The service has begun."""
        self._send("READY=1")

    def alive(self) -> None:
        """The loop of the service goes round; sends no more than the watchdog needs."""
        now = time.monotonic()
        if self.interval and now - self._heard >= self.interval:
            self._heard = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self.address:
            return
        path = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        # A supervisor that does not listen changes nothing for the service.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
            opened.setblocking(False)
            opened.sendto(state.encode(), path)
