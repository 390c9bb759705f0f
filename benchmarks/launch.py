"""Runs a command and writes what it used to a file: ``python -I -S launch.py FILE COMMAND…``.

A process of its own with nothing but the standard library, because the peak that the kernel notes
for a process is at least the memory of the process that started it.
"""

import json
import os
import sys
import time
from pathlib import Path


def used_by(command: list[str]) -> dict[str, float | int | None]:
    """The exit code of a command, its seconds, most resident bytes, and written bytes."""
    began = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ)
    written = None
    if sys.platform == "linux":
        # The process has ended, but the kernel still has its figures.
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        counters = Path(f"/proc/{process}/io").read_text().split()
        written = int(counters[counters.index("wchar:") + 1])
    _, status, usage = os.wait4(process, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "wall": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "written": written,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(used_by(sys.argv[2:])))
