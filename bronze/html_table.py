"""Results as HTML for notebooks: a table of items, and below it what is said about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from bronze.printable import size

MOST_ROWS = 100
"""How many items a notebook gets: the audit log may have many more."""

_HIDDEN = frozenset(
    {
        "notes",
        "error",
        "problem",
        "stages",
        "batch_id",
        "position",
        "previous_hash",
        "record_hash",
        "unprotected",
        "unrecorded",
        "written_by",
    }
)
_NAMES = {"target": "Bronze table", "recorded_timestamp": "recorded"}
_IDENTIFIERS = frozenset({"version", "sequence", "pid", "port", "oid"})
_UNKNOWN_BELOW_ZERO = frozenset({"rows", "source_rows"})
_SIZES = frozenset({"bytes", "rewritten"})
_COLOURS = {
    **dict.fromkeys(("failed", "fail", "differs", "problem"), "#c62828"),
    **dict.fromkeys(("stopped", "warning", "unknown"), "#b26a00"),
    **dict.fromkeys(("landed", "equal", "pass"), "#2e7d32"),
}
_LONG_TEXT, _LONG_MESSAGE, _LONG_LIST = 200, 280, 3
_SUMMARY = 60
_LEFT = "text-align:left;vertical-align:top"
_RIGHT = "text-align:right;vertical-align:top;white-space:nowrap"


def heading(kind: str, summary: Iterable[str], exit_code: int) -> str:
    """The kind of a result, what it says in short, and its exit code, in colour if it is not 0."""
    colour = f' style="color:{_COLOURS["failed"]}"' if exit_code else ""
    parts = [escape(text) for text in summary]
    parts.append(f"<span{colour}>exit code {exit_code}</span>")
    return f'<p style="margin:.3em 0"><b>{escape(kind)}</b>: {", ".join(parts)}</p>'


def items_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each item; columns that say nothing are left out, and what `messages` says too."""
    names = [
        name
        for name in (rows[0] if rows else {})
        if name not in _HIDDEN and any(row[name] for row in rows)
    ]
    if not names:
        return ""
    styles = {name: _style(row[name] for row in rows) for name in names}
    head = "".join(f'<th style="{styles[name]}">{escape(_label(name))}</th>' for name in names)
    body = "".join(
        f"<tr>{''.join(_table_cell(name, row[name], styles[name]) for name in names)}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_table(facts: Mapping[str, Any]) -> str:
    """A row for each fact of one result, without those that say nothing."""
    body = "".join(
        f'<tr><th style="{_LEFT}">{escape(_label(name))}</th>{_table_cell(name, value, _LEFT)}</tr>'
        for name, value in facts.items()
        if value and name not in _HIDDEN
    )
    return f"<table><tbody>{body}</tbody></table>" if body else ""


def messages(texts: Iterable[str]) -> str:
    """A paragraph for each text."""
    return "".join(f'<p style="margin:.3em 0">{_folded(text, _LONG_MESSAGE)}</p>' for text in texts)


def _table_cell(name: str, value: object, style: str) -> str:
    colour = _COLOURS.get(str(value)) if name in ("status", "state", "result") else None
    style += f";color:{colour};font-weight:bold" if colour else ""
    if isinstance(value, list | tuple) and len(value) > _LONG_LIST:
        return f'<td style="{style}">{_details(f"{len(value)}", cell_text(name, value))}</td>'
    return f'<td style="{style}">{_folded(cell_text(name, value))}</td>'


def _folded(text: str, most: int = _LONG_TEXT) -> str:
    """The text; of one longer than ``most`` the beginning, which opens."""
    if len(text) <= most:
        return escape(text)
    return _details(f"{text[:_SUMMARY]}…", text)


def _details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{escape(text)}</details>"


def _label(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def _style(values: Iterable[object]) -> str:
    """Numbers are aligned at the right, all else at the left."""
    known = [value for value in values if value is not None and value != ""]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    return _RIGHT if numbers else _LEFT


def cell_text(name: str, value: object) -> str:
    """A value for people; its unit follows from the field's name."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell_text(key, part)}" for key, part in value.items() if part)
    if isinstance(value, list | tuple):
        return "; ".join(cell_text("", part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if name in _UNKNOWN_BELOW_ZERO and isinstance(value, int) and value < 0:
        return ""
    if isinstance(value, int) and (name in _SIZES or name.endswith("_bytes")):
        return size(value)
    if isinstance(value, int) and name not in _IDENTIFIERS:
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        # A score of 99.99 is not 100.
        return f"{math.floor(value * 10) / 10:.1f}" if name == "score" else f"{value:,.1f}"
    return "" if value is None else str(value)
