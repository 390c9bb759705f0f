"""The frame of all pages, and the parts that several of them have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from bronze.operate.alerts.life import Alert
from bronze.operate.view import TableView
from bronze.operate.web.markup import words
from bronze.operate.web.markup.tags import Safe, document, join, tag, url
from bronze.operate.web.site import Visit
from bronze.printable import count
from bronze.version import VERSION

STATIC = Path(__file__).parent.parent / "static"
PAGES = (
    ("/", "Tables"),
    ("/schedule", "Schedule"),
    ("/streams", "Streams"),
    ("/alerts", "Alerts"),
    ("/system", "System"),
    ("/runbooks", "Runbooks"),
    ("/audit", "Audit"),
)
TONES: Mapping[str, str] = {
    "fresh": "good",
    "quiet": "good",
    "running": "busy",
    "waiting": "calm",
    "late": "bad",
    "will be late": "warn",
    "failed": "bad",
    "quarantined": "bad",
    "paused": "calm",
    "never landed": "warn",
    "unknown": "calm",
    "ok": "good",
    "warning": "warn",
    "critical": "bad",
    "closed": "good",
    "half-open": "warn",
    "open": "bad",
    "acknowledged": "warn",
    "resolved": "good",
    "landed": "good",
    "unchanged": "good",
    "equal": "good",
    "done": "good",
    "began": "busy",
    "differs": "bad",
    "stopped": "calm",
    "connected": "good",
    "down": "bad",
}
"""The colour of each word of a state; the word itself is always there, too."""


@dataclass(frozen=True)
class Page:
    """A page: what is in its ``main``, and after how many seconds a browser without JavaScript
    loads it again (0 for never: a form would lose what was typed).
    """

    title: str
    main: Safe
    refresh: int = 0


def frame(visit: Visit, page: Page) -> Safe:
    """The whole document of a page."""
    live = visit.view.live
    return document(
        _head(page, is_live=True),
        tag(
            "body",
            tag("a", "Skip to the content", class_="skip", href="#main"),
            tag(
                "header",
                _brand(),
                _navigation(visit),
                tag("div", _pulse(visit), _account(visit), class_="who"),
                class_="top",
            ),
            _banners(visit),
            tag("main", page.main, id="main", tabindex="-1"),
            tag(
                "footer",
                tag("span", visit.site.settings.lake.root, class_="lake"),
                tag("span", f"bronze {live.version if live else VERSION}"),
                tag("span", f"Times are of {visit.site.settings.serve.timezone}"),
                class_="foot",
            ),
            data_events="/events",
        ),
    )


def bare(title: str, *main: object) -> Safe:
    """A document without navigation: for who is not known, and for errors."""
    body = tag("body", tag("main", *main, id="main", class_="bare"))
    return document(_head(Page(title, Safe()), is_live=False), body)


def _head(page: Page, *, is_live: bool) -> Iterable[object]:
    yield tag("meta", charset="utf-8")
    yield tag("title", f"{page.title} – bronze")
    yield tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    yield tag("meta", name="color-scheme", content="light dark")
    yield tag("link", rel="icon", href=asset("favicon.svg"), type="image/svg+xml")
    yield tag("link", rel="stylesheet", href=asset("style.css"))
    if is_live:
        yield tag("script", src=asset("page.js"), defer=True)
    if page.refresh:
        again = tag("meta", http_equiv="refresh", content=str(page.refresh))
        yield tag("noscript", again)


@cache
def asset(name: str) -> str:
    """The path of a file in ``static``, which changes with its content."""
    version = sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={version}"


def _brand() -> Safe:
    return tag(
        "a", tag("span", "", class_="mark", aria_hidden="true"), "bronze", class_="brand", href="/"
    )


def _navigation(visit: Visit) -> Safe:
    waiting = sum(alert.state == "open" for alert in visit.view.alerts)
    items = []
    for path, name in PAGES:
        current = visit.path == path or (path == "/" and visit.path == "/table")
        badge = None
        if path == "/alerts" and waiting:
            badge = tag(
                "span", f" {waiting}", tag("span", " open", class_="only-read"), class_="count"
            )
        link = tag("a", name, badge, href=path, aria_current="page" if current else None)
        items.append(tag("li", link))
    return tag("nav", tag("ul", items), aria_label="Pages", id="nav", data_live=True)


def _pulse(visit: Visit) -> Safe:
    at = f"{visit.now.astimezone(visit.zone):%H:%M:%S}"
    return tag(
        "span",
        tag("span", "", class_="dot", aria_hidden="true"),
        "as of ",
        tag("time", at, datetime=words.stamp(visit.now)),
        class_="pulse",
        id="pulse",
        data_live=True,
    )


def _account(visit: Visit) -> Safe:
    if not visit.has_session:
        return tag("a", "Sign in", href=url("/login", next=visit.path))
    return tag(
        "form",
        hidden("csrf", visit.csrf),
        tag("span", f"{visit.role} ", class_="muted"),
        tag("button", "Sign out", type="submit", class_="quiet"),
        method="post",
        action="/logout",
    )


def _banners(visit: Visit) -> Safe:
    """What is said above everything."""
    live, view = visit.view.live, visit.view
    lines: list[Safe] = [
        tag(
            "p",
            "The service has not been heard ",
            tag("span", "for a while", id="unheard-for"),
            ". What is below is as it was before.",
            class_="banner bad",
            id="unheard",
            hidden=True,
            role="status",
        )
    ]
    said: list[object] = []
    if live is None:
        said.append(tag("p", "No service has run yet.", class_="banner warn"))
    elif not view.is_alive:
        heard = words.time(live.at, visit.zone, view.now)
        said.append(tag("p", "The service was last heard at ", heard, ".", class_="banner bad"))
    if live and live.is_stopping:
        said.append(tag("p", "The service is stopping.", class_="banner warn"))
    if live and live.config_error:
        text = f"The config is not valid, the one from before stays in force: {live.config_error}"
        said.append(tag("p", text, class_="banner warn"))
    if live and live.lake_error:
        said.append(tag("p", f"The lake: {live.lake_error}", class_="banner bad"))
    if visit.notice:
        kind, sentence = visit.notice
        tone = "good" if kind == "done" else "bad"
        lines.append(tag("p", sentence, class_=f"banner {tone}", role="status"))
    return join([*lines, tag("div", said, id="banners", data_live=True)])


def badge(word: str, shown: str = "", tone: str = "") -> Safe:
    """A state: its word, with a shape and a colour."""
    kind = tone or TONES.get(word, "calm")
    return tag("span", shown or word, class_=f"badge {kind}")


def state_badges(table: TableView) -> Safe:
    """The state of a table; a table in another state that runs has that beside it."""
    running = _running(table)
    if table.state == "running":
        return badge("running", running)
    beside = badge("running", running) if table.running else None
    return join([badge(table.state), beside], " ") if beside else badge(table.state)


def _running(table: TableView) -> str:
    share = table.running.share if table.running else None
    return "running" if share is None else f"running {share * 100:.0f} %"


def slack(table: TableView) -> str:
    """The time until a table is late, in words."""
    if table.slack is None:
        return "no SLA" if table.sla is None else words.UNKNOWN
    return (
        f"{words.span(table.slack)} late" if table.slack < 0 else f"{words.span(table.slack)} left"
    )


def hidden(name: str, value: str) -> Safe:
    """A field of a form that is not seen."""
    return tag("input", type="hidden", name=name, value=value)


def act_form(
    visit: Visit, action: str, subject: str, *children: object, class_: str = "act"
) -> Safe:
    """A form that acts; ``children`` are its fields and its button."""
    return tag(
        "form",
        hidden("csrf", visit.csrf),
        hidden("action", action),
        hidden("subject", subject),
        hidden("next", url(visit.path, **dict(visit.query))),
        *children,
        method="post",
        action="/act",
        class_=class_,
    )


def alert_list(visit: Visit, alerts: Iterable[Alert]) -> Safe:
    """Alerts, with a button for those that nobody has acknowledged."""
    return tag("ul", [_alert(visit, alert) for alert in alerts], class_="alerts")


def _alert(visit: Visit, alert: Alert) -> Safe:
    condition, now = alert.condition, visit.now
    told = list(dict.fromkeys(r.channel for r in alert.receipts if r.act == "open"))
    since = ["since ", words.time(condition.since, visit.zone, now)]
    facts: list[object] = [tag("span", since)]
    if alert.state != "resolved" and alert.is_open:
        facts.append(tag("span", f"told: {', '.join(told)}" if told else "nobody was told"))
    if alert.effects:
        facts.append(tag("span", f"explains {count(alert.effects, 'other')}"))
    if alert.recurring:
        facts.append(tag("span", "comes and goes"))
    if alert.acknowledged and alert.state == "acknowledged":
        facts.append(tag("span", f"{alert.by or 'somebody'} sees to it"))
    if alert.resolved and alert.state == "resolved":
        facts.append(tag("span", "resolved ", words.time(alert.resolved, visit.zone, now)))
    facts.append(tag("a", "runbook", href=runbook_link(condition.kind)))
    open_ = alert.state == "open"
    tone = "good" if alert.state == "resolved" else TONES[condition.level]
    state = None if alert.state == "open" else badge(alert.state)
    return tag(
        "li",
        tag(
            "div",
            tag("p", badge(condition.level, tone=tone), " ", state, " ", condition.text),
            tag("p", facts, class_="facts"),
            class_="what",
        ),
        _acknowledge(visit, alert) if open_ else None,
        class_=tone,
    )


def _acknowledge(visit: Visit, alert: Alert) -> Safe | None:
    if not visit.may_act:
        return None
    label = f"Acknowledge: {alert.condition.text}"
    button = tag("button", "Acknowledge", type="submit", aria_label=label)
    return act_form(visit, "acknowledge", ":".join(alert.key), button)


def runbook_link(kind: str) -> str:
    """The section of a runbook that is about a kind of alert."""
    from bronze.operate.alerts.kinds import KINDS

    known = KINDS.get(kind)
    return f"{url('/runbooks', name=known.scenario)}#{known.anchor}" if known else "/runbooks"


def table_link(name: str, shown: str = "") -> Safe:
    """A link to the page of a table, by its key or label."""
    return tag("a", shown or name, href=url("/table", name=name))


def facts_list(facts: Iterable[tuple[str, object]]) -> Safe:
    """Names and values."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    return tag("dl", rows, class_="facts-list")


def section(title: str, *children: object, id_: str, live: bool = True, level: str = "h2") -> Safe:
    """A part of a page with a heading; one that is ``live`` is renewed while it is looked at."""
    heading = tag(level, title, id=f"{id_}-title")
    return tag(
        "section", heading, *children, id=id_, aria_labelledby=f"{id_}-title", data_live=live
    )


def grid(
    caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]], broad: str = ""
) -> Safe:
    """A table whose rows become cards where it is narrow; ``broad`` is the column that has a line
    of its own there.
    """
    names = list(heads)
    head = tag("tr", [tag("th", name, scope="col") for name in names])
    body = []
    for cells in rows:
        parts: list[Safe] = []
        for name, cell in zip(names, cells, strict=True):
            if not parts:
                parts.append(tag("th", cell, scope="row"))
            else:
                is_broad = "broad" if name == broad else None
                parts.append(tag("td", cell, data_label=name, class_=is_broad))
        body.append(tag("tr", parts))
    if not body:
        return tag("p", "None.", class_="muted")
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="only-read"),
            tag("thead", head),
            tag("tbody", body),
        ),
        class_="scroll",
    )
