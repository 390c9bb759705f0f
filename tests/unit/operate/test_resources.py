"""What the process may take: by its affinity, its cgroups, the config and the machine."""

from __future__ import annotations

import os
from pathlib import Path

from bronze.operate.facts.resources import Meter, allowed
from tests.support.operators import config

GB = 10**9


def tree(root: Path, **files: str) -> Path:
    """Files below a root; two underscores in a name are a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_quota_of_a_cgroup_v2_or_of_one_above_counts(tmp_path: Path) -> None:
    """The least of the quotas, and of the memory limits."""
    folder = tmp_path / "sys/fs/cgroup/system/bronze"
    folder.mkdir(parents=True)
    tree(tmp_path, proc__self__cgroup="0::/system/bronze\n")
    (folder / "memory.max").write_text("800000000\n")
    (folder / "cpu.max").write_text("25000 100000\n")
    (folder.parent / "cpu.max").write_text("50000 100000\n")
    (folder.parent / "memory.max").write_text("700000000\n")
    found = allowed(GB, tmp_path)
    assert (found.processors, found.memory) == (0.25, 700_000_000)
    assert allowed(600_000_000, tmp_path).memory == 600_000_000
    (folder / "cpu.max").write_text("max 100000\n")
    assert allowed(GB, tmp_path).processors == 0.5


def test_the_quota_of_a_cgroup_v1_counts(tmp_path: Path) -> None:
    """Also where the process's own group is mounted at the top, as in a container."""
    top = tmp_path / "sys/fs/cgroup"
    tree(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n2:pids:/x\n")
    for name in ("cpu,cpuacct", "memory"):
        (top / name).mkdir(parents=True)
    (top / "cpu,cpuacct/cpu.cfs_quota_us").write_text("25000\n")
    (top / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000\n")
    (top / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert allowed(GB, tmp_path).processors == 0.25
    (top / "memory/memory.limit_in_bytes").write_text("500000000\n")
    assert allowed(GB, tmp_path).memory == 500_000_000


def test_without_a_cgroup_affinity_and_config_count(tmp_path: Path) -> None:
    """A quota of -1 or "max" is none."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert allowed(GB, tmp_path).processors == own
    tree(tmp_path, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert allowed(GB, tmp_path).processors == own


def test_a_process_that_works_takes_more(tmp_path: Path) -> None:
    """Memory and disk are those of this process and of the lake's file system."""
    meter, settings = Meter(), config(lake={"root": str(tmp_path)})
    sum(number * number for number in range(300_000))
    found = meter.measure(settings)
    assert found.cpu > 0
    assert found.memory > 10**7
    assert found.memory_limit <= settings.run.memory
    assert found.disk_free
    assert found.disk_total
    assert found.disk_free <= found.disk_total
    assert meter.measure(config()).disk_free is None
