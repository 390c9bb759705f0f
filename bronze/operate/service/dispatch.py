"""Begins runs, verifications and maintenance as the scheduler says, and notes how they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from bronze.api.display.log_lines import LOG
from bronze.governance.run_log import Cause
from bronze.governance.tables.runs import Command
from bronze.model.results import Failure
from bronze.operate import scheduler
from bronze.operate.breaker import Outcome
from bronze.operate.scheduler import Capacity, Decision, DueTimes, Start, TableClock
from bronze.operate.service.board import Board
from bronze.operate.service.capacity import windows
from bronze.operate.service.capacity.pressure import pressure
from bronze.operate.service.watch import MAINTAIN, Watch, verify_name
from bronze.operate.service.works import Work
from bronze.operate.tables import probes, states
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.tables.guards import LAKE, Blame, can_pass, source_subject, table_subject
from bronze.operate.tables.states import Outlook
from bronze.postgres.connection import allowance

_FULL = "all runs at once are taken ([serve] runs)"
_STOPPED = "Stopped"


class Dispatch:
    """The runs of tables, and the chores: verifications and maintenance."""

    def __init__(self, board: Board, watch: Watch) -> None:
        """Nothing runs yet."""
        self._board, self._watch = board, watch
        self._times = DueTimes()
        self._tried: set[str] = set()

    def decide(self) -> Decision:
        """Begins what is due, and says what waits and until when; under the lock."""
        board = self._board
        tables = self._decide_tables()
        chores = self._decide_chores()
        board.waiting = {**tables.waiting, **chores.waiting}
        wakes = [wake for wake in (tables.wake, chores.wake) if wake]
        return Decision((*tables.start, *chores.start), board.waiting, min(wakes, default=None))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs; under the lock."""
        return not self._board.works

    def stop(self) -> None:
        """Has all end: what is being committed is committed; under the lock."""
        for work in self._board.works:
            work.stop.set()

    def stop_too_long(self) -> None:
        """Stops what takes longer than [serve] timeout; under the lock."""
        seconds = self._board.clock.monotonic()
        for work in self._board.works:
            if seconds >= work.due and not work.stop.is_set():
                work.is_too_long = True
                work.stop.set()
                LOG.error("takes too long", work=work.name, timeout=self._timeout)

    @property
    def _timeout(self) -> float:
        return self._board.settings.serve.timeout

    # Tables

    def _decide_tables(self) -> Decision:
        board = self._board
        outlook = self._outlook()
        tables = board.all_tables()
        for table in tables:
            state = board.state(table.key)
            state.known = state.known or outlook.now
        clocks = states.clocks_of(board.settings, tables, board.states, outlook)
        if board.once:
            clocks = [clock for clock in clocks if clock.table not in self._tried]
        decision = scheduler.decide(clocks, outlook.now, self._capacity(), self._times)
        by_key = {table.key: table for table in tables}
        for table in tables:
            has_no_room = decision.waiting.get(table.key) == outlook.room.get(table.source, "")
            is_queued = has_no_room or table.key in decision.queued
            self._note_wait(table.key, outlook.now, is_queued=is_queued)
        has_suspect = False
        started = []
        for start in decision.start:
            chosen = tuple(by_key[key] for key in start.tables)
            is_suspect = any(board.state(table.key).died for table in chosen)
            if is_suspect and has_suspect:
                continue
            has_suspect = has_suspect or is_suspect
            self._begin(start, chosen, outlook.now)
            started.append(start)
        return Decision(tuple(started), decision.waiting, decision.wake)

    def _note_wait(self, key: str, now: datetime, *, is_queued: bool) -> None:
        """Notes since when a table waits for its turn."""
        state = self._board.states.get(key)
        if is_queued:
            state = self._board.state(key)
            state.waits_since = state.waits_since or now
        elif state is not None:
            state.waits_since = None

    def _outlook(self) -> Outlook:
        board = self._board
        tables = board.all_tables()
        unread = board.unread or ("the service is stopping" if board.is_stopping else "")
        return Outlook(board.now, board.guards, board.requests(tables), self._room(), unread)

    def _room(self) -> dict[str, str]:
        """Why sources have no connection for a further run."""
        board, found = self._board, {}
        for name, source in board.settings.source.items():
            tables = board.tables.get(name) or ()
            streams = any(table.is_streamed for table in tables)
            taken = sum(work.source == name for work in board.works)
            lasting = taken * allowance.COMMAND + streams * allowance.STREAM
            if lasting + allowance.COMMAND + allowance.READ > source.pool.max:
                found[name] = f"all connections that pool.max of {name} allows are taken"
        return found

    def _capacity(self) -> Capacity:
        board = self._board
        runs = sum(work.command == "run" for work in board.works)
        free = max(0, board.settings.serve.runs - runs)
        room = board.shares.room
        full = _FULL if free <= room else board.shares.why_full() or _FULL
        streams = [(stream.facts, stream.tables) for stream in board.streams.values()]
        why = pressure(board.resources, streams, board.now)
        return Capacity(0 if board.is_stopping else min(free, room), full, why)

    def _begin(self, start: Start, tables: Sequence[ServedTable], now: datetime) -> None:
        board = self._board
        attempt = 1
        for table in tables:
            state = board.state(table.key)
            state.attempt = state.attempt + 1 if start.reason == "retry" else 1
            attempt = max(attempt, state.attempt)
            state.running, state.retry_at, state.begun_for = True, None, start.due
            board.guards.begin(table_subject(table.key), now)
            self._tried.add(table.key)
        cause = Cause(start.reason, start.due, attempt)
        self._perform("run", tables[0].source, tables, cause, now)
        LOG.info(
            "begins",
            tables=",".join(table.label for table in tables),
            source=tables[0].source,
            reason=start.reason,
            due=f"{start.due:%Y-%m-%dT%H:%M:%SZ}",
            attempt=attempt,
        )

    def _perform(
        self,
        command: Command,
        source: str,
        tables: Sequence[ServedTable],
        cause: Cause,
        now: datetime,
    ) -> None:
        board = self._board
        due = board.clock.monotonic() + self._timeout
        loadable = self._loadable(source) if command == "verify" else ()
        streamed = partial(self._streamed, source)
        work = Work(command, source, tuple(tables), cause, now, due, loadable, streamed)
        board.works.append(work)
        settings = board.settings.for_work(workers=windows.most_workers(board.settings))
        work.begin(settings, board.permits, board.shares, self._blame, self._end)

    def _blame(self, source: str, failure: Failure) -> Blame:
        board = self._board
        if not source:
            return "table"
        return probes.blame(board.settings, source, failure, has_been=board.lake_seen)

    # How they end; in the thread of the work

    def _end(self, work: Work) -> None:
        board = self._board
        with board.changed:
            now = board.now
            board.works.remove(work)
            ended = work.ended
            assert ended is not None  # noqa: S101 - set before this is called
            self._note_blames(work, now)
            if work.tables:
                for table in work.tables:
                    self._end_table(work, table, ended.failures.get(table.key), now)
            else:
                self._end_chore(work, now)
            board.note_outcomes(ended.failures.get(table.key) for table in work.tables)
            if not work.tables or (ended.error and not ended.failures):
                board.note_outcomes([ended.error])
            board.has_new_records = True
            board.touch()

    def _note_blames(self, work: Work, now: datetime) -> None:
        """Has the source and the lake counted once for each piece of work."""
        assert work.ended is not None  # noqa: S101
        blames = set(work.ended.blames.values())
        guards = self._board.guards
        subjects = {"source": source_subject(work.source), "lake": LAKE}
        for name, subject in subjects.items():
            if name in blames and guards.of(subject).until is None:
                guards.end(subject, Outcome(work.began, now, failed=True))
        if "source" in blames and work.source in self._watch.sources:
            self._watch.sources[work.source].kick()
        if "lake" in blames:
            self._watch.lake.kick()

    def _end_table(
        self, work: Work, table: ServedTable, failure: Failure | None, now: datetime
    ) -> None:
        board = self._board
        assert work.ended is not None  # noqa: S101
        subject = table_subject(table.key)
        is_stopped = failure is not None and failure.kind == _STOPPED
        if is_stopped and work.is_too_long:
            text = f"The run took longer than [serve] timeout, {self._timeout:.0f} s."
            failure, is_stopped = Failure("TookTooLong", text, "Raise it, or load less."), False
        state = states.ended(board.state(table.key), failure, (now - work.began).total_seconds())
        board.states[table.key] = state
        if is_stopped:
            board.guards.give_up(subject)
            state.retry_at = now
            return
        blame = work.ended.blames.get(table.key, "table")
        if failure is not None and blame != "table":
            board.guards.give_up(subject)
            state.retry_at = now + self._pause(state)
            return
        board.guards.end(subject, Outcome(work.began, now, failure is not None))
        known = board.guards.of(subject)
        if failure is None:
            return
        if known.until:
            LOG.error(
                "quarantined",
                table=table.key,
                failures=known.failures,
                until=f"{known.until:%Y-%m-%dT%H:%M:%SZ}",
            )
            state.retry_at = known.until
        elif can_pass(failure.kind) and state.attempt <= board.settings.run.max_retries:
            state.retry_at = now + self._pause(state)

    def _pause(self, state: states.TableState) -> timedelta:
        own = self._board.settings
        return states.retry_pause(state.attempt, own.run.retry_delay, own.breaker.pause)

    # Chores

    def _decide_chores(self) -> Decision:
        board = self._board
        decision = scheduler.decide(
            self._chore_clocks(),
            board.now,
            Capacity(0 if board.is_stopping else min(2, board.shares.room), "others run"),
            self._times,
        )
        busy = {work.command for work in board.works}
        started = []
        for start in decision.start:
            (name,) = start.tables
            command: Command = "maintain" if name == MAINTAIN else "verify"
            if command in busy:
                continue
            busy.add(command)
            state = board.state(name)
            state.running, state.retry_at, state.begun_for = True, None, start.due
            self._tried.add(name)
            source = "" if name == MAINTAIN else start.source
            self._perform(command, source, (), Cause(start.reason, start.due, 1), board.now)
            LOG.info("begins", work=name, due=f"{start.due:%Y-%m-%dT%H:%M:%SZ}")
            started.append(start)
        return Decision(tuple(started), decision.waiting, decision.wake)

    def _loadable(self, source: str) -> tuple[ServedTable, ...]:
        """The tables of a source that nobody has paused and that no breaker keeps from loading."""
        board = self._board
        tables, now = board.tables.get(source) or (), board.now
        requests = board.requests(tables)
        return tuple(
            table
            for table in tables
            if not (table.key in requests and requests[table.key].pause)
            and board.guards.of(table_subject(table.key)).state(now) == "closed"
        )

    def _streamed(self, source: str) -> datetime | None:
        stream = self._board.streams.get(source)
        return stream.facts.as_of if stream else None

    def _chore_clocks(self) -> list[TableClock]:
        board = self._board
        schedule = board.settings.serve.schedule
        lake = "the lake cannot be reached" if board.guards.of(LAKE).until else ""
        blocked = board.unread or lake
        clocks = []
        if schedule.maintain:
            clocks.append(self._chore_clock(MAINTAIN, "", schedule.maintain, blocked))
        for source in board.settings.source if schedule.verify else ():
            is_away = board.guards.of(source_subject(source)).until or not board.tables.get(source)
            away = f"source {source} cannot be reached" if is_away else ""
            text = schedule.verify or ""
            clocks.append(self._chore_clock(verify_name(source), source, text, blocked or away))
        return [c for c in clocks if not (board.once and c.table in self._tried)]

    def _chore_clock(self, name: str, source: str, text: str, blocked: str) -> TableClock:
        board = self._board
        state = board.states.setdefault(name, states.TableState(board.now))
        return states.chore_clock(board.settings, name, source, text, state, blocked)

    def _end_chore(self, work: Work, now: datetime) -> None:
        board = self._board
        assert work.ended is not None  # noqa: S101
        name = MAINTAIN if work.command == "maintain" else verify_name(work.source)
        error = work.ended.error
        if error:
            LOG.error(f"{work.command} has failed", source=work.source, error=error.message)
        board.states[name] = replace(board.state(name), running=False, failure=error)
