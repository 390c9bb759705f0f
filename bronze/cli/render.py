"""What people and programs see of results: tables and progress bars, or one JSON document."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bronze.printable import visible, visible_json

if TYPE_CHECKING:
    from polars import DataFrame

    from bronze.api.check import CheckReport, TableReport
    from bronze.governance.audit_proof import AuditReport
    from bronze.model.results import MaintainResult, RunResult, StreamResult, TableResult
    from bronze.protection.erasure import ErasureResult, Evidence
    from bronze.protection.keys import KeyReport
    from bronze.quality.report import QualityReport, TableQuality
    from bronze.verify.results import VerifyResult
from bronze.api.progress import STDERR

# A value or a name may have a colon before and behind a word, which is no code of an emoji.
_out = Console(highlight=False, emoji=False)
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def print_line(text: str, style: str | None = None) -> None:
    """One line for people, on stdout; a line break at its beginning leaves one empty."""
    _line(_out, text, style)


def print_error(text: str, hint: str = "") -> None:
    """What went wrong, on stderr, and what to do about it."""
    _line(STDERR, text, "red")
    if hint:
        _line(STDERR, f"  {hint}", None)


def _line(console: Console, text: str, style: str | None) -> None:
    # All lines that people see leave here.
    own = text.removeprefix("\n")
    if own != text:
        console.print()
    console.print(visible(own), style=style, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A value as one JSON document on stdout, which is all that is there."""
    made = json.dumps(_finite(value), ensure_ascii=False, default=_text, allow_nan=False)
    print(visible_json(made))


def document(value: Any) -> None:
    """A result as one JSON document on stdout."""
    print_json(asdict(value))


def _cell(text: str) -> Text:
    return Text(visible(text))


def _finite(value: Any) -> Any:
    """The same with texts for the numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


_CELLS = (
    "read",
    "inserted",
    "updated",
    "deleted",
    "rejected",
    "anomalies",
    "files",
    "size",
    "s",
    "v",
)
_NOTHING = {"", "0", size(0)}


def _figures(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Collection[str] = ("Bronze table", "status"),
) -> None:
    """A table of figures, without the columns that have nothing to tell, so that it is narrow."""
    rows = [[visible(cell) for cell in row] for row in rows]
    shown = [i for i, _ in enumerate(names) if any(row[i] not in _NOTHING for row in rows)]
    widths = {i: max(cell_len(row[i]) for row in (names, *rows)) for i in shown}
    for number, row in enumerate((names, *rows)):
        pads = {i: " " * (widths[i] - cell_len(row[i])) for i in shown}
        cells = [row[i] + pads[i] if names[i] in texts else pads[i] + row[i] for i in shown]
        # A terminal that is narrower breaks the line itself: no digit is left out.
        print_line("  ".join(cells).rstrip(), style=None if number else "bold")


def run_result(result: RunResult) -> None:
    """A run's tables, then what went wrong, if anything did."""
    _figures(("Bronze table", "status", *_CELLS), [_cells(row) for row in result.tables])
    rows = sum(row.rows_read for row in result.tables)
    print_line(f"{rows:,} rows read in {result.seconds:.1f} s, batch {result.batch_id}")
    scored = [row for row in result.tables if row.score is not None]
    if scored:
        print_line(_scores(scored))
    for row in result.tables:
        for note in row.notes:
            print_line(f"{row.table}: {note}")
        if row.error:
            print_error(f"{row.table}: {row.error.message}", row.error.hint)
    _print_notes(result)


def stream_result(result: StreamResult) -> None:
    """What a stream did to each table until it ended."""
    cells = [_cells(row) for row in result.tables]
    names = ("Bronze table", "status", *_CELLS[:6], _CELLS[-1])
    _figures(names, [[*row[:8], row[-1]] for row in cells])
    print_line(
        f"{result.changes:,} changes in {result.transactions:,} transactions, landed in"
        f" {result.batches:,} batches in {result.seconds:.1f} s by stream {result.stream}"
    )
    for row in result.tables:
        if row.error:
            print_error(f"{row.table}: {row.error.message}", row.error.hint)
    _print_notes(result)


