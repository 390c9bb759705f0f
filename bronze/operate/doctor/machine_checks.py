"""Checks of the machine: its memory, and the versions of what is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bronze.config.settings import Settings
from bronze.operate.doctor.examination import Check, Verdict, ok, problem, unknown, warning

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
# What the libraries map from files (docs/reference/config.md has it), which the kernel may drop.
_MAPPED = 240 * 10**6
_SCARCE = 0.05


@dataclass(frozen=True)
class Memory:
    """The memory of this machine, in bytes; None is unknown. ``group`` is the least limit of the
    cgroups that the process is in, of which ``group_free`` is left.
    """

    total: int | None = None
    available: int | None = None
    group: int | None = None
    group_free: int | None = None


def memory(settings: Settings) -> Check:
    """The check of ``[run] memory`` against what there is."""

    def examine() -> Iterator[Verdict]:
        yield memory_verdict(settings.run.memory, machine_memory())

    return Check("memory", examine, "The memory of this machine")


def memory_verdict(needed: int, memory: Memory) -> Verdict:
    """Whether the memory of the config fits."""
    limits = {"the machine": memory.total, "the cgroup (container)": memory.group}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    if not known:
        return unknown("How much memory the machine has cannot be found out.")
    name, most = min(known.items(), key=lambda pair: pair[1])
    text = f"[run] memory is {_size(needed)}, and {name} has {_size(most)}"
    if needed > most:
        hint = "Lower [run] memory, or give it more: the process would be killed."
        return problem(f"{text}.", hint)
    if needed + _MAPPED > most:
        return warning(
            f"{text}: files that the libraries map, up to {_size(_MAPPED)}, find little room.",
            "Lower [run] memory, or give it more.",
        )
    free = [part for part in (memory.available, memory.group_free) if part is not None]
    if free and min(free) < most * _SCARCE:
        return warning(
            f"{text}; only {_size(min(free))} are free now.", "See what takes it: top -o %MEM"
        )
    return ok(f"{text}{f', {_size(min(free))} of it free now' if free else ''}.")


def machine_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory:
    """The memory of this machine, and of the cgroups of this process."""
    total = available = None
    with suppress(OSError, ValueError, KeyError):
        lines = (proc / "meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        total, available = sizes["MemTotal"], sizes.get("MemAvailable")
    if total is None:
        with suppress(OSError, ValueError, AttributeError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = list(_group_limits(proc, cgroup))
    return Memory(
        total,
        available,
        min((limit for limit, _ in groups), default=None),
        min((limit - used for limit, used in groups), default=None),
    )


def _group_limits(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each cgroup that has a limit, from the process' own one up."""
    for root, path, limit, used in _groups(proc, cgroup):
        folder = root / path.lstrip("/")
        while folder == root or root in folder.parents:
            with suppress(OSError, ValueError):
                # Without a limit version 2 has "max", and version 1 a number beyond any memory.
                most = int((folder / limit).read_text())
                if most < 2**60:
                    yield most, int((folder / used).read_text())
            folder = folder.parent


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[Path, str, str, str]]:
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield cgroup, path, "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                root = cgroup / "memory"
                yield root, path, "memory.limit_in_bytes", "memory.usage_in_bytes"


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.0f} MB"


_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9.]+)")


def versions() -> Check:
    """The check that each library is at least of the version that bronze was tested with."""

    def examine() -> Iterator[Verdict]:
        try:
            requirements = metadata.requires("bronze") or []
        except metadata.PackageNotFoundError:
            yield unknown("bronze is not installed as a package: nothing says what it needs.")
            return
        yield versions_verdict(requirements)

    return Check("versions", examine, "The list of installed packages")


def versions_verdict(requirements: list[str]) -> Verdict:
    """Whether what is installed meets requirements, those of extras left out."""
    faults, count = [], 0
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is None or "extra ==" in requirement:
            continue
        try:
            installed = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            faults.append(f"{match[1]} is missing")
            continue
        count += 1
        if _numbers(installed) < _numbers(match[2]):
            faults.append(f"{match[1]} is {installed}, older than {match[2]}")
    if faults:
        hint = (
            "Older versions have known faults: install bronze again, in an environment of its own."
        )
        return problem(f"{'; '.join(faults)}.", hint)
    return ok(f"All {count} libraries are of tested versions or later.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))
