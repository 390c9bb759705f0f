"""The progress of a run on a terminal: what it does now, and a bar for each table that moves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bronze.errors import Stopped
from bronze.model.events import LoadEvent, RunPlanned, TableLanded, TableProgress
from bronze.printable import count, visible

MOST_BARS = 12
_STYLES = {"landed": "green", "unchanged": "cyan", "failed": "bold red", "stopped": "yellow"}
_BAR_WIDTH = 20
_MOST_OF_NAME = 0.4


@dataclass
class _Moving:
    """A table that is read: when it was first heard of, and how far it is."""

    began: float
    rows: int = 0
    share: float = 0.0


@dataclass
class RunDisplay:
    """What the terminal shows while tables are loaded or proven: a line for the whole, below it at
    most `MOST_BARS` bars. ``phase`` is what happens before the first table. A table that is
    ``verifying`` has ended when it is read; one that is loaded is committed then.
    """

    phase: str
    verifying: bool = False
    began: float = field(default_factory=time.monotonic)
    total: int = 0
    moving: dict[str, _Moving] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rows_of_ended: int = 0

    def plan(self, planned: RunPlanned) -> None:
        """Notes which tables will be read. After a lost connection, those that ended stay."""
        self.total = max(self.total, len(planned.tables))

    def begin(self) -> None:
        """Shows only tables that move, from now on."""
        self.phase = ""

    def notify(self, event: LoadEvent) -> None:
        """Notes what happens to a table."""
        if isinstance(event, TableProgress):
            table = self.moving.setdefault(event.table, _Moving(time.monotonic()))
            table.rows, table.share = event.rows, min(event.share, 1.0)
            if self.verifying and table.share >= 1.0:
                self._end(event.table, "read", table.rows)
            return
        if isinstance(event, TableLanded):
            self._end(event.table, event.result.status, event.result.rows_read)
            return
        status = "stopped" if event.error.kind == Stopped.__name__ else "failed"
        known = self.moving.get(event.table)
        self._end(event.table, status, known.rows if known else 0)

    def _end(self, table: str, status: str, rows: int) -> None:
        self.moving.pop(table, None)
        self.rows_of_ended += rows
        self.counts[status] = self.counts.get(status, 0) + 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines as they are now."""
        if self.phase or self.moving:
            yield self.headline()
        now, table = time.monotonic(), Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(max_width=int(options.max_width * _MOST_OF_NAME), no_wrap=True)
        table.add_column(width=_BAR_WIDTH)
        for _ in range(4):
            table.add_column(justify="right", no_wrap=True)
        shown = list(self.moving.items())[:MOST_BARS]
        for name, state in shown:
            seconds = max(now - state.began, 0.001)
            table.add_row(
                Text(f"  {visible(name)}", overflow="ellipsis"),
                ProgressBar(total=1.0, completed=state.share, width=_BAR_WIDTH),
                Text(f"{state.share:.0%}"),
                Text(count(state.rows, "row")),
                Text(f"{state.rows / seconds:,.0f}/s", "dim"),
                Text(duration(seconds), "dim"),
            )
        if shown:
            yield table
        if hidden := len(self.moving) - len(shown):
            yield Text(f"  and {hidden:,} more", "dim")

    def headline(self) -> Text:
        """The line for the whole: how many tables have ended, and how."""
        seconds = time.monotonic() - self.began
        if not (self.total or self.moving or self.counts):
            return Text(f"{self.phase} … {duration(seconds)}")
        ended = sum(self.counts.values())
        total = f" of {self.total:,}" if self.total else ""
        line = Text("Verifying tables: " if self.verifying else "Loading tables: ")
        line.append(f"{ended:,}{total} done", "bold")
        for status, number in self.counts.items():
            line.append(", ").append(f"{number:,} {status}", _STYLES.get(status, ""))
        rows = self.rows_of_ended + sum(state.rows for state in self.moving.values())
        line.append(
            f"  {count(rows, 'row')}  {rows / max(seconds, 0.001):,.0f}/s  {duration(seconds)}"
        )
        return line


def live(display: RunDisplay, console: Console) -> Live:
    """Shows a display on a terminal until it is closed; it is gone then."""
    return Live(
        console=console,
        get_renderable=lambda: display,
        transient=True,
        refresh_per_second=4,
        vertical_overflow="crop",
    )


def duration(seconds: float) -> str:
    """A time that passes: ``0:07``, ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
