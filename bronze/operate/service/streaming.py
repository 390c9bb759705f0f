"""Keeps a stream for each source that has streamed tables."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import timedelta

from bronze.api.display.log_lines import LOG
from bronze.operate.breaker import Outcome
from bronze.operate.service import streams
from bronze.operate.service.board import Board
from bronze.operate.service.streams import Stream
from bronze.operate.service.watch import Watch
from bronze.operate.tables import probes
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.tables.guards import LAKE, source_subject

_STEADY = 60.0


@dataclass
class _Plan:
    """When a source's stream begins (by the monotonic clock), and its failures in a row."""

    begins_at: float = 0.0
    began_at: float = 0.0
    failures: int = 0
    dropped: frozenset[str] = frozenset()
    was_begun: bool = False


class Streaming:
    """The streams."""

    def __init__(self, board: Board, watch: Watch) -> None:
        """No stream runs yet."""
        self._board, self._watch = board, watch
        self._plans: dict[str, _Plan] = {}

    def decide(self) -> None:
        """Begins and ends streams as tables and requests want it; under the lock."""
        board = self._board
        if board.is_stopping or board.unread:
            return
        for source in {*board.tables, *board.streams}:
            tables = [t for t in board.tables.get(source) or () if t.is_streamed]
            asked = board.requests(tables)
            paused = {key for key, request in asked.items() if request.pause}
            followed = [table for table in tables if table.key not in paused]
            self._keep(source, tables, followed)

    def _keep(self, source: str, tables: list[ServedTable], followed: list[ServedTable]) -> None:
        board, plan = self._board, self._plans.setdefault(source, _Plan())
        stream = board.streams.get(source)
        if stream and not stream.has_ended:
            if self._is_outdated(stream, tables, followed):
                LOG.info("stream begins again", source=source, tables=len(followed))
                stream.stop.set()
            return
        if not followed:
            if tables and plan.dropped != {table.key for table in tables}:
                self._drop_slot(source, tables, plan)
            elif not tables and board.tables.get(source, ()) is not None:
                # Otherwise what it suffered last would be an alert for ever.
                board.streams.pop(source, None)
            return
        is_away = board.guards.of(LAKE).until or board.guards.of(source_subject(source)).until
        if is_away or board.source_errors.get(source):
            return
        if board.clock.monotonic() < plan.begins_at or (board.once and plan.was_begun):
            return
        plan.was_begun, plan.dropped = True, frozenset()
        plan.began_at = board.clock.monotonic()
        begun = streams.begin(
            board.settings, source, tables, followed, board.now, board.shares.stream, board.once
        )
        if stream:
            # What was known stays so until the new one knows more.
            old = stream.facts
            begun.facts = replace(begun.facts, as_of=old.as_of, retained=old.retained)
        board.streams[source] = begun
        LOG.info("stream begins", source=source, tables=",".join(t.label for t in followed))
        begun.begin(board.settings, lambda: board.now, self._end)

    @staticmethod
    def _is_outdated(
        stream: Stream, tables: list[ServedTable], followed: list[ServedTable]
    ) -> bool:
        """Whether the stream follows other tables than it should. One that follows all follows new
        ones by itself.
        """
        if stream.stop.is_set() or not tables:
            return False
        keys = {table.key for table in followed}
        before = {table.key for table in stream.tables}
        if not stream.names:
            stream.tables = tuple(followed) if before < keys else stream.tables
            return len(followed) < len(tables)
        return keys != before

    def _drop_slot(self, source: str, tables: list[ServedTable], plan: _Plan) -> None:
        plan.dropped = frozenset(table.key for table in tables)
        settings = self._board.settings

        def drop() -> None:
            if streams.drop_slot(settings, source, tables):
                with self._board.changed:
                    stream = self._board.streams.get(source)
                    if stream and stream.has_ended:
                        del self._board.streams[source]

        threading.Thread(target=drop, name=f"bronze drop {source}", daemon=True).start()

    def _end(self, stream: Stream) -> None:
        """Notes how a stream has ended, in its thread."""
        board, source, error = self._board, stream.source, stream.error
        blame = "table"
        if error and not stream.stop.is_set():
            blame = probes.blame(board.settings, source, error, has_been=board.lake_seen)
        with board.changed:
            now, plan = board.now, self._plans[source]
            if blame != "table":
                subject = LAKE if blame == "lake" else source_subject(source)
                if board.guards.of(subject).until is None:
                    board.guards.end(subject, Outcome(stream.began, now, failed=True))
                looks = self._watch
                routine = looks.lake if blame == "lake" else looks.sources.get(source)
                if routine:
                    routine.kick()
            if stream.stop.is_set() or board.once:
                board.note_outcomes([error])
                plan.begins_at = 0.0
                fault = stream.fault
                if fault:
                    stream.facts = replace(stream.facts, error=fault.message, error_kind=fault.kind)
            else:
                self._begin_later(stream, plan)
            board.touch()

    def _begin_later(self, stream: Stream, plan: _Plan) -> None:
        board, error = self._board, stream.error
        seconds = board.clock.monotonic()
        steady = seconds - plan.began_at > _STEADY
        plan.failures = 1 if steady else plan.failures + 1
        pause = streams.pause_after(plan.failures, board.settings.run.retry_delay)
        plan.begins_at = seconds + pause
        message = error.message if error else "no table is followed any more"
        LOG.error("stream has ended", source=stream.source, error=message, again_in=round(pause, 1))
        stream.facts = replace(
            stream.facts,
            error=message,
            error_kind=error.kind if error else "",
            retry_at=board.now + timedelta(seconds=pause),
        )

    @property
    def is_idle(self) -> bool:
        """Whether no stream runs; under the lock."""
        return all(stream.has_ended for stream in self._board.streams.values())

    @property
    def is_done(self) -> bool:
        """Whether each source's stream has had its time, for ``--once``; under the lock."""
        board = self._board
        for source, tables in board.tables.items():
            streamed = [table for table in tables or () if table.is_streamed]
            asked = board.requests(streamed)
            followed = [t for t in streamed if not (t.key in asked and asked[t.key].pause)]
            known = self._plans.get(source)
            was_begun = known is not None and known.was_begun
            if followed and not was_begun and source not in board.source_errors:
                return False
        return self.is_idle

    def stop(self) -> None:
        """Has all streams end after their batch; under the lock."""
        for stream in self._board.streams.values():
            stream.stop.set()
