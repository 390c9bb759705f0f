"""Progress on a terminal, in a notebook, or as lines of a log."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bronze.api.display.log_lines import LOG
from bronze.errors import Stopped
from bronze.model.events import (
    BatchApplied,
    CheckpointMade,
    Heard,
    LoadEvent,
    RunPlanned,
    StreamEvent,
    TableFailed,
    TableLanded,
    TableProgress,
)
from bronze.printable import count, visible

if TYPE_CHECKING:
    from bronze.cdc.stream import Notify as NotifyStep
    from bronze.ingest.pipeline import Notify

_UPDATE_EVERY = 0.25
_MOST_NAMES = 20
SIGN_OF_LIFE = 60.0
"""After how many quiet seconds a stream says that it lives."""

STDERR = Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress(
    quiet: bool, phase: str = "Connecting and planning", *, verifying: bool = False
) -> Iterator[LoadProgress]:
    """What shows the progress of tables that are loaded, or verified: on a terminal a line for all
    and a bar for each table that is read, elsewhere a line of the log for each that has ended,
    nothing if ``quiet``.
    """
    if quiet:
        yield LoadProgress(lambda _: None, lambda _: None)
    elif STDERR.is_terminal and not STDERR.is_dumb_terminal:
        from bronze.api.display.run_display import RunDisplay, live

        display = RunDisplay(phase, verifying)
        with live(display, STDERR):
            yield LoadProgress(display.notify, display.plan, display.begin)
    else:
        yield LoadProgress(lambda event: log_event(event, brief=True), _log_plan)


@dataclass(frozen=True)
class LoadProgress:
    """What to call with each event of a table, and with the plan of a run."""

    notify: Notify
    planned: Callable[[RunPlanned], None]
    begun: Callable[[], None] = lambda: None
    """To call when there is something else to see than what happens before the first table."""


def _log_plan(planned: RunPlanned) -> None:
    LOG.run = planned.batch_id
    LOG.info("planned", tables=len(planned.tables), rows_estimated=planned.rows)


def log_event(event: LoadEvent, brief: bool = False) -> None:
    """A line of the log for each table that has ended; with ``-v`` also for those that are read.
    With ``brief`` the error of one that has failed is left to who prints the result.
    """
    if isinstance(event, TableProgress):
        LOG.debug("reading", table=event.table, rows=event.rows, share=round(event.share, 3))
    elif isinstance(event, TableFailed):
        if event.error.kind == Stopped.__name__:
            LOG.warning("stopped", table=event.table)
            return
        message = {} if brief else {"error": event.error.message}
        LOG.error("failed", table=event.table, kind=event.error.kind, **message)
    else:
        done = event.result
        LOG.info(
            done.status,
            table=done.table,
            rows=done.rows_read,
            seconds=round(done.seconds, 3),
            version=done.version,
            files=done.files,
            bytes=done.bytes,
        )


def stream_log(quiet: bool, stream: str = "") -> NotifyStep:
    """A line of the log for each batch of a ``stream``, where it begins, and once a minute while
    nothing is committed; only notes if quiet.
    """
    return _StreamLog(quiet, stream)


class _StreamLog:
    def __init__(self, quiet: bool, stream: str) -> None:
        self._quiet, self._stream = quiet, stream
        self._followed: tuple[str, ...] | None = None
        self._position: int | None = None
        self._shown_at = time.monotonic()

    def __call__(self, event: StreamEvent) -> None:
        if event.message:
            self._shown_at = time.monotonic()
            LOG.warning(event.message)
        if self._quiet:
            return
        if isinstance(event, CheckpointMade):
            self._follow(event.position)
        elif isinstance(event, BatchApplied):
            self._follow(event.position)
            self._batch(event)
        elif isinstance(event, Heard):
            self._alive(event)

    def _follow(self, position: int) -> None:
        if self._position is None:
            stream = {"stream": self._stream} if self._stream else {}
            LOG.info("streaming", **stream, since=lsn_text(position))
        self._position = position

    def _batch(self, event: BatchApplied) -> None:
        if not event.changes:
            return
        self._shown_at = time.monotonic()
        LOG.info(
            "landed",
            transactions=event.transactions,
            changes=event.changes,
            tables=",".join(event.tables),
            lag_bytes=event.lag_bytes,
            lag_seconds=round(event.lag_seconds, 2),
        )

    def _alive(self, event: Heard) -> None:
        if event.tables != self._followed:
            self._followed, self._shown_at = event.tables, time.monotonic()
            more = ",…" if len(event.tables) > _MOST_NAMES else ""
            names = f"{','.join(event.tables[:_MOST_NAMES])}{more}"
            LOG.info("following", count=len(event.tables), tables=names)
        elif time.monotonic() - self._shown_at >= SIGN_OF_LIFE:
            self._shown_at = time.monotonic()
            LOG.info(
                "nothing new",
                count=len(event.tables),
                position=lsn_text(self._position or 0),
                **({"as_of": f"{event.as_of:%Y-%m-%dT%H:%M:%SZ}"} if event.as_of else {}),
            )


def lsn_text(position: int) -> str:
    """A position of the source's log as PostgreSQL writes it: ``0/26E3A90``."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def shown_in_notebook(
    notify: Notify | None, phase: str = "Connecting and planning", *, verifying: bool = False
) -> Iterator[LoadProgress]:
    """What a caller wants to be called; in a notebook, without that, a display of all tables."""
    if notify is not None:
        yield LoadProgress(notify, lambda _: None)
    elif in_notebook():
        yield _display(phase, verifying)
    else:
        yield LoadProgress(lambda _: None, lambda _: None)


def _display(phase: str, verifying: bool) -> LoadProgress:
    from bronze.api.display.run_display import RunDisplay

    ipython: Any = importlib.import_module("IPython.display")
    state, lines = RunDisplay(phase, verifying), dict[str, str]()
    handle = ipython.display(ipython.HTML(f"{escape(phase)} …"), display_id=True)
    shown_at = 0.0

    def show() -> None:
        nonlocal shown_at
        shown_at = time.monotonic()
        hidden = len(lines) - _MOST_NAMES
        more = [f"and {hidden:,} more"] if hidden > 0 else []
        newest = list(lines.values())[-_MOST_NAMES:]
        handle.update(ipython.HTML("<br>".join([escape(state.headline().plain), *newest, *more])))

    def plan(planned: RunPlanned) -> None:
        state.plan(planned)
        show()

    def notify(event: LoadEvent) -> None:
        state.notify(event)
        # The newest is the last, so that tables that are read are shown.
        lines.pop(event.table, None)
        lines[event.table] = _line(event)
        # Each update is a message to the browser.
        if isinstance(event, TableProgress) and time.monotonic() - shown_at < _UPDATE_EVERY:
            return
        show()

    return LoadProgress(notify, plan)


def _line(event: LoadEvent) -> str:
    if isinstance(event, TableProgress):
        text = f"{event.table}: {event.share:.0%}, {count(event.rows, 'row')}"
    elif isinstance(event, TableLanded):
        read = count(event.result.rows_read, "row")
        text = f"{event.table}: {event.result.status}, {read} read"
    else:
        status = "stopped" if event.error.kind == Stopped.__name__ else "failed"
        text = f"{event.table}: {status}: {event.error.message}"
    return escape(visible(text))
