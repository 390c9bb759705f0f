"""What commands that change or verify data print: run, stream, maintain, verify, forget, keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from bronze.cli.output import (
    STATUSES,
    is_terminal,
    print_error,
    print_figures,
    print_json,
    print_line,
    print_styled,
    quality_score,
)
from bronze.cli.screens.failure_groups import names_of, print_failures, print_notes
from bronze.printable import count, size
from bronze.tables.naming import short_name

if TYPE_CHECKING:
    from bronze.model.results import (
        MaintainResult,
        RunResult,
        StreamResult,
        TableResult,
    )
    from bronze.protection.erasure_result import ErasureResult
    from bronze.verify.results import VerifiedTable, VerifyResult

_FIGURES = (
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


def run_result(result: RunResult, quiet: bool = False) -> None:
    """Prints the figures of each table of a run, then notes and errors; only errors if quiet."""
    if not quiet:
        shown = _rows_to_show(result.tables)
        print_figures(("Bronze table", "status", *_FIGURES), [_cells(row) for row in shown])
        hidden = len(result.tables) - len(shown)
        if shown and hidden:
            print_line(f"and {hidden:,} more{_statuses(result.tables, shown)}", "dim")
        _print_sum(result)
        notes = [(row.table, note) for row in result.tables for note in row.notes]
        print_notes(notes)
    print_failures({row.table: row.error for row in result.tables})
    _print_notes(result, quiet)


_MOST_ROWS, _LARGEST = 40, 15
"""Of more tables than this a terminal shows those with most changes; a file gets all."""


def _rows_to_show(rows: Sequence[TableResult]) -> list[TableResult]:
    """The tables whose figures are shown. Why others have failed is told below them."""
    if len(rows) <= _MOST_ROWS or not is_terminal():
        return list(rows)
    changed = [row for row in rows if not row.error and row.inserted + row.updated + row.deleted]
    changed.sort(key=lambda row: row.inserted + row.updated + row.deleted, reverse=True)
    return changed[:_LARGEST]


def _statuses(rows: Sequence[TableResult], shown: Sequence[TableResult]) -> str:
    """How many of the tables that are not shown have each status."""
    counts = Counter(row.status for row in rows) - Counter(row.status for row in shown)
    return f": {', '.join(f'{count:,} {status}' for status, count in counts.items())}"


def _print_sum(result: RunResult) -> None:
    rows = sum(row.rows_read for row in result.tables)
    line = _verdict([row.status for row in result.tables])
    line.append(f" {count(rows, 'row')} read in {result.seconds:.1f} s, batch {result.batch_id}")
    print_styled(line)
    scored = [row for row in result.tables if row.score is not None]
    if scored:
        print_line(_scores(scored))
    if result.copy_error:
        print_error(f"The lake was not copied: {result.copy_error.message}", result.copy_error.hint)


def _verdict(statuses: Sequence[str]) -> Text:
    """How many tables there are, and how many have each status, in its colour."""
    line, separator = Text(f"{count(len(statuses), 'table')}:"), " "
    for status, number in Counter(statuses).items():
        line.append(separator).append(f"{number:,} {status}", STATUSES.get(status, ""))
        separator = ", "
    return line.append(".")


def _scores(scored: Sequence[TableResult]) -> str:
    """The average score of all rows, and how many rows of each table are quarantined."""
    rows = sum(row.rows_read for row in scored)
    average = sum((row.score or 0.0) * row.rows_read for row in scored) / max(rows, 1)
    low = sorted((row for row in scored if row.quarantined), key=lambda row: -row.quarantined)
    named = names_of(f"{row.quarantined:,} of {row.table}" for row in low)
    quarantined = f"; quarantined: {named}" if low else ""
    return f"average score {quality_score(average)}{quarantined}"


def stream_result(result: StreamResult, quiet: bool = False) -> None:
    """Prints the figures of each table of a stream that has ended, then notes and errors; only
    errors if quiet.
    """
    if not quiet:
        _print_stream_figures(result)
    print_failures({row.table: row.error for row in result.tables})
    _print_notes(result, quiet)


def _print_stream_figures(result: StreamResult) -> None:
    cells = [_cells(row) for row in result.tables]
    names = ("Bronze table", "status", *_FIGURES[:6], _FIGURES[-1])
    print_figures(names, [[*row[:8], row[-1]] for row in cells])
    if not result.changes:
        print_line(f"no changes in {result.seconds:.1f} s by stream {result.stream}")
        return
    print_line(
        f"{count(result.changes, 'change')} in {count(result.transactions, 'transaction')},"
        f" landed in {count(result.batches, 'batch', 'batches')}"
        f" in {result.seconds:.1f} s by stream {result.stream}"
    )


def stream_to_drop(name: str, as_json: bool) -> None:
    """Prints what `bronze stream --drop` would drop."""
    if as_json:
        print_json({"dropped": None, "would_drop": name})
    else:
        print_line(f"Would drop the slot {name} and its publication. The Bronze tables would stay.")


def dropped_stream(name: str, as_json: bool) -> None:
    """Prints that a slot and its publication were dropped."""
    if as_json:
        print_json({"dropped": name})
    else:
        print_line(
            f"Dropped the slot {name} and its publication. The Bronze tables stay as they are."
        )


def _cells(row: TableResult) -> list[str]:
    return [
        short_name(row.target) or row.table,
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
    """Prints what maintenance did to each table, then errors."""
    rows = [
        [
            short_name(row.target),
            str(row.files_before) if row.version is not None else "",
            str(row.files_after) if row.version is not None else "",
            size(row.rewritten) if row.rewritten else "",
            str(row.expired_files),
            size(row.expired_bytes) if row.expired_bytes else "",
            str(row.expired_entries),
            f"{row.seconds:.1f}",
        ]
        for row in result.tables
        if row.version is not None or row.expired_files or row.expired_entries
    ]
    names = ("files", "now", "rewritten", "expired", "freed", "log", "s")
    if rows:
        print_figures(("Bronze table", *names), rows)
    failed = sum(row.error is not None for row in result.tables)
    idle = len(result.tables) - len(rows) - failed
    print_line(
        f"{count(len(result.tables), 'table')} in {result.seconds:.1f} s:"
        f" {len(rows):,} maintained, {idle:,} had nothing to do"
    )
    for row in result.tables:
        if row.upgraded:
            print_line(f"{row.target}: its features are named now (writer version 7)")
    print_failures({row.target: row.error for row in result.tables})
    print_record_failure(result)


def _print_notes(result: RunResult | StreamResult, quiet: bool) -> None:
    for note in () if quiet else result.notes:
        print_line(note)
    for record in () if quiet else result.late:
        print_line(
            f"{record.table}: batch {record.batch_id} was committed by a run that died before it"
            " was recorded; it is recorded now"
        )
    print_record_failure(result)


def print_record_failure(
    result: RunResult | StreamResult | MaintainResult | VerifyResult | ErasureResult,
) -> None:
    """Prints why the governance tables do not have all that was done, if so."""
    if result.unrecorded:
        message = "What was done could not be recorded in full"
        print_error(f"{message}: {result.unrecorded.message}", result.unrecorded.hint)


def rewrapped_keys(number: int, as_json: bool) -> None:
    """Prints how many keys were wrapped with the current master key."""
    if as_json:
        print_json({"rewrapped": number})
    else:
        print_line(
            f"{count(number, 'key was', 'keys were')} wrapped with the current master key."
            if number
            else "All keys are wrapped with the current master key already."
        )


def tables_to_repair(result: VerifyResult) -> None:
    """Prints which tables `bronze verify --repair` would load again."""
    tables = [row.table for row in result.tables if row.status == "differs"]
    names = names_of(tables) if tables else "nothing: no table differs"
    print_line(f"--repair would reload {names}")


def verify_result(result: VerifyResult, quiet: bool = False) -> None:
    """Prints the figures of each table, then what was read, and the faulty rows and files; if quiet
    only those.
    """
    if not quiet:
        _print_verify_figures(result)
    for row in result.tables:
        _print_faults(row)
    print_failures({row.table: row.error for row in result.tables})
    print_record_failure(result)


def _print_faults(row: VerifiedTable) -> None:
    if row.stray_files:
        strays = f"{count(row.stray_files, 'file')} ({size(row.stray_bytes)})"
        print_line(f"{row.table}: its log does not know of {strays} in its folder")
    for file in row.files:
        print_line(f"{row.table}: file {file.file} {file.what} ({count(file.rows, 'row')})")
    for faulty in row.rows:
        what = f" ({faulty.what})" if faulty.what else ""
        print_line(f"{row.table}: {faulty.fault} {faulty.key}{what} {faulty.file}".rstrip())
    hidden = row.missing + row.extra + row.different + row.altered - len(row.rows)
    if row.rows and hidden > 0:
        print_line(f"{row.table}: and {hidden:,} more")


def _print_verify_figures(result: VerifyResult) -> None:
    names = ("source", "Bronze", "files", "missing", "extra", "different", "altered", "bad files")
    rows = []
    for row in result.tables:
        counts = (row.bronze_rows, row.bronze_files, row.missing, row.extra, row.different)
        cells = [short_name(row.target) or row.table, row.status]
        cells += [f"{row.source_rows:,}" if row.source_rows >= 0 else ""]
        cells += [f"{count:,}" for count in (*counts, row.altered, len(row.files))]
        rows.append([*cells, f"{row.seconds:.1f}", _version(row.version)])
    print_figures(("Bronze table", "status", *names, "s", "v"), rows)
    line = _verdict([row.status for row in result.tables])
    print_styled(line.append(f" {_basis(result)}"))
    print_notes((row.table, note) for row in result.tables for note in row.notes)


def _basis(result: VerifyResult) -> str:
    """What was read for a proof."""
    tables = result.tables
    bronze = sum(table.bronze_rows for table in tables)
    inactive = sum(table.gone_rows for table in tables)
    files = sum(table.bronze_files for table in tables)
    hashed = sum(max(table.source_rows, 0) for table in tables)
    sources = ", ".join(sorted({table.source for table in tables if table.source}))
    source = f"{count(hashed, 'row')} of {sources} hashed"
    source = "The source was not asked" if result.at_rest else source
    rows = f"{count(bronze, 'row')} of Bronze" + (f" and {inactive:,} inactive" if inactive else "")
    read = f"{source}; {rows} in {count(files, 'file')} of {count(len(tables), 'table')}"
    if any(table.trusted for table in tables):
        return f"{read} compared by the stored hashes."
    return f"{read} read and hashed again."
