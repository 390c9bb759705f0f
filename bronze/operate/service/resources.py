"""What the process takes of what it may take, and whether that is too much for more work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from bronze.config.settings import Settings
from bronze.delta import store
from bronze.errors import ConfigError
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.view import Resources, StreamFacts

_MEMORY_SHARE = 0.9
_LEAST_FREE = 10**9
_LEAST_FREE_SHARE = 0.01
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit(settings: Settings) -> int:
    """The least of ``[run] memory``, the cgroup's limit and the machine's memory, in bytes."""
    limits = [settings.run.memory, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


class Meter:
    """Measures the process: its share of the processors since the last measurement, and memory."""

    def __init__(self) -> None:
        """Begins to measure.

        Raises:
            ConfigError: psutil is not installed.
        """
        try:
            import psutil  # type: ignore[import-untyped]
        except ImportError:
            raise ConfigError(
                "`bronze serve` needs the package psutil.", hint="pip install 'bronze[serve]'"
            ) from None
        self._process = psutil.Process()
        self._process.cpu_percent()

    def measure(self, settings: Settings) -> Resources:
        """What is taken now."""
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        cpu = self._process.cpu_percent() / 100 / processors
        free = total = None
        root = settings.place("", "")
        if store.is_local(root) and Path(root.url).is_dir():
            usage = shutil.disk_usage(root.url)
            free, total = usage.free, usage.total
        memory = self._process.memory_info().rss
        return Resources(cpu, memory, memory_limit(settings), free, total)


def pressure(
    resources: Resources | None,
    streams: Iterable[tuple[StreamFacts, Iterable[ServedTable]]],
    now: datetime,
) -> str:
    """Why no run of low priority begins, "" if nothing speaks against it.

    Args:
        resources: what was measured last.
        streams: each stream with the tables that it follows.
        now: the time.
    """
    if resources and resources.memory > _MEMORY_SHARE * resources.memory_limit:
        return f"the process takes more than {_MEMORY_SHARE:.0%} of its memory"
    if resources and resources.disk_free is not None:
        least = min(_LEAST_FREE, _LEAST_FREE_SHARE * (resources.disk_total or 0))
        if resources.disk_free < least:
            return "the disk of the lake is nearly full"
    for facts, tables in streams:
        slas = [table.settings.sla for table in tables if table.settings.sla]
        if slas and facts.as_of and (now - facts.as_of).total_seconds() > min(slas) / 2:
            return f"the stream of {facts.source} has less than half of its time left"
    return ""
