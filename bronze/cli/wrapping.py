"""Long lines on a terminal: broken between words, never within a word or a `command`."""

from __future__ import annotations

import re

from rich.cells import cell_len

_WORD = re.compile(r"(\s*)((?:`[^`]*`|\S)+)")


def wrapped(line: str, width: int) -> str:
    """A line as several of at most ``width`` columns; further ones are indented by two more than
    the first. A word that is longer has a line of its own.
    """
    if cell_len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines, used = [""], 0
    for gap, word in _WORD.findall(line):
        length = cell_len(gap) + cell_len(word)
        if lines[-1].strip() and used + length > width:
            lines.append(indent + word)
            used = len(indent) + cell_len(word)
        else:
            lines[-1] += gap + word
            used += length
    return "\n".join(lines)
