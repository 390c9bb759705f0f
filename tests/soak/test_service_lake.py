"""The lake cannot be written, or the source says nothing more, while the service runs: each channel
is told once, and everything is equal when it is over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bronze.demo.server import Server, running
from tests.conftest import FAST, ROOM, Source
from tests.support.content import differences
from tests.support.service_process import CHANNELS, Inboxes, Service, inboxes, service
from tests.support.serving import until

pytestmark = pytest.mark.soak

MOUNT, UMOUNT = "/usr/bin/mount", "/usr/bin/umount"
SOON = """
[breaker]
threshold = 2
pause = "5s"
longest = "5s"
"""


def make(dsn: str) -> None:
    """Two tables with rows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("one", "two"):
            connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, word text)")
            connection.execute(f"INSERT INTO {table} SELECT g, 'w' FROM generate_series(1, 500) g")


def change(dsn: str) -> None:
    """Other rows in both."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("one", "two"):
            connection.execute(f"UPDATE {table} SET word = md5(random()::text) WHERE id % 3 = 0")
            connection.execute(f"DELETE FROM {table} WHERE id % 50 = 1")


def played(
    own: Service,
    boxes: Inboxes,
    dsn: str,
    kind: str,
    begin: Callable[[], None],
    end: Callable[[], None],
    *,
    told_within: float = 90,
) -> dict[str, float]:
    """Plays an outage: each channel is told that it began, and that it is over; all lands after it.
    What must not be made meanwhile is looked for by ``end``.

    Returns:
        The seconds until each was told, and until all was equal again.
    """
    settings = own.settings
    own.start()
    until(lambda: differences(settings) == {}, 60)
    begin()
    began = time.monotonic()
    until(lambda: all(boxes.acts(kind)[name] for name in CHANNELS), told_within)
    seconds = {"told": time.monotonic() - began}
    end()
    change(dsn)
    began = time.monotonic()
    until(lambda: differences(settings) == {}, 90)
    seconds["equal"] = time.monotonic() - began
    until(lambda: all(len(boxes.acts(kind)[name]) == 2 for name in CHANNELS), 130)
    seconds["resolved"] = time.monotonic() - began
    print(kind, {name: round(value, 1) for name, value in seconds.items()})
    assert boxes.acts() == {name: ["open", "resolve"] for name in CHANNELS}
    assert own.stop() == 0
    return seconds


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        [MOUNT, "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("a disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run([UMOUNT, "-l", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    """Makes a disk read-only, or writable again."""
    # It is busy as long as a file is open for writing.
    for _ in range(100):
        command = [MOUNT, "-o", f"remount,{mode}", str(folder)]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"{folder} could not be made {mode}")


def fill(folder: Path) -> None:
    """Writes until the disk is full."""
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", ["full", "read-only", "renamed", "a file"])
def test_a_lake_that_cannot_be_written_is_one_message(
    source: Source, tmp_path: Path, fault: str
) -> None:
    """A full disk, a read-only one, a folder that is not there, or that is a file."""
    make(source.dsn)
    with disk(tmp_path / "disk") as folder, inboxes() as boxes:
        lake, away = folder / "lake", folder / "away"

        def begin() -> None:
            if fault == "full":
                fill(folder)
            elif fault == "read-only":
                remount(folder, "ro")
            else:
                lake.rename(away)
            if fault == "a file":
                lake.write_text("not a folder")

        def end() -> None:
            if fault == "full":
                (folder / "filler").unlink()
            elif fault == "read-only":
                remount(folder, "rw")
            else:
                assert lake.exists() == (fault == "a file")
                lake.unlink(missing_ok=True)
                away.rename(lake)

        with service(tmp_path, source.dsn, lake, SOON, boxes) as own:
            kind = "lake_full" if fault == "full" else "lake_unreachable"
            played(own, boxes, source.dsn, kind, begin, end)


@dataclass
class Storm:
    """Answers 503 to every request while it lasts."""

    app: Any
    lasts: bool = False
    refused: list[str] = field(default_factory=list)

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Any:
        """An application of WSGI."""
        if not self.lasts:
            return self.app(environment, start)
        self.refused.append(environment["PATH_INFO"])
        start("503 Slow Down", [("Content-Type", "text/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_object_store_that_answers_503_is_one_message(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once the store's own retries are used up; all lands after it."""
    import boto3
    from moto.server import ThreadedMotoServer

    make(source.dsn)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    server: Any = moto._server
    storm = server.app = Storm(server.app)
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "word"}
    url = f"http://{host}:{port}"
    client: Any = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **login)
    client.create_bucket(Bucket="busy")
    options = {"aws_endpoint_url": url, "aws_region": "us-east-1", "allow_http": "true", **login}
    # For what reads the lake in the test's own process.
    for name, value in options.items():
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    lines = "\n".join(f'{name} = "{value}"' for name, value in options.items())
    more = f"{SOON}\n[lake.options]\n{lines}\n"

    def turn(*, on: bool) -> None:
        storm.lasts = on

    try:
        with inboxes() as boxes, service(
            tmp_path, source.dsn, "s3://busy/lake", more, boxes
        ) as own:  # fmt: skip
            played(
                own, boxes, source.dsn, "lake_unreachable",
                lambda: turn(on=True), lambda: turn(on=False), told_within=240,
            )  # fmt: skip
        assert storm.refused
    finally:
        client.close()
        moto.stop()


def send(server: Server, number: int) -> None:
    """Sends a signal to a server and its sessions."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_source_that_freezes_is_one_message(tmp_path: Path) -> None:
    """Its connections stay open, and nobody answers on them; nor on new ones."""
    with running(tmp_path / "data", settings={**FAST, **ROOM}) as server, inboxes() as boxes:
        make(server.dsn())
        more = f'{SOON}\n[tables.two]\npattern = "streaming"\nsla = "30m"\n'
        with service(tmp_path, server.dsn(), tmp_path / "lake", more, boxes) as own:
            try:
                played(
                    own, boxes, server.dsn(), "source_unreachable",
                    lambda: send(server, signal.SIGSTOP), lambda: send(server, signal.SIGCONT),
                    told_within=150,
                )  # fmt: skip
            finally:
                send(server, signal.SIGCONT)
