"""``bronze serve`` as a process of its own: what it uses, and how soon it answers."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil  # type: ignore[import-untyped]

from benchmarks.command import BRONZE, configure

PATIENCE = 300.0
_HOST = "127.0.0.1"
_SAMPLED_EVERY = 0.1
# As bronze/operate/web/static/page.js does.
_RENEWED_EVERY = 5.0


def until(true: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.1) -> None:
    """Waits until something is so.

    Raises:
        SystemExit: it did not become so.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError, http.client.HTTPException):
            if true():
                return
        time.sleep(pause)
    raise SystemExit("The service did not get there; see serve.log.")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the 99th percentile and the largest of some times, and how many there are."""
    values = np.array(seconds)
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
        "count": len(values),
    }


def far_away() -> dict[str, str]:
    """A [serve.schedule] by which nothing is due for half a day."""
    hour = (datetime.now(UTC) + timedelta(hours=12)).hour
    daily = f"daily {hour:02}:00"
    loads = dict.fromkeys(("micro_batch", "batch", "full_refresh"), daily)
    return {**loads, "maintain": "", "verify": ""}


@dataclass
class Folder:
    """A folder with a ``bronze.toml``, its lake, and the port of its dashboard."""

    path: Path
    dsn: str
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind((_HOST, 0))
            self.port = free.getsockname()[1]

    def configure(self, sections: Mapping[str, Any]) -> None:
        """Writes the config; [web] listens at the port."""
        web = {"listen": f"{_HOST}:{self.port}"}
        configure(self.path, self.dsn, "public", {"web": web, **sections})

    def command(self, *arguments: str) -> list[str]:
        """Runs a command of bronze to its end.

        Raises:
            SystemExit: it failed.
        """
        command = [str(BRONZE), *arguments]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return command

    def records(self, table: str) -> pl.DataFrame:
        """The rows of a governance table."""
        return pl.read_delta(str(self.path / "lake" / "governance" / table))

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Service]:
        """A command that goes on until the block ends: ``serve`` if none is named."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["BENCH_KEY"] = "routing"
        with (self.path / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [BRONZE, *(arguments or ("serve",))],
                cwd=self.path,
                stdout=log,
                stderr=log,
                env=environment,
            )
            service = Service(self, psutil.Process(process.pid), time.monotonic())
            service.watch()
            try:
                yield service
            finally:
                process.send_signal(signal.SIGTERM)
                service.is_over.set()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@dataclass
class Service:
    """A process that runs. ``peak`` is the most anonymous memory, ``resident`` the most resident
    memory that it has had, in bytes.
    """

    folder: Folder
    process: psutil.Process
    began: float
    peak: int = 0
    resident: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Begins to note the peaks."""

        def look() -> None:
            while not self.is_over.wait(_SAMPLED_EVERY):
                with suppress(OSError, ValueError, IndexError):
                    self.peak = max(self.peak, self.anonymous)
                    self.resident = max(self.resident, self._status("VmHWM"))

        threading.Thread(target=look, daemon=True).start()

    @property
    def anonymous(self) -> int:
        """The anonymous memory now, in bytes: without the files of libraries."""
        return self._status("RssAnon")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def share_of_core(self, seconds: float) -> float:
        """The part of a core that it takes over some time to come."""
        cpu, began = self.cpu, time.monotonic()
        time.sleep(seconds)
        return (self.cpu - cpu) / (time.monotonic() - began)

    def get(self, path: str) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        connection = http.client.HTTPConnection(_HOST, self.folder.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether it says so."""
        return self.get("/ready")[0] == 200

    def times_of(self, path: str, seconds: float, pause: float, viewers: int = 1) -> list[float]:
        """The seconds of each answer to viewers who ask for a page again and again."""
        end, found = time.monotonic() + seconds, list[float]()

        def view(offset: float) -> None:
            time.sleep(offset)
            while time.monotonic() < end:
                began = time.perf_counter()
                status, _ = self.get(path)
                if status != 200:
                    raise SystemExit(f"{path} answered {status}")
                found.append(time.perf_counter() - began)
                time.sleep(pause)

        threads = [
            threading.Thread(target=view, args=(pause * number / viewers,))
            for number in range(viewers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    @contextmanager
    def dashboard(self) -> Iterator[None]:
        """A dashboard that is open: it listens to the events, and renews the page as a browser."""
        over = threading.Event()

        def listen() -> None:
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(_HOST, self.folder.port, timeout=60)
                connection.request("GET", "/events")
                answer = connection.getresponse()
                renewed = 0.0
                while not over.is_set() and answer.readline():
                    if time.monotonic() - renewed >= _RENEWED_EVERY:
                        renewed = time.monotonic()
                        self.get("/")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
