"""Progress on a terminal, in a notebook, or as structured lines of a log."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bronze.errors import Stopped
from bronze.model.events import (
    BatchApplied,
    LoadEvent,
    StreamEvent,
    TableFailed,
    TableLanded,
    TableProgress,
)
from bronze.printable import visible

if TYPE_CHECKING:
    from bronze.cdc.stream import Notify as NotifyStep
    from bronze.ingest.pipeline import Notify

_UPDATE_EVERY = 0.25
_AMBIGUOUS = re.compile(r"[\s=\"']")

STDERR = Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress(quiet: bool) -> Iterator[Notify]:
    """A bar for each table on a terminal, a log line for each elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _: None
    elif STDERR.is_terminal:
        with progress_bars() as bars:
            yield bars
    else:
        yield log_event


@contextmanager
def progress_bars() -> Iterator[Notify]:
    """A bar for each table on the terminal, which is gone at the end."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:>12,} rows"),
    )
    with Progress(*columns, console=STDERR, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def notify(event: LoadEvent) -> None:
            if event.table not in tasks:
                tasks[event.table] = bars.add_task(visible(event.table), total=1.0, rows=0)
            task = tasks[event.table]
            if isinstance(event, TableProgress):
                bars.update(task, completed=event.share, rows=event.rows)
            elif isinstance(event, TableLanded):
                bars.update(task, completed=1.0, rows=event.result.rows_read)
            else:
                bars.update(task, completed=1.0)

        yield notify


def log_event(event: LoadEvent) -> None:
    """A line of the log for each table that has ended."""
    if isinstance(event, TableFailed):
        if event.error.kind == Stopped.__name__:
            LOG.warning("stopped", table=event.table)
            return
        LOG.error("failed", table=event.table, error=event.error.message)
    elif isinstance(event, TableLanded):
        done = event.result
        LOG.info(
            done.status,
            table=done.table,
            rows=done.rows_read,
            version=done.version,
            files=done.files,
            bytes=done.bytes,
        )


class LogLines:
    """Writes events as lines on stderr: time, level, event, and its facts sorted by name."""

    def info(self, event: str, **facts: object) -> None:
        """Writes what happened."""
        self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Writes what needs attention."""
        self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Writes what failed."""
        self._write("error", event, facts)

    @staticmethod
    def _write(level: str, event: str, facts: Mapping[str, object]) -> None:
        pairs = " ".join(f"{name}={_quoted(fact)}" for name, fact in sorted(facts.items()))
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        # One write for a line, so that those of several threads do not mix.
        text = visible(f"{moment} [{level:<9}] {event:<30} {pairs}".rstrip())
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _quoted(fact: object) -> str:
    """The text of a fact, in quotes where a reader could not tell where it ends."""
    if isinstance(fact, str) and not _AMBIGUOUS.search(fact):
        return fact
    return repr(fact)


LOG = LogLines()


def stream_log(quiet: bool) -> NotifyStep:
    """A structured line for each batch of a stream on stderr, only notes if quiet."""

    def show(event: StreamEvent) -> None:
        if event.message:
            LOG.warning(event.message)
        elif not quiet and isinstance(event, BatchApplied) and event.changes:
            LOG.info(
                "landed",
                transactions=event.transactions,
                changes=event.changes,
                tables=",".join(event.tables),
                lag_bytes=event.lag_bytes,
                lag_seconds=round(event.lag_seconds, 2),
            )

    return show


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def shown_in_notebook(notify: Notify | None) -> Iterator[Notify]:
    """What a caller wants to be called; in a notebook, without that, a display of all tables."""
    if notify is not None:
        yield notify
    elif in_notebook():
        yield _display()
    else:
        yield lambda _: None


def _display() -> Notify:
    ipython: Any = importlib.import_module("IPython.display")
    lines: dict[str, str] = {}
    handle = ipython.display(ipython.HTML(""), display_id=True)
    shown_at = 0.0

    def notify(event: LoadEvent) -> None:
        nonlocal shown_at
        lines[event.table] = _line(event)
        # Each update is a message to the browser.
        if isinstance(event, TableProgress) and time.monotonic() - shown_at < _UPDATE_EVERY:
            return
        shown_at = time.monotonic()
        handle.update(ipython.HTML("<br>".join(lines.values())))

    return notify


def _line(event: LoadEvent) -> str:
    if isinstance(event, TableProgress):
        text = f"{event.table}: {event.share:.0%}, {event.rows:,} rows"
    elif isinstance(event, TableLanded):
        text = f"{event.table}: {event.result.status}, {event.result.rows_read:,} rows read"
    else:
        status = "stopped" if event.error.kind == Stopped.__name__ else "failed"
        text = f"{event.table}: {status}: {event.error.message}"
    return escape(visible(text))
