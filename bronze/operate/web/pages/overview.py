"""The first page: the sentence, the five metrics, what is wrong, and all tables by their slack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import get_args

from bronze.operate.view import Metric, TableState, TableView
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.layout import (
    TONES,
    Page,
    alert_list,
    badge,
    grid,
    section,
    slack,
    state_badges,
    table_link,
)
from bronze.operate.web.markup.tags import Safe, join, tag, url
from bronze.operate.web.site import Visit
from bronze.printable import count

PAGE = 50
STATES: tuple[TableState, ...] = get_args(TableState)
_ALERTS = 10
_TITLES = {
    "freshness": ("Freshness", "oldest table"),
    "quality": ("Quality", "lowest score"),
    "duration": ("Processing time", "longest run"),
    "failed": ("Failed records", "highest share"),
    "resources": ("Resources", "CPU or memory"),
}
_DAY = timedelta(hours=24)


def page(visit: Visit) -> Page:
    """The first page."""
    shown = _selected(visit)
    number, pages = _page_number(visit, len(shown))
    begin = (number - 1) * PAGE
    main = join(
        [
            _sentence(visit),
            _tiles(visit),
            _alerts(visit),
            tag(
                "section",
                tag("h2", "Tables", id="tables-title"),
                _filter(visit),
                tag(
                    "div",
                    _chips(visit),
                    _tables(visit, shown[begin : begin + PAGE]),
                    _pager(visit, number, pages, len(shown)),
                    id="rows",
                    data_live=True,
                ),
                id="tables",
                aria_labelledby="tables-title",
            ),
        ]
    )
    return Page("Tables", main, refresh=15)


def _sentence(visit: Visit) -> Safe:
    view = visit.view
    tone = "well" if view.is_well else "unwell"
    return tag(
        "section",
        tag("h1", view.sentence),
        id="sentence",
        class_=f"sentence {tone}",
        aria_live="polite",
        data_live=True,
    )


def _tiles(visit: Visit) -> Safe:
    return tag(
        "section",
        tag("h2", "Metrics", id="metrics-title", class_="only-read"),
        tag("ul", [_tile(visit, metric) for metric in visit.view.metrics], class_="tiles"),
        id="metrics",
        aria_labelledby="metrics-title",
        data_live=True,
    )


def _tile(visit: Visit, metric: Metric) -> Safe:
    title, what = _TITLES[metric.name]
    value = value_of(metric.name, metric.value)
    limit = ("below " if metric.name == "quality" else "above ") + value_of(
        metric.name, metric.threshold
    )
    says = (
        f"{title} in the last 24 hours; the threshold is {value_of(metric.name, metric.threshold)}"
    )
    spark = charts.sparkline(metric.recent, visit.now - _DAY, visit.now, metric.threshold, says)
    worst: object = metric.worst
    if metric.worst and any(table.table == metric.worst for table in visit.view.tables):
        worst = table_link(metric.worst)
    return tag(
        "li",
        tag("h3", title),
        badge(metric.state),
        tag("p", value, class_="value"),
        tag("p", worst or what, class_="worst"),
        spark,
        tag("p", f"{metric.level.capitalize()} {limit}", class_="limit-text"),
        tag("p", metric.why, class_="why") if metric.why else None,
        class_=f"tile {TONES[metric.state]}",
    )


def value_of(name: str, value: float | None) -> str:
    """A value of a metric with its unit."""
    if value is None:
        return "unknown"
    if name in ("freshness", "duration"):
        return words.span(value)
    if name == "quality":
        return f"{value:.1f}".removesuffix(".0")
    return words.share(value, 1 if name == "failed" and value and value != round(value, 2) else 0)


def _alerts(visit: Visit) -> Safe:
    open_ = [alert for alert in visit.view.alerts if alert.is_open]
    # What nobody has acknowledged first, then what is critical.
    open_.sort(key=lambda alert: (alert.state != "open", alert.condition.level != "critical"))
    more = len(open_) - _ALERTS
    content: object = tag("p", "No alert is open.", class_="muted")
    if open_:
        content = alert_list(visit, open_[:_ALERTS])
    rest = tag("p", tag("a", f"{more} more", href="/alerts")) if more > 0 else None
    title = f"Open alerts ({len(open_)})" if open_ else "Open alerts"
    return section(title, content, rest, id_="open-alerts")


def _selected(visit: Visit) -> list[TableView]:
    """The tables that the filter lets through."""
    name, state = visit.query.get("name", "").strip().lower(), visit.query.get("state", "")
    return [
        table
        for table in visit.view.tables
        if (not state or table.state == state)
        and (not name or name in table.table.lower() or name in table.target.lower())
    ]


def _page_number(visit: Visit, count: int) -> tuple[int, int]:
    pages = max(-(-count // PAGE), 1)
    text = visit.query.get("page", "1")
    number = int(text) if text.isdecimal() and len(text) < 7 else 1
    return min(max(number, 1), pages), pages


def _filter(visit: Visit) -> Safe:
    state = visit.query.get("state", "")
    options = [tag("option", "any state", value="")]
    options += [tag("option", word, value=word, selected=word == state) for word in STATES]
    return tag(
        "form",
        tag("label", "Name", for_="filter-name"),
        tag(
            "input",
            type="search",
            id="filter-name",
            name="name",
            value=visit.query.get("name", ""),
            autocomplete="off",
            maxlength="200",
        ),
        tag("label", "State", for_="filter-state"),
        tag("select", options, id="filter-state", name="state"),
        tag("button", "Filter", type="submit", class_="quiet"),
        method="get",
        action="/",
        role="search",
        aria_label="Tables by name and state",
        class_="filter",
        id="filter",
    )


def _chips(visit: Visit) -> Safe | None:
    counts = Counter(table.state for table in visit.view.tables)
    chosen, name = visit.query.get("state", ""), visit.query.get("name", "")
    items = []
    for state in STATES:
        if not counts[state]:
            continue
        is_chosen = state == chosen
        target = url("/", name=name, state="" if is_chosen else state)
        content = [badge(state), tag("span", f" {counts[state]:,}", class_="number")]
        link = tag("a", content, href=target, aria_current="true" if is_chosen else None)
        items.append(tag("li", link))
    return tag("ul", items, class_="chips", aria_label="States") if items else None


def _score(table: TableView) -> object:
    if table.score is not None:
        return f"{table.score:.1f}".removesuffix(".0")
    # A run that reads no rows has no score; what a stream has applied has one.
    return tag("span", "unknown", class_="muted") if table.pattern == "streaming" else "–"


def _tables(visit: Visit, tables: Sequence[TableView]) -> Safe:
    if not visit.view.tables:
        return tag("p", "The config selects no table.", class_="muted")
    if not tables:
        return tag("p", "No table is like this. ", tag("a", "Show all", href="/"), class_="muted")
    heads = ("Table", "State", "Time left", "As of", "Next run", "Last run", "Score")
    rows = [_row(visit, table) for table in tables]
    return grid("Tables by the time left", heads, rows, broad="State")


def _row(visit: Visit, table: TableView) -> list[object]:
    tone = TONES[table.state]
    left: list[object] = [
        tag("span", slack(table), class_="keep bad-text" if table.late else "keep")
    ]
    if table.slack is not None and table.sla:
        left.append(charts.meter(table.slack / table.sla if table.slack > 0 else 1.0, tone))
    about = f"{table.source} · {table.pattern.replace('_', '-')} · priority {table.priority}"
    return [
        [table_link(table.key, table.table), tag("span", about, class_="sub")],
        [state_badges(table), tag("span", table.why, class_="sub") if table.why else None],
        left,
        words.age(table.as_of, visit.now, "never"),
        next_run(visit, table),
        last_run(visit, table),
        _score(table),
    ]


def next_run(visit: Visit, table: TableView) -> Safe:
    """When a table runs next, or until when it runs."""
    now, zone = visit.now, visit.zone
    if table.running and table.expected_end:
        return tag("span", "ends ", words.time(table.expected_end, zone, now))
    if table.next_due is None:
        return tag("span", "continuous" if table.pattern == "streaming" else "–")
    return words.time(table.next_due, zone, now)


def last_run(visit: Visit, table: TableView) -> Safe:
    """How the last run ended, and how long it took."""
    record = table.last
    if record is None:
        return tag("span", "–")
    took = words.span(record.seconds) if record.seconds is not None else ""
    rows = record.inserted + record.updated + record.deleted
    detail = count(rows, "row") if record.status == "landed" else record.status
    return tag(
        "span",
        words.time(record.ended or record.began, visit.zone, visit.now),
        tag("span", ", ".join(filter(None, [took, detail])), class_="sub keep"),
    )


def _pager(visit: Visit, number: int, pages: int, count: int) -> Safe | None:
    if pages == 1:
        return None
    query = {key: visit.query.get(key, "") for key in ("name", "state")}

    def link(to: int, text: str) -> Safe:
        if not 1 <= to <= pages:
            return tag("span", text, class_="muted")
        return tag("a", text, href=url("/", **query, page=to if to > 1 else ""))

    begin = (number - 1) * PAGE + 1
    where = f"{begin:,} to {min(begin + PAGE - 1, count):,} of {count:,}"
    parts = [link(number - 1, "Previous"), tag("span", where), link(number + 1, "Next")]
    return tag("nav", parts, class_="pager", aria_label="Pages of tables")
