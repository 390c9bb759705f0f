"""Parts that several sections have."""

from __future__ import annotations

from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

MOST_TABLES = 60
"""How many tables a section lists: the page stays small with a thousand of them."""


class Section:
    """A part of the page: its ``id``, its title, and what is in it."""

    def __init__(self, id_: str, title: str, *content: object) -> None:
        self.id, self.title = id_, title
        self._content = content

    def html(self) -> Safe:
        """The section."""
        return tag(
            "section",
            tag("h2", self.title, id=f"{self.id}-title"),
            *self._content,
            id=self.id,
            aria_labelledby=f"{self.id}-title",
        )


def more(total: int, shown: int, noun: str, which: str = "") -> Safe | None:
    """Says how many things are left out, and which."""
    left = total - shown
    if left <= 0:
        return None
    rest = count(left, f"more {noun}")
    return tag("p", f"Left out: {rest}{', ' + which if which else ''}.", class_="muted left-out")


def more_tables(total: int, which: str) -> Safe | None:
    """The same, of a list of tables."""
    return more(total, MOST_TABLES, "table", which)
