"""What systemd hears of the service, over a real Unix socket."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from bronze.execution.supervisor import Supervisor


@pytest.mark.parametrize("is_abstract", [False, True])
def test_each_state_is_a_datagram_and_signs_of_life_are_rare(
    tmp_path: Path, is_abstract: bool
) -> None:
    """READY, one WATCHDOG within its interval however often the loop goes round, STOPPING."""
    name = f"@bronze-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(f"\0{name[1:]}" if is_abstract else name)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "120000000"}
        supervisor = Supervisor.of({**environment, "WATCHDOG_PID": str(os.getpid())})
        supervisor.ready()
        for _ in range(100):
            supervisor.alive()
        supervisor.interval = 0.001
        time.sleep(0.002)
        supervisor.alive()
        supervisor.stopping()
        states = [server.recv(100) for _ in range(4)]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(100)
    assert states == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_a_supervisor_that_listens_nothing_happens(tmp_path: Path) -> None:
    """No socket, one that nobody reads, and a watchdog of another process are no errors."""
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "9"}):
        supervisor = Supervisor.of(environment)
        supervisor.ready()
        supervisor.alive()
        supervisor.stopping()
    assert Supervisor.of({"WATCHDOG_USEC": "9000000", "WATCHDOG_PID": "1"}).interval == 0
