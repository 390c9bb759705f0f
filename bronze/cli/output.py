"""Lines, tables of figures and JSON documents on stdout and stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bronze.api.display.log_lines import LOG
from bronze.api.display.progress import STDERR
from bronze.cli.explanations import command_for
from bronze.cli.wrapping import wrapped
from bronze.printable import size, visible, visible_json

# A value or a name may contain a word between colons, which is not the code of an emoji.
_out = Console(highlight=False, emoji=False)
_UNLIMITED = 10_000
_LEAST_WIDTH = 10


def print_line(text: str, style: str | None = None, *, whole: bool = False) -> None:
    """Prints a line for people on stdout; a line break at its beginning makes an empty line. On a
    terminal it is broken between words, unless it is ``whole``, as what people copy is.
    """
    _line(_out, text, style, whole)


def print_error(text: str, hint: str = "") -> None:
    """Prints an error and its hint on stderr: where the log is JSON, as an event of it."""
    if LOG.format == "json":
        LOG.error(text.strip(), **({"hint": hint} if hint else {}))
        return
    _line(STDERR, text, "red")
    print_hint(hint)


def print_hint(text: str) -> None:
    """Prints what belongs to an error below it, on stderr."""
    if text:
        _line(STDERR, f"  {text}", None)


def print_explain(kinds: Iterable[str]) -> None:
    """Prints the commands that explain kinds of errors, on stderr, each once."""
    if commands := list(dict.fromkeys(map(command_for, kinds))):
        _line(STDERR, f"  {'; '.join(commands)}", "dim")


def print_styled(text: Text, *, whole: bool = False) -> None:
    """Prints a line that has styles, and is visible already; ``whole`` is as in `print_line`."""
    _out.print(text, soft_wrap=whole or not _out.is_terminal)


def width() -> int:
    """How many columns the terminal has; elsewhere lines may be as long as they are."""
    return _out.width if _out.is_terminal else _UNLIMITED


def _line(console: Console, text: str, style: str | None, whole: bool = False) -> None:
    # All lines for people are printed here.
    line = text.removeprefix("\n")
    if line != text:
        console.print()
    shown = visible(line)
    if console.is_terminal and not whole:
        shown = wrapped(shown, console.width)
    console.print(shown, style=style, markup=False, soft_wrap=True)


def print_markdown(text: str) -> None:
    """Prints Markdown: rendered on a terminal, as it is elsewhere."""
    if not _out.is_terminal:
        print(text)
        return
    from rich.markdown import Markdown

    _out.print(Markdown(text))


def print_document(text: str) -> None:
    """Prints the text of a file: elsewhere than on a terminal as it is."""
    for line in text.splitlines():
        print(visible(line) if _out.is_terminal else line)


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


def quality_score(score: float) -> str:
    """A quality score with one decimal, rounded down: 99.99 is not shown as 100."""
    return f"{math.floor(score * 10) / 10:.1f}"


_EMPTY = {"", "0", size(0)}
_SPARE = ("v", "files", "size", "s", "below 100", "next due", "deadline")
STATUSES = {
    "landed": "green",
    "equal": "green",
    "unchanged": "cyan",
    "stopped": "yellow",
    "differs": "bold red",
    "failed": "bold red",
}


def print_figures(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Collection[str] = ("Bronze table", "status"),
) -> None:
    """Prints a table of figures without its empty columns; ``texts`` are aligned to the left. The
    words of a column ``status`` have their colours. A terminal that is too narrow gets no columns
    that people miss least (`_SPARE`).
    """
    if not rows:
        return
    rows = [[visible(cell) for cell in row] for row in rows]
    shown = [i for i, _ in enumerate(names) if any(row[i] not in _EMPTY for row in rows)]
    widths = {i: max(cell_len(row[i]) for row in (names, *rows)) for i in shown}
    for name in _SPARE:
        if sum(widths[i] + 2 for i in shown) - 2 > width():
            shown = [i for i in shown if names[i] != name]
    for number, row in enumerate((names, *rows)):
        line = Text(style="" if number else "bold")
        for i in shown:
            pad = " " * (widths[i] - cell_len(row[i]))
            cell = row[i] + pad if names[i] in texts else pad + row[i]
            line.append("" if i == shown[0] else "  ")
            line.append(cell, STATUSES.get(row[i], "") if names[i] == "status" else "")
        line.rstrip()
        # A terminal that is narrower breaks the line itself: no digit is left out.
        print_styled(line, whole=True)


def print_table(
    names: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    padding: int = 1,
    right: Collection[str] = (),
    long: Collection[str] = (),
) -> None:
    """Prints a table of texts. Long ones are wrapped on a terminal, and nowhere else: those of the
    columns ``long`` first. ``padding`` is around each cell; the columns ``right`` are aligned
    there. A cell that is a `Text` has styles, and is visible already.
    """
    cells = [
        [cell if isinstance(cell, Text) else Text(visible(cell)) for cell in row] for row in rows
    ]
    if not _out.is_terminal:
        heads = [Text(visible(name)) for name in names]
        _print_unwrapped([heads, *cells], 2 * padding, [name in right for name in names])
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, padding))
    widths = [
        max(cell_len(visible(name)), *(row[number].cell_len for row in cells), 0)
        for number, name in enumerate(names)
    ]
    gaps = 2 * padding * (len(names) - 1)
    firm = sum(wide for name, wide in zip(names, widths, strict=True) if name not in long)
    fits = bool(long) and firm + gaps + len(long) * _LEAST_WIDTH <= _out.width
    for name, wide in zip(names, widths, strict=True):
        justify: Literal["left", "right"] = "right" if name in right else "left"
        least = wide if fits and name not in long else None
        table.add_column(Text(visible(name)), overflow="fold", justify=justify, min_width=least)
    for row in cells:
        table.add_row(*row)
    _out.print(table)


def print_facts(facts: Iterable[tuple[str, str]], least: int = 0) -> None:
    """Prints a line for each fact: its name, in at ``least`` so many columns, and what it is; long
    ones are wrapped on a terminal, below their beginning.
    """
    known = [(visible(name), visible(text)) for name, text in facts if text]
    longest = max((cell_len(name) for name, _ in known), default=0)
    longest = max(longest, least)
    if not _out.is_terminal:
        for name, text in known:
            _out.print(f"  {name:<{longest}}  {text}", markup=False, soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=longest + 2, style="dim")
    table.add_column(overflow="fold")
    for name, text in known:
        table.add_row(Text(f"  {name}"), Text(text))
    _out.print(table)


def _print_unwrapped(rows: Sequence[Sequence[Text]], gap: int, right: Sequence[bool]) -> None:
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        pads = [" " * (wide - cell.cell_len) for cell, wide in zip(row, widths, strict=True)]
        padded = (
            pad + cell.plain if at_right else cell.plain + pad
            for cell, pad, at_right in zip(row, pads, right, strict=True)
        )
        _out.print((" " * gap).join(padded).rstrip(), markup=False, soft_wrap=True)
