"""The part of Markdown that the runbooks use, as HTML: headings, paragraphs, lists, tables, code,
emphasis, links. Everything else is text; HTML in it is text, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bronze.operate.web.markup.tags import Safe, join, tag

_HEADING = re.compile(r"(#{1,4}) +(.+?) *#*$")
_ITEM = re.compile(r"( *)(?:[-*]|(\d{1,3})\.) +(.*)$")
_FENCE = re.compile(r" *```")
_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\(([^)\s]+)\)")
_ANCHOR = re.compile(r"<a +(?:id|name)=\"([\w-]+)\"> *</a>")
_RULE = re.compile(r"\|?[ :|-]+\|?$")


def render(text: str) -> Safe:
    """The HTML of a text."""
    return join(_blocks(text.replace("\t", "    ").splitlines()))


def slug(heading: str) -> str:
    """The id of a heading, as GitHub makes it."""
    words = re.sub(r"[^\w\s-]", "", heading.lower())
    return re.sub(r"[\s_]", "-", words.strip())


def _blocks(lines: list[str]) -> Iterator[Safe]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif _FENCE.match(line):
            end = next((n for n in range(at + 1, len(lines)) if _FENCE.match(lines[n])), len(lines))
            yield _code(lines[at + 1 : end])
            at = end + 1
        elif heading := _HEADING.match(line):
            yield _heading(len(heading[1]), heading[2])
            at += 1
        elif _ITEM.match(line):
            end = _end_of_list(lines, at)
            yield _list(lines[at:end])
            at = end
        elif line.lstrip().startswith("|"):
            end = at
            while end < len(lines) and lines[end].lstrip().startswith("|"):
                end += 1
            yield _table(lines[at:end])
            at = end
        else:
            end = at + 1
            while end < len(lines) and not _begins_block(lines[end]):
                end += 1
            yield tag("p", _inline(" ".join(part.strip() for part in lines[at:end])))
            at = end


def _begins_block(line: str) -> bool:
    starts = (_HEADING, _ITEM, _FENCE)
    return not line.strip() or line.lstrip().startswith("|") or any(s.match(line) for s in starts)


def _heading(level: int, text: str) -> Safe:
    anchor = _ANCHOR.search(text)
    plain = _ANCHOR.sub("", text).strip()
    name = anchor[1] if anchor else slug(re.sub(r"[`*]", "", plain))
    # The title of a runbook may be that of a section, too, which is what links mean.
    return tag(f"h{level}", _inline(plain), id=name if level > 1 else None)


def _code(lines: list[str]) -> Safe:
    return tag("pre", tag("code", [part for line in lines for part in (line, Safe("\n"))]))


def _end_of_list(lines: list[str], at: int) -> int:
    """Where a list ends: at the first line that is neither an item nor indented."""
    end = at + 1
    while end < len(lines):
        line = lines[end]
        if not line.strip():
            following = next((later for later in lines[end:] if later.strip()), "")
            if not (_ITEM.match(following) or following.startswith("  ")):
                break
        elif not (_ITEM.match(line) or line.startswith(" ")) and _begins_block(line):
            break
        end += 1
    return end


def _list(lines: list[str]) -> Safe:
    first = _ITEM.match(lines[0])
    indent = len(first[1]) if first else 0
    is_numbered = bool(first and first[2])
    items: list[list[str]] = []
    for line in lines:
        item = _ITEM.match(line)
        if item and len(item[1]) <= indent:
            items.append([item[3]])
        elif items:
            items[-1].append(line)
    rendered = [tag("li", _item(item)) for item in items]
    return tag("ol" if is_numbered else "ul", rendered)


def _item(lines: list[str]) -> Safe:
    """An item: its first lines are its text, what is indented below may be a list or code."""
    end = 1
    while end < len(lines) and not _begins_block(lines[end]):
        end += 1
    rest = lines[end:]
    indents = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
    least = min(indents, default=0)
    text = _inline(" ".join(line.strip() for line in lines[:end]))
    return join([text, *_blocks([line[least:] for line in rest])])


def _table(lines: list[str]) -> Safe:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if not _RULE.match(line.strip())
    ]
    if not rows:
        return Safe("")
    head = tag("tr", [tag("th", _inline(cell), scope="col") for cell in rows[0]])
    body = [tag("tr", [tag("td", _inline(cell)) for cell in row]) for row in rows[1:]]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")


def _inline(text: str) -> Safe:
    parts: list[object] = []
    at = 0
    for match in _INLINE.finditer(text):
        parts.append(text[at : match.start()])
        code, strong, emphasis, shown, target = match.groups()
        if code is not None:
            parts.append(tag("code", code))
        elif strong is not None:
            parts.append(tag("strong", _inline(strong)))
        elif emphasis is not None:
            parts.append(tag("em", emphasis))
        else:
            parts.append(_link(shown, target))
        at = match.end()
    return join([*parts, text[at:]])


def _link(text: str, target: str) -> Safe:
    """A link within the runbooks; other targets are text."""
    if target.startswith("#"):
        return tag("a", text, href=target)
    runbook = re.fullmatch(r"(?:\./)?(\w+)\.md(#[\w-]+)?", target)
    if runbook:
        return tag("a", text, href=f"/runbooks?name={runbook[1]}{runbook[2] or ''}")
    return join([text, " (", tag("code", target), ")"])
