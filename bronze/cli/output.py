"""Lines, tables of figures and JSON documents on stdout and stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bronze.api.progress import STDERR
from bronze.printable import visible, visible_json

# A value or a name may contain a word between colons, which is not the code of an emoji.
_out = Console(highlight=False, emoji=False)
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def print_line(text: str, style: str | None = None) -> None:
    """Prints a line for people on stdout; a line break at its beginning makes an empty line."""
    _line(_out, text, style)


def print_error(text: str, hint: str = "") -> None:
    """Prints an error and its hint on stderr."""
    _line(STDERR, text, "red")
    if hint:
        _line(STDERR, f"  {hint}", None)


def _line(console: Console, text: str, style: str | None) -> None:
    # All lines for people are printed here.
    line = text.removeprefix("\n")
    if line != text:
        console.print()
    console.print(visible(line), style=style, markup=False, soft_wrap=True)


def print_markdown(text: str) -> None:
    """Prints Markdown: rendered on a terminal, as it is elsewhere."""
    if not _out.is_terminal:
        print(text)
        return
    from rich.markdown import Markdown

    _out.print(Markdown(text))


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return _out.is_terminal


def print_json(value: Any) -> None:
    """Prints a value on stdout as one JSON document."""
    text = json.dumps(_finite(value), ensure_ascii=False, default=_text, allow_nan=False)
    print(visible_json(text))


def print_result(value: Any) -> None:
    """Prints a result on stdout as one JSON document."""
    print_json(asdict(value))


def _finite(value: Any) -> Any:
    """The value with a text for each number that JSON does not have (NaN, infinity)."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def quality_score(score: float) -> str:
    """A quality score with one decimal, rounded down: 99.99 is not shown as 100."""
    return f"{math.floor(score * 10) / 10:.1f}"


_EMPTY = {"", "0", size(0)}


def print_figures(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Collection[str] = ("Bronze table", "status"),
) -> None:
    """Prints a table of figures without its empty columns; ``texts`` are aligned to the left."""
    rows = [[visible(cell) for cell in row] for row in rows]
    shown = [i for i, _ in enumerate(names) if any(row[i] not in _EMPTY for row in rows)]
    widths = {i: max(cell_len(row[i]) for row in (names, *rows)) for i in shown}
    for number, row in enumerate((names, *rows)):
        pads = {i: " " * (widths[i] - cell_len(row[i])) for i in shown}
        cells = [row[i] + pads[i] if names[i] in texts else pads[i] + row[i] for i in shown]
        # A terminal that is narrower breaks the line itself: no digit is left out.
        print_line("  ".join(cells).rstrip(), style=None if number else "bold")


def print_table(
    names: Sequence[str], rows: Iterable[Sequence[str | Text]], padding: int = 1
) -> None:
    """Prints a table of texts; long ones are wrapped. ``padding`` is around each cell. A cell that
    is a `Text` has styles, and is visible already.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, padding))
    for name in names:
        table.add_column(Text(visible(name)), overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(visible(cell)) for cell in row))
    _out.print(table)
