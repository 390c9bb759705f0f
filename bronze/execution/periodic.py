"""Actions that a loop repeats now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Periodic:
    """An ``action`` that `poll` does when it was done ``every`` seconds ago or longer."""

    every: float
    action: Callable[[], None]
    done_at: float = field(default_factory=time.monotonic)

    def poll(self) -> None:
        """Does it if it is due."""
        if time.monotonic() - self.done_at > self.every:
            self.run()

    def run(self) -> None:
        """Does it now."""
        self.postpone()
        self.action()

    def postpone(self) -> None:
        """Counts the time anew."""
        self.done_at = time.monotonic()
