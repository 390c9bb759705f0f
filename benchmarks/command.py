"""The command line as installed, measured from outside: a whole process with its defaults."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg

BRONZE = Path(sys.executable).with_name("bronze")


@dataclass(frozen=True)
class Used:
    """What one command took: seconds of wall clock and of CPU, of its own process and of
    PostgreSQL's, and its most resident bytes.
    """

    wall: float
    cpu: float
    server_cpu: float
    peak: int


def server_of(dsn: str) -> psutil.Process:
    """The process that has started all others of a local PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        server: psutil.Process = psutil.Process(connection.info.backend_pid).parent()
        return server


def cpu_of(server: psutil.Process) -> float:
    """CPU seconds of PostgreSQL, with those of processes that have ended."""
    total = 0.0
    for process in (server, *server.children()):
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def measure(command: Sequence[str | Path], server: psutil.Process, folder: Path) -> Used:
    """Runs a command in a folder.

    Raises:
        RuntimeError: it failed; with the last line that it wrote.
    """
    before = cpu_of(server)
    with (folder / "command.log").open("w+b") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        # Unlike Popen.wait it tells what this one process used.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{command[1]}: {lines[-1] if lines else process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Used(wall, usage.ru_utime + usage.ru_stime, cpu_of(server) - before, peak)
