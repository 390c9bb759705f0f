"""What `bronze forget` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bronze.cli.output import print_error, print_line, size
from bronze.cli.screens.results import print_record_failure

if TYPE_CHECKING:
    from bronze.protection.erasure_result import ErasureResult, Evidence


def erasure_result(done: ErasureResult, dry_run: bool = False) -> None:
    """Prints what was searched and erased, and what is left; after a ``dry_run`` what would be."""
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
    if dry_run and done.before:
        print_line(
            f"{done.target}: would erase {done.before.found} rows and {done.before.told} records,"
            f" found among {_evidence_counts(done.before)}; all older versions would be deleted."
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
    print_record_failure(done)


def _evidence_counts(evidence: Evidence) -> str:
    return (
        f"{evidence.rows:,} rows in {evidence.files:,} Parquet files and {evidence.records:,}"
        " records of governance"
    )
