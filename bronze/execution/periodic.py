"""Actions that a loop repeats after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Periodic:
    """An ``action`` that `poll` runs if its last run was ``every`` seconds ago or longer."""

    every: float
    action: Callable[[], None]
    done_at: float = field(default_factory=time.monotonic)

    def poll(self) -> None:
        """Runs the action if it is due."""
        if time.monotonic() - self.done_at > self.every:
            self.run()

    def run(self) -> None:
        """Runs the action now."""
        self.postpone()
        self.action()

    def postpone(self) -> None:
        """Restarts the time."""
        self.done_at = time.monotonic()
