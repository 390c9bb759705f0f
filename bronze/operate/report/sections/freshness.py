"""How old the tables are, and how much of the time that they are allowed is left."""

from __future__ import annotations

from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import MOST_TABLES, Section, more_tables
from bronze.operate.report.sections.summary import score_text
from bronze.operate.view import TableView
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.layout import TONES, badge, grid, slack
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count


def section(material: Material) -> Section:
    """The section."""
    tables = material.view.tables
    if not tables:
        none = "No table has landed yet: `bronze run` loads them."
        return Section("freshness", "Freshness", tag("p", none))
    late = sum(table.late is not None for table in tables)
    limit = sum(table.sla is not None and table.slack is not None for table in tables)
    text = (
        f"{late:,} of {count(len(tables), 'table')} {'is' if late == 1 else 'are'} late."
        if late
        else f"No table is later than its SLA allows; {limit:,} of {len(tables):,} have one."
    )
    heads = ("Table", "State", "Data of", "SLA", "Time left", "Last run", "Score")
    rows = [_row(material, table) for table in tables[:MOST_TABLES]]
    return Section(
        "freshness",
        "Freshness and SLA",
        tag("p", text, class_="lead"),
        grid("Tables by the time left", heads, rows, broad="State"),
        more_tables(len(tables), "which have more time left"),
    )


def _row(material: Material, table: TableView) -> list[object]:
    return [
        [table.table, tag("span", table.target, class_="sub")],
        [badge(table.state), tag("span", table.why, class_="sub") if table.why else None],
        words.age(table.as_of, material.now, "never landed"),
        tag("span", words.span(table.sla) if table.sla else "none", class_="keep"),
        _left(table),
        _last(material, table),
        "–" if table.score is None else score_text(table.score),
    ]


def _left(table: TableView) -> list[object]:
    text = tag("span", slack(table), class_="keep bad-text" if table.late else "keep")
    if table.slack is None or not table.sla:
        return [text]
    share = table.slack / table.sla if table.slack > 0 else 1.0
    tone = TONES[table.state]
    return [text, charts.meter(share, tone)]


def _last(material: Material, table: TableView) -> Safe:
    record = table.last
    if record is None:
        return tag("span", "streams" if table.pattern == "streaming" else "–")
    took = f", {words.span(record.seconds)}" if record.seconds is not None else ""
    at = words.time(record.ended or record.began, material.zone, material.now)
    return tag("span", at, tag("span", f"{record.status}{took}", class_="sub keep"))
