"""The records of runs in ``governance.runs``: one of each table when it begins, one when it ends.

A run that fails before its tables are known has one record with the error, about no table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.errors import BronzeError, Stopped
from bronze.governance import actor, writer
from bronze.governance.tables import runs
from bronze.governance.tables.runs import Command, Reason, RunRecord
from bronze.model.locations import Place
from bronze.model.results import Failure, TableResult
from bronze.version import VERSION


@dataclass(frozen=True)
class Cause:
    """What began a run: a command; or a due time of a schedule, at the first or a later attempt."""

    reason: Reason = "command"
    scheduled: datetime | None = None
    attempt: int = 1


@dataclass(frozen=True)
class RunTable:
    """A table of a run: its source, its name there, its Bronze table, and its pattern."""

    source: str
    table: str
    target: str
    pattern: str


@dataclass
class RunLog:
    """The records of one run. ``began`` is the record that all others are made from."""

    settings: Settings
    began: RunRecord
    tables: dict[str, RunRecord] = field(default_factory=dict)

    def plan(self, batch_id: str, tables: Sequence[RunTable]) -> None:
        """Records that tables begin, so that it is known afterwards if the process died.

        A run that begins again from a new snapshot calls it again, and only its ids change.

        Raises:
            CommitConflict, LakeError, LakeUnreachable: the records cannot be written.
        """
        is_first = not self.tables
        for table in tables:
            self.tables[table.target] = replace(
                self.began,
                batch_id=batch_id,
                source_system=table.source,
                source_table=table.table,
                target_table=table.target,
                pattern=table.pattern,
            )
        if is_first:
            _append(self.settings, self.tables.values())

    def end(self, results: Iterable[TableResult]) -> None:
        """Records the results of the tables.

        Raises:
            CommitConflict, LakeError, LakeUnreachable: the records cannot be written.
        """
        records = [self._result(result) for result in results]
        _append(self.settings, records)

    def fail(self, error: BaseException, landed: Mapping[str, TableResult]) -> None:
        """Records that the run has ended with an error; ``landed`` are the results of the tables
        that had ended before, by target. If that cannot be written, nothing is recorded.
        """
        failure = _failure(error)
        # polars raises an interrupt as a panic.
        interrupted = "KeyboardInterrupt" in f"{type(error).__name__} {error}"
        stopped = interrupted or isinstance(error, Stopped)
        ended = datetime.now(UTC)
        records = [
            self._result(landed[target])
            if target in landed
            else _failed(replace(record, ended=ended), failure, stopped)
            for target, record in (self.tables or {"": self.began}).items()
        ]
        with suppress(BronzeError):
            _append(self.settings, records)

    def _result(self, result: TableResult) -> RunRecord:
        begun = self.tables.get(result.target)
        record = replace(begun or self.began, ended=datetime.now(UTC))
        if begun is None:
            record = replace(record, source_table=result.table, target_table=result.target)
        record = replace(
            record,
            status=result.status,
            as_of=result.as_of,
            seconds=round(result.seconds, 3),
            stages=json.dumps(dict(result.stages)),
            rows_read=result.rows_read,
            inserted=result.inserted,
            updated=result.updated,
            deleted=result.deleted,
            rejected=result.rejected,
            quarantined=result.quarantined,
            anomalies=result.anomalies,
            score=result.score,
            files=result.files,
            bytes=result.bytes,
        )
        stopped = result.status == "stopped"
        return _failed(record, result.error, stopped) if result.error else record


def begin(settings: Settings, command: Command, cause: Cause) -> RunLog:
    """The log of a run that begins now; nothing is written yet."""
    record = RunRecord(
        run_id=str(uuid_utils.uuid7()),
        command=command,
        began=datetime.now(UTC),
        reason=cause.reason,
        scheduled=cause.scheduled,
        attempt=cause.attempt,
        host=actor.host(),
        bronze_version=VERSION,
    )
    return RunLog(settings, record)


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, runs.NAME)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, BronzeError):
        return error.failure()
    # Messages of libraries may quote values.
    return Failure(type(error).__name__, "", "")


def _failed(record: RunRecord, failure: Failure, stopped: bool) -> RunRecord:
    return replace(
        record,
        status="stopped" if stopped else "failed",
        error_kind=failure.kind,
        error_message=failure.message,
        error_hint=failure.hint,
        sqlstate=failure.sqlstate,
    )


def _append(settings: Settings, records: Iterable[RunRecord]) -> None:
    frame = runs.frame(list(records))
    writer.append_rows(place(settings), runs.COLUMNS, frame, "", stats=("recorded_timestamp",))
