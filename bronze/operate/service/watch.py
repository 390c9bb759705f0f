"""What the service looks at again and again, each in a thread of its own: sources, lake, requests.

A source is listed each half minute. In between, one whose stream does not hear it is connected to
every few seconds, so that it is soon known to be away. After a failure it is listed every few
seconds until its breaker opens, and then after each rest.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from functools import partial

from bronze.api.display.log_lines import LOG
from bronze.backup.recovery import drill
from bronze.config.settings import Settings
from bronze.delta.log import State
from bronze.delta.storage import lake_folder
from bronze.errors import BronzeError, ConfigError
from bronze.governance.escrow import heads
from bronze.model.results import Failure
from bronze.operate import beat, controls
from bronze.operate.alerts import deadline
from bronze.operate.alerts.life import Key
from bronze.operate.breaker import Outcome
from bronze.operate.conditions import SERVICE
from bronze.operate.doctor import trust
from bronze.operate.service.board import Board
from bronze.operate.service.timing import Routine
from bronze.operate.tables import catalog, probes, requests
from bronze.operate.tables.guards import LAKE, source_subject, table_subject
from bronze.operate.view import DrillFacts, LakeSlow

_LISTED_EVERY = 30.0
_PROBED_EVERY = 5.0
_HEARD_WITHIN = timedelta(seconds=5)
_AGAIN = 5.0
# The seconds of a request to the lake.
_SLOW = 1.0
_BEAT_EVERY = 15.0
_SOON = 1.0
_CONTROLS_EVERY = 5.0
_OTHER_LOOKS = 4.0
_TOLD_FOR = timedelta(minutes=10)
_EXAMINED_EVERY = 60.0
_EXAMINED_AGAIN = 3.0
_EXAMINED_WITHIN = 30.0
_SHARE = 0.01
_ESCROWED_EVERY = 1800.0
_ESCROWED_AGAIN = 60.0


class Watch:
    """The routines that look at sources and at the lake."""

    def __init__(self, board: Board) -> None:
        """Routines for a board; `start` begins them."""
        self._board = board
        self._requests: State | None = None
        self.lake = Routine("lake", self._look_at_lake)
        self.controls = Routine("controls", self._read_controls)
        self.trust = Routine("trust", self._examine)
        self.escrow = Routine("escrow", self._put_into_escrow)
        self._escrow_fault = ""
        self._suspected: set[Key] = set()
        self._is_examined = False
        self.sources: dict[str, Routine] = {}
        self._probes: dict[str, Routine] = {}

    @property
    def routines(self) -> list[Routine]:
        """All that run."""
        sources = (*self.sources.values(), *self._probes.values())
        return [self.lake, self.controls, self.trust, self.escrow, *sources]

    def start(self) -> None:
        """Begins to look."""
        self.lake.start()
        self.controls.start()
        self.trust.start()
        self.escrow.start()
        self.follow_sources(self._board.settings)

    def follow_sources(self, settings: Settings) -> None:
        """Looks at the sources that a config has, and at no other."""
        for name in [name for name in self.sources if name not in settings.source]:
            self.sources.pop(name).stop()
            self._probes.pop(name).stop()
            with self._board.changed:
                self._board.tables.pop(name, None)
                self._board.source_errors.pop(name, None)
        for name in settings.source:
            if name not in self.sources:
                with self._board.changed:
                    self._board.tables.setdefault(name, None)
                look = partial(self._look_at_source, name)
                self.sources[name] = Routine(f"source {name}", look)
                self.sources[name].start()
                self._probes[name] = Routine(f"probe {name}", partial(self._probe_source, name))
                self._probes[name].start()

    def finish(self) -> bool:
        """Looks at what makes the lake untrustworthy, unless that was done: for ``--once``, at its
        end. Whether all of it is known, within 30 s.
        """
        for routine in (self.trust, self.escrow):
            routine.stop()
        work = deadline.start(self._examine_to_the_end, "bronze-trust")
        with suppress(TimeoutError):
            if fault := work.exception(_EXAMINED_WITHIN):
                LOG.error("fault", work=self.trust.name, error=type(fault).__name__)
        return self._is_examined

    # Sources

    def _look_at_source(self, name: str) -> float | None:
        board, subject = self._board, source_subject(name)
        with board.changed:
            settings, began = board.settings, board.now
            known = board.guards.of(subject)
            if known.until and began < known.until:
                return min(_LISTED_EVERY, (known.until - began).total_seconds())
            board.guards.begin(subject, began)
        tables, failure, mistake = None, None, ""
        try:
            tables = catalog.listed(settings, name)
        except ConfigError as error:
            mistake = f"{error.message} {error.hint}".strip()
        except BronzeError as error:
            failure = error.failure()
        with board.changed:
            if name not in board.settings.source or board.settings is not settings:
                board.guards.give_up(subject)
                return 0.0
            self._note_source(name, tables, failure, mistake)
            board.guards.end(subject, Outcome(began, board.now, failure is not None))
            board.touch()
            return _AGAIN if failure or mistake else _LISTED_EVERY

    def _probe_source(self, name: str) -> float | None:
        """Has a source listed at once if it cannot be connected to: the listing notes the error."""
        board = self._board
        with board.changed:
            settings, stream, now = board.settings, board.streams.get(name), board.now
            is_heard = bool(
                stream
                and not stream.has_ended
                and stream.facts.heard
                and now - stream.facts.heard < _HEARD_WITHIN
            )
            # Until it was listed, and while it is away, the listing is what looks.
            is_listed = board.tables.get(name) is not None and name not in board.source_errors
        if is_listed and not is_heard and name in settings.source:
            failure = probes.source_failure(settings, name)
            routine = self.sources.get(name)
            # Without a free connection nothing is known of the source.
            if failure and routine and failure.kind != "SourceBusy":
                routine.kick()
        return _PROBED_EVERY

    def _note_source(
        self,
        name: str,
        tables: tuple[catalog.ServedTable, ...] | None,
        failure: Failure | None,
        mistake: str,
    ) -> None:
        board = self._board
        before = board.source_errors.get(name)
        error = failure or (Failure("ConfigError", mistake, "") if mistake else None)
        if error is not None:
            board.source_errors[name] = error
            if before is None or before.message != error.message:
                LOG.error("source cannot be read", source=name, error=error.message)
            return
        if board.source_errors.pop(name, None):
            LOG.info("source is back", source=name)
        known = {table.key for table in board.tables.get(name) or ()}
        listed = {table.key for table in tables or ()}
        if board.tables.get(name) is not None:
            for key in sorted(listed - known):
                LOG.info("table is new", table=key)
            for key in sorted(known - listed):
                LOG.warning("table is gone from the source", table=key)
        board.tables[name] = tables
        self._note_missing()

    def _note_missing(self) -> None:
        """Notes tables that the config has a section for, and no source has."""
        board = self._board
        if any(tables is None for tables in board.tables.values()) or board.source_errors:
            return
        known = {name for table in board.all_tables() for name in table.names}
        missing = [name for name in board.settings.tables if name not in known]
        for name in missing:
            if name not in board.missing:
                LOG.warning("the config has a table that no source has", table=name)
        now = board.now
        board.missing = {name: board.missing.get(name, now) for name in missing}

    # The lake

    def _look_at_lake(self) -> float | None:
        board = self._board
        with board.changed:
            settings, began, seen = board.settings, board.now, board.lake_seen
            known = board.guards.of(LAKE)
            if known.until and began < known.until:
                return min(_BEAT_EVERY, (known.until - began).total_seconds())
            board.guards.begin(LAKE, began)
        started = time.monotonic()
        failure = probes.lake_failure(settings, has_been=seen)
        seconds = (time.monotonic() - started) / probes.LAKE_REQUESTS
        if failure is None and not board.unread:
            failure = self.write_beat()
        with board.changed:
            message = failure.message if failure else ""
            if message and not board.lake_error:
                LOG.error("lake cannot be written", error=message)
            elif board.lake_error and not message:
                LOG.info("lake is back")
            board.lake_error = message
            self._note_slowness(None if failure else seconds)
            if failure is None and not board.lake_seen:
                board.lake_seen = True
                lake_folder.expect(settings.place("", ""))
            board.guards.end(LAKE, Outcome(began, board.now, failure is not None))
            board.touch()
            # The first beat comes as soon as it is known what ran before.
            if failure or board.lake_slow:
                return _AGAIN
            return _SOON if board.unread else _BEAT_EVERY

    def _note_slowness(self, seconds: float | None) -> None:
        """Notes in how many seconds the lake answers a request, None if it does not."""
        board = self._board
        before = board.lake_slow
        if seconds is None or seconds < _SLOW:
            if before and seconds is not None:
                LOG.info("lake is quick again", seconds=round(seconds, 2))
            board.lake_slow = None
            return
        if before is None:
            LOG.warning("lake is slow", seconds=round(seconds, 2))
        board.lake_slow = LakeSlow(before.since if before else board.now, seconds)

    def write_beat(self) -> Failure | None:
        """Writes what the service knows into the lake; why that is not possible."""
        try:
            beat.write(self._board.settings, self._board.live())
        except BronzeError as error:
            return error.failure()
        return None

    # What makes the lake untrustworthy

    def _examine(self) -> float | None:
        """Looks for it. What is found is wrong if it is found again a moment later: another process
        may be writing just now.
        """
        board, began = self._board, time.monotonic()
        with board.changed:
            settings, now = board.settings, board.now
            if board.unread or board.lake_error:
                return _EXAMINED_AGAIN
            sources = [name for name in settings.source if name not in board.source_errors]
        # What cannot be looked at now stays as it was.
        seen, found = set[str](), dict[Key, str]()
        if self._escrow_fault:
            found["audit_broken", SERVICE] = self._escrow_fault
        with suppress(BronzeError):
            found.update(self._drill_faults(settings))
            seen |= {SERVICE}
        try:
            found.update(trust.lake_faults(settings))
        except BronzeError:
            seen.clear()
        for name in sources:
            with suppress(BronzeError):
                found.update(trust.source_faults(settings, name))
                seen |= {name}
        with board.changed:
            if board.settings is not settings:
                return 0.0
            known = board.faults
            stays = {k: v for k, v in known.items() if k in found or not _is_of(k, seen)}
            new = [key for key in found if key in self._suspected and key not in known]
            board.faults = {**stays, **{key: (now, found[key]) for key in new}}
            self._suspected = set(found)
            is_sure = found.keys() <= board.faults.keys()
            self._is_examined = is_sure and seen >= {SERVICE, *settings.source}
        if not is_sure:
            return _EXAMINED_AGAIN
        return max(_EXAMINED_EVERY, (time.monotonic() - began) / _SHARE)

    def _examine_to_the_end(self) -> bool:
        for routine in (self.trust, self.escrow):
            routine.join(_EXAMINED_WITHIN)
        if not self._is_examined:
            self._put_into_escrow()
            if self._examine() == _EXAMINED_AGAIN:
                time.sleep(_EXAMINED_AGAIN)
                self._examine()
        return self._is_examined

    def _drill_faults(self, settings: Settings) -> dict[Key, str]:
        """Whether the last drill of a recovery has failed; notes its figures."""
        last = drill.last(settings)
        if last is None:
            return {}
        passed = last.result == "passed"
        figures = DrillFacts(last.ended, passed, last.recovery_seconds, last.lost_seconds)
        with self._board.changed:
            self._board.drill = figures
        if passed:
            return {}
        text = f"The last drill, {last.ended:%Y-%m-%d %H:%M} UTC, has not passed: {last.message}"
        return {("drill_failed", SERVICE): text}

    def _put_into_escrow(self) -> float | None:
        """Puts the end of the audit log into escrow, also if nothing was recorded for a while."""
        board = self._board
        with board.changed:
            settings = board.settings
            if board.unread or board.lake_error:
                return _ESCROWED_AGAIN
        try:
            heads.put_newest(settings)
        except BronzeError as error:
            if not self._escrow_fault:
                LOG.error("audit log is not in escrow", error=error.message)
            self._escrow_fault = error.message
            return _ESCROWED_AGAIN
        self._escrow_fault = ""
        return _ESCROWED_EVERY

    def _read_controls(self) -> float | None:
        board = self._board
        with board.changed:
            settings = board.settings
            if board.lake_error:
                return _CONTROLS_EVERY
        with suppress(BronzeError):
            latest = requests.latest_state(settings, self._requests)
            if latest is not self._requests:
                records = controls.read(settings)
                self._requests = latest
                with board.changed:
                    board.controls = records
                    self._reset_breakers()
                    board.touch()
        return _CONTROLS_EVERY

    def _reset_breakers(self) -> None:
        board = self._board
        for key, asked in board.requests(board.all_tables()).items():
            subject = table_subject(key)
            known = board.guards.of(subject)
            if asked.reset and known.failed_at and known.failed_at < asked.reset:
                board.guards.reset(subject)
                state = board.state(key)
                state.died = 0
                state.retry_at = board.now
                LOG.info("breaker is closed by request", table=key)


def _is_of(key: Key, seen: Collection[str]) -> bool:
    """Whether something is about the service or one of some sources."""
    return any(key[1] == name or key[1].startswith(f"{name}.") for name in seen)


MAINTAIN = "maintain"


def verify_name(source: str) -> str:
    """The name of the verification of a source."""
    return f"verify {source}"
