"""The records of runs, verifications and maintenance in ``governance.runs``: one of each table when
it begins, one when it ends.

A run that fails before its tables are known has one record with the error, about no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Thread
from typing import Any

import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta.storage import client
from bronze.errors import BronzeError, Stopped
from bronze.governance import actor, writer
from bronze.governance.tables import runs
from bronze.governance.tables.runs import Command, Reason, RunRecord, RunStatus
from bronze.model.locations import Place
from bronze.model.results import Failure
from bronze.version import VERSION


@dataclass(frozen=True)
class Cause:
    """What began a run: a command; or a due time of a schedule, at the first or a later attempt."""

    reason: Reason = "command"
    scheduled: datetime | None = None
    attempt: int = 1


@dataclass(frozen=True)
class RunTable:
    """A table of a run: its source, its name there, its Bronze table, and its pattern; "" for what
    is not known, as for the source of a governance table.
    """

    source: str
    table: str
    target: str
    pattern: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run has ended for one table (``table`` in the source, ``target`` in the lake).

    ``figures`` are further fields of a `RunRecord`, by name.
    """

    table: str
    target: str
    status: RunStatus
    seconds: float
    error: Failure | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RunLog:
    """The records of one run. ``began`` is the record that all others are made from, ``ended`` are
    the outcomes so far, by target, ``is_ended`` says that `end` was called.
    """

    settings: Settings
    began: RunRecord
    tables: dict[str, RunRecord] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    is_ended: bool = False
    _beginning: Thread | None = None

    def plan(self, batch_id: str, tables: Sequence[RunTable]) -> None:
        """Records that tables begin, so that it is known afterwards if the process died. If that
        cannot be written, nothing is recorded: the tables themselves report such a lake.

        A run that begins again from a new snapshot calls it again, and only its ids change.
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
            records = list(self.tables.values())
            if client.is_local(place(self.settings)):
                self._begin(records)
                return
            # The tables are read meanwhile.
            self._beginning = Thread(target=self._begin, args=(records,), name="bronze begin")
            self._beginning.start()

    def _begin(self, records: Sequence[RunRecord]) -> None:
        with suppress(BronzeError):
            _append(self.settings, records)

    def _wait(self) -> None:
        if self._beginning is not None:
            self._beginning.join()

    def note(self, outcome: Outcome) -> None:
        """Notes how a table has ended, in case that the run fails; nothing is written yet."""
        self.ended[outcome.target] = outcome

    def end(self, outcomes: Iterable[Outcome]) -> None:
        """Records how the tables have ended.

        Raises:
            CommitConflict, LakeError, LakeUnreachable: the records cannot be written.
        """
        self.is_ended = True
        self._wait()
        _append(self.settings, [self._record(outcome) for outcome in outcomes])

    def fail(self, error: BaseException) -> None:
        """Records that the run has ended with an error, and how the tables that had ended before
        did. If that cannot be written, nothing is recorded.
        """
        self._wait()
        failure = _failure(error)
        # polars raises an interrupt as a panic.
        interrupted = "KeyboardInterrupt" in f"{type(error).__name__} {error}"
        stopped = interrupted or isinstance(error, Stopped)
        ended = datetime.now(UTC)
        records = [
            self._record(self.ended[target])
            if target in self.ended
            else _failed(
                replace(record, ended=ended, status="stopped" if stopped else "failed"), failure
            )
            for target, record in (self.tables or {"": self.began}).items()
        ]
        with suppress(BronzeError):
            _append(self.settings, records)

    def _record(self, outcome: Outcome) -> RunRecord:
        begun = self.tables.get(outcome.target)
        if begun is None:
            begun = replace(self.began, source_table=outcome.table, target_table=outcome.target)
        record = replace(
            begun,
            ended=datetime.now(UTC),
            status=outcome.status,
            seconds=round(outcome.seconds, 3),
            **outcome.figures,
        )
        return _failed(record, outcome.error) if outcome.error else record


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


def record_left(settings: Settings, begun: Iterable[RunRecord], ended: datetime) -> None:
    """Records that runs were left at the end of their process, which did not wait for them.

    Raises:
        CommitConflict, LakeError, LakeUnreachable: the records cannot be written.
    """
    failure = Failure("Stopped", "The service ended before the run did.", "")
    stopped = [replace(record, status="stopped", ended=ended) for record in begun]
    _append(settings, [_failed(record, failure) for record in stopped])


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, runs.NAME)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, BronzeError):
        return error.failure()
    # Messages of libraries may quote values.
    return Failure(type(error).__name__, "", "")


def _failed(record: RunRecord, failure: Failure) -> RunRecord:
    return replace(
        record,
        error_kind=failure.kind,
        error_message=failure.message,
        error_hint=failure.hint,
        sqlstate=failure.sqlstate,
    )


def _append(settings: Settings, records: Iterable[RunRecord]) -> None:
    frame = runs.frame(list(records))
    writer.append_rows(place(settings), runs.COLUMNS, frame, "", stats=("recorded_timestamp",))
