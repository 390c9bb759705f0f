"""The rules that rows of a table fail, on its page."""

from __future__ import annotations

from collections.abc import Iterable

from bronze.governance.tables.quality import Figure
from bronze.operate.view import TableView
from bronze.operate.web.lake.facts import Reading
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import badge, grid
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.operate.web.site import Visit
from bronze.printable import count
from bronze.quality.latest import LatestFigures

_KEYS = 5


def content(visit: Visit, table: TableView, reading: Reading[LatestFigures | None]) -> Safe:
    """The rules with the share of rows that fail, and the keys of some of them.

    The keys are as ``governance.quality`` has them, which has no values of protected columns.
    """
    if reading.error:
        return tag("p", reading.error, class_="error")
    known = reading.value
    if known is None:
        return tag("p", "Unknown: no quality of its rows is recorded yet.", class_="muted")
    when = words.time(known.evaluated, visit.zone, visit.now)
    command = tag("code", f"bronze quality {table.table}")
    foot = tag("p", "Evaluated ", when, "; ", command, " has all figures.", class_="muted")
    failing = known.failing
    if not failing:
        rules = sum(figure.kind != "check" for figure in known.figures)
        return join([tag("p", f"No row fails any of {count(rules, 'rule')}."), foot])
    heads = ("Rule", "State", "Rows", "Share", "Keys of some rows")
    return join([grid("Rules that rows fail", heads, _rows(failing), broad="Rule"), foot])


def _rows(failing: Iterable[Figure]) -> list[list[object]]:
    return [
        [
            [figure.rule, tag("span", _about(figure), class_="sub")],
            badge("failed" if figure.passed is False else "allowed"),
            "–" if figure.failed is None else words.number(figure.failed),
            "–" if figure.share is None else words.share(figure.share, 2),
            _keys(figure),
        ]
        for figure in failing
    ]


def _about(figure: Figure) -> str:
    kind = "check of the table" if figure.kind == "check" else figure.kind.replace("_", " ")
    column = f" of {figure.column}" if figure.column else ""
    severity = f", {figure.severity}" if figure.severity else ""
    return f"{kind}{column}{severity}"


def _keys(figure: Figure) -> object:
    if not figure.examples:
        return "–"
    return tag("ul", [tag("li", tag("code", key)) for key in figure.examples[:_KEYS]])
