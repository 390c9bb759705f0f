"""Erases a person's rows from the lake, and proves that nothing is left.

`forget` takes these steps, in this order:

1. `assert_gone_in_source` asks the table of the source whether it still has such a row. If it has,
   or cannot answer, nothing is done: the next run would bring the row back.
2. `search_versions` reads all Parquet files in the table's folder, of whatever version, and the
   governance tables. If neither has anything of the person, nothing is done.
3. `erase_governance_records` removes the governance records about the rows. It comes before the
   rows go, as the older versions tell which records these are.
4. `rewrite_without` commits the table without the rows: the files that have some are rewritten.
5. `purge_history` deletes what the current version does not need: older data files, files of the
   change data feed, and entries of the log, whose statistics may have values of the key.
6. `count_remaining` reads every file that is left. That it finds nothing is the proof.

A row or record that may be the person's or another's, which the lake cannot tell, is not erased: it
is counted as doubtful, and a note says what to do. The copy of the lake ([backup]) deletes the same
at its next generation (`bronze.backup.purges`). Not reached are other copies, versions that the
object store keeps, what readers have read, and the source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import commit
from bronze.delta.folder import Folder
from bronze.delta.layout import vacuum
from bronze.delta.layout.vacuum import VacuumResult
from bronze.errors import ConfigError, LakeError, TableRefused
from bronze.printable import count
from bronze.protection import lake_table, row_removal
from bronze.protection.erasure_result import ErasureResult, Evidence, SourceAnswer
from bronze.protection.lake_table import ProtectedTable
from bronze.protection.subject import governance_records, row_selection, source_rows
from bronze.protection.subject.governance_records import RecordScope
from bronze.protection.subject.person import Person, PersonValues, unique_categories
from bronze.protection.subject.row_match import Subject
from bronze.protection.subject.source_rows import Original
from bronze.tables import evolution


def forget(
    settings: Settings,
    table: str,
    key: Mapping[str, str],
    *,
    ask: bool = True,
    dry_run: bool = False,
) -> ErasureResult:
    """Erases the rows whose columns have some values.

    Args:
        settings: the config.
        table: the name of the Bronze table, or of the source's.
        key: values of columns, as text. PostgreSQL reads them by the columns' types; without the
            source they are read as the Bronze table has them.
        ask: whether to ask the source first that it has no such row.
        dry_run: whether to search only, and to erase nothing.

    Raises:
        ConfigError: there is no such table or column.
        TableRefused: the source still has such a row; or the table that the Bronze table was loaded
            from is not there to be asked.
        SourceError: the source could not be asked; nothing was done.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    if not key:
        raise ConfigError(
            "No row is selected.", hint='Select rows by a column: --key "customer_id=42"'
        )
    target = lake_table.protected_table(settings, table)
    scope = governance_records.record_scope(settings, target)
    with _source_table(settings, target, ask) as origin:
        subject = _select_rows(settings, target, key, scope, origin)
        source, notes = assert_gone_in_source(target, key, origin) if origin else (None, ())
    person, before = search_versions(settings, target, subject, scope)
    result = ErasureResult(target.name, target.state.version, source=source, before=before)
    if dry_run or not result.is_found:
        notes = (*notes, *_open_questions(target, before))
        return replace(result, notes=notes, seconds=time.monotonic() - began)
    records, expired_records = erase_governance_records(settings, person)
    version, rows = rewrite_without(target, subject)
    expired = purge_history(target) + expired_records
    after = count_remaining(settings, target, person)
    return replace(
        result,
        version=version,
        rows=rows,
        records=records,
        files=expired.files,
        bytes=expired.bytes,
        entries=expired.entries,
        scanned=after.files,
        left=after.found + after.told,
        after=after,
        notes=(*notes, *_open_questions(target, after)),
        seconds=time.monotonic() - began,
    )


def _source_table(
    settings: Settings, table: ProtectedTable, ask: bool
) -> AbstractContextManager[Original | None]:
    """The table of the source, on an open connection; None if it is not to be asked."""
    if not ask:
        return nullcontext()
    return source_rows.source_table(settings, table.name, table.state)


def _select_rows(
    settings: Settings,
    table: ProtectedTable,
    key: Mapping[str, str],
    scope: RecordScope,
    origin: Original | None,
) -> Subject:
    def spellings(name: str) -> Iterator[pl.Series]:
        yield from _stored_values(table, name)
        yield from governance_records.recorded_keys(settings, scope, name)

    return row_selection.select_rows(table, key, origin, spellings)


def _stored_values(table: ProtectedTable, name: str) -> Iterator[pl.Series]:
    """What a column has in all files of a table, each value once in a part."""
    for _, part in Folder(table.state).rows([name]):
        if name in part.columns:
            values = part[name].drop_nulls()
            yield values if isinstance(values.dtype, pl.List) else values.unique()


def assert_gone_in_source(
    table: ProtectedTable, key: Mapping[str, str], origin: Original
) -> tuple[SourceAnswer, tuple[str, ...]]:
    """The source's answer that it has no such row, with notes on what it was not asked.

    Raises:
        TableRefused: it still has such a row, or cannot be asked for one.
    """
    properties = table.state.properties
    latest = {evolution.former_names(properties, name)[0]: text for name, text in key.items()}
    answer = SourceAnswer(origin.relation.label, origin.relation.oid, origin.rows(latest))
    if answer.rows:
        raise TableRefused(
            f"The source still has such a row in {answer.table}: the next run would bring it back.",
            hint="Delete it there first; then forget it here.",
            table=answer.table,
        )
    return answer, tuple(_limits(table, latest, origin))


