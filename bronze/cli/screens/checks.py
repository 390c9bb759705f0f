"""What `bronze check` prints: the verdict, problems, warnings, then the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from bronze.cli.output import (
    print_error,
    print_facts,
    print_line,
    print_styled,
    print_table,
    width,
)
from bronze.cli.screens.failure_groups import print_failures, print_notes
from bronze.operate.facts.wording import duration
from bronze.printable import count, size
from bronze.tables.naming import short_name

if TYPE_CHECKING:
    from bronze.api.check import CheckReport, TableReport

MOST_TABLES = 25
_REJECTED = (
    "rejected: a value that Delta cannot hold becomes NULL, and is kept in"
    " governance.rejected_values"
)
_PREFIX = "bz_"
_LABELS = len("by design")
_FULL_WIDTH = 72
_HOW = "`bronze check TABLE` shows the columns of a table, -v those of all."


def check(report: CheckReport, detailed: bool) -> None:
    """Prints the report; each table with its columns if ``detailed``."""
    _print_verdict(report)
    for problem in report.missing:
        print_error(problem.message, problem.hint)
    print_failures({table.table: table.problem for table in report.tables}, "cannot be loaded")
    for note in report.notes:
        print_line(f"warning: {note}")
    print_notes(((table.table, note) for table in report.tables for note in table.notes), "warning")
    if detailed:
        for table in report.tables:
            _print_table(table)
        return
    print_notes(
        ((table.table, limit) for table in report.tables for limit in table.limits), "by design"
    )
    if len(report.tables) <= MOST_TABLES:
        _print_list(report)
    else:
        _print_counts(report)
    print_line(f"\n{_HOW}", "dim")


def _print_verdict(report: CheckReport) -> None:
    problems, warnings = len(report.problems), report.warnings
    line = Text(f"{count(len(report.tables), 'table')}, ")
    line.append(count(problems, "problem"), "bold red" if problems else "bold green")
    line.append(", ").append(count(warnings, "warning"), "yellow" if warnings else "")
    print_styled(line)


def _print_list(report: CheckReport) -> None:
    tables = report.tables
    if not tables:
        return
    schemas = {table.table.rpartition(".")[0] for table in tables}
    lake = {table.target.partition(".")[0] for table in tables}
    origin = f" of {next(iter(schemas))}" if len(schemas) == 1 else ""
    where = ", ".join(sorted(lake))
    renamed = any(short_name(one.target) != f"{_PREFIX}{_name(one)}" for one in tables)
    become = f"and what they become in {where}" if renamed else f"in {where} as {_PREFIX}NAME"
    print_line(f"\nTables{origin}, {become}:")
    # On a narrow terminal each column that says nothing costs another one.
    heads = ("table", "Bronze table", "kind", "pattern", "rows", "size", "key", "state")
    says = {
        "Bronze table": renamed,
        "kind": any(table.kind != "table" for table in tables),
        "pattern": any(table.load for table in tables),
        "size": width() >= _FULL_WIDTH,
        "state": any(table.problem for table in tables),
    }
    shown = [i for i, head in enumerate(heads) if says.get(head, True)]
    rows = [_list_row(table, len(schemas) == 1) for table in tables]
    names = [heads[i] for i in shown]
    cells = [[row[i] for i in shown] for row in rows]
    print_table(names, cells, right=("rows", "size"), long=("key", "Bronze table"))


def _name(table: TableReport) -> str:
    return table.table.rpartition(".")[2]


def _list_row(table: TableReport, one_schema: bool) -> list[str | Text]:
    return [
        _name(table) if one_schema else table.table,
        short_name(table.target),
        table.kind,
        table.load.pattern if table.load else "",
        "unknown" if table.rows < 0 else f"~{table.rows:,}",
        size(table.bytes) if table.bytes else "",
        ", ".join(table.key) or "none",
        Text("problem", "bold red") if table.problem else Text("ok", "green"),
    ]


def _print_counts(report: CheckReport) -> None:
    kinds = Counter(table.kind for table in report.tables)
    rows = sum(max(table.rows, 0) for table in report.tables)
    unknown = sum(table.rows < 0 for table in report.tables)
    keyless = sum(not table.key for table in report.tables)
    stored = size(sum(table.bytes for table in report.tables))
    kinds_text = ", ".join(count(number, kind) for kind, number in kinds.items())
    never = f"; {unknown:,} never analysed" if unknown else ""
    print_line(
        f"\n{kinds_text}: about {count(rows, 'row')} in {stored}{never}; {keyless:,} without a key"
    )


def _print_table(table: TableReport) -> None:
    print_line(f"\n{table.table} → {table.target}", "bold")
    print_facts(_facts(table), _LABELS)
    if table.columns:
        columns = [
            (
                column.name if column.name == column.target else f"{column.name} → {column.target}",
                column.source_type,
                column.delta_type,
                column.note,
            )
            for column in table.columns
        ]
        print_line("")
        print_table(("column", "PostgreSQL", "Delta", ""), columns, long=("PostgreSQL", ""))
        # A wrong config is told before the modules of a check are imported.
        from bronze.api.check import REJECTED

        if any(column.note == REJECTED for column in table.columns):
            print_line(_REJECTED, "dim")


def _facts(table: TableReport) -> Iterator[tuple[str, str]]:
    rows = "never analysed" if table.rows < 0 else f"about {count(table.rows, 'row')}"
    yield "source", f"{table.kind}, {rows}, {size(table.bytes)}"
    key = ", ".join(table.key) or "none"
    load = table.load
    if load is None:
        yield "key", key
    else:
        yield "pattern", f"{load.pattern}: {load.reads}"
        yield "cursor", f"{load.cursor}: {load.cursor_note}" if load.cursor else ""
        yield "key", f"{key}: {load.key_note}" if load.key_note else key
        yield "deletes", load.deletes
        sla = f", SLA {duration(load.sla)}" if load.sla is not None else ""
        yield "due", f"{load.schedule}{sla}, priority {load.priority}, by `bronze serve`"
        yield "proposal", f"{load.proposal} (`bronze init`)" if load.proposal else ""
    yield "rules", _rule_counts(table) if table.rules else ""
    for number, limit in enumerate(table.limits):
        yield "" if number else "by design", limit


def _rule_counts(table: TableReport) -> str:
    """How many rules a table has, by their origin."""
    counts = Counter(rule.origin for rule in table.rules)
    proven = sum(rule.evaluation == "proven" for rule in table.rules)
    names = {"config": "of the config", "python": "made in Python", "derived": "derived"}
    parts = [f"{counts[origin]} {name}" for origin, name in names.items() if counts[origin]]
    parts += [f"{proven} of them proven by PostgreSQL"] if proven else []
    untranslated = ", ".join(table.untranslated)
    checks = f"; left to PostgreSQL alone: {untranslated}" if untranslated else ""
    return ", ".join(parts) + checks
