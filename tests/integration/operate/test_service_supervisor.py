"""What a supervisor hears of a service that runs: systemd's protocol on a real socket."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Source
from tests.support.serving import serving


def heard(server: socket.socket, seconds: float) -> list[bytes]:
    """The datagrams that come until none has come for some seconds, but at most four."""
    states: list[bytes] = []
    server.settimeout(seconds)
    with suppress(TimeoutError):
        while len(states) < 4:
            states.append(server.recv(100))
    return states


@pytest.mark.soak
def test_a_service_is_ready_alive_while_its_loop_goes_round_and_stopping(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that hangs is not heard, so that systemd starts the service again."""
    source.execute("CREATE TABLE word (id int PRIMARY KEY)")
    settings = source.settings(
        serve={"schedule": {"full_refresh": "monthly 28 03:00", "maintain": "", "verify": ""}}
    )
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        with serving(settings) as own:
            assert heard(server, 10) == [b"READY=1", *[b"WATCHDOG=1"] * 3]
            with own.service.board.changed:
                while heard(server, 0.2):
                    pass
                assert heard(server, 1.0) == []
            assert b"WATCHDOG=1" in heard(server, 10)
        server.settimeout(5)
        states = [server.recv(100)]
        with suppress(BlockingIOError):
            server.setblocking(False)
            while True:
                states.append(server.recv(100))
    assert states[-1] == b"STOPPING=1"
