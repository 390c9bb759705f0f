"""Memory against machine and cgroups, and versions against what bronze needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bronze.operate.doctor.machine_checks import (
    Memory,
    machine_memory,
    memory_verdict,
    versions_verdict,
)

GB = 10**9


@pytest.mark.parametrize(
    ("memory", "state", "words"),
    [
        (Memory(8 * GB, 6 * GB), "ok", "the machine has 8.0 GB, 6.0 GB of it free now"),
        (Memory(8 * GB, 6 * GB, 4 * GB, 3 * GB), "ok", "the cgroup (container) has 4.0 GB"),
        (Memory(8 * GB, 6 * GB, GB // 2, GB // 4), "problem", "the cgroup (container) has 500 MB"),
        (Memory(GB // 2), "problem", "[run] memory is 1.0 GB, and the machine has 500 MB"),
        (Memory(8 * GB, 6 * GB, GB + GB // 10, GB), "warning", "files that the libraries map"),
        (Memory(8 * GB, GB // 10), "warning", "only 100 MB are free now"),
        (Memory(), "unknown", "cannot be found out"),
    ],
)
def test_the_memory_of_the_config_has_to_fit_the_least_limit(
    memory: Memory, state: str, words: str
) -> None:
    """What would be killed is a problem; what has little room is a warning."""
    verdict = memory_verdict(GB, memory)
    assert (verdict.state, words in verdict.message) == (state, True), verdict


def test_the_limits_of_all_cgroups_count(tmp_path: Path) -> None:
    """Of version 2 and 1, from the process' own group up; without a limit none counts."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    (cgroup / "a/b").mkdir(parents=True)
    (cgroup / "a/b/memory.max").write_text("max\n")
    assert machine_memory(proc, cgroup) == Memory(8_192_000_000, 4_096_000_000)
    (cgroup / "a/memory.max").write_text("2000\n")
    (cgroup / "a/memory.current").write_text("500\n")
    assert machine_memory(proc, cgroup) == Memory(8_192_000_000, 4_096_000_000, 2000, 1500)
    (proc / "self/cgroup").write_text("5:cpu,memory:/c\n")
    (cgroup / "memory/c").mkdir(parents=True)
    (cgroup / "memory/c/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert machine_memory(proc, cgroup).group is None
    (cgroup / "memory/memory.limit_in_bytes").write_text("3000\n")
    (cgroup / "memory/memory.usage_in_bytes").write_text("1000\n")
    assert machine_memory(proc, cgroup).group_free == 2000
    assert machine_memory(tmp_path / "none", cgroup).total is not None


def test_libraries_that_are_too_old_or_missing_are_named() -> None:
    """Extras do not count, whatever version they have."""
    fine = ["deltalake>=1.0", "psycopg[binary]>=3.3", 'pytest>=999; extra == "test"']
    assert versions_verdict(fine).state == "ok"
    verdict = versions_verdict(["deltalake>=1000.1", "no-such-library>=2"])
    assert verdict.state == "problem"
    assert "older than 1000.1" in verdict.message
    assert "no-such-library is missing" in verdict.message
