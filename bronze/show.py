"""What people and programs see of results: tables and progress bars, or one JSON document."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from bronze.check import Report, TableReport
    from bronze.model import MaintainResult, RunResult, StreamResult, TableResult
    from bronze.pipeline import Notify
    from bronze.pipeline import Progress as Step
    from bronze.stream import Notify as NotifyStep
    from bronze.stream import Step as StreamStep
    from bronze.trend import QualityReport, TableQuality

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def said(text: str) -> None:
    """One line for people."""
    _out.print(text, markup=False, soft_wrap=True)


def document(value: Any) -> None:
    """A result as one JSON document on stdout."""
    print(json.dumps(asdict(value), ensure_ascii=False, default=str))


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


@contextmanager
def progress(quiet: bool) -> Iterator[Notify]:
    """A bar for each table on a terminal, a log line for each elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _: None
    elif _err.is_terminal:
        with _bars() as bars:
            yield bars
    else:
        yield _log


@contextmanager
def _bars() -> Iterator[Notify]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:>12,} rows"),
    )
    with Progress(*columns, console=_err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def notify(step: Step) -> None:
            if step.table not in tasks:
                tasks[step.table] = bars.add_task(step.table, total=1.0, rows=0)
            bars.update(tasks[step.table], completed=step.share, rows=step.rows)

        yield notify


def _log(step: Step) -> None:
    if not step.result:
        return
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    done = step.result
    facts: dict[str, Any] = {"table": done.table, "rows": done.rows_read}
    if done.error:
        structlog.get_logger().error("failed", **facts, error=done.error.message)
    else:
        structlog.get_logger().info(
            done.status, **facts, version=done.version, files=done.files, bytes=done.bytes
        )


def run(result: RunResult) -> None:
    """A run's tables, then what went wrong, if anything did."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("Bronze table", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("read", "new", "upd.", "gone", "rej.", "files", "size", "s", "v"):
        table.add_column(name, justify="right")
    for row in result.tables:
        table.add_row(*_cells(row))
    _out.print(table)
    rows = sum(row.rows_read for row in result.tables)
    said(f"{rows:,} rows read in {result.seconds:.1f} s, batch {result.batch_id}")
    scored = [row for row in result.tables if row.score is not None]
    if scored:
        said(_scores(scored))
    for row in result.tables:
        for note in row.notes:
            said(f"{row.table}: {note}")
        if row.error:
            _err.print(f"{row.table}: {row.error.message}", style="red", markup=False)
            _err.print(f"  {row.error.hint}", markup=False)


def steps(quiet: bool) -> NotifyStep:
    """A structured line for each batch of a stream on stderr, only notes if quiet."""
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    log = structlog.get_logger()

    def told(step: StreamStep) -> None:
        if step.note:
            log.warning(step.note)
        elif not quiet and step.changes:
            log.info(
                "landed",
                transactions=step.transactions,
                changes=step.changes,
                tables=",".join(step.tables),
                lag_bytes=step.lag_bytes,
                lag_seconds=round(step.lag_seconds, 2),
            )

    return told


def streamed(result: StreamResult) -> None:
    """What a stream did to each table until it ended."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("Bronze table", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("read", "new", "upd.", "gone", "rej.", "v"):
        table.add_column(name, justify="right")
    for row in result.tables:
        cells = _cells(row)
        table.add_row(*cells[:7], cells[-1])
    _out.print(table)
    said(
        f"{result.changes:,} changes in {result.transactions:,} transactions, landed in"
        f" {result.batches:,} batches in {result.seconds:.1f} s by stream {result.stream}"
    )
    for row in result.tables:
        if row.error:
            _err.print(f"{row.table}: {row.error.message}", style="red", markup=False)
            _err.print(f"  {row.error.hint}", markup=False)


def dropped(name: str, as_json: bool) -> None:
    """What became of a stream's slot."""
    if as_json:
        print(json.dumps({"dropped": name}))
    else:
        said(f"Dropped the slot {name} and its publication. The Bronze tables stay as they are.")


def _cells(row: TableResult) -> list[str]:
    version = "" if row.version is None else str(row.version)
    return [
        row.target.rpartition(".")[2] or row.table,
        row.status,
        f"{row.rows_read:,}",
        f"{row.inserted:,}",
        f"{row.updated:,}",
        f"{row.deleted:,}",
        f"{row.rejected:,}",
        str(row.files),
        size(row.bytes),
        f"{row.seconds:.1f}",
        version,
    ]


def maintained(result: MaintainResult) -> None:
    """What maintenance did to each table, then what went wrong, if anything did."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Bronze table", no_wrap=True)
    for name in ("files", "now", "rewritten", "expired", "freed", "log", "s"):
        table.add_column(name, justify="right")
    for row in result.tables:
        table.add_row(
            row.target.rpartition(".")[2],
            str(row.files_before) if row.version is not None else "",
            str(row.files_after) if row.version is not None else "",
            size(row.rewritten),
            str(row.expired_files),
            size(row.expired_bytes),
            str(row.expired_entries),
            f"{row.seconds:.1f}",
        )
    _out.print(table)
    for row in result.tables:
        if row.error:
            _err.print(f"{row.target}: {row.error.message}", style="red", markup=False)
            _err.print(f"  {row.error.hint}", markup=False)


def _rules(found: TableReport) -> str:
    """How many rules a table has, by where they come from."""
    counts = Counter(rule.origin for rule in found.rules)
    proven = sum(rule.evaluation == "proven" for rule in found.rules)
    names = {"config": "of the config", "python": "made in Python", "derived": "derived"}
    parts = [f"{counts[origin]} {name}" for origin, name in names.items() if counts[origin]]
    parts += [f"{proven} of them proven by PostgreSQL"] if proven else []
    left = ", ".join(found.untranslated)
    return ", ".join(parts) + (f"; left to PostgreSQL alone: {left}" if left else "")


def _scores(scored: Sequence[TableResult]) -> str:
    """The average score of all rows, and which tables have some that are quarantined."""
    rows = sum(row.rows_read for row in scored)
    average = sum((row.score or 0.0) * row.rows_read for row in scored) / max(rows, 1)
    low = [f"{row.quarantined:,} of {row.table}" for row in scored if row.quarantined]
    quarantined = f"; quarantined: {', '.join(low)}" if low else ""
    return f"average score {_score(average)}{quarantined}"


def _score(score: float) -> str:
    # Not rounded to a hundred that it is not.
    return f"{math.floor(score * 10) / 10:.1f}"


def quality(report: QualityReport, trend: int) -> None:
    """How tables fare, what is not as demanded, and how it came to be so."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Bronze table", no_wrap=True)
    for name in ("rows", "score", "below 100", "quarantined", "unmet", "age"):
        table.add_column(name, justify="right")
    for one in report.tables:
        for number, run in enumerate(one.runs):
            table.add_row(
                one.target.rpartition(".")[2]
                if not number
                else f"  {run.evaluated:%Y-%m-%d %H:%M}",
                f"{run.rows:,}",
                _score(run.score),
                f"{run.flawed:,}",
                f"{run.quarantined:,}",
                str(run.unmet),
                "" if number else _age(one),
            )
    if not report.tables:
        said("There are no figures yet: `bronze run` and `bronze stream` enter them.")
        return
    _out.print(table)
    for one in report.tables:
        for figure in one.unmet:
            what = figure.rule if figure.kind != "check" else f"{figure.rule} (check)"
            count = f"{figure.failed:,} of {figure.checked:,}"
            keys = f", such as {', '.join(figure.examples)}" if figure.examples else ""
            said(f"{one.target}: {what}: {count} ({figure.share or 0:.2%}){keys}")
        if not one.fresh:
            said(f"{one.target}: not fresh: {_age(one)} old, to be below {one.allowed:,} s")


def _age(table: TableQuality) -> str:
    minutes, seconds = divmod(int(min(table.age, 10**9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def check(report: Report) -> None:
    """What each table and column becomes, then what stands in the way."""
    for found in report.tables:
        rows = "never analysed" if found.rows < 0 else f"about {found.rows:,} rows"
        key = ", ".join(found.key) or "no key"
        said(
            f"\n{found.table} → {found.target}  ({found.kind}, {rows}, {size(found.bytes)}, {key})"
        )
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 2))
        for name in ("column", "PostgreSQL", "Delta", ""):
            table.add_column(name, overflow="fold")
        for column in found.columns:
            name = (
                column.name if column.name == column.target else f"{column.name} → {column.target}"
            )
            table.add_row(name, column.source_type, column.delta_type, column.note)
        if found.columns:
            _out.print(table)
        if found.rules:
            said(f"  rules: {_rules(found)}")
        for note in found.notes:
            said(f"  note: {note}")
    for problem in report.problems:
        _err.print(f"\n{problem.message}", style="red", markup=False)
        _err.print(f"  {problem.hint}", markup=False)
