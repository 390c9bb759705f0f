"""Maintenance in the background: while a stream goes on, its tables are optimized and vacuumed.

A thread of its own looks every few seconds at the tables that were written to, one at a time. Its
work runs where the stream's does, one task after another, so that both keep within the memory and
a batch waits for no more than one of them. Now and then it deletes old files and log entries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from types import TracebackType

from bronze.config.settings import Settings
from bronze.config.tables import TableSettings
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


class BackgroundMaintenance:
    """Improves tables in the background, for as long as the context lasts."""

    def __init__(self, settings: Settings, pool: Executor, checkpoints: Place) -> None:
        """Works in ``pool``; does nothing where the config has [maintain] auto off.

        Args:
            settings: the config.
            pool: where the stream's own tasks run.
            checkpoints: the table to which each batch adds a file.
        """
        self._settings, self._pool, self._checkpoints = settings, pool, checkpoints
        self._touched: dict[Place, TableSettings] = {}
        self._expired: dict[str, float] = {}
        self._improved: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bronze maintenance", daemon=True)

    def __enter__(self) -> BackgroundMaintenance:
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

    def touched(self, tables: Mapping[Place, TableSettings]) -> None:
        """Takes note of tables that may have been written to."""
        with self._lock:
            self._touched |= tables

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY):
            with self._lock:
                tables = dict(self._touched)
                self._touched.clear()
            for place, own in tables.items():
                if self._stopped.is_set():
                    return
                self._maintain(place, own)
            self._maintain(self._checkpoints, TableSettings(), _BOOK_EVERY)

    def _maintain(self, place: Place, own: TableSettings, every: float = 0) -> None:
        now = time.monotonic()
        if now - self._improved.setdefault(place.url, now - every) < every:
            return
        self._improved[place.url] = now
        name = place.url.rpartition("/")[2]
        try:
            self._improve(place, own, name)
            self._expire(place)
        except BronzeError as error:
            _log.warning("%s was not maintained: %s", name, error.message)
        except Exception as error:
            # At the end the pool is gone first. What else fails here is no matter of the stream.
            if not self._stopped.is_set():
                _log.warning("%s was not maintained: %s", name, type(error).__name__)

    def _improve(self, place: Place, own: TableSettings, name: str) -> None:
        wish = maintain.layout_wish(self._settings, own)
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
