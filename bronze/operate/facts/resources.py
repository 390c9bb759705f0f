"""What the process takes of what it may take: of the processors, the memory and the disk.

The processors are those of its affinity, or fewer where its cgroup or one above has a quota; the
memory is the least of ``[run] memory``, the limits of these cgroups, and the machine's. Read from
/proc and the file systems of cgroup v1 and v2; where there is no /proc, by psutil.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bronze.config.settings import Settings
from bronze.delta import store
from bronze.delta.storage import client
from bronze.operate.view import Resources

_ROOT = Path("/")


@dataclass(frozen=True)
class Allowed:
    """What a process may take: processors, with fractions, and bytes of memory."""

    processors: float
    memory: int


class Meter:
    """Measures this process; its share of the processors since the measurement before."""

    def __init__(self, root: Path = _ROOT) -> None:
        """Begins to measure; ``root`` is where /proc and /sys are."""
        self._root = root
        self._before = time.monotonic(), _cpu_seconds()

    def measure(self, settings: Settings) -> Resources:
        """What is taken now."""
        limits = allowed(settings.run.memory, self._root)
        now, used = time.monotonic(), _cpu_seconds()
        seconds, used_before = now - self._before[0], self._before[1]
        self._before = now, used
        share = (used - used_before) / seconds / limits.processors if seconds > 0 else 0.0
        free, total = _disk(settings)
        return Resources(max(0.0, share), _resident(self._root), limits.memory, free, total)


def allowed(memory: int, root: Path = _ROOT) -> Allowed:
    """What this process may take.

    Args:
        memory: the limit of the config, in bytes.
        root: where /proc and /sys are.
    """
    processors = float(_affinity())
    for folder in _groups(root):
        quota = _quota(folder)
        if quota:
            processors = min(processors, quota)
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit:
                memory = min(memory, limit)
    return Allowed(processors, min(memory, _machine_memory()))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the cgroups that this process is in, and of those above them."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        top = mounted / controllers if controllers else mounted
        own = PurePosixPath(path.strip("/"))
        # In a container its own group is mounted at the top, whatever its name outside.
        yield from (top / parent for parent in (own, *own.parents))


def _quota(folder: Path) -> float | None:
    """The processors that a cgroup may use, None if there is no quota."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _resident(root: Path) -> int:
    """The bytes of memory that the process has."""
    words = _text(root / "proc/self/statm").split()
    if len(words) > 1:
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def _disk(settings: Settings) -> tuple[int | None, int | None]:
    root = settings.place("", "")
    if not client.is_local(root) or store.is_missing(root):
        return None, None
    usage = shutil.disk_usage(root.url)
    return usage.free, usage.total