def dropped_stream(name: str, as_json: bool) -> None:
    """What became of a stream's slot."""
    if as_json:
        print_json({"dropped": name})
    else:
        print_line(
            f"Dropped the slot {name} and its publication. The Bronze tables stay as they are."
        )


def _cells(row: TableResult) -> list[str]:
    return [
        row.target.partition(".")[2] or row.table,
        row.status,
        f"{row.rows_read:,}",
        f"{row.inserted:,}",
        f"{row.updated:,}",
        f"{row.deleted:,}",
        f"{row.rejected:,}",
        f"{row.anomalies:,}",
        str(row.files),
        size(row.bytes),
        f"{row.seconds:.1f}",
        _version(row.version),
    ]


def _version(number: int | None) -> str:
    return "" if number is None else str(number)


def maintain_result(result: MaintainResult) -> None:
    """What maintenance did to each table, then what went wrong, if anything did."""
    rows = [
        [
            row.target.partition(".")[2],
            str(row.files_before) if row.version is not None else "",
            str(row.files_after) if row.version is not None else "",
            size(row.rewritten),
            str(row.expired_files),
            size(row.expired_bytes),
            str(row.expired_entries),
            f"{row.seconds:.1f}",
        ]
        for row in result.tables
    ]
    _figures(("Bronze table", "files", "now", "rewritten", "expired", "freed", "log", "s"), rows)
    for row in result.tables:
        if row.error:
            print_error(f"{row.target}: {row.error.message}", row.error.hint)
    _unrecorded(result)


def audit(report: AuditReport) -> None:
    """Records of the audit log, then whether the log is whole."""
    for row in report.records:
        when = row.recorded_timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        what = " ".join(filter(None, (row.action, row.subject, row.result)))
        print_line(
            f"{row.sequence:>6}  {when}  {row.actor}@{row.host}  {what}  {_shortened(row.details)}"
        )
    for problem in report.problems:
        print_error(f"{problem}.")
    print_line(f"{report.count:,} records in all{_proof(report)}")
    for note in report.notes:
        print_line(f"  {note}")
    if report.head:
        print_line(f"head {report.head}")


def _proof(report: AuditReport) -> str:
    if not report.verified:
        return "; `bronze audit --verify` proves them"
    if report.problems:
        return ", and they are not as they were written"
    bare = f"; the first {report.unsealed:,} are not sealed: anybody could have written them"
    asked = (
        f"; {report.vouching:,} of {report.tables:,} Bronze tables know of them, up to"
        f" {report.vouched:,}"
    )
    return (
        f", all of them whole: {report.files:,} files of {report.place} were read"
        f"{asked}{bare if report.unsealed else ''}"
    )


def _shortened(details: str) -> str:
    """Details for people, without the hashes of a config's keys."""
    try:
        known = dict(json.loads(details))
    except (TypeError, ValueError):
        return details
    known.pop("keys", None)
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in known.items()
        if value or name == "position"
    )


def _print_notes(result: RunResult | StreamResult) -> None:
    for note in result.notes:
        print_line(note)
    for one in result.late:
        print_line(
            f"{one.table}: batch {one.batch_id} died before it was recorded, and is recorded now"
        )
    _unrecorded(result)


def _unrecorded(
    result: RunResult | StreamResult | MaintainResult | VerifyResult | ErasureResult,
) -> None:
    if result.unrecorded:
        lost = "What was done could not be recorded in full"
        print_error(f"{lost}: {result.unrecorded.message}", result.unrecorded.hint)


def revealed_rows(rows: DataFrame, form: str) -> None:
    """Rows as a table, or all of them as ``json`` or ``csv``."""
    if form == "json":
        print_json(rows.to_dicts())
        return
    if form == "csv":
        writer = csv.writer(sys.stdout)
        # A file holds the values as they are; a terminal would obey them.
        shown = _visible_row if sys.stdout.isatty() else tuple
        writer.writerows(shown(row) for row in (rows.columns, *rows.iter_rows()))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows.columns:
        table.add_column(_cell(name), overflow="fold")
    for row in rows.iter_rows():
        table.add_row(*("" if value is None else _cell(str(value)) for value in row))
    _out.print(table)


