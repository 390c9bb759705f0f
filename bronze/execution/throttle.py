"""A limit of bytes per second."""

from __future__ import annotations

import threading
import time

from bronze import stopping

# A rate is kept over this time: a pause is made up for in it, no longer one.
_BURST_SECONDS = 0.5


class Throttle:
    """A limit of bytes per second for all threads together; 0 is none."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, size: int) -> None:
        """Waits until so many bytes may be sent.

        Raises:
            Stopped: the work is asked to stop meanwhile.
        """
        if not self._rate:
            stopping.check()
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._free_at, now - _BURST_SECONDS)
            self._free_at = begin + size / self._rate
            pause = self._free_at - now
        stopping.sleep(max(0.0, pause))
