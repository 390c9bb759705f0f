"""Copies of the lake while the service runs: each [backup] every, in a thread of its own.

A copy takes none of the shares of runs and streams: its memory is set aside
(`bronze.execution.budget.COPY`). If one fails, the next one continues it.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from bronze.api.display.log_lines import LOG
from bronze.backup import copy
from bronze.backup.results import BackupResult
from bronze.config.settings import Settings
from bronze.errors import BronzeError, Stopped
from bronze.operate.service.board import Board, Trouble
from bronze.operate.service.timing import Routine

_KIND = "backup_failed"
# How soon a service without [backup] looks whether the config has one now; and one whose lake
# cannot be read yet, or whose last copy failed.
_LOOK = 30.0
_AGAIN = 60.0
_TOLD_FOR = timedelta(minutes=10)


class Copying:
    """Makes copies for a board; `routine` is what runs."""

    def __init__(self, board: Board) -> None:
        """Copies for a board; ``routine.start`` begins them."""
        self._board = board
        self._stop = threading.Event()
        self.routine = Routine("copy", self._copy)

    def stop(self) -> None:
        """Ends a copy that goes on, and makes no other."""
        self._stop.set()
        self.routine.stop()

    def _copy(self) -> float | None:
        board = self._board
        with board.changed:
            settings, is_unread = board.settings, bool(board.unread or board.lake_error)
        if not settings.backup.root or is_unread:
            return _LOOK if not settings.backup.root else 1.0
        began = time.monotonic()
        if not self.copy_now(settings):
            return min(_AGAIN, settings.backup.every)
        return max(0.0, settings.backup.every - (time.monotonic() - began))

    def copy_now(self, settings: Settings) -> bool:
        """Makes a copy; whether all of the lake is in it."""
        try:
            done = copy.back_up(settings, stop=self._stop)
        except Stopped:
            return True
        except BronzeError as error:
            LOG.error("copy failed", error=error.message)
            self._tell(settings, f"The lake cannot be copied: {error.message}")
            return False
        LOG.info(
            "copied", generation=done.generation, objects=done.objects, bytes=done.bytes,
            seconds=round(done.seconds, 1),
        )  # fmt: skip
        if fault := _fault(done):
            LOG.error("copy is not complete", error=fault)
            self._tell(settings, fault)
            return False
        with self._board.changed:
            self._board.troubles.pop(_KIND, None)
        return True

    def _tell(self, settings: Settings, text: str) -> None:
        """Has people told, until the next copies are whole."""
        board = self._board
        with board.changed:
            known, now = board.troubles.get(_KIND), board.now
            until = now + 2 * timedelta(seconds=settings.backup.every) + _TOLD_FOR
            board.troubles[_KIND] = Trouble(known.since if known else now, until, text)


def _fault(done: BackupResult) -> str:
    """What a copy lacks, as a sentence."""
    for table in done.tables:
        if table.error:
            return f"Table {table.target} cannot be copied: {table.error.message}"
    # An erasure that waits for the end of a lock is no fault.
    waiting = [erasure for erasure in done.erasures if "locked until" not in erasure.reason]
    if waiting:
        return f"An erasure of {waiting[0].table} has not reached the copy: {waiting[0].reason}."
    return ""
