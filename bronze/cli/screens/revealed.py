"""What `bronze reveal` prints: a table, or records one below the other where it is too wide."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from bronze.cli.output import print_json, print_line, print_table, width
from bronze.printable import count, visible

if TYPE_CHECKING:
    from polars import DataFrame

_GAP = 2


def print_document(rows: DataFrame, form: str) -> None:
    """Prints decrypted rows as ``json`` or as ``csv``."""
    if form == "json":
        print_json(rows.to_dicts())
        return
    writer = csv.writer(sys.stdout)
    # A file gets the values as they are; a terminal would execute control characters.
    printed_row = _visible_row if sys.stdout.isatty() else tuple
    writer.writerows(printed_row(row) for row in (rows.columns, *rows.iter_rows()))


def print_rows(
    rows: DataFrame,
    protected: Collection[str] = (),
    hidden: Collection[str] = (),
    total: int | None = None,
) -> None:
    """Prints decrypted rows for people: the ``protected`` columns first, without those that are
    ``hidden``. A line says how many they are of ``total`` rows; None means that it is not known.
    """
    first = [name for name in rows.columns if name in protected]
    others = [name for name in rows.columns if name not in (*first, *hidden)]
    rows = rows.select(*first, *others)
    cells = [["" if value is None else str(value) for value in row] for row in rows.iter_rows()]
    if _fits(rows.columns, cells):
        print_table(rows.columns, cells)
    else:
        _print_records(rows.columns, cells, protected)
    _print_count(len(cells), total)


def _fits(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    widths = (
        max(cell_len(visible(text)) for text in column) for column in zip(names, *rows, strict=True)
    )
    return sum(each + _GAP for each in widths) <= width() + _GAP


def _print_records(
    names: Sequence[str], rows: Sequence[Sequence[str]], protected: Collection[str]
) -> None:
    longest = max(cell_len(visible(name)) for name in names)
    for number, row in enumerate(rows, 1):
        print_line(f"row {number}", "bold")
        for name, value in zip(names, row, strict=True):
            pad = " " * (longest - cell_len(visible(name)))
            style = "cyan" if name in protected else None
            print_line(f"  {visible(name)}{pad}  {visible(value)}".rstrip(), style, whole=True)


def _print_count(shown: int, total: int | None) -> None:
    if total is None:
        print_line(f"the first {count(shown, 'row')}; --limit 0 shows all", "dim")
    elif shown < total:
        first = "the first" if shown == 1 else f"the first {shown:,}"
        print_line(f"{first} of {count(total, 'row')}; --limit 0 shows all", "dim")
    else:
        print_line(count(shown, "row"), "dim")


def _visible_row(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(visible(value) if isinstance(value, str) else value for value in row)
