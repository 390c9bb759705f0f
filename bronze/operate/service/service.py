"""The service: the loop that keeps every table within its SLA.

`Service.run` looks about twice a second, and at once when something has happened, at what the
scheduler says, and begins it. All that may hang (sources, the lake, the channels of alerts) has
threads of its own, which tell the loop what they found (`bronze.operate.service.board`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from bronze.api.display.log_lines import LOG
from bronze.backup import copy
from bronze.backup.recovery import takeover
from bronze.config.settings import Settings
from bronze.delta.storage import lake_folder
from bronze.errors import ConfigError, LakeError
from bronze.execution import memory_shares
from bronze.execution.supervisor import Supervisor
from bronze.governance import audit
from bronze.governance.tables.controls import Action, ControlRecord
from bronze.model.results import Failure, exit_code
from bronze.operate.alerts import deadline
from bronze.operate.alerts.alerting import Advisors
from bronze.operate.alerts.delivery import TERMS, Terms
from bronze.operate.facts.resources import Meter
from bronze.operate.service import reload
from bronze.operate.service.alarms import Alarms
from bronze.operate.service.board import Board, Trouble, copy_memory, streaming_sources
from bronze.operate.service.capacity import windows
from bronze.operate.service.copying import Copying
from bronze.operate.service.dispatch import Dispatch
from bronze.operate.service.overview import Overview
from bronze.operate.service.reload import ConfigFile
from bronze.operate.service.streaming import Streaming
from bronze.operate.service.timing import Clock, JumpWatch, Routine
from bronze.operate.service.watch import Watch
from bronze.operate.tables.guards import Guards
from bronze.postgres.connection import allowance
from bronze.version import VERSION

if TYPE_CHECKING:
    from bronze.operate.web.server import Server

_TICK = 0.5
_CONFIG_EVERY = 2.0
_MEASURED_EVERY = 5.0
_TOLD_FOR = timedelta(minutes=10)
_ALERTS_END = 5.0
_RECORDED_WITHIN = 5.0
_SERVED_ALONE = {"serve", "alerts", "breaker", "web", "backup"}


def serve(
    settings: Settings,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    hangup: threading.Event | None = None,
    clock: Clock | None = None,
    terms: Terms = TERMS,
    advisors: Advisors | None = None,
) -> int:
    """Keeps every table of a config within its SLA until it is stopped.

    Args:
        settings: the config.
        once: whether to bring every due table up, stream until caught up, and end.
        stop: ends the service: batches and commits in hand are finished, within [serve] grace.
        hangup: has the config read again whenever it is set.
        clock: the clocks.
        terms: when messages of alerts are tried again.
        advisors: what notices say beside what is wrong.

    Returns:
        The exit code of the command.

    Raises:
        ConfigError: the config cannot be served, or a restore into its lake has not ended.
        LakeError: the lake has a format of a later release.
    """
    # A lake that does not answer is waited for by the service itself.
    with suppress(TimeoutError):
        read = deadline.start(
            lambda: audit.refuse_newer_lake(settings, is_needed=False), "bronze-format"
        )
        read.result(_RECORDED_WITHIN)
    # Without an answer of the lake, the first command that reaches it does so.
    with suppress(LakeError):
        takeover.take_over(settings, "serve")
    service = Service(settings, once, clock or Clock(), terms, advisors)
    web = start_web(service) if settings.web.listen and not once else None
    try:
        return service.run(stop or threading.Event(), hangup or threading.Event())
    finally:
        if web:
            web.stop()


def advisors_of(settings: Callable[[], Settings]) -> Advisors:
    """What notices say beside what is wrong: what the doctor finds, the runbook's first steps."""
    from bronze.operate import runbook
    from bronze.operate.doctor import causes

    return Advisors(
        why=lambda condition: causes.why(settings(), condition),
        steps=lambda condition: runbook.steps(condition.kind, condition.subject),
    )


def start_web(service: Service) -> Server:
    """Starts the dashboard of a service.

    Raises:
        ConfigError: starlette and uvicorn are not installed, a token or certificate is wrong, or
            the port is in use.
    """
    try:
        from bronze.operate.web import acting, server
    except ImportError as error:
        raise ConfigError(
            f"The dashboard needs the package {error.name}.",
            hint="pip install 'bronze[serve]'; or set [web] listen = \"\" for none.",
        ) from None
    board = service.board

    def act(
        action: Action, subject: str, until: datetime | None, reason: str, by: str
    ) -> ControlRecord:
        record = acting.act(board.settings, action, subject, until, reason, by)
        service.look()
        return record

    web = server.start(
        board.settings, view=lambda: service.overview.view, runs=service.overview.runs, act=act
    )
    LOG.info("dashboard", url=web.url)
    return web


