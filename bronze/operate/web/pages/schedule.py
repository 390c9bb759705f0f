"""When tables ran and will run: a day back and a day ahead, with the windows of the config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice

from bronze.governance.tables.runs import RunRecord
from bronze.model.schedule import Window
from bronze.operate.view import TableView
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.charts import Span
from bronze.operate.web.markup.layout import Page, section, table_link
from bronze.operate.web.markup.tags import Safe, join, tag, url
from bronze.operate.web.site import Visit
from bronze.printable import count

PAGE = 50
_SIDE = timedelta(hours=24)
_MOST = 100
_STEP = timedelta(minutes=15)
_KINDS = {"failed": "run bad", "differs": "run bad", "stopped": "run calm", "began": "run busy"}


def page(visit: Visit) -> Page:
    """The page."""
    text = visit.query.get("page", "1")
    pages = max(-(-len(visit.view.tables) // PAGE), 1)
    number = min(max(int(text) if text.isdecimal() and len(text) < 7 else 1, 1), pages)
    tables = sorted(visit.view.tables, key=lambda table: (table.next_due or visit.now, table.table))
    windows = list(_windows(visit))
    shown = tables[(number - 1) * PAGE : number * PAGE]
    rows = [_row(visit, table, windows) for table in shown]
    content: object = tag("ul", rows, class_="lines")
    if not rows:
        content = tag("p", "The config selects no table.", class_="muted")
    main = join(
        [
            tag("h1", "Schedule"),
            _legend(visit),
            section("A day back, a day ahead", _hours(visit), content, id_="lines"),
            _pager(number, pages),
        ]
    )
    return Page("Schedule", main, refresh=60)


def _legend(visit: Visit) -> Safe:
    names = {window.name: window for window in visit.site.settings.serve.hours()}
    items = [
        tag("li", tag("span", "", class_=f"key {kind}", aria_hidden="true"), text)
        for kind, text in (
            ("run", "ran"),
            ("run bad", "failed"),
            ("run busy", "runs"),
            ("due", "due, for as long as a run takes"),
        )
    ]
    for place, (name, window) in enumerate(names.items()):
        text = f"{name}: {window.least} to {window.most} workers"
        key = tag("span", "", class_=f"key window{place % 3}", aria_hidden="true")
        items.append(tag("li", key, text))
    return tag("ul", items, class_="legend", aria_label="Colours")


def _hours(visit: Visit) -> Safe:
    """The clock along the lines: every eight hours, now in the middle."""
    marks = []
    for hours in range(-24, 25, 8):
        moment = visit.now + timedelta(hours=hours)
        local = moment.astimezone(visit.zone)
        marks.append(tag("span", "now" if hours == 0 else f"{local:%a %H:%M}"))
    return tag("p", marks, class_="hours", aria_hidden="true")


def _windows(visit: Visit) -> Iterator[Span]:
    """The windows as pieces of time; looked at every quarter of an hour."""
    windows = visit.site.settings.serve.hours()
    begin, end = visit.now - _SIDE, visit.now + _SIDE
    moment = begin.replace(minute=begin.minute // 15 * 15, second=0, microsecond=0)
    start, current = moment, _window_at(windows, moment)
    while moment < end:
        moment += _STEP
        following = _window_at(windows, moment)
        if following != current or moment >= end:
            if current is not None:
                name = windows[current].name
                yield Span(start, moment, f"window{current % 3}", name)
            start, current = moment, following


def _window_at(windows: Sequence[Window], moment: datetime) -> int | None:
    for place, window in enumerate(windows):
        if window.has(moment) or not window.days:
            return place
    return None


def _row(visit: Visit, table: TableView, windows: Iterable[Span]) -> Safe:
    now = visit.now
    begin, end = now - _SIDE, now + _SIDE
    runs = [run for run in visit.site.runs(table.key) if (run.ended or now) >= begin]
    dues = list(_dues(visit, table))
    spans = [*windows, *(_run(visit, run) for run in runs)]
    took = timedelta(seconds=table.expected or 0)
    spans += [
        Span(due, due + took, "due", f"due {words.clock(due, visit.zone, now)}") for due in dues
    ]
    failed = sum(run.status == "failed" for run in runs)
    says = f"{count(len(runs), 'run')} in the last 24 hours, {failed} failed; "
    says += f"due {count(len(dues), 'time')} in the next 24"
    if table.pattern == "streaming":
        says = "streamed all the time"
        since = table.as_of or now
        spans.append(Span(begin, max(since, begin), "run", says))
    return tag(
        "li",
        tag("p", table_link(table.key, table.table), tag("span", table.schedule, class_="sub")),
        charts.time_line(spans, begin, end, now, says),
    )


def _run(visit: Visit, run: RunRecord) -> Span:
    end = run.ended or visit.now
    says = f"{run.command} {run.status}, began {words.clock(run.began, visit.zone, visit.now)}"
    return Span(run.began, end, _KINDS.get(run.status, "run"), says)


def _dues(visit: Visit, table: TableView) -> Iterator[datetime]:
    """The due times of the next day; of what is due very often the first hundred."""
    schedule = visit.site.settings.serve.schedule_of(table.schedule)
    if schedule.is_continuous or table.pause:
        return iter(())
    return islice(schedule.between(visit.now, visit.now + _SIDE), _MOST)


def _pager(number: int, pages: int) -> Safe | None:
    if pages == 1:
        return None
    links = []
    for text, to in (("Previous", number - 1), ("Next", number + 1)):
        if 1 <= to <= pages:
            links.append(tag("a", text, href=url("/schedule", page=to)))
        else:
            links.append(tag("span", text, class_="muted"))
    where = tag("span", f"page {number} of {pages}")
    return tag("nav", links[0], where, links[1], class_="pager", aria_label="Pages of tables")
