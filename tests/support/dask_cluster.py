"""A Dask scheduler and workers as processes of their own, as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 60.0


def plain_environment() -> dict[str, str]:
    """The environment of this process; modules are found as here, in whatever folder."""
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass
class Cluster:
    """Processes of a cluster, by name: "scheduler" and those of the workers.

    ``folder`` has their logs; ``environment`` is added to that of this process.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """``host:port`` of the scheduler."""
        return f"{self.host}:{self.port}"

    def start_scheduler(self, prefix: Sequence[str] = ()) -> None:
        """Starts the scheduler; again at the same port after it was killed."""
        self.port = self.port or _free_port()
        place = ["--host", self.host, "--port", str(self.port)]
        self._start("scheduler", prefix, "dask_scheduler", *place, "--no-dashboard")
        self._wait("scheduler", "Scheduler at")

    def start_worker(
        self,
        name: str,
        *options: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts a worker with one thread, and waits until the scheduler knows it."""
        place = [f"tcp://{self.address}", "--name", name, "--local-directory", str(self.folder)]
        fixed = ["--no-nanny", "--no-dashboard"]
        if "--nthreads" not in options:
            fixed += ["--nthreads", "1"]
        if "--memory-limit" not in options:
            fixed += ["--memory-limit", "0"]
        more = environment or {}
        self._start(name, prefix, "dask_worker", *place, *fixed, *options, environment=more)
        self._wait(name, "Registered to")

    def kill(self, name: str) -> None:
        """Kills a process of the cluster as the kernel does, without a word."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(
        self,
        name: str,
        prefix: Sequence[str],
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [*prefix, sys.executable, "-m", f"distributed.cli.{program}", *arguments]
        # Nothing of the driver's folder, where its config is, is there.
        away = self.folder / f"{name}.d"
        away.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=away,
                stdout=log,
                stderr=log,
                env={**plain_environment(), **self.environment, **(environment or {})},
            )

    def _wait(self, name: str, words: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while words not in self.log(name):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(
    folder: Path, workers: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A scheduler with so many workers "w0", "w1" …, which end with the block."""
    running = Cluster(folder, environment=environment or {})
    try:
        running.start_scheduler()
        for number in range(workers):
            running.start_worker(f"w{number}")
        yield running
    finally:
        stop(running)


def stop(running: Cluster) -> None:
    """Ends all processes of a cluster."""
    for process in running.processes.values():
        with suppress(ProcessLookupError):
            process.kill()
    for process in running.processes.values():
        process.wait()
