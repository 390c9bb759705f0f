"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

# The names of glibc's `mallopt`, and what they are set to, in bytes but for the number of arenas.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS = ((_MMAP_THRESHOLD, 10**6), (_TRIM_THRESHOLD, 10**6), (_ARENA_MAX, 2))


def return_memory_early() -> None:
    """Has freed memory of a megabyte or more returned to the operating system at once.

    glibc keeps it otherwise: for each thread, and more of it the larger the freed pieces were. A
    process in which many works follow each other took 200 MB more after some minutes; so, a work
    takes up to a tenth more time. Other C libraries return such memory by themselves.
    """
    if mallopt := _c_function("mallopt"):
        for name, value in _SETTINGS:
            mallopt(name, value)


def return_free_memory() -> None:
    """Returns the freed pieces of any size that glibc keeps, where they fill whole pages."""
    if malloc_trim := _c_function("malloc_trim"):
        malloc_trim(0)


def _c_function(name: str) -> Callable[..., int] | None:
    """A function of glibc, None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
