"""What commands that only read print: quality, audit, keys and doctor."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bronze.cli.output import (
    is_terminal,
    print_error,
    print_figures,
    print_json,
    print_line,
    print_table,
    quality_score,
)
from bronze.printable import count, visible
from bronze.tables.naming import short_name

if TYPE_CHECKING:
    from bronze.governance.audit_proof import AuditReport
    from bronze.operate.doctor.diagnosis import Diagnosis
    from bronze.operate.doctor.examination import Finding
    from bronze.protection.keys import KeyReport
    from bronze.quality.report import QualityReport, TableQuality


def quality(report: QualityReport, trend: int) -> None:
    """Prints the runs of each table, then the rules and checks that were not met."""
    if not report.tables:
        print_line(f"There are no figures yet in {report.lake}: `bronze run` records them.")
    rows = [cells for table in report.tables for cells in _run_rows(table)]
    names = ("rows", "score", "below 100", "quarantined", "unmet", "age")
    if rows:
        print_figures(("Bronze table", *names), rows)
    for table in report.tables:
        _unmet(table)
    for name in report.missing:
        print_line(f"{name}: there are no figures yet: its next run records them")


def _run_rows(table: TableQuality) -> Iterator[list[str]]:
    for number, run in enumerate(table.runs):
        name = f"  {run.evaluated:%Y-%m-%d %H:%M}" if number else short_name(table.target)
        yield [
            name if run.landed else f"{name} (refused)",
            f"{run.rows:,}",
            quality_score(run.score),
            f"{run.flawed:,}",
            f"{run.quarantined:,}",
            str(run.unmet),
            "" if number else _age(table),
        ]


def _unmet(table: TableQuality) -> None:
    from bronze.quality.checks import NULLS, columns_with_most_nulls

    for figure in table.unmet:
        name = figure.rule if figure.kind != "check" else f"{figure.rule} (check)"
        count = f"{figure.failed:,} of {figure.checked:,}"
        keys = f", such as {', '.join(figure.examples)}" if figure.examples else ""
        if figure.rule == NULLS and figure.kind == "check":
            keys = f", most of them in {columns_with_most_nulls(table.figures)}"
        text = f"{table.target}: {name}: {count} ({figure.share or 0:.2%}){keys}"
        print_line(text, None if table.runs and table.runs[0].landed else "red")
    if not table.fresh:
        age = f"{_age(table)} old" if math.isfinite(table.age) else "nothing has ever landed"
        print_line(f"{table.target}: not fresh: {age}; the limit is {table.allowed:,} s")


def _age(table: TableQuality) -> str:
    if not math.isfinite(table.age):
        return "never landed"
    minutes, seconds = divmod(int(table.age), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def audit(report: AuditReport) -> None:
    """Prints records of the audit log, then whether the log is complete."""
    for row in report.records:
        when = row.recorded_timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        action = " ".join(filter(None, (row.action, row.subject, row.result)))
        actor = f"{row.actor}@{row.host}"
        details = _short_details(row.details, row.action)
        line = f"{row.sequence:>6}  {when}  {actor}  {action}  {details}"
        print_line(line.rstrip(), _RESULTS.get(row.result))
    for problem in report.problems:
        print_error(f"{problem}.")
    print_line(f"{count(report.count, 'record')} in all{_proof(report)}")
    for note in report.notes:
        print_line(f"  {note}")
    if report.head:
        print_line(f"head {report.head}")


def _proof(report: AuditReport) -> str:
    if not report.verified:
        return "; `bronze audit --verify` proves them"
    if report.problems:
        return ", and they are not as they were written" if report.count else ""
    unsealed = f"; the first {report.unsealed:,} are not sealed: anybody could have written them"
    witnesses = (
        f"; known to {report.vouching:,} of {count(report.tables, 'Bronze table')}, up to"
        f" {report.vouched:,}"
    )
    escrow = f"; the escrow at {report.escrow} has their heads up to {report.escrowed:,}"
    return (
        f", all of them whole: {count(report.files, 'file')} of {report.place} read"
        f"{witnesses}{escrow if report.escrowed else ''}{unsealed if report.unsealed else ''}"
    )


_RESULTS = {"failed": "red", "incomplete": "yellow"}


def _short_details(details: str, action: str) -> str:
    """The details of a record. Those of a config are in its own record, but for the hashes of its
    keys; the documents of --json have all.
    """
    try:
        values = dict(json.loads(details))
    except (TypeError, ValueError, RecursionError):
        return details
    values.pop("config" if action != "config" else "keys", None)
    return ", ".join(
        f"{name} {_detail(value)}" for name, value in values.items() if value or name == "position"
    )


def _detail(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "; ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_STATES = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "dim"}


def diagnosis(report: Diagnosis) -> None:
    """Prints what the doctor found out: a table on a terminal, elsewhere a line for each finding,
    with its hint below it.
    """
    if is_terminal():
        print_table(("check", "state", ""), map(_finding_row, report.findings))
    else:
        width = max(len(finding.check) for finding in report.findings)
        for finding in report.findings:
            print_line(f"{finding.check:{width}}  {finding.state:7}  {finding.message}")
            if finding.hint:
                print_line(f"{'':{width + 11}}{finding.hint}")
    states: Counter[str] = Counter(finding.state for finding in report.findings)
    counts = [f"{states[state]} {state}" for state in _STATES if states[state]]
    print_line(f"\n{', '.join(counts)}")


def _finding_row(finding: Finding) -> tuple[str | Text, ...]:
    text = Text(visible(finding.message))
    if finding.hint:
        text.append(f"\n{visible(finding.hint)}", "dim")
    return finding.check, Text(finding.state, _STATES[finding.state]), text


def keys(reports: Sequence[KeyReport], as_json: bool) -> None:
    """Prints keys, without their secrets."""
    if as_json:
        print_json([asdict(key) for key in reports])
        return
    # On a narrow terminal each column that says nothing costs another one.
    replaced = any(not key.current for key in reports)
    names = ["key", "table", "column", "purpose", "master key", "made", *["state"] * replaced]
    rows = [
        [
            *(key.id, short_name(key.table), key.column, key.purpose, key.master),
            f"{key.created:%Y-%m-%d %H:%M}",
            *["current" if key.current else "old"] * replaced,
        ]
        for key in reports
    ]
    print_table(names, rows, long=("made",))
