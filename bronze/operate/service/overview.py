"""Reads the records of the lake, has the tables go on after their last runs, and makes the view
that the dashboard and the alerts are made from.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from bronze.api.display.log_lines import LOG
from bronze.errors import BronzeError
from bronze.governance import actor, run_log
from bronze.governance.tables.controls import ControlRecord
from bronze.governance.tables.runs import RunRecord
from bronze.operate import beat, controls
from bronze.operate.alerts.life import Alert
from bronze.operate.current import view_of
from bronze.operate.facts.outlook import Outlooks
from bronze.operate.facts.table_history import TableHistory
from bronze.operate.freshness import USUAL_RUNS
from bronze.operate.history import History
from bronze.operate.service.board import Board, Trouble
from bronze.operate.service.timing import Routine
from bronze.operate.service.watch import MAINTAIN, verify_name
from bronze.operate.tables import catalog, states
from bronze.operate.tables.guards import crashes, is_of_service
from bronze.operate.view import Live, View

_SEEN_EVERY = 1.0
_LONGEST = 5.0
_SHARE = 0.01
_READ_EVERY = 15.0
# Its own streams tell the service more than their checkpoints.
_STREAMS_EVERY = 300.0
# As often as streams record them.
_SCORES_EVERY = 60.0
_SOON = 0.1
_AGAIN = 5.0
_OTHER_LOOKS = 4.0
_DOUBLINGS = 30
_TOLD_FOR = timedelta(minutes=10)
_Runs = Mapping[str, Sequence[RunRecord]]


class Overview:
    """The history of the lake, and the view of now."""

    def __init__(self, board: Board) -> None:
        """Nothing is read yet."""
        self._board = board
        self.alerts: Callable[[], Iterable[Alert]] = lambda: ()
        self._settings = board.settings
        self._history = History(board.settings)
        self._outlooks = Outlooks()
        self._lock = threading.Lock()
        self._read_at = self._streams_read_at = self._scores_read_at = 0.0
        self.unseen_since: datetime | None = None
        """When the service before this one was last heard: nobody saw what was late since then."""
        self._other: Live | None = None
        self._stopped: Live | None = None
        self._crashed: Live | None = None
        self._last: Live | None = None
        self._view: View | None = None
        self.routine = Routine("records", self._look)

    @property
    def view(self) -> View:
        """What is so now, or was a moment ago."""
        # Before the first one: what remembers times belongs to the thread that makes them.
        return self._view or self._make_view(None, Outlooks())

    def runs(self, key: str) -> tuple[RunRecord, ...]:
        """The last runs of a table that are known, the newest first."""
        return self._history.runs(key)[::-1]

    def see_the_end(self) -> None:
        """Reads what the lake has now, and makes the last view, for ``--once``: of a process that
        tries nothing again.
        """
        self.routine.stop()
        self.routine.join(_LONGEST)
        board = self._board
        live = replace(board.live(), is_stopping=False, retries={})
        if board.unread:
            self._view = self._make_view(None, Outlooks(), live)
            return
        self._read()
        with self._lock:
            self._view = self._make_view(self._history, live=live)

    def _look(self) -> float | None:
        board = self._board
        if board.unread:
            pause = self._begin()
            if board.unread:
                self._view = self._make_view(None)
                return pause
        elif self._is_time_to_read():
            self._read()
        began = time.monotonic()
        with self._lock:
            self._know_tables()
            self._view = self._make_view(self._history)
        # With thousands of tables it is made less often, so that it takes little of a processor.
        return max(_SEEN_EVERY, min(_LONGEST, (time.monotonic() - began) / _SHARE))

    def _is_time_to_read(self) -> bool:
        """Whether this process has new records, or another one may have."""
        board = self._board
        is_time = time.monotonic() - self._read_at >= _READ_EVERY
        return (board.has_new_records or is_time) and not board.lake_error

    def _know_tables(self) -> None:
        """Has tables known by their records while the source has not been reached yet."""
        board = self._board
        with board.changed:
            for name in board.settings.source:
                if board.tables.get(name) is None and name in board.source_errors:
                    names = [(t.source, t.label) for t in self._history.tables.values()]
                    tables = catalog.recorded(board.settings, names)
                    board.tables[name] = tuple(t for t in tables if t.source == name)
                    board.touch()

    def _make_view(
        self, history: History | None, outlooks: Outlooks | None = None, live: Live | None = None
    ) -> View:
        board = self._board
        with board.changed:
            tables, records = board.all_tables(), list(board.controls)
            settings, now = board.settings, board.now
        live, outlooks = live or board.live(), outlooks or self._outlooks
        return view_of(settings, tables, history, live, records, self.alerts(), now, outlooks)

    def _read(self) -> None:
        self._read_at, self._board.has_new_records = time.monotonic(), False
        try:
            with self._lock:
                if self._settings is not self._board.settings:
                    self._settings = self._board.settings
                    self._history.use(self._settings)
                is_time = self._read_at - self._streams_read_at >= _STREAMS_EVERY
                self._history.refresh(streams=is_time)
                if not is_time and self._read_at - self._scores_read_at >= _SCORES_EVERY:
                    self._history.refresh_scores()
                    self._scores_read_at = self._read_at
                self._streams_read_at = self._read_at if is_time else self._streams_read_at
        except BronzeError as error:
            LOG.warning("records of runs cannot be read", error=error.message)

    def _begin(self) -> float:
        """Reads once what ran before, again and again until that succeeds."""
        board = self._board
        if not board.lake_seen:
            # A lake that does not exist yet is made by the first look at it.
            return _AGAIN if board.lake_error else _SOON
        try:
            is_alone = self._is_alone()
            if is_alone is None:
                return _OTHER_LOOKS
            with self._lock:
                self._history.refresh()
                self._record_left()
            records = controls.read(board.settings)
        except BronzeError as error:
            if not board.lake_error:
                LOG.warning("records of runs cannot be read", error=error.message)
            with board.changed:
                board.unread = f"what ran before cannot be read from the lake: {error.message}"
                board.touch()
            return _AGAIN
        self._begin_after(records, is_alone=is_alone)
        if is_alone and self._last:
            with board.changed:
                board.note_usage(self._last.usage)
        # Before anything begins: if this process dies, the next one knows.
        with suppress(BronzeError):
            beat.write(board.settings, board.live())
        with board.changed:
            board.unread = ""
            board.touch()
        self._read_at = self._streams_read_at = self._scores_read_at = time.monotonic()
        return _SEEN_EVERY

    def _record_left(self) -> None:
        """Records that what the service before this one left at its stop was stopped: it did not
        die in these runs.
        """
        last, tables = self._stopped, self._history.tables
        left = [
            record
            for key, running in (last.running if last else {}).items()
            if key in tables and running.command == "run"
            for record in tables[key].open
            if is_of_service(record) and record.began >= running.began
        ]
        if last and left:
            run_log.record_left(self._board.settings, left, last.at)
            self._history.refresh()

    def _begin_after(self, records: list[ControlRecord], *, is_alone: bool) -> None:
        """Has the tables go on after their last runs; nothing begins until that is done."""
        board = self._board
        # Beyond so many failures in a row a table rests as long as it ever does.
        most = max(USUAL_RUNS, board.settings.breaker.threshold + _DOUBLINGS)
        with self._lock:
            known, chores = self._history.tables, self._history.chores
            unsteady = self._history.unsteady_runs(most)
        first = min((table.first for table in known.values()), default=None)
        with board.changed:
            board.controls = records
            died = self._begin_tables(known, unsteady, is_alone=is_alone)
            if self._crashed:
                self._tell_crash(self._crashed, died)
            begun = {MAINTAIN: chores.get(("maintain", ""))}
            begun |= {
                verify_name(name): chores.get(("verify", name)) for name in board.settings.source
            }
            for name, begun_for in begun.items():
                board.states[name] = states.chore_state(begun_for, first, board.now)

    def _begin_tables(
        self, known: Mapping[str, TableHistory], unsteady: _Runs, *, is_alone: bool
    ) -> list[str]:
        """Has tables go on after their last runs; those in whose last run the process died."""
        board, now = self._board, self._board.now
        names = [(table.source, table.label) for table in known.values()]
        asked = board.requests(catalog.recorded(board.settings, names))
        resets = {key: request.reset for key, request in asked.items() if request.reset}
        # What has only begun may be another service's, and go on.
        unsteady = {
            key: [
                run
                for run in runs
                if (is_alone or run.status != "began")
                and (key not in resets or run.began > resets[key])
            ]
            for key, runs in unsteady.items()
        }
        board.guards.rebuild(unsteady)
        died = {key: len(crashes(runs)) for key, runs in unsteady.items()}
        for key, table in known.items():
            own = table if is_alone else replace(table, open=())
            board.states[key] = states.state_of(own, resets.get(key), died.get(key, 0), now)
        return [key for key, times in died.items() if times]

    def _is_alone(self) -> bool | None:
        """Whether no other service has this lake; None while that is not known.

        What the last service wrote is read. If it has not ended, but does not write any more, its
        process has died.
        """
        board, now = self._board, self._board.now
        last = self._last = beat.read(board.settings)
        self.unseen_since = last.at if last and last.service != board.service else None
        self._stopped = last if last and last.is_stopping else None
        if last is None or last.is_stopping or last.service == board.service:
            return True
        if _is_alive_here(last) and now - last.at < 2 * beat.ALIVE:
            self._warn_of(last)
            return False
        if last.host != actor.host() and now - last.at < beat.ALIVE:
            if self._other and self._other.service == last.service and self._other.at != last.at:
                self._warn_of(last)
                return False
            self._other = self._other or last
            return None
        self._crashed = last
        return True

    def _tell_crash(self, last: Live, in_flight: Sequence[str]) -> None:
        """Notes that the service before this one has died; under the lock."""
        tables = ", ".join(sorted(in_flight))
        text = f"The service on {last.host} ended without a stop after {last.at:%H:%M:%S} UTC"
        text += f", while these tables ran: {tables}." if tables else "."
        LOG.error("process crashed", host=last.host, at=last.at.isoformat(), tables=tables)
        until = self._board.now + _TOLD_FOR
        self._board.troubles["process_crashed"] = Trouble(last.at, until, text)

    def _warn_of(self, other: Live) -> None:
        LOG.warning(
            "another service works for this lake: each table may be read twice",
            host=other.host,
            pid=other.pid,
        )


def _is_alive_here(other: Live) -> bool:
    """Whether the process of another service lives on this machine."""
    if other.host != actor.host() or other.pid == os.getpid():
        return False
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
