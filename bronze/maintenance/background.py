"""Maintenance in the background: optimizes and vacuums the tables of a running stream.

A thread checks the tables that were written to every few seconds, one at a time. Its tasks run in
the stream's executor, one after another: so both stay within the memory, and a batch waits for at
most one task. So that it does not wait long, only files that are small together are rewritten; once
an hour larger ones too, and old files and log entries are deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout import optimize, vacuum
from bronze.errors import BronzeError
from bronze.execution import executors
from bronze.governance.tables import streams
from bronze.maintenance import expiry, maintain
from bronze.model.locations import Place

_log = logging.getLogger(__name__)

_INTERVAL = 5.0
_LARGE_INTERVAL = 3600.0
# The most bytes of Parquet that are rewritten at once, and once an hour; then at least so many
# times the size that files should have.
_SMALL_REWRITE = 32 * 2**20
_LARGE_REWRITE = 256 * 2**20
_LARGE_FILES = 2
_CHECKPOINTS_INTERVAL = 300.0
_LAST_WAIT = 5.0
# The share of the memory: batches are received and applied at the same time.
_SHARE = 4


class BackgroundMaintenance:
    """Maintains tables in a thread, for the time of the context."""

    def __init__(self, settings: Settings, pool: Executor, checkpoints: Place) -> None:
        """Does nothing if the config has [maintain] auto off.

        Args:
            settings: the config.
            pool: the executor of the stream.
            checkpoints: the table of the checkpoints, to which each batch adds a file.
        """
        self._settings, self._pool, self._checkpoints = settings, pool, checkpoints
        self._written: dict[Place, TableSettings] = {}
        self._large_at: dict[str, float] = {}
        self._maintained_at: dict[str, float] = {}
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
            # Files that it has not committed by then are deleted by a later vacuum.
            self._thread.join(_LAST_WAIT)

    def add(self, tables: Mapping[Place, TableSettings]) -> None:
        """Adds tables that may have been written to."""
        with self._lock:
            self._written |= tables

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            with self._lock:
                tables = dict(self._written)
                self._written.clear()
            for place, table_settings in tables.items():
                if self._stopped.is_set():
                    return
                self._maintain(place, table_settings)
            self._maintain(self._checkpoints, TableSettings(), _CHECKPOINTS_INTERVAL)

    def _maintain(self, place: Place, table_settings: TableSettings, interval: float = 0) -> None:
        now = time.monotonic()
        if now - self._maintained_at.setdefault(place.url, now - interval) < interval:
            return
        self._maintained_at[place.url] = now
        name = place.url.rpartition("/")[2]
        is_large = now - self._large_at.setdefault(place.url, now) > _LARGE_INTERVAL
        if is_large:
            self._large_at[place.url] = now
        try:
            self._optimize(place, table_settings, name, is_large)
            if is_large:
                self._vacuum(place)
        except BronzeError as error:
            _log.warning("%s was not maintained: %s", name, error.message)
        except Exception as error:
            # The pool ends before this thread. Other errors here do not concern the stream.
            if not self._stopped.is_set():
                _log.warning("%s was not maintained: %s", name, type(error).__name__)

    def _optimize(
        self, place: Place, table_settings: TableSettings, name: str, is_large: bool
    ) -> None:
        wish = maintain.layout_wish(self._settings, table_settings, (name,))
        large = max(_LARGE_REWRITE, _LARGE_FILES * wish.target)
        wish = replace(wish, budget=large if is_large else _SMALL_REWRITE)
        state = log.read(place)
        if state is not None and optimize.is_needed(state, wish):
            workflow = maintain.optimize_table(self._settings, place, wish, name, _SHARE)
            for _ in executors.drive(self._pool, [workflow], 1):
                pass

    def _vacuum(self, place: Place) -> None:
        if place == self._checkpoints:
            history = self._settings.maintain.history
            expiry.expire_records(place, streams.NAME, history, datetime.now(UTC))
        vacuum.expire(place, self._settings.maintain.retention, (), time.time())
