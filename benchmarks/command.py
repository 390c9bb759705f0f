"""The one way to measure: a command as a whole process, looked at from outside.

A command is what a user starts: ``bronze run`` as installed, or a script. The start of the
interpreter and all imports are in its figures, and those of processes that it starts. PostgreSQL,
which runs on the same machine, is counted by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

BRONZE = Path(sys.executable).with_name("bronze")
_LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Used:
    """What one command used.

    Attributes:
        wall: seconds of wall clock.
        cpu: CPU seconds, user and system, of the command and of processes that it started.
        server_cpu: CPU seconds of PostgreSQL in that time.
        peak: the most resident bytes; of the largest process, if the command starts others. Pages
            of libraries count, of which the kernel maps more at once where they were installed just
            now: compare figures of one environment.
        written: the bytes which it handed to the system to write (``wchar`` of ``/proc/PID/io``):
            those of every file, deleted ones and logs too. Unlike ``write_bytes`` it is the same on
            a disk and on tmpfs. Files mapped into memory are not in it. None without ``/proc``.
    """

    wall: float
    cpu: float
    server_cpu: float
    peak: int
    written: int | None


def median_of(runs: Sequence[Used]) -> Used:
    """The median of each figure."""
    written = [run.written for run in runs if run.written is not None]
    return Used(
        median(run.wall for run in runs),
        median(run.cpu for run in runs),
        median(run.server_cpu for run in runs),
        round(median(run.peak for run in runs)),
        round(median(written)) if written else None,
    )


def server_of(dsn: str) -> psutil.Process:
    """The process that has started all others of a local PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        server: psutil.Process = psutil.Process(connection.info.backend_pid).parent()
        return server


def cpu_of(server: psutil.Process) -> float:
    """CPU seconds of PostgreSQL, with those of processes that have ended."""
    while True:
        processes = server.children()
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            for process in (server, *processes):
                used = process.cpu_times()
                total += used.user + used.system + used.children_user + used.children_system
        # Seconds of a process that ends meanwhile move to the server's own.
        if server.children() == processes:
            return total


def measure(
    command: Sequence[str | Path], server: psutil.Process, folder: Path, *, code: int = 0
) -> Used:
    """Runs a command in a folder, where it leaves ``command.log`` and ``command.json``.

    Args:
        command: the path of a program, and its arguments.
        server: PostgreSQL, see `server_of`.
        folder: an existing folder.
        code: the exit code that is expected.

    Raises:
        RuntimeError: it ended with another exit code; with the last lines that it wrote.
    """
    figures, log = folder / "command.json", folder / "command.log"
    launch = [sys.executable, "-I", "-S", _LAUNCH, figures, *command]
    # An installed package has its bytecode.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = cpu_of(server)
    with log.open("wb") as output:
        subprocess.run(
            launch, cwd=folder, stdout=output, stderr=output, env=environment, check=True
        )
    after = cpu_of(server)
    used = json.loads(figures.read_text())
    if used.pop("code") != code:
        lines = log.read_text(errors="replace").split("\n")
        raise RuntimeError(" ".join(line.strip() for line in lines[-8:] if line.strip()))
    return Used(server_cpu=after - before, **used)


def configure(folder: Path, dsn: str, schema: str, sections: Mapping[str, Any]) -> None:
    """Writes the ``bronze.toml`` of a lake in ``folder / "lake"``; all else is at its default.

    Args:
        folder: an existing folder.
        dsn: the source.
        schema: the schema of its tables.
        sections: more of the config; ``source`` is added to that section.
    """
    source = {"name": "bench", "dsn": dsn, "schema": schema, **sections.get("source", {})}
    lake = {"root": "lake", "schema": "bronze"}
    document = {**sections, "source": source, "lake": lake}
    lines = (f"{name} = {_toml(section)}\n" for name, section in document.items())
    (folder / "bronze.toml").write_text("".join(lines))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
