"""Stores alerts in a thread of its own: a lake that hangs keeps no message from being sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.operate.alerts import store
from bronze.operate.alerts.life import Alert, Key


class Storage:
    """Reads the stored alerts once, then stores those that it is given, trying again until it can.

    Attributes:
        error: why the last attempt failed, "" if it did not.
    """

    def __init__(
        self, settings: Settings, loaded: Callable[[Mapping[Key, Alert]], None], pause: float
    ) -> None:
        """Storage in the lake of a config.

        Args:
            settings: the config.
            loaded: gets the stored alerts, in the thread of the storage.
            pause: the seconds after an attempt that failed.
        """
        self._settings, self._loaded, self._pause = settings, loaded, pause
        self.error = ""
        # Where there is no table, the lake may be new, or away: then there is one later.
        self._has_table = False
        self._is_loaded = self._busy = self._stopping = False
        self._pending: dict[Key, Alert] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="bronze-alerts", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def put(self, alerts: Mapping[Key, Alert]) -> None:
        """Has alerts stored."""
        with self._changed:
            self._pending.update(alerts)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Waits until all is stored, or cannot be; whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle or self.error, seconds)
            return self._is_idle

    def stop(self, seconds: float) -> bool:
        """Stores what is left, if that takes no longer than this; whether all is stored."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(max(0.0, seconds))
        return self._is_idle

    @property
    def _is_idle(self) -> bool:
        return self._is_loaded and not self._pending and not self._busy

    def _run(self) -> None:
        while self._wait_for_work():
            self._work()

    def _wait_for_work(self) -> bool:
        with self._changed:
            if self.error:
                self._changed.wait_for(lambda: self._stopping, self._pause)
            self._changed.wait_for(lambda: not self._is_idle or self._stopping)
            # At the end there is one more attempt, unless the last one failed.
            return not self._stopping or (self._is_loaded and not self._is_idle and not self.error)

    def _work(self) -> None:
        with self._changed:
            batch, self._pending = (self._pending, {}) if self._is_loaded else ({}, self._pending)
            self._busy = True
        error = ""
        try:
            if not self._has_table:
                self._load()
            if batch:
                store.append(self._settings, batch.values(), create=not self._has_table)
                self._has_table = True
        except BronzeError as failure:
            error = failure.message
        except BaseException as fault:
            # Neither a fault of ours nor a panic of a library, which is no Exception, must end the
            # thread: nothing would be stored any more.
            error = f"{type(fault).__name__} inside bronze"
        with self._changed:
            if error:
                self._pending = {**batch, **self._pending}
            self.error, self._busy = error, False
            self._changed.notify_all()

    def _load(self) -> None:
        stored = store.load(self._settings)
        if stored is not None:
            self._loaded(stored)
            self._has_table = True
        self._is_loaded = True
