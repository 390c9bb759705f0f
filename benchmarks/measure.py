"""One run of one contestant: a process of its own, watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg

from benchmarks.contestants import MODULES, Report, Task

_INTERVAL = 0.05
_TIMEOUT = 3600
_LONGEST = (
    "SELECT max(extract(epoch FROM clock_timestamp() - query_start))::float8"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active'"
    " AND datname = current_database() AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True)
class Measured:
    """One run. Times are in seconds, sizes in bytes; ``error`` is "" if it went well.

    ``work`` leaves the interpreter's start and the imports out, ``process`` has them; ``cpu`` is of
    the whole process, but for the limit of the measured work alone. ``peak`` is 0 for the limit.
    """

    contestant: str
    table: str
    work: float = 0.0
    process: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    query: float = 0.0
    size: int = 0
    path: str = ""
    error: str = ""


@dataclass
class _Seen:
    query: float = 0.0
    children: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def run(contestant: str, task: Task) -> Measured:
    """Runs a contestant and measures it; its failure is an error in the result."""
    command = [sys.executable, "-m", MODULES[contestant]]
    command += [task.dsn, task.schema, task.table, str(task.lake)]
    root = Path(__file__).parents[1]
    out, err = task.lake.with_suffix(".out"), task.lake.with_suffix(".err")
    began = time.perf_counter()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=root, stdout=stdout, stderr=stderr)
        killer = threading.Timer(_TIMEOUT, process.kill)
        killer.start()
        try:
            with _watched(process.pid, task.dsn) as seen:
                # Unlike Popen.wait it tells what this one process used.
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            killer.cancel()
            process.kill()
    if process.returncode:
        error = _last_line(err) or f"exit code {process.returncode}"
        return Measured(contestant, task.table, process=seconds, error=error)
    done = Report(**json.loads(_last_line(out)))
    limit = contestant == "limit"
    return Measured(
        contestant=contestant,
        table=task.table,
        work=done.seconds,
        process=done.seconds if limit else seconds,
        cpu=done.cpu if limit else usage.ru_utime + usage.ru_stime,
        peak=0 if limit else done.peak + seen.children,
        query=seen.query,
        size=sum(f.stat().st_size for f in Path(done.path or task.lake).rglob("*.parquet")),
        path=done.path,
    )


@contextmanager
def _watched(pid: int, dsn: str) -> Iterator[_Seen]:
    seen = _Seen()
    thread = threading.Thread(target=_watch, args=(pid, dsn, seen), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.stop.set()
        thread.join()


def _watch(pid: int, dsn: str, seen: _Seen) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not seen.stop.wait(_INTERVAL):
            row = connection.execute(_LONGEST).fetchone()
            seen.query = max(seen.query, (row and row[0]) or 0.0)
            seen.children = max(seen.children, _children(pid))


def _children(pid: int) -> int:
    total = 0
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                total += child.memory_info().rss
    return total


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
