"""What `bronze forget` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bronze.cli.output import print_error, print_line
from bronze.cli.screens.results import print_record_failure
from bronze.printable import count, size

if TYPE_CHECKING:
    from bronze.protection.erasure_result import ErasureResult, Evidence


def erasure_result(done: ErasureResult, dry_run: bool = False) -> None:
    """Prints what was searched and erased, and what is left; after a ``dry_run`` what would be."""
    if done.source:
        print_line(
            f"Table {done.source.table} of the source (oid {done.source.oid}) answered that it has"
            f" {count(done.source.rows, 'such row')}."
        )
    for note in done.notes:
        print_line(f"note: {note}")
    if done.before and not done.is_found:
        print_error(
            f"{done.target}: nothing was found and nothing was erased."
            f" Read: {_evidence_counts(done.before)}.",
            "Check the value. The log of older versions may still have values of rows that were"
            " deleted earlier: --old-versions deletes it.",
        )
        return
    if dry_run and done.before:
        print_line(
            f"{done.target}: would erase {_evidence_text(done.before)},"
            f" found among {_evidence_counts(done.before)}; all older versions would be deleted."
        )
        return
    print_line(
        f"{done.target}: {count(done.rows, 'row')} and {count(done.records, 'record')} erased;"
        f" {count(done.files, 'file')} ({size(done.bytes)}) and"
        f" {count(done.entries, 'log entry', 'log entries')} deleted. Only version"
        f" {done.version} can be read now."
    )
    if done.doubtful:
        print_error(
            f"{count(done.doubtful, 'row or record is', 'rows or records are')} left that may be of"
            " this person; see the note above."
        )
    if done.left:
        print_error(
            f"{count(done.left, 'row or record is', 'rows or records are')} left in files that a"
            " run may be about to commit: repeat this when the run has ended."
        )
    elif done.before and done.after and not done.doubtful:
        print_line(
            f"Found before: {_evidence_text(done.before)}, among {_evidence_counts(done.before)}."
        )
        print_line(f"Proof: {_evidence_counts(done.after)} read afterwards, no such row in them.")
    print_record_failure(done)


def _evidence_text(evidence: Evidence) -> str:
    return f"{count(evidence.found, 'row')} and {count(evidence.told, 'record')}"


def _evidence_counts(evidence: Evidence) -> str:
    return (
        f"{count(evidence.rows, 'row')} in {count(evidence.files, 'Parquet file')} and"
        f" {count(evidence.records, 'record')} of governance"
    )
