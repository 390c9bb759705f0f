"""The page: one document that needs nothing but itself."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.governance.audit import refuse_newer_lake
from bronze.operate.report.material import Material, gather
from bronze.operate.report.sections import (
    activity,
    freshness,
    lineage,
    quality,
    schemas,
    stored,
    summary,
    unusual,
)
from bronze.operate.web.markup.layout import STATIC
from bronze.operate.web.markup.tags import Safe, document, tag
from bronze.version import VERSION

_GENERATOR = "bronze report"
_MARK = f'<meta name="generator" content="{_GENERATOR}">'
_SECTIONS = (freshness, activity, quality, unusual, lineage, stored, schemas)


def report(
    settings: Settings, tables: Sequence[str] = (), *, days: int = 30, now: datetime | None = None
) -> str:
    """The page about tables of a lake. The source is not asked, and nothing is written.

    Args:
        settings: the config.
        tables: names of the source's tables or of Bronze tables; all that are known if none.
        days: how many days of runs, quality and anomalies it has.
        now: the time that it is of.

    Raises:
        ConfigError: there is no table of such a name.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    refuse_newer_lake(settings)
    return html(gather(settings, tables, days, now or datetime.now(UTC)))


def write(path: Path, page: str) -> None:
    """Writes a page into a file, whole or not at all; an earlier report is replaced.

    Raises:
        ConfigError: there is another file of this name, or it cannot be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and not _is_report(path):
            raise ConfigError(
                f"The file {path} is not a report, and is not overwritten.",
                hint="Name another file with -o, or move this one away first.",
            )
        new.write_text(page, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise ConfigError(
            f"The report {path} cannot be written: {error.strerror}.",
            hint="Name another file with -o, or - for standard output.",
        ) from None


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return _MARK.encode() in file.read(4096)


def html(material: Material) -> str:
    """The page as HTML."""
    sections = [module.section(material) for module in _SECTIONS]
    links = [tag("li", tag("a", section.title, href=f"#{section.id}")) for section in sections]
    body = tag(
        "body",
        tag("a", "Skip to the content", class_="skip", href="#main"),
        tag(
            "header",
            tag("p", "bronze", tag("span", " report", class_="muted"), class_="brand"),
            tag("p", summary.period(material), class_="period"),
            class_="top",
        ),
        tag(
            "main",
            summary.verdict(material),
            summary.tiles(material),
            summary.alerts(material),
            tag("nav", tag("ul", links), aria_label="Sections", class_="contents"),
            [section.html() for section in sections],
            _notes(material),
            id="main",
            tabindex="-1",
        ),
        tag(
            "footer",
            tag("span", material.root, class_="lake"),
            tag("span", f"bronze {VERSION}"),
            tag("span", "Made from the lake alone; it has no values of rows."),
            class_="foot",
        ),
    )
    return document(_head(material), body) + "\n"


def _notes(material: Material) -> Safe | None:
    if not material.notes:
        return None
    return tag(
        "section",
        tag("h2", "What is missing here", id="notes-title"),
        tag("ul", [tag("li", note) for note in material.notes]),
        id="notes",
        aria_labelledby="notes-title",
    )


def _head(material: Material) -> Iterator[object]:
    made = material.now.astimezone(material.zone)
    # Whatever a name of a table would smuggle in: no browser runs or loads it.
    policy = f"default-src 'none'; style-src '{_style_hash()}'; img-src data:"
    yield tag("meta", charset="utf-8")
    yield Safe(_MARK)
    yield tag(
        "meta",
        http_equiv="Content-Security-Policy",
        content=Safe(f"{policy}; base-uri 'none'; form-action 'none'"),
    )
    yield tag("title", f"bronze report, {made.day} {made:%b %Y %H:%M}")
    yield tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    yield tag("meta", name="color-scheme", content="light dark")
    icon = base64.b64encode((STATIC / "favicon.svg").read_bytes()).decode()
    yield tag("link", rel="icon", href=f"data:image/svg+xml;base64,{icon}")
    yield tag("style", _style())


@cache
def _style() -> Safe:
    """The dashboard's style sheet, without what it loads, and that of the report."""
    sheets = ((STATIC / name).read_text("utf-8") for name in ("style.css", "report.css"))
    lines = (line for sheet in sheets for line in sheet.splitlines() if "url(" not in line)
    return Safe("\n".join(lines))


@cache
def _style_hash() -> str:
    return f"sha256-{base64.b64encode(sha256(_style().encode()).digest()).decode()}"
