"""Pages that are read: runbooks, the audit log, the form to sign in, errors."""

from __future__ import annotations

import json
from typing import get_args

from bronze.governance.tables.audit_log import AuditRecord
from bronze.operate.alerts.kinds import Scenario
from bronze.operate.web.lake.facts import Facts
from bronze.operate.web.markup import markdown, words
from bronze.operate.web.markup.layout import Page, bare, grid, hidden, section
from bronze.operate.web.markup.tags import Safe, join, tag, url
from bronze.operate.web.site import Refused, Visit

SCENARIOS: tuple[str, ...] = get_args(Scenario)
_DETAILS = 300


def runbooks(visit: Visit) -> Page:
    """The runbook that the query names, or the list of them.

    Raises:
        Refused: there is none of this name.
    """
    name = visit.query.get("name", "")
    if not name:
        settings = visit.site.settings.alerts.scenarios
        items = []
        for scenario in SCENARIOS:
            answer = getattr(settings, scenario)
            path = f"; {' → '.join(answer.path)}" if answer.path else ""
            link = tag("a", scenario.capitalize(), href=url("/runbooks", name=scenario))
            about = tag("span", f"answer within {words.span(answer.respond)}{path}", class_="sub")
            items.append(tag("li", link, about))
        return Page("Runbooks", join([tag("h1", "Runbooks"), tag("ul", items, class_="menu")]))
    text = visit.site.runbook(name) if name in SCENARIOS else ""
    if not text:
        raise Refused(404, f"There is no runbook {name!r}.", f"There are: {', '.join(SCENARIOS)}.")
    back = tag("p", tag("a", "All runbooks", href="/runbooks"), class_="back")
    return Page(
        f"Runbook: {name}", join([back, tag("article", markdown.render(text), class_="document")])
    )


def audit(visit: Visit, facts: Facts) -> Page:
    """The latest records of the audit log."""
    reading = facts.audit()
    error = tag("p", reading.error, class_="error") if reading.error else None
    heads = ("Record", "When", "Who", "Did", "To", "Result")
    records = grid("The latest records", heads, [_record(visit, one) for one in reading.value])
    hint = tag(
        "p", "The latest records. `bronze audit` has all, `bronze audit --verify` proves them."
    )
    main = join([tag("h1", "Audit log"), hint, error, section("Records", records, id_="records")])
    return Page("Audit", main, refresh=60)


def _record(visit: Visit, record: AuditRecord) -> list[object]:
    details = _details(record.details)
    return [
        f"{record.sequence:,}",
        words.time(record.recorded_timestamp, visit.zone, visit.now),
        [record.actor, tag("span", f"on {record.host}", class_="sub")],
        record.action,
        record.subject,
        [record.result, tag("span", details, class_="sub") if details else None],
    ]


def _details(text: str) -> str:
    """The details of a record in a line, shortened."""
    try:
        details = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(details, dict):
        return ""
    parts = [
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in details.items()
        # Hashes of all keys of the config tell people nothing.
        if value not in ("", None, [], {}) and name != "keys"
    ]
    line = ", ".join(parts)
    return line if len(line) <= _DETAILS else f"{line[:_DETAILS]}…"


def login(csrf: str, after: str, wrong: str = "") -> Safe:
    """The form to sign in."""
    return bare(
        "Sign in",
        tag("h1", "bronze"),
        tag(
            "form",
            hidden("csrf", csrf),
            hidden("next", after),
            tag("p", wrong, class_="banner bad", role="alert") if wrong else None,
            # For password managers.
            tag(
                "input",
                type="text",
                name="username",
                value="bronze",
                autocomplete="username",
                hidden=True,
            ),
            tag("label", "Token", for_="token"),
            tag(
                "input",
                type="password",
                id="token",
                name="token",
                required=True,
                autofocus=True,
                autocomplete="current-password",
                maxlength="1000",
            ),
            tag("button", "Sign in", type="submit"),
            method="post",
            action="/login",
            class_="login",
        ),
        tag("p", "The token is the secret of [web] tokens in bronze.toml.", class_="muted"),
    )


def error(status: int, message: str, hint: str) -> Safe:
    """A page that says what went wrong."""
    return bare(
        f"Error {status}",
        tag("h1", message),
        tag("p", hint) if hint else None,
        tag("p", tag("a", "To the first page", href="/"), class_="back"),
        tag("p", f"Status {status}", class_="muted"),
    )
