"""The page of one table: its deadline, its last 90 days, its runs, and what an operator can do."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bronze.governance.tables.runs import RunRecord
from bronze.operate.view import TableView
from bronze.operate.web.lake.facts import Facts, Reading, Version
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import (
    Page,
    act_form,
    alert_list,
    badge,
    facts_list,
    grid,
    section,
    slack,
    state_badges,
)
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.operate.web.pages import days, rules
from bronze.operate.web.pages.overview import next_run
from bronze.operate.web.site import Visit, table_of
from bronze.printable import count

_RUNS = 100
_FIRST = 15
_PAUSES = (("1h", "1 hour"), ("4h", "4 hours"), ("1d", "1 day"), ("7d", "7 days"))


def page(visit: Visit, facts: Facts) -> Page:
    """The page of the table that the query names.

    Raises:
        Refused: there is no such table, or several sources have one.
    """
    table = table_of(visit.view, visit.query.get("name", ""))
    runs = visit.site.runs(table.key)
    versions = facts.versions(table.target)
    main = join(
        [
            _heading(visit, table),
            _alerts(visit, table),
            section("Now", _facts(visit, table), id_="now"),
            _buttons(visit, table),
            _charts(visit, table, facts),
            section("From source to Bronze", _lineage(visit, table, versions), id_="lineage"),
            section("Runs", _runs(visit, runs), id_="runs"),
            section("Rules", rules.content(visit, table, facts.quality(table.target)), id_="rules"),
            section("Schema changes", _changes(visit, versions), id_="schema"),
        ]
    )
    return Page(table.table, main)


def _heading(visit: Visit, table: TableView) -> Safe:
    return tag(
        "section",
        tag("p", tag("a", "All tables", href="/"), class_="back"),
        tag("h1", table.table),
        tag("p", state_badges(table), " ", tag("strong", slack(table))),
        tag("p", table.why) if table.why else None,
        id="heading",
        class_="heading",
        data_live=True,
    )


def _alerts(visit: Visit, table: TableView) -> Safe:
    own = [
        a
        for a in visit.view.alerts
        if a.is_open and a.condition.subject in (table.table, table.key)
    ]
    content = alert_list(visit, own) if own else None
    return tag("div", content, id="own-alerts", data_live=True)


def _facts(visit: Visit, table: TableView) -> Safe:
    now, zone = visit.now, visit.zone
    running = None
    if table.running:
        began = words.time(table.running.began, zone, now)
        running = tag("span", "since ", began, f", {count(table.running.rows, 'row')}")
    breaker = table.breaker
    state = breaker.state(now) if breaker else "closed"
    pause = table.pause
    return facts_list(
        [
            ("As of", words.age(table.as_of, now, "never landed")),
            ("Late from", words.time(table.deadline, zone, now) if table.deadline else None),
            ("SLA", words.span(table.sla) if table.sla else "none"),
            ("Next run", next_run(visit, table)),
            ("Running", running),
            ("A run takes", words.span(table.expected) if table.expected is not None else None),
            ("Score", _score(table)),
            ("Failed records", None if table.failed is None else words.share(table.failed, 1)),
            ("Schedule", table.schedule),
            ("Pattern", table.pattern.replace("_", "-")),
            ("Priority", str(table.priority)),
            ("Breaker", [badge(state), _rest(visit, table)]),
            (
                "Paused",
                pause
                and tag(
                    "span",
                    f"by {pause.by}: {pause.reason}, ",
                    ["until ", words.time(pause.until, zone, now)] if pause.until else "no end",
                ),
            ),
            ("Source", table.source),
            ("Bronze table", tag("code", table.target)),
        ]
    )


def _score(table: TableView) -> str | None:
    if table.score is not None:
        return f"{table.score:.1f} of {count(table.scored_rows or 0, 'row')}"
    if table.pattern == "streaming":
        return "unknown: no quality of its rows is recorded yet"
    return None


def _rest(visit: Visit, table: TableView) -> Safe | None:
    breaker = table.breaker
    if breaker is None or not breaker.failures:
        return None
    text = f" after {count(breaker.failures, 'failure')}"
    if breaker.until is None:
        return tag("span", f" {count(breaker.failures, 'failure')} in a row")
    return tag("span", text, ", tried ", words.age(breaker.until, visit.now))


def _buttons(visit: Visit, table: TableView) -> Safe:
    if not visit.may_act:
        return tag("p", _why_not(visit), class_="muted", id="buttons")
    name = table.key
    run = act_form(visit, "now", name, tag("button", "Run now", type="submit"))
    resume = act_form(visit, "resume", name, tag("button", "Resume", type="submit"))
    reset = act_form(
        visit,
        "reset",
        name,
        tag("button", "Reset breaker", type="submit", class_="quiet"),
    )
    options = [tag("option", text, value=value) for value, text in _PAUSES]
    options.append(tag("option", "until resumed", value=""))
    pause = act_form(
        visit,
        "pause",
        name,
        tag("label", "For", for_="pause-for"),
        tag("select", options, name="for", id="pause-for"),
        tag("label", "Reason", for_="pause-reason"),
        tag("input", type="text", name="reason", id="pause-reason", required=True, maxlength="500"),
        tag("button", "Pause", type="submit", class_="quiet"),
        class_="act wide",
    )
    has_failed = bool(table.breaker and table.breaker.failures)
    return tag(
        "section",
        tag("h2", "Act", id="act-title", class_="only-read"),
        run if table.pattern != "streaming" and not table.pause else None,
        resume if table.pause else pause,
        reset if has_failed else None,
        id="buttons",
        class_="buttons",
        aria_labelledby="act-title",
    )


def _why_not(visit: Visit) -> str:
    web = visit.site.settings.web
    if web.read_only:
        return "This dashboard is read-only ([web] read_only)."
    if web.tokens.operator is None:
        return "To act from here, set [web] tokens.operator."
    return "Sign in with the operator's token to run, pause or reset this table."


def _charts(visit: Visit, table: TableView, facts: Facts) -> Safe:
    known = visit.site.days(table.key)
    reading = Reading(known) if known is not None else facts.days(table, visit.now)
    today = visit.now.astimezone(visit.zone).date()
    least = visit.site.settings.alerts.quality.less_than
    error = tag("p", reading.error, class_="error") if reading.error else None
    pictures = days.pictures(reading.value, today, least)
    return section("The last 90 days", error, pictures, id_="days")


def _runs(visit: Visit, runs: Sequence[RunRecord]) -> Safe:
    heads = ("Began", "Result", "Took", "Rows", "Score", "Reason")
    rows = [_run(visit, run) for run in runs[:_RUNS]]
    newest = grid("Runs, the newest first", heads, rows[:_FIRST], broad="Result")
    if len(rows) <= _FIRST:
        return newest
    earlier = grid("Earlier runs", heads, rows[_FIRST:], broad="Result")
    summary = tag("summary", count(len(rows) - _FIRST, "earlier run"))
    return join([newest, tag("details", summary, earlier, class_="more")])


def _run(visit: Visit, run: RunRecord) -> list[object]:
    reason = run.reason if run.attempt < 2 else f"{run.reason}, attempt {run.attempt}"
    if run.scheduled:
        reason += f", due {words.clock(run.scheduled, visit.zone, visit.now)}"
    changed = run.inserted + run.updated + run.deleted
    return [
        words.time(run.began, visit.zone, visit.now),
        [badge(run.status), _error(run)],
        [words.span(run.seconds) if run.seconds is not None else "–", _stages(run)],
        [words.number(changed), _rows(run)],
        "–" if run.score is None else f"{run.score:.1f}".removesuffix(".0"),
        [run.command, tag("span", reason, class_="sub")],
    ]


def _error(run: RunRecord) -> Safe | None:
    if not run.error_message and not run.error_kind:
        return None
    state = f" ({run.sqlstate})" if run.sqlstate else ""
    return tag(
        "span",
        tag("span", f"{run.error_message or run.error_kind}{state}", class_="error"),
        tag("span", run.error_hint, class_="hint") if run.error_hint else None,
        class_="sub",
    )


def _stages(run: RunRecord) -> Safe | None:
    try:
        stages = json.loads(run.stages)
        timed = [(str(name), float(seconds)) for name, seconds in stages.items()]
    except (ValueError, AttributeError, TypeError):
        return None
    if not timed:
        return None
    timed.sort(key=lambda stage: -stage[1])
    items = [
        tag("li", f"{name.replace('_', ' ')} {words.span(seconds)}") for name, seconds in timed
    ]
    return tag("details", tag("summary", "stages"), tag("ul", items), class_="sub")


def _rows(run: RunRecord) -> Safe | None:
    counts = (
        ("inserted", run.inserted),
        ("updated", run.updated),
        ("deleted", run.deleted),
        ("rejected", run.rejected),
        ("quarantined", run.quarantined),
        ("anomalies", run.anomalies),
    )
    parts = [f"{words.number(count)} {name}" for name, count in counts if count]
    return tag("span", ", ".join(parts), class_="sub") if parts else None


def _lineage(visit: Visit, table: TableView, versions: Reading[tuple[Version, ...]]) -> Safe:
    source = tag(
        "li",
        tag("h3", "Source"),
        tag("p", tag("strong", table.source)),
        tag("p", tag("code", table.table)),
        tag("p", f"{table.pattern.replace('_', '-')}, {table.schedule}", class_="muted"),
    )
    target = tag(
        "li",
        tag("h3", "Bronze table"),
        tag("p", tag("code", table.target)),
        tag("p", "as of ", words.age(table.as_of, visit.now, "never"), class_="muted"),
    )
    items = [
        tag(
            "li",
            tag("strong", f"v{version.number}"),
            " ",
            version.operation.lower(),
            f", {count(version.rows, 'row')}" if version.rows else "",
            " ",
            words.time(version.at, visit.zone, visit.now),
        )
        for version in versions.value[:6]
    ]
    none = versions.error or "None yet."
    last = tag("li", tag("h3", "Versions"), tag("ol", items) if items else tag("p", none))
    return tag("ol", source, target, last, class_="lineage")


def _changes(visit: Visit, versions: Reading[tuple[Version, ...]]) -> Safe:
    changed = [version for version in versions.value if version.changes]
    if versions.error:
        return tag("p", versions.error, class_="muted")
    if not changed:
        looked = len(versions.value)
        among = f" in the last {count(looked, 'version')}" if looked else ""
        return tag("p", f"None{among}.", class_="muted")
    heads = ("Version", "When", "Change")
    rows = [
        [
            f"v{version.number}",
            words.time(version.at, visit.zone, visit.now),
            tag("ul", [tag("li", change) for change in version.changes]),
        ]
        for version in changed
    ]
    return grid("Changes of the columns", heads, rows)