def check(settings: Settings) -> None:
    """Checks that each source allows a run beside its stream, and that the memory is enough.

    Raises:
        ConfigError: pool.max or [run] memory is too low, or [backup] root is in the lake.
    """
    streaming = streaming_sources(settings)
    for name in settings.source:
        allowance.check_least(settings.origin(name), commands=1, streams=int(name in streaming))
    memory_shares.check_least(settings.run.memory, len(streaming), copy_memory(settings))
    if settings.backup.root:
        copy.roots_of(settings)


class Service:
    """One service; `run` is its life."""

    def __init__(
        self,
        settings: Settings,
        once: bool,
        clock: Clock,
        terms: Terms = TERMS,
        advisors: Advisors | None = None,
    ) -> None:
        """A service that has not begun.

        Raises:
            ConfigError: the config cannot be served.
        """
        check(settings)
        self._meter = Meter()
        self._clock = clock
        self.board = Board(settings, clock, once, clock.now())
        self.board.guards = Guards(settings.breaker)
        self._watch = Watch(self.board)
        self._dispatch = Dispatch(self.board, self._watch)
        self._streaming = Streaming(self.board, self._watch)
        advisors = advisors or advisors_of(lambda: self.board.settings)
        self.overview = Overview(self.board)
        self._copying = Copying(self.board)
        self._alarms = Alarms(self.board, self._watch, self.overview, terms, advisors)
        self.overview.alerts = lambda: self._alarms.alerting.alerts.values()
        self._file = ConfigFile(settings)
        self._jumps = JumpWatch(clock)
        self._measuring = Routine("resources", self._measure)
        self._supervisor = Supervisor.of(os.environ)
        self._wake: datetime | None = None
        self._looked_at_config = -1e9

    def run(self, stop: threading.Event, hangup: threading.Event) -> int:
        """Works until it is stopped, or with ``once`` until all is done; the exit code."""
        board = self.board
        LOG.info("service begins", version=VERSION, lake=board.settings.lake.root)
        self._watch.start()
        self._measuring.start()
        self.overview.routine.start()
        self._alarms.start()
        if not board.once:
            self._copying.routine.start()
        self._supervisor.ready()
        while not stop.is_set():
            with board.changed:
                self._tick(hangup)
                if board.once and self._is_done():
                    break
                board.changed.wait(_TICK)
        return self._end(stop)

    def look(self) -> None:
        """Has requests read, and everything evaluated, at once."""
        self._watch.controls.kick()
        self.overview.routine.kick()
        self._alarms.kick()

    # The loop

    def _tick(self, hangup: threading.Event) -> None:
        board, seconds = self.board, time.monotonic()
        self._alarms.looped_at = seconds
        self._supervisor.alive()
        self._look_at_clock()
        if hangup.is_set() or seconds - self._looked_at_config >= _CONFIG_EVERY:
            self._looked_at_config = seconds
            self._look_at_config(always=hangup.is_set())
            hangup.clear()
        self._set_permits()
        self._dispatch.stop_too_long()
        is_time = self._wake is not None and board.now >= self._wake
        if board.is_dirty or is_time:
            board.is_dirty = False
            self._wake = self._dispatch.decide().wake
        self._streaming.decide()

    def _measure(self) -> float:
        """Measures what the process takes; the disk of a lake that hangs may take for ever."""
        board = self.board
        resources = self._meter.measure(board.settings)
        with board.changed:
            board.resources = resources
            board.note_usage([(board.now, resources.worst[0])])
            if board.waiting:
                board.touch()
        return _MEASURED_EVERY

    def _set_permits(self) -> None:
        board, settings = self.board, self.board.settings
        now = board.now
        window = windows.window_of(settings, now)
        limit = windows.limit(
            board.limit, board.permits.wanted, window, windows.caps(settings), now
        )
        if limit.permits != board.permits.limit:
            board.permits.set_limit(limit.permits)
        board.limit = limit

    def _look_at_clock(self) -> None:
        jump = self._jumps.look()
        if jump is None:
            return
        board, now = self.board, self.board.now
        direction = "forward" if jump > timedelta() else "back"
        text = f"The clock of this machine jumped {direction} by {abs(jump)}."
        LOG.warning("clock jumped", seconds=round(jump.total_seconds()))
        board.troubles["clock_jumped"] = Trouble(now, now + _TOLD_FOR, text)
        board.guards.shift(jump)
        for state in board.states.values():
            state.shift(jump)
        if board.limit and board.limit.since:
            board.limit = replace(board.limit, since=board.limit.since + jump)
        board.touch()

    def _look_at_config(self, *, always: bool) -> None:
        board, before = self.board, self.board.settings
        changed = self._file.changed(always=always)
        if changed is not None:
            try:
                check(changed)
            except Exception as error:
                self._file.error, changed = str(error), None
        if self._file.error and self._file.error != board.config_error:
            LOG.error("config is wrong: the one from before stays", error=self._file.error)
        board.config_error = self._file.error
        if changed is not None:
            self._take(before, changed)

    def _take(self, before: Settings, changed: Settings) -> None:
        """Goes on with a new config: what runs ends with the old one."""
        board = self.board
        keys = reload.differences(before, changed)
        LOG.info("config is read again", what=reload.sentence(keys))
        if not keys:
            return
        if any(key.startswith("web.") for key in keys):
            LOG.warning("[web] is as before until the service is started again")
        board.settings = changed
        board.guards.settings = changed.breaker
        board.divide_memory()
        if {key.partition(".")[0] for key in keys} - _SERVED_ALONE:
            for name in changed.source:
                board.tables[name] = None
            for stream in board.streams.values():
                stream.stop.set()
        self._watch.follow_sources(changed)
        for routine in (*self._watch.sources.values(), self._watch.trust):
            routine.kick()
        board.touch()

    def _is_done(self) -> bool:
        """Whether ``once`` has nothing left to do."""
        board = self.board
        if board.unread:
            # A lake that cannot be read is no reason to wait for ever.
            return bool(board.lake_error)
        is_listed = all(
            tables is not None or source in board.source_errors
            for source, tables in board.tables.items()
        )
        return is_listed and self._dispatch.is_idle and self._streaming.is_done

    # The end

    def _end(self, stop: threading.Event) -> int:
        board = self.board
        self._supervisor.stopping()
        until = time.monotonic() + board.settings.serve.grace
        with board.changed:
            board.is_stopping = True
            LOG.info("service ends", works=len(board.works), grace=board.settings.serve.grace)
            self._dispatch.stop()
            self._streaming.stop()
            if not board.once or stop.is_set():
                self._copying.stop()
            while not (self._dispatch.is_idle and self._streaming.is_idle):
                left = until - time.monotonic()
                if left <= 0:
                    break
                board.changed.wait(min(left, _TICK))
            is_left = not (self._dispatch.is_idle and self._streaming.is_idle)
            if board.once and not stop.is_set():
                self._note_not_run()
            outcomes = list(board.outcomes)
            errors = [*board.source_errors.values()]
            lake_error, is_once = board.lake_error, board.once
        if is_once:
            if board.settings.backup.root and not (lake_error or stop.is_set()):
                self._copy_at_the_end()
                outcomes = list(board.outcomes)
            is_whole = not is_left and not stop.is_set() and board.reaches_all
            self._alarms.evaluate_to_the_end(is_whole=is_whole and self._watch.finish())
        for routine in (*self._watch.routines, self._measuring, self.overview.routine):
            routine.stop()
        self._copying.routine.join(until - time.monotonic())
        left = max(_ALERTS_END, until - time.monotonic()) if is_once else _ALERTS_END
        self._alarms.stop(left)
        if not lake_error:
            self._record_end()
        lake_folder.expect_no_more(board.settings.place("", ""))
        if is_left:
            LOG.error("not all work has ended within the grace; nothing half-written is visible")
        LOG.info("service has ended")
        if not is_once:
            return LEFT if is_left else 0
        if lake_error and not outcomes:
            return 3
        return LEFT if is_left or stop.is_set() else exit_code([*outcomes, *errors])

    def _copy_at_the_end(self) -> None:
        """Copies the lake; ``--once`` fails if it is not copied."""
        board = self.board
        if not self._copying.copy_now(board.settings):
            trouble = board.troubles.get("backup_failed")
            text = trouble.text if trouble else "The lake was not copied."
            board.note_outcomes([Failure("NotCopied", text, "")])

    def _note_not_run(self) -> None:
        """Has tables that are due and did not run, such as quarantined ones, fail ``--once``; not
        those that are paused; under the lock.
        """
        board = self.board
        tables = board.all_tables()
        asked = board.requests(tables)
        for table in tables:
            why = board.waiting.get(table.key)
            if why and not (table.key in asked and asked[table.key].pause):
                text = f"Table {table.label} is due and was not run: {why}."
                LOG.error("not run", table=table.key, reason=why)
                board.note_outcomes([Failure("NotRun", text, "")])

    def _record_end(self) -> None:
        """Writes into the lake that the service was stopped, if that takes no longer than 5 s."""
        work = deadline.start(self._watch.write_beat, "bronze-end")
        try:
            failure = work.result(_RECORDED_WITHIN)
            error = failure.message if failure else ""
        except TimeoutError:
            error = f"the lake has not answered within {_RECORDED_WITHIN:.0f} s"
        if error:
            LOG.warning("the end was not recorded", error=error)


LEFT = 130
"""The exit code where work was left before its end."""
