"""HTML that cannot be left unescaped: what is put into a tag is text, unless it is a tag itself.

``tag("p", "a < b")`` is ``<p>a &lt; b</p>``. Characters that are not printable are shown as
escapes, so that no name of a table can hide or turn around what is beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from urllib.parse import urlencode

from bronze.printable import visible

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Safe(str):
    """HTML that is escaped. Joined to a plain string it is one, and is escaped where it is used."""

    __slots__ = ()


def text(value: object) -> Safe:
    """The text of a value, escaped."""
    if isinstance(value, Safe):
        return value
    return Safe(escape(visible(str(value)), quote=True))


def join(children: Iterable[object], between: str = "") -> Safe:
    """Children one after the other; None and False are nothing."""
    parts: list[str] = []
    _collect(children, parts)
    return Safe(text(between).join(parts) if between else "".join(parts))


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """An element.

    Args:
        name: of the element.
        children: elements, texts, numbers, or iterables of them; None and False are nothing.
        attributes: by their names, with ``_`` for ``-`` and a ``_`` behind words of Python. True is
            an attribute without a value, None and False are none.
    """
    parts = ["<", name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        parts.append(" " + key.rstrip("_").replace("_", "-"))
        if value is not True:
            parts.append(f'="{text(value)}"')
    parts.append(">")
    if name in _VOID:
        return Safe("".join(parts))
    _collect(children, parts)
    parts.append(f"</{name}>")
    return Safe("".join(parts))


def url(path: str, /, **query: object) -> str:
    """A path of this server with a query; what is None or empty is left out."""
    values = {
        key.rstrip("_"): str(value) for key, value in query.items() if value not in (None, "")
    }
    return f"{path}?{urlencode(values)}" if values else path


def document(head: Iterable[object], body: Safe) -> Safe:
    """A whole document, in English."""
    return Safe("<!doctype html>\n" + tag("html", tag("head", *head), body, lang="en"))


def _collect(children: Iterable[object], parts: list[str]) -> None:
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, str):
            parts.append(text(child))
        elif isinstance(child, Iterable):
            _collect(child, parts)
        else:
            parts.append(text(child))
