"""Tidying: while a stream goes on, the layout of its tables is improved beside it.

A thread of its own looks every few seconds at the tables that were written to, one at a time. Its
work runs where the stream's does, one task after another, so that both keep within the memory and
a batch waits for no more than one of them. Now and then it deletes old files and log entries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from types import TracebackType

from bronze.cdc import checkpoints
from bronze.cdc.apply import Following
from bronze.config.settings import Settings, TableSettings
from bronze.delta import log
from bronze.delta.layout import optimize, vacuum
from bronze.errors import BronzeError
from bronze.execution import executors
from bronze.maintenance import maintain
from bronze.model.locations import Place

_log = logging.getLogger(__name__)

_EVERY = 5.0
_EXPIRE_EVERY = 3600.0
_BOOK_EVERY = 300.0
_LAST_WAIT = 5.0
# Batches are gathered and landed beside it.
_SHARE = 4


class Tidy:
    """Improves tables in the background, for as long as the context lasts."""

    def __init__(self, settings: Settings, pool: Executor) -> None:
        """Works in ``pool``; does nothing where the config has [maintain] auto off."""
        self._settings, self._pool = settings, pool
        self._touched: dict[str, Following] = {}
        self._expired: dict[str, float] = {}
        self._improved: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bronze tidy", daemon=True)

    def __enter__(self) -> Tidy:
        if self._settings.maintain.auto:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            # What it has not committed by then is left for a later sweep.
            self._thread.join(_LAST_WAIT)

    def touched(self, followings: Sequence[Following]) -> None:
        """Tells which tables may have been written to."""
        with self._lock:
            self._touched |= {f.name: f for f in followings}

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY):
            with self._lock:
                todo: Mapping[str, Following] = dict(self._touched)
                self._touched.clear()
            for following in todo.values():
                if self._stopped.is_set():
                    return
                target = following.plan.target
                self._tidied(target.place, target.settings)
            # The record of each batch is a file there.
            self._tidied(checkpoints.place(self._settings), TableSettings(), _BOOK_EVERY)

    def _tidied(self, place: Place, own: TableSettings, every: float = 0) -> None:
        now = time.monotonic()
        if now - self._improved.setdefault(place.url, now - every) < every:
            return
        self._improved[place.url] = now
        name = place.url.rpartition("/")[2]
        try:
            self._improve(place, own, name)
            self._expire(place)
        except BronzeError as error:
            _log.warning("%s was not tidied: %s", name, error.message)
        except Exception as error:
            # At the end the pool is gone first. What else fails here is no matter of the stream.
            if not self._stopped.is_set():
                _log.warning("%s was not tidied: %s", name, type(error).__name__)

    def _improve(self, place: Place, own: TableSettings, name: str) -> None:
        wish = maintain.wished(self._settings, own)
        state = log.read(place)
        if state is not None and optimize.needed(state, wish):
            course = maintain.improvement(self._settings, place, wish, name, _SHARE)
            for _ in executors.drive(self._pool, [course], 1):
                pass

    def _expire(self, place: Place) -> None:
        now = time.monotonic()
        last = self._expired.setdefault(place.url, now)
        if now - last > _EXPIRE_EVERY:
            self._expired[place.url] = now
            vacuum.expire(place, self._settings.maintain.retention, (), time.time())