def _visible_row(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(visible(value) if isinstance(value, str) else value for value in row)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def erasure_result(done: ErasureResult) -> None:
    """What was looked at and erased, and what is left."""
    if done.source:
        print_line(
            f"Table {done.source.table} of the source (oid {done.source.oid}) answered that it has"
            f" {done.source.rows} such rows."
        )
    for note in done.notes:
        print_line(f"note: {note}")
    if done.before and not done.is_found:
        print_error(
            f"{done.target}: nothing was found and nothing was erased. {_looked(done.before)} were"
            " looked at.",
            "Is the value right? What the log of older versions may still say of rows that left"
            " them before, --old-versions deletes.",
        )
        return
    print_line(
        f"{done.target}: {done.rows} rows and {done.records} records erased; {done.files} files"
        f" ({size(done.bytes)}) and {done.entries} log entries deleted. Only version"
        f" {done.version} can be read now."
    )
    if done.doubtful:
        print_error(
            f"{done.doubtful} rows or records are left that may be theirs; see the note above."
        )
    if done.left:
        print_error(
            f"{done.left} rows or records are left in files that a run may be about to commit: let"
            " it end, and run this again."
        )
    elif done.before and done.after and not done.doubtful:
        print_line(
            f"Found before: {done.before.found} rows and {done.before.told} records, among"
            f" {_looked(done.before)}."
        )
        print_line(f"Proof: {_looked(done.after)} were read afterwards, none has such a row.")
    _unrecorded(done)


def _looked(at: Evidence) -> str:
    return (
        f"{at.rows:,} rows in {at.files:,} Parquet files and {at.records:,} records of governance"
    )


def keys(found: Sequence[KeyReport], as_json: bool) -> None:
    """Keys, without their secrets."""
    if as_json:
        print_json([asdict(key) for key in found])
        return
    names = ("key", "table", "column", "purpose", "master key", "made", "state")
    rows = [
        [
            *(key.id, key.table, key.column, key.purpose, key.master),
            f"{key.created:%Y-%m-%d %H:%M}",
            "current" if key.current else "old",
        ]
        for key in found
    ]
    _figures(names, rows, names)


def rewrapped_keys(count: int, as_json: bool) -> None:
    """How many keys were wrapped anew."""
    if as_json:
        print_json({"rewrapped": count})
    else:
        print_line(
            f"{count} keys were wrapped anew." if count else "All keys are wrapped by it already."
        )


def verify_result(result: VerifyResult) -> None:
    """What was found out about each table, then the faulty rows and files."""
    names = ("source", "Bronze", "files", "missing", "extra", "different", "altered", "bad files")
    rows = []
    for row in result.tables:
        counts = (row.bronze_rows, row.bronze_files, row.missing, row.extra, row.different)
        cells = [row.target.partition(".")[2] or row.table, row.status]
        cells += [f"{row.source_rows:,}" if row.source_rows >= 0 else ""]
        cells += [f"{count:,}" for count in (*counts, row.altered, len(row.files))]
        rows.append([*cells, f"{row.seconds:.1f}", _version(row.version)])
    _figures(("Bronze table", "status", *names, "s", "v"), rows)
    print_line(_looked_at(result))
    for row in result.tables:
        for note in row.notes:
            print_line(f"{row.table}: {note}")
        if row.stray_files:
            strays = f"{row.stray_files:,} files ({size(row.stray_bytes)})"
            print_line(f"{row.table}: {strays} in its folder are unknown to its log")
        for file in row.files:
            print_line(f"{row.table}: file {file.file} {file.what} ({file.rows:,} rows)")
        for faulty in row.rows:
            what = f" ({faulty.what})" if faulty.what else ""
            print_line(f"{row.table}: {faulty.fault} {faulty.key}{what} {faulty.file}".rstrip())
        left = row.missing + row.extra + row.different + row.altered - len(row.rows)
        if row.rows and left > 0:
            print_line(f"{row.table}: and {left:,} more")
        if row.error:
            print_error(f"{row.table}: {row.error.message}", row.error.hint)
    _unrecorded(result)


def _looked_at(result: VerifyResult) -> str:
    """What a proof rests on."""
    tables = result.tables
    bronze = sum(t.bronze_rows for t in tables)
    gone = sum(t.gone_rows for t in tables)
    files = sum(t.bronze_files for t in tables)
    asked = sum(max(t.source_rows, 0) for t in tables)
    sources = ", ".join(sorted({t.source for t in tables if t.source}))
    theirs = f"{asked:,} rows of {sources} were hashed"
    theirs = "The source was not asked" if result.at_rest else theirs
    said = f"{theirs}; {bronze:,} rows of Bronze"
    said += f" and {gone:,} that do not count" if gone else ""
    said += f" in {files:,} files of {len(tables):,} tables"
    if any(t.trusted for t in tables):
        return f"{said} were taken by the hashes that they have."
    return f"{said} were read, and hashed again."


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
    from bronze.quality.checks import NULLS, emptiest

    if not report.tables:
        print_line(f"There are no figures yet in {report.lake}: `bronze run` enters them.")
    rows = []
    for one in report.tables:
        for number, run in enumerate(one.runs):
            when = f"  {run.evaluated:%Y-%m-%d %H:%M}"
            name = when if number else one.target.partition(".")[2]
            cells = [name if run.landed else f"{name} (refused)", f"{run.rows:,}"]
            cells += [_score(run.score), f"{run.flawed:,}", f"{run.quarantined:,}", str(run.unmet)]
            rows.append([*cells, "" if number else _age(one)])
    names = ("rows", "score", "below 100", "quarantined", "unmet", "age")
    if rows:
        _figures(("Bronze table", *names), rows)
    for one in report.tables:
        for figure in one.unmet:
            what = figure.rule if figure.kind != "check" else f"{figure.rule} (check)"
            count = f"{figure.failed:,} of {figure.checked:,}"
            keys = f", such as {', '.join(figure.examples)}" if figure.examples else ""
            if figure.rule == NULLS and figure.kind == "check":
                keys = f", most of them in {emptiest(one.figures)}"
            print_line(f"{one.target}: {what}: {count} ({figure.share or 0:.2%}){keys}")
        if not one.fresh:
            age = f"{_age(one)} old" if math.isfinite(one.age) else "nothing has ever landed"
            print_line(f"{one.target}: not fresh: {age}, to be below {one.allowed:,} s")
    for name in report.missing:
        print_line(f"{name}: there are no figures of it: its next run enters them")


def _age(table: TableQuality) -> str:
    if not math.isfinite(table.age):
        return "never"
    minutes, seconds = divmod(int(table.age), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def check(report: CheckReport) -> None:
    """What each table and column becomes, then what stands in the way."""
    for found in report.tables:
        rows = "never analysed" if found.rows < 0 else f"about {found.rows:,} rows"
        key = ", ".join(found.key) or "no key"
        print_line(
            f"\n{found.table} → {found.target}  ({found.kind}, {rows}, {size(found.bytes)}, {key})"
        )
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 2))
        for name in ("column", "PostgreSQL", "Delta", ""):
            table.add_column(name, overflow="fold")
        for column in found.columns:
            name = (
                column.name if column.name == column.target else f"{column.name} → {column.target}"
            )
            cells = (name, column.source_type, column.delta_type, column.note)
            table.add_row(*map(_cell, cells))
        if found.columns:
            _out.print(table)
        if found.rules:
            print_line(f"  rules: {_rules(found)}")
        for note in found.notes:
            print_line(f"  note: {note}")
        for limit in found.limits:
            print_line(f"  by design: {limit}")
    for note in report.notes:
        print_line(f"\nnote: {note}")
    for problem in report.problems:
        print_error(f"\n{problem.message}", problem.hint)
