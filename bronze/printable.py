r"""Text for people: counted things, sizes, and control characters shown as escapes.

Names, comments and values of a source or a lake may contain any character. A terminal would execute
escape sequences, and change the order of text at bidirectional control characters. They are printed
as ``\x1b`` or ``\u202e`` instead; in JSON, as JSON escapes.
"""

from __future__ import annotations

import logging

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LATIN, _PLANE = 0xFF, 0xFFFF
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things: "1 table", "1,000 tables". The ``plural`` is needed where it is not the
    ``noun`` and an s; both may have a verb: "1 row is", "2 rows are".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def size(number: int) -> str:
    """A number of bytes: "512 B", "1.5 MB"."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"


def visible(text: str) -> str:
    """One line of text, with an escape for each character that is not printable: control and format
    characters, separators other than the space, surrogates.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def visible_json(document: str) -> str:
    """An equal JSON document, with JSON escapes for all characters that are not printable."""
    return document if document.isprintable() else "".join(map(_escape_in_json, document))


def _escape(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    if character in _SHORT:
        return _SHORT[character]
    if code <= _LATIN:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _PLANE else f"\\U{code:08x}"


def _escape_in_json(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class VisibleFormatter(logging.Formatter):
    """Log lines for a terminal: each record is one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of the record, and the lines of its traceback if it has one."""
        return "\n".join(map(visible, super().format(record).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message, with its own line breaks escaped."""
        record.message = visible(record.message)
        return super().formatMessage(record)
