"""How the C library keeps memory that was freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A large piece that was freed makes glibc keep others of its size; small ones between them hold
# them where they are.
FREED = """
import re
from pathlib import Path
from bronze.execution import allocator
if {early}:
    allocator.return_memory_early()
del (first := [b"x" * 9_000_000])[:]
pieces, small = [], []
for _ in range(40):
    pieces.append(b"x" * 4_000_000)
    small.append(b"y" * 100_000)
pieces.clear()
print(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory")
def test_freed_memory_is_returned_at_once() -> None:
    """Of 160 MB in large pieces nothing is kept; without it nearly all of it is."""
    kept = [
        int(subprocess.check_output([sys.executable, "-c", FREED.format(early=early)]))
        for early in (False, True)
    ]
    assert kept[0] > 150
    assert kept[1] < 40
