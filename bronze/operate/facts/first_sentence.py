"""The one sentence of the first page: whether all is well, and if not, what is wrong and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from bronze.operate.alerts.life import Alert
from bronze.operate.facts.wording import clause, duration, moment
from bronze.operate.view import TableView, View
from bronze.printable import count

_NOT_FRESH = ("never landed", "unknown", "failed", "quarantined")


def with_sentence(view: View, zone: str) -> View:
    """The view with its sentence; times are in the zone."""
    about_tables = "; ".join(part for part in (_tables(view, zone), _alerts(view, zone)) if part)
    sentences = [
        f"{text[:1].upper()}{text[1:]}." for text in (_service(view), about_tables) if text
    ]
    return replace(view, sentence=" ".join(sentences))


def _service(view: View) -> str:
    live = view.live
    if live is None:
        return "no service has run"
    if live.is_stopping:
        return f"the service on host {live.host} was stopped {_ago(live.at, view.now)}"
    if not view.is_alive:
        return f"the service on host {live.host} was last heard {_ago(live.at, view.now)}"
    if live.lake_error:
        return f"the lake cannot be reached: {clause(live.lake_error)}"
    return ""


def _ago(then: datetime, now: datetime) -> str:
    return f"{duration((now - then).total_seconds())} ago"


def _tables(view: View, zone: str) -> str:
    if not view.tables:
        return "no table is known"
    late = [table for table in view.tables if table.late]
    if late:
        return _late(view, late, zone)
    troubled = [table for table in view.tables if table.state in _NOT_FRESH]
    if troubled:
        return _troubled(view, troubled)
    soon = [table for table in view.tables if table.state == "will be late"]
    if soon:
        verb = "is" if len(soon) == 1 else "are"
        return (
            f"no table is late, but {_of(soon, view)} {verb} about to be:"
            f" {_name(soon[0], view)} {soon[0].why}"
        )
    total = len(view.tables)
    return "the one table is fresh" if total == 1 else f"all {total:,} tables are fresh"


def _late(view: View, late: list[TableView], zone: str) -> str:
    # The one that has been late for the longest time explains most of the others.
    begins = [(table.late.begin, table.key, table) for table in late if table.late]
    begin, _, first = min(begins, key=lambda known: known[:2])
    verb = "is" if len(late) == 1 else "are"
    because = f", because {first.why}" if first.why else ""
    since = moment(begin, view.now, zone)
    return f"{_of(late, view)} {verb} late; {_name(first, view)} since {since}{because}"


def _troubled(view: View, troubled: list[TableView]) -> str:
    parts = []
    for state, phrase in (
        ("quarantined", "{} quarantined"),
        ("failed", "{} failed"),
        ("never landed", "{} never landed"),
        ("unknown", "of {} nothing is known"),
    ):
        number = sum(table.state == state for table in troubled)
        if number:
            parts.append(phrase.format(f"{number:,}"))
    worst = min(troubled, key=lambda table: (_rank(table), table.key))
    because = f"; {_name(worst, view)}: {worst.why}" if worst.why else ""
    total = count(len(view.tables), "table")
    return f"no table is late, but of {total} {', '.join(parts)}{because}"


def _name(table: TableView, view: View) -> str:
    """The name of a table without its schema, where no other table has it."""
    short = table.table.rpartition(".")[2]
    same = sum(other.table.rpartition(".")[2] == short for other in view.tables)
    return short if same == 1 else f"{table.source}.{table.table}"


def _rank(table: TableView) -> int:
    return ("quarantined", "failed", "unknown", "never landed").index(table.state)


def _of(tables: list[TableView], view: View) -> str:
    return f"{len(tables):,} of {count(len(view.tables), 'table')}"


def _alerts(view: View, zone: str) -> str:
    """How many alerts are open, and who was told of the worst."""
    alerts = view.open_alerts
    if not alerts:
        return ""
    worst = alerts[0]
    told = _receipt(worst, view.now, zone)
    if any(table.late for table in view.tables):
        return told or f"{count(len(alerts), 'alert')} open, nobody was told"
    verb = "is" if len(alerts) == 1 else "are"
    text = f"{count(len(alerts), 'alert')} {verb} open: {clause(worst.condition.text)}"
    return f"{text}; {told}" if told else text


def _receipt(alert: Alert, now: datetime, zone: str) -> str:
    if alert.state == "acknowledged" and alert.acknowledged:
        return f"{alert.by} sees to it since {moment(alert.acknowledged, now, zone)}"
    sent = [receipt for receipt in alert.receipts if receipt.act == "open"]
    if not sent:
        return ""
    return f"{sent[0].channel} was told at {moment(sent[0].at, now, zone)}"
