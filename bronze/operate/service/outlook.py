"""What is wrong now, by what the service knows itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from bronze.operate.alerts import kinds
from bronze.operate.alerts.life import Condition, Key
from bronze.operate.service.board import Board
from bronze.operate.tables.guards import LAKE, source_subject, table_subject


def conditions_of(board: Board) -> list[Condition]:
    """Everything that is wrong now."""
    with board.changed:
        return list(_conditions(board))


def _conditions(board: Board) -> Iterator[Condition]:
    now = board.now

    def condition(
        kind: str, subject: str, since: datetime | None, text: str, causes: tuple[Key, ...] = ()
    ) -> Condition:
        level = kinds.level(board.settings.alerts, kind)
        return Condition(kind, subject, level, since or now, text, causes=causes)

    if board.config_error:
        yield condition("config_invalid", "service", None, board.config_error)
    if board.lake_error:
        since = board.guards.of(LAKE).failed_at
        yield condition("lake_unreachable", board.settings.lake.root, since, board.lake_error)
    for source, failure in board.source_errors.items():
        since = board.guards.of(source_subject(source)).failed_at
        kind = "config_invalid" if failure.kind == "ConfigError" else "source_unreachable"
        yield condition(kind, source, since, failure.message)
    lake = ("lake_unreachable", board.settings.lake.root)
    for source, stream in board.streams.items():
        if stream.facts.error:
            causes = (lake, ("source_unreachable", source))
            text = f"The stream of {source} is down: {stream.facts.error}"
            yield condition("stream_down", source, None, text, causes)
    for table in board.all_tables():
        state = board.states.get(table.key)
        known = board.guards.of(table_subject(table.key))
        causes = (lake, ("source_unreachable", table.source))
        if known.until:
            why = state.failure.message if state and state.failure else "the process ended in it"
            text = f"{table.label} is quarantined: {why}"
            yield condition("table_quarantined", table.key, known.failed_at, text, causes)
        elif state and state.failure and state.failure.kind != "Stopped":
            text = f"{table.label} has failed: {state.failure.message}"
            yield condition("table_failed", table.key, None, text, causes)
