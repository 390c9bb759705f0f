"""Deletes the older versions of a Bronze table, such as those from before its protection."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import commit
from bronze.delta.layout import vacuum
from bronze.delta.layout.vacuum import VacuumResult
from bronze.delta.properties import TableProperties
from bronze.protection import lake_table, row_removal
from bronze.protection.erasure_result import ErasureResult
from bronze.protection.lake_table import BATCH, ProtectedTable
from bronze.protection.row_removal import RowFilter
from bronze.protection.subject import governance_records
from bronze.protection.subject.governance_records import RecordScope

_TRAINED = "trained_timestamp"


def delete_old_versions(settings: Settings, table: str) -> ErasureResult:
    """Deletes all that the current version of a table does not need. If columns of it are
    protected, or were, the governance records that are older than all of its rows go too.

    Raises:
        ConfigError: there is no such table.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    target = lake_table.protected_table(settings, table)
    records, expired_records = 0, VacuumResult()
    if TableProperties.read(target.state.properties).has_protection:
        records, expired_records = _remove_older_records(settings, target)
    version = _remove_hidden_rows(target)
    expired = vacuum.purge(target.state.place, time.time()) + expired_records
    return ErasureResult(
        target=target.name,
        version=version,
        records=records,
        files=expired.files,
        bytes=expired.bytes,
        entries=expired.entries,
        seconds=time.monotonic() - began,
    )


@commit.retry_conflicts
def _remove_hidden_rows(table: ProtectedTable) -> int:
    """Rewrites the files with deletion vectors, whose deleted rows are still in them; the version
    of the table.
    """
    state = table.reload().state
    hidden = [file for file in state.files if file.vector]
    return row_removal.rewrite_files(state, hidden) if hidden else state.version


def _remove_older_records(settings: Settings, table: ProtectedTable) -> tuple[int, VacuumResult]:
    """Removes the governance records that are older than all rows of a table, and the models that
    were trained before them.
    """
    oldest = min(lake_table.batches(table.state), default="")
    removed, expired = 0, VacuumResult()
    scope = governance_records.record_scope(settings, table)
    for state, _ in governance_records.governance_tables(settings):
        column = BATCH if BATCH in dict(state.columns) else _TRAINED
        columns = [column, *governance_records.TARGETS]
        matches = _older_than(scope, column, oldest)
        rows, more = row_removal.remove_records(state.place, matches, columns)
        removed, expired = removed + rows, expired + more
    return removed, expired


def _older_than(scope: RecordScope, column: str, oldest: str) -> RowFilter:
    """Which records are about a table, and older than its oldest batch; all, if it has no rows."""
    since = oldest if column == BATCH or not oldest else _start_of(oldest)

    def matches(records: pl.DataFrame) -> pl.Series:
        in_scope = scope.matches(records)
        return in_scope & (records[column] < since).fill_null(False) if oldest else in_scope

    return matches


def _start_of(batch: str) -> datetime:
    """When a batch began: the first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562)."""
    return datetime.fromtimestamp(int(batch.replace("-", "")[:12], 16) / 1000, UTC)
