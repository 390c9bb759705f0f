r"""What leaves for a terminal: text in which every character shows.

Names, comments and values of a source, or of a lake, may hold anything. A terminal would obey its
escapes and control characters, and show text in another order for those of bidirectional writing.
They leave as ``\x1b`` or ``\u202e`` instead; in JSON, as JSON escapes.
"""

from __future__ import annotations

import logging

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LATIN, _PLANE = 0xFF, 0xFFFF


def visible(text: str) -> str:
    """One line of text, with an escape for each character that would not show as itself: control
    and format characters, other separators than the blank, halves of surrogate pairs.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def visible_json(document: str) -> str:
    """A JSON document that is the same, with such characters escaped as JSON does."""
    return document if document.isprintable() else "".join(map(_in_json, document))


def _escaped(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    if character in _SHORT:
        return _SHORT[character]
    if code <= _LATIN:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _PLANE else f"\\U{code:08x}"


def _in_json(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class Visible(logging.Formatter):
    """Log lines for a terminal: each record is one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and the lines of its traceback if it has one."""
        return "\n".join(map(visible, super().format(record).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message, whose own line breaks are made visible."""
        record.message = visible(record.message)
        return super().formatMessage(record)
