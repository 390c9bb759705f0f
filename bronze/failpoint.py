"""Failpoints: places at which tests kill the process, to show that it may die anywhere.

``BRONZE_FAILPOINT=name`` kills it with SIGKILL when it reaches the failpoint for the first time,
``name:3`` for the third time. Without the variable a failpoint does nothing.
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
"""Their names, in the order in which a run and the maintenance after it reach them."""

ALERT_POINTS = ("alerted", "sending", "answered")
"""Those of alerts: when they are stored, before a message is sent, before it is stored as sent."""

BACKUP_POINTS = ("copying", "copied", "listed", "sealing", "sealed", "purging", "purged")
"""Those of a backup: around each object, each list of objects, the manifest, an erasure."""

RESTORE_POINTS = ("marked", "restored")
"""Those of a restore: when the root is marked, and after each object."""

_NAME, _, _COUNT = os.environ.get("BRONZE_FAILPOINT", "").partition(":")
_remaining = {_NAME: int(_COUNT or 1)} if _NAME else {}


def reach(name: str) -> None:
    """Kills the process if the failpoint ``name`` is set and was reached often enough."""
    if name in _remaining:
        _remaining[name] -= 1
        if not _remaining[name]:
            os.kill(os.getpid(), signal.SIGKILL)