def _limits(table: ProtectedTable, key: Mapping[str, str], origin: Original) -> Iterator[str]:
    """What the source was not asked, and which rows are not found."""
    for name in key:
        if name not in origin.columns:
            yield f"the source no longer has the column {name}, and was asked without it"
        elif table.protection_of(name) and not origin.columns[name].exact:
            yield (
                f"column {name} is protected: its values were searched as they were given, and as"
                " PostgreSQL writes them; rows with another text that its type takes for equal are"
                " not found"
            )


def search_versions(
    settings: Settings, table: ProtectedTable, subject: Subject, scope: RecordScope
) -> tuple[Person, Evidence]:
    """Finds a person's rows in all files of a table, of whatever version, and the governance
    records about them.

    Raises:
        LakeError: a file that a version names is missing, or cannot be read.
        LakeUnreachable
    """
    folder = Folder(table.state)
    if folder.missing_files:
        raise LakeError(
            f"The file {folder.missing_files[0]} of {table.name} is missing: it may have such"
            " rows.",
            hint="`bronze verify --repair` repairs the table; then forget.",
        )
    targets = dict(settings.table(table.source, *table.original).rename)
    facts = governance_records.recorded_facts(settings, scope, targets)
    values = PersonValues(table, facts)
    rows = _count_rows(folder, subject, values)
    unique = unique_categories(table, values, subject)
    person = Person(subject, scope, values, unique, targets)
    return person, _count_records(settings, person, rows)


def erase_governance_records(settings: Settings, person: Person) -> tuple[int, VacuumResult]:
    """Removes the governance records about a person's rows: how many there were, and what was
    deleted with the older versions that had them.
    """
    removed, expired = 0, VacuumResult()
    for state, columns in governance_records.governance_tables(settings):
        matches = lambda records: person.match(records)[0]  # noqa: E731
        rows, more = row_removal.remove_records(state.place, matches, columns)
        removed, expired = removed + rows, expired + more
    return removed, expired


@commit.retry_conflicts
def rewrite_without(table: ProtectedTable, subject: Subject) -> tuple[int, int]:
    """Commits the table without the selected rows: its version, and how many rows there were."""
    return row_removal.remove_rows(table.reload().state, subject.matches, subject.columns)


def purge_history(table: ProtectedTable) -> VacuumResult:
    """Deletes all files and log entries that the current version of a table does not need."""
    return vacuum.purge(table.state.place, time.time())


def count_remaining(settings: Settings, table: ProtectedTable, person: Person) -> Evidence:
    """What all files that are left, of the table and of governance, still have of a person."""
    rows = _count_rows(Folder(table.reload().state), person.subject)
    return _count_records(settings, person, rows)


def _count_rows(folder: Folder, subject: Subject, values: PersonValues | None = None) -> Evidence:
    """What the files of a table have of a person; ``values`` collects what their rows have."""
    rows = found = doubtful = 0
    for path in folder.paths:
        is_current, in_file = folder.is_current(path), 0
        for part in folder.parts(path, subject.columns):
            certain, possible = subject.match(part, is_current)
            rows, in_file = rows + part.height, in_file + int(certain.sum())
            doubtful += int((possible & ~certain).sum())
        found += in_file
        if in_file and values:
            for part in folder.parts(path, [*subject.columns, *values.columns]):
                values.add(part.filter(subject.matches(part, is_current)))
    files = len(folder.paths) - len(folder.unreadable)
    return Evidence(files, rows, found, doubtful=doubtful, unreadable=len(folder.unreadable))


def _count_records(settings: Settings, person: Person, rows: Evidence) -> Evidence:
    """Adds what all files of governance, of whatever version, have about a person."""
    records = told = doubtful = unreadable = 0
    for state, columns in governance_records.governance_tables(settings):
        folder = Folder(state)
        for _, part in folder.rows(columns):
            certain, possible = person.match(part)
            records, told = records + part.height, told + int(certain.sum())
            doubtful += int((possible & ~certain).sum())
        unreadable += len(folder.unreadable)
    return replace(
        rows,
        records=records,
        told=told,
        doubtful=rows.doubtful + doubtful,
        unreadable=rows.unreadable + unreadable,
    )


def _open_questions(table: ProtectedTable, evidence: Evidence) -> Iterator[str]:
    """What the lake cannot answer, and what to do about it."""
    if evidence.unreadable:
        yield (
            f"{count(evidence.unreadable, 'file of no version is', 'files of no version are')} not"
            " Parquet, because the writing was interrupted or has not ended: no value can be read"
            " there, and such files are deleted after a day"
        )
    if evidence.doubtful:
        yield (
            f"{evidence.doubtful:,} rows or records may be this person's or another's: they were"
            " written when a column was protected in another way, or had another name, which is"
            f" used for something else now. `bronze forget {table.name} --old-versions` deletes"
            " those that are not of the current version; select the others by another column"
        )
