"""Alerts: those that are open, those that were, and the silences."""

from __future__ import annotations

from bronze.operate.alerts.kinds import KINDS
from bronze.operate.alerts.life import Silence
from bronze.operate.web.lake.facts import Facts
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import Page, alert_list, grid, hidden, section
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.operate.web.site import Visit

_MOST = 200


def page(visit: Visit, facts: Facts) -> Page:
    """The page."""
    main = join(
        [
            tag("h1", "Alerts"),
            section("Open", _open(visit), id_="open"),
            section("Silences", _silences(visit, facts), id_="silences"),
            _form(visit),
            section("Resolved", _resolved(visit, facts), id_="resolved"),
        ]
    )
    return Page("Alerts", main)


def _open(visit: Visit) -> Safe:
    open_ = [alert for alert in visit.view.alerts if alert.is_open]
    open_.sort(key=lambda alert: (alert.state != "open", alert.condition.level != "critical"))
    if not open_:
        return tag("p", "No alert is open.", class_="muted")
    more = len(open_) - _MOST
    rest = tag("p", f"and {more:,} more: `bronze alerts list` has all") if more > 0 else None
    return join([alert_list(visit, open_[:_MOST]), rest])


def _silences(visit: Visit, facts: Facts) -> Safe:
    reading = facts.silences()
    silences = [silence for silence in reading.value if silence.until > visit.now]
    error = tag("p", reading.error, class_="error") if reading.error else None
    if not silences:
        return join([error, tag("p", "Nothing is silenced.", class_="muted")])
    heads = ("Alerts", "Until", "Reason")
    return join([error, grid("Silences", heads, [_silence(visit, one) for one in silences])])


def _silence(visit: Visit, silence: Silence) -> list[object]:
    return [
        tag("code", f"{silence.kind}:{silence.subject}"),
        words.time(silence.until, visit.zone, visit.now),
        silence.reason,
    ]


def _form(visit: Visit) -> Safe | None:
    if not visit.may_act:
        return None
    kinds = [tag("option", name.replace("_", " "), value=name) for name in KINDS]
    lengths = (("1h", "1 hour"), ("4h", "4 hours"), ("1d", "1 day"), ("7d", "7 days"))
    return tag(
        "details",
        tag("summary", "Silence alerts"),
        tag(
            "form",
            hidden("csrf", visit.csrf),
            hidden("action", "silence"),
            hidden("next", "/alerts"),
            tag("label", "Kind", for_="silence-kind"),
            tag("select", kinds, name="kind", id="silence-kind"),
            tag("label", "Table or source, * for all", for_="silence-subject"),
            tag(
                "input",
                type="text",
                name="subject",
                id="silence-subject",
                value="*",
                required=True,
                maxlength="200",
            ),
            tag("label", "For", for_="silence-for"),
            tag(
                "select",
                [tag("option", text, value=value) for value, text in lengths],
                name="for",
                id="silence-for",
            ),
            tag("label", "Reason", for_="silence-reason"),
            tag(
                "input",
                type="text",
                name="reason",
                id="silence-reason",
                required=True,
                maxlength="500",
            ),
            tag("button", "Silence", type="submit", class_="quiet"),
            method="post",
            action="/act",
            class_="act wide",
        ),
        class_="card",
    )


def _resolved(visit: Visit, facts: Facts) -> Safe:
    reading = facts.resolved()
    stored = {alert.key: alert for alert in reading.value}
    for alert in visit.view.alerts:
        # What the service knows is newer.
        stored.pop(alert.key, None)
        if alert.state == "resolved" and alert.opened:
            stored[alert.key] = alert
    alerts = sorted(stored.values(), key=lambda alert: alert.resolved or visit.now, reverse=True)
    error = tag("p", reading.error, class_="error") if reading.error else None
    if not alerts:
        return join([error, tag("p", "None yet.", class_="muted")])
    return join([error, alert_list(visit, alerts[:_MOST])])
