"""What commands that change or verify data print: run, stream, maintain, verify, forget, keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bronze.cli.output import (
    print_error,
    print_figures,
    print_json,
    print_line,
    quality_score,
    size,
)
from bronze.tables.naming import short_name

if TYPE_CHECKING:
    from bronze.model.results import (
        Failure,
        MaintainResult,
        RunResult,
        StreamResult,
        TableResult,
    )
    from bronze.protection.erasure_result import ErasureResult, Evidence
    from bronze.verify.results import VerifyResult

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


def run_result(result: RunResult) -> None:
    """Prints the figures of each table of a run, then notes and errors."""
    print_figures(("Bronze table", "status", *_FIGURES), [_cells(row) for row in result.tables])
    rows = sum(row.rows_read for row in result.tables)
    print_line(f"{rows:,} rows read in {result.seconds:.1f} s, batch {result.batch_id}")
    scored = [row for row in result.tables if row.score is not None]
    if scored:
        print_line(_scores(scored))
    for row in result.tables:
        for note in row.notes:
            print_line(f"{row.table}: {note}")
    _print_errors({row.table: row.error for row in result.tables})
    _print_notes(result)


def _print_errors(errors: Mapping[str, Failure | None]) -> None:
    """Prints the errors of tables; those that were stopped have one line together."""
    stopped = [table for table, error in errors.items() if error and error.kind == "Stopped"]
    for table, error in errors.items():
        if error and table not in stopped:
            print_error(f"{table}: {error.message}", error.hint)
    if stopped:
        more = f" and {len(stopped) - _MOST_NAMES:,} more" if len(stopped) > _MOST_NAMES else ""
        names = ", ".join(stopped[:_MOST_NAMES])
        print_error(
            f"Stopped before the end: {names}{more}.",
            "What had landed before stays, and nothing half-written is visible. Run it again.",
        )


_MOST_NAMES = 10


def _scores(scored: Sequence[TableResult]) -> str:
    """The average score of all rows, and how many rows of each table are quarantined."""
    rows = sum(row.rows_read for row in scored)
    average = sum((row.score or 0.0) * row.rows_read for row in scored) / max(rows, 1)
    low = [f"{row.quarantined:,} of {row.table}" for row in scored if row.quarantined]
    quarantined = f"; quarantined: {', '.join(low)}" if low else ""
    return f"average score {quality_score(average)}{quarantined}"


def stream_result(result: StreamResult) -> None:
    """Prints the figures of each table of a stream that has ended, then notes and errors."""
    cells = [_cells(row) for row in result.tables]
    names = ("Bronze table", "status", *_FIGURES[:6], _FIGURES[-1])
    print_figures(names, [[*row[:8], row[-1]] for row in cells])
    print_line(
        f"{_count(result.changes, 'change')} in {_count(result.transactions, 'transaction')},"
        f" landed in {result.batches:,} batch{'es' * (result.batches != 1)}"
        f" in {result.seconds:.1f} s by stream {result.stream}"
    )
    for row in result.tables:
        if row.error:
            print_error(f"{row.table}: {row.error.message}", row.error.hint)
    _print_notes(result)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


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
            size(row.rewritten),
            str(row.expired_files),
            size(row.expired_bytes),
            str(row.expired_entries),
            f"{row.seconds:.1f}",
        ]
        for row in result.tables
    ]
    names = ("files", "now", "rewritten", "expired", "freed", "log", "s")
    print_figures(("Bronze table", *names), rows)
    for row in result.tables:
        if row.upgraded:
            print_line(f"{row.target}: its features are named now (writer version 7)")
    _print_errors({row.target: row.error for row in result.tables})
    _print_record_failure(result)


def _print_notes(result: RunResult | StreamResult) -> None:
    for note in result.notes:
        print_line(note)
    for record in result.late:
        print_line(
            f"{record.table}: batch {record.batch_id} was committed by a run that died before it"
            " was recorded; it is recorded now"
        )
    _print_record_failure(result)


def _print_record_failure(
    result: RunResult | StreamResult | MaintainResult | VerifyResult | ErasureResult,
) -> None:
    if result.unrecorded:
        message = "What was done could not be recorded in full"
        print_error(f"{message}: {result.unrecorded.message}", result.unrecorded.hint)


def erasure_result(done: ErasureResult) -> None:
    """Prints what was searched and erased, and what is left."""
    if done.source:
        print_line(
            f"Table {done.source.table} of the source (oid {done.source.oid}) answered that it has"
            f" {done.source.rows} such rows."
        )
    for note in done.notes:
        print_line(f"note: {note}")
    if done.before and not done.is_found:
        print_error(
            f"{done.target}: nothing was found and nothing was erased."
            f" {_evidence_counts(done.before)} were read.",
            "Check the value. The log of older versions may still have values of rows that were"
            " deleted earlier: --old-versions deletes it.",
        )
        return
    print_line(
        f"{done.target}: {done.rows} rows and {done.records} records erased; {done.files} files"
        f" ({size(done.bytes)}) and {done.entries} log entries deleted. Only version"
        f" {done.version} can be read now."
    )
    if done.doubtful:
        print_error(
            f"{done.doubtful} rows or records are left that may be of this person; see the note"
            " above."
        )
    if done.left:
        print_error(
            f"{done.left} rows or records are left in files that a run may be about to commit:"
            " repeat this when the run has ended."
        )
    elif done.before and done.after and not done.doubtful:
        print_line(
            f"Found before: {done.before.found} rows and {done.before.told} records, among"
            f" {_evidence_counts(done.before)}."
        )
        print_line(
            f"Proof: {_evidence_counts(done.after)} were read afterwards, none has such a row."
        )
    _print_record_failure(done)


def _evidence_counts(evidence: Evidence) -> str:
    return (
        f"{evidence.rows:,} rows in {evidence.files:,} Parquet files and {evidence.records:,}"
        " records of governance"
    )


def rewrapped_keys(count: int, as_json: bool) -> None:
    """Prints how many keys were wrapped with the current master key."""
    if as_json:
        print_json({"rewrapped": count})
    else:
        print_line(
            f"{count} keys were wrapped with the current master key."
            if count
            else "All keys are wrapped with the current master key already."
        )


def verify_result(result: VerifyResult) -> None:
    """Prints the figures of each table, then what was read, and the faulty rows and files."""
    names = ("source", "Bronze", "files", "missing", "extra", "different", "altered", "bad files")
    rows = []
    for row in result.tables:
        counts = (row.bronze_rows, row.bronze_files, row.missing, row.extra, row.different)
        cells = [short_name(row.target) or row.table, row.status]
        cells += [f"{row.source_rows:,}" if row.source_rows >= 0 else ""]
        cells += [f"{count:,}" for count in (*counts, row.altered, len(row.files))]
        rows.append([*cells, f"{row.seconds:.1f}", _version(row.version)])
    print_figures(("Bronze table", "status", *names, "s", "v"), rows)
    print_line(_basis(result))
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
        hidden = row.missing + row.extra + row.different + row.altered - len(row.rows)
        if row.rows and hidden > 0:
            print_line(f"{row.table}: and {hidden:,} more")
    _print_errors({row.table: row.error for row in result.tables})
    _print_record_failure(result)


def _basis(result: VerifyResult) -> str:
    """What was read for a proof."""
    tables = result.tables
    bronze = sum(table.bronze_rows for table in tables)
    inactive = sum(table.gone_rows for table in tables)
    files = sum(table.bronze_files for table in tables)
    hashed = sum(max(table.source_rows, 0) for table in tables)
    sources = ", ".join(sorted({table.source for table in tables if table.source}))
    source = f"{hashed:,} rows of {sources} were hashed"
    source = "The source was not asked" if result.at_rest else source
    rows = f"{bronze:,} rows of Bronze" + (f" and {inactive:,} inactive ones" if inactive else "")
    read = f"{source}; {rows} in {files:,} files of {len(tables):,} tables"
    if any(table.trusted for table in tables):
        return f"{read} were compared by their stored hashes."
    return f"{read} were read, and hashed again."
