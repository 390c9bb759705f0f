"""Places at which the process can be killed on purpose, to prove that it may die anywhere.

``BRONZE_FAILPOINT=name`` kills it with SIGKILL when it first comes there, ``name:3`` the third
time. Without the variable a failpoint does nothing.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "slotted",
    "planned",
    "file",
    "read",
    "booked",
    "netted",
    "merged",
    "inserted",
    "commit",
    "committed",
    "landed",
    "cleaned",
    "remembered",
    "recorded",
    "rewritten",
    "expiring",
    "expired",
)
"""Their names, in the order in which a run and the maintenance after it come by them."""

_WANTED, _, _TIMES = os.environ.get("BRONZE_FAILPOINT", "").partition(":")
_left = {_WANTED: int(_TIMES or 1)} if _WANTED else {}


def reach(name: str) -> None:
    """Comes by the failpoint ``name``."""
    if name in _left:
        _left[name] -= 1
        if not _left[name]:
            os.kill(os.getpid(), signal.SIGKILL)
