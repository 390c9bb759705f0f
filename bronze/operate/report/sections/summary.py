"""The top of the page: the verdict, five figures, and the alerts that are open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import more
from bronze.operate.view import TableState, TableView
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import TONES, badge
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

_MOST_ALERTS = 10
_ALL_FRESH: tuple[TableState, ...] = ("fresh", "quiet", "running", "waiting")


def verdict(material: Material) -> Safe:
    """The sentence that says whether all is well."""
    tone = "well" if material.view.is_well else "unwell"
    return tag(
        "section", tag("h1", material.view.sentence), id="verdict", class_=f"sentence {tone}"
    )


def tiles(material: Material) -> Safe:
    """The figures that are looked at first."""
    return tag(
        "section",
        tag("h2", "Figures", id="figures-title", class_="only-read"),
        tag("ul", list(_tiles(material)), class_="tiles"),
        id="figures",
        aria_labelledby="figures-title",
    )


def _tiles(material: Material) -> Iterator[Safe]:
    tables = material.view.tables
    states = Counter(table.state for table in tables)
    good = sum(states[state] for state in _ALL_FRESH)
    others = ", ".join(f"{n:,} {s}" for s, n in states.items() if s not in _ALL_FRESH)
    tone = "" if good == len(tables) else "bad" if any(t.late for t in tables) else "warn"
    yield _tile("Fresh tables", f"{good:,} of {len(tables):,}", others or "all of them", tone)
    yield _oldest(tables)
    landings = material.records.landings
    rows = int(sum(landings[name].sum() for name in ("inserted", "updated", "deleted")))
    yield _tile("Rows landed", words.number(rows), f"in the last {count(material.days, 'day')}")
    yield _lowest(tables)
    states_of = [table.state for table in material.stored.values() if table.state]
    files = [file for state in states_of for file in state.listed_files]
    size = sum(file.size for file in files)
    yield _tile(
        "Size", words.size(size), f"{count(len(files), 'file')}, {count(len(states_of), 'table')}"
    )


def _oldest(tables: tuple[TableView, ...]) -> Safe:
    """The table that has used the most of its SLA."""
    left = [(t.slack, t) for t in tables if t.slack is not None]
    if not left:
        return _tile("Least time left", "–", "no table has an SLA yet")
    slack, table = min(left, key=lambda pair: (pair[0], pair[1].key))
    title = "Longest late" if slack < 0 else "Least time left"
    return _tile(title, words.span(slack), table.table, "bad" if slack < 0 else "")


def _lowest(tables: tuple[TableView, ...]) -> Safe:
    scored = [(t.score, t) for t in tables if t.score is not None]
    if not scored:
        return _tile("Lowest score", "–", "no rows are scored yet")
    score, table = min(scored, key=lambda pair: (pair[0], pair[1].key))
    same = sum(one == score for one, _ in scored)
    who = f"all {same:,} scored tables" if same == len(scored) > 1 else table.table
    return _tile("Lowest score", score_text(score), f"of 100: {who}")


def score_text(score: float) -> str:
    """A score with one decimal, rounded down: 99.99 is not shown as 100."""
    return f"{int(score * 10) / 10:.1f}".removesuffix(".0")


def _tile(title: str, value: str, below: str, tone: str = "") -> Safe:
    return tag(
        "li",
        tag("h3", title),
        tag("p", value, class_="value"),
        tag("p", below, class_="worst"),
        class_=f"tile {tone}".strip(),
    )


def alerts(material: Material) -> Safe | None:
    """The alerts that are open, the worst first; nothing if there is none."""
    found = material.view.open_alerts
    if not found:
        return None
    items = [
        tag(
            "li",
            tag(
                "div",
                tag("p", badge(alert.condition.level), " ", alert.condition.text),
                tag(
                    "p",
                    "since ",
                    words.time(alert.condition.since, material.zone, material.now),
                    f", {alert.by or 'somebody'} sees to it" if alert.acknowledged else None,
                    class_="sub",
                ),
                class_="what",
            ),
            class_=TONES[alert.condition.level],
        )
        for alert in found[:_MOST_ALERTS]
    ]
    return tag(
        "section",
        tag("h2", f"Open alerts ({len(found):,})", id="alerts-title"),
        tag("ul", items, class_="alerts"),
        more(len(found), _MOST_ALERTS, "alert"),
        id="alerts",
        aria_labelledby="alerts-title",
    )


def period(material: Material) -> str:
    """The time that the report is about."""
    begin, now = (m.astimezone(material.zone) for m in (material.begin, material.now))
    is_one_year = begin.year == now.year
    first = f"{begin.day} {begin:%b}" if is_one_year else f"{begin.day} {begin:%b %Y}"
    days = count(material.days, "day")
    return f"{first} to {now.day} {now:%b %Y %H:%M} ({days}), times of {material.zone.key}"
