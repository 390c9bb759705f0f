"""Time: the wall clock for schedules, the monotonic one for durations, jumps between both, and work
that is repeated in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bronze.api.display.log_lines import LOG

JUMP = timedelta(seconds=60)
"""By how much the clocks have to differ from one look to the next to call it a jump."""

_AFTER_FAULT = 30.0


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """The clocks of the service: ``now`` is aware, ``monotonic`` in seconds."""

    now: Callable[[], datetime] = _utc
    monotonic: Callable[[], float] = time.monotonic


@dataclass
class JumpWatch:
    """Compares both clocks from one look to the next."""

    clock: Clock
    _last: tuple[datetime, float] | None = None

    def look(self) -> timedelta | None:
        """By how much the wall clock has jumped since the last look, None if it has not."""
        now, seconds = self.clock.now(), self.clock.monotonic()
        last, self._last = self._last, (now, seconds)
        if last is None:
            return None
        jump = (now - last[0]) - timedelta(seconds=seconds - last[1])
        return jump if abs(jump) > JUMP else None


@dataclass(eq=False)
class Routine:
    """Work that is done at once, then again and again, until it is stopped.

    ``work`` returns after how many seconds it is to be done again, None for never. ``done_at`` is
    when it was last done without a fault, by the monotonic clock; ``fault`` names the exception
    that the last attempt ended with, "" if it had none.
    """

    name: str
    work: Callable[[], float | None]
    done_at: float = 0.0
    fault: str = ""
    _busy_since: float | None = None
    _kicked: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def busy_for(self) -> float:
        """For how many seconds it has been doing its work, 0 while it rests."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Begins."""
        self._thread = threading.Thread(target=self._run, name=f"bronze {self.name}", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Has it done now."""
        self._kicked.set()

    def stop(self) -> None:
        """Has it not done again."""
        self._stopped.set()
        self._kicked.set()

    def join(self, seconds: float) -> bool:
        """Waits until it has ended; whether it has."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._kicked.clear()
            if self._stopped.is_set():
                return
            self._busy_since = time.monotonic()
            try:
                seconds = self.work()
                self.done_at, self.fault = time.monotonic(), ""
            except BaseException as error:
                # Nobody would see that the thread has ended. A panic of a library is no Exception.
                self.fault, seconds = type(error).__name__, _AFTER_FAULT
                LOG.error("fault", work=self.name, error=self.fault)
            self._busy_since = None
            if seconds is None:
                return
            self._kicked.wait(seconds)
