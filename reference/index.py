"""docs/llms.txt: the pages, each with a line (https://llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_SUMMARY = """\
# bronze

> PostgreSQL tables become Delta Lake Bronze tables: every row once, every value exact, all
> tables from one snapshot, from one Python process, without Spark. Batch loads and streaming
> by logical replication, with quality rules, protection of personal data, lineage, an audit
> log, and proof by hashes.

Install: `pip install bronze`. First steps: `bronze init DSN`, `bronze check`, `bronze run`,
`bronze verify`. `bronze COMMAND --help` and `bronze explain KIND` work offline. Paths are
relative to this file."""

_FOLDERS = {
    "": "Start",
    "how-to": "How to",
    "reference": "Reference",
    "explanation": "Explanation",
}
_FIRST = ("index.md", "quickstart.md")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_FENCED = re.compile(r"^```.*?^```\n?", re.MULTILINE | re.DOTALL)
_SENTENCE = re.compile(r"^(.+?[.:])(?:\s|$)")
_WORDS = re.compile(r"^[A-Za-z`*\[“\"]")


def page(docs: Path, generated: Mapping[str, str]) -> str:
    """The text, of the pages in the folder ``docs`` and of those that are generated, by path."""
    texts = {
        path.relative_to(docs).as_posix(): path.read_text(encoding="utf-8")
        for path in docs.rglob("*.md")
    }
    texts |= {name.removeprefix("docs/"): text for name, text in generated.items()}
    folders: dict[str, list[str]] = {name: [] for name in _FOLDERS}
    for path in sorted(texts, key=lambda path: (path not in _FIRST, path)):
        folder = path.rpartition("/")[0].partition("/")[0]
        folders.setdefault(folder, []).append(_line(path, texts[path]))
    parts = [_SUMMARY]
    for folder, lines in folders.items():
        if lines:
            title = _FOLDERS.get(folder, folder.capitalize())
            parts.append("\n".join([f"## {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _line(path: str, text: str) -> str:
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), path)
    about = first_sentence(text)
    return f"- [{title.replace('`', '')}]({path})" + (f": {about}" if about else "")


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph of a page, without links."""
    body = text.partition("\n# ")[2] if not text.startswith("# ") else text
    for block in _FENCED.sub("", body.partition("\n")[2]).split("\n\n"):
        paragraph = block.strip("\n")
        joined = " ".join(paragraph.split())
        if paragraph.startswith("    ") or not _WORDS.match(joined):
            continue
        plain = _LINK.sub(r"\1", joined)
        match = _SENTENCE.match(plain)
        return (match[1] if match else plain).rstrip(":").removesuffix(".") + "."
    return ""
