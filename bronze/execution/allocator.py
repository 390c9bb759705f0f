"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
import sys

# The names of glibc's `mallopt`, and what they are set to, in bytes but for the number of arenas.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS = ((_MMAP_THRESHOLD, 10**6), (_TRIM_THRESHOLD, 10**6), (_ARENA_MAX, 2))


def return_memory_early() -> None:
    """Has freed memory of a megabyte or more returned to the operating system at once.

    glibc keeps it otherwise: for each thread, and more of it the larger the freed pieces were. A
    process in which many works follow each other took 200 MB more after some minutes; so, a work
    takes up to a tenth more time. Other C libraries return such memory by themselves.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for name, value in _SETTINGS if mallopt else ():
            mallopt(name, value)
