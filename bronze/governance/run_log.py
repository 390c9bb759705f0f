"""The records of runs, verifications and maintenance in ``governance.runs``: one of each table when
it begins, one when it ends.

A run that fails before its tables are known has one record with the error, about no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl
import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log
from bronze.errors import BronzeError, Stopped
from bronze.governance import actor, records, writer
from bronze.governance.frames import schema_of
from bronze.governance.records import Columns, Records
from bronze.governance.tables import runs
from bronze.governance.tables.runs import Command, Reason, RunRecord, RunStatus
from bronze.model.locations import Place
from bronze.model.results import Failure
from bronze.version import VERSION

_TIME = "recorded_timestamp"
_TABLE = ["command", "source_system", "source_table", "target_table"]
_DETAILS = ("batch_id", "stages", "inserted", "updated", "deleted", "anomalies", "files")
RECENT = tuple(c for c in runs.COLUMNS if c[0] not in (*_DETAILS, "sqlstate", "bronze_version"))
"""The columns of the records that are read here: those of `runs.COLUMNS` without details. Texts
that repeat, such as the names of tables, are categories."""
_KEYS = tuple(column for column in RECENT if column[0] in _TABLE)
_SCHEMA = schema_of(RECENT)
_REPEATED = (
    *_TABLE,
    "pattern",
    "reason",
    "status",
    "error_kind",
    "error_message",
    "error_hint",
    "host",
)


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
    the outcomes so far, by target.
    """

    settings: Settings
    began: RunRecord
    tables: dict[str, RunRecord] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)

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
            with suppress(BronzeError):
                _append(self.settings, self.tables.values())

    def note(self, outcome: Outcome) -> None:
        """Notes how a table has ended, in case that the run fails; nothing is written yet."""
        self.ended[outcome.target] = outcome

    def end(self, outcomes: Iterable[Outcome]) -> None:
        """Records how the tables have ended.

        Raises:
            CommitConflict, LakeError, LakeUnreachable: the records cannot be written.
        """
        _append(self.settings, [self._record(outcome) for outcome in outcomes])

    def fail(self, error: BaseException) -> None:
        """Records that the run has ended with an error, and how the tables that had ended before
        did. If that cannot be written, nothing is recorded.
        """
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


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, runs.NAME)


def read_recent(
    settings: Settings, per_table: int = 100, since: datetime | None = None
) -> Records | None:
    """The last runs, verifications and maintenance of each table: the latest record of each.

    It takes little memory however many records there are: the newest files are read first, and of
    older ones only the parts with tables that have fewer records so far.

    Args:
        settings: the config.
        per_table: how many of each command and table.
        since: none that was recorded before.

    Returns:
        Records with `RECENT`, the latest to begin first, and the version for `read_since`; None if
        nothing was ever recorded.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    state = log.read(place(settings))
    if state is None:
        return None
    chosen = _RecentRuns(per_table)
    for time, file in records.newest_first(state, _TIME):
        if since and time < since:
            break
        parquet = files.open_parquet(state.place, file)
        for latest, group in records.newest_groups_first(parquet, _TIME, time):
            if chosen.lacks(_part(parquet, _KEYS, group), latest):
                rows = _part(parquet, RECENT, group)
                chosen.add(rows.filter(pl.col(_TIME) >= since) if since else rows, latest)
    return Records(chosen.rows(), state.version)


class _RecentRuns:
    """The last records of each table among those that were added, the latest first: it keeps few
    others.
    """

    def __init__(self, per_table: int) -> None:
        self._per_table, self._parts = per_table, [_compact(pl.DataFrame(schema=_SCHEMA))]
        # Only the columns that decide are sorted again and again.
        self._deciding = _deciding(self._parts[0])

    def lacks(self, tables: pl.DataFrame, latest: datetime) -> bool:
        """Whether records of these tables that began at ``latest`` at the latest may be wanted."""
        full = self._full(latest)
        return bool(tables.select(_table_hash()).join(full, on="table", how="anti").height)

    def add(self, rows: pl.DataFrame, latest: datetime) -> None:
        """Adds the records that are wanted."""
        full = self._full(latest)
        rows = rows.with_columns(_table_hash()).join(full, on="table", how="anti").drop("table")
        offset = self._deciding.height
        deciding = pl.concat([self._deciding, _deciding(rows)])
        kept = _kept(deciding, self._per_table).sort("row")
        new = kept.filter(pl.col("row") >= offset)["row"] - offset
        # As they are, the texts of a few rows would keep those of all in memory.
        texts = rows["run_id"].gather(new).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._parts.append(rows[new].with_columns(pl.Series("run_id", texts)))
        added = _deciding(self._parts[-1])
        self._deciding = pl.concat([self._deciding, added])

    def rows(self) -> pl.DataFrame:
        """The records, the latest to begin first; nothing can be added after that."""
        order = _kept(self._deciding, self._per_table)["row"]
        # A column at a time: the records are never there twice.
        columns = {name: [part[name] for part in self._parts] for name, _ in RECENT}
        self._parts = []
        return pl.DataFrame([pl.concat(columns.pop(name)).gather(order) for name in tuple(columns)])

    def _full(self, latest: datetime) -> pl.DataFrame:
        """The tables with enough records that began at ``latest`` or later."""
        later = self._deciding.filter(pl.col("began_timestamp") >= latest)
        runs_of = later.unique("run").group_by("table").len()
        return runs_of.filter(pl.col("len") >= self._per_table).select("table")


def read_since(settings: Settings, version: int | None) -> Records | None:
    """All records, with `RECENT`, that were written after a version of the table, by any process:
    as of `read_recent` or of the last call. `latest_runs` combines them with the ones known before.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    found = records.records_since(place(settings), RECENT, version)
    return found and Records(_compact(found.rows), found.version)


def latest_runs(rows: pl.DataFrame, per_table: int) -> pl.DataFrame:
    """The latest record of each run and table, of the last runs of each command and table; the
    latest to begin first.
    """
    return rows[_kept(_deciding(rows), per_table)["row"]]


def _deciding(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of records that decide which are the last ones."""
    run = pl.struct("run_id", *_TABLE).hash().alias("run")
    return rows.select(_table_hash(), run, "began_timestamp", _TIME)


def _table_hash() -> pl.Expr:
    return pl.struct(_TABLE).hash().alias("table")


def _kept(deciding: pl.DataFrame, per_table: int) -> pl.DataFrame:
    """The last ones of such rows, with the number of each as ``row``."""
    return (
        deciding.with_row_index("row")
        .sort(_TIME, descending=True, maintain_order=True)
        .unique("run", keep="first", maintain_order=True)
        .sort("began_timestamp", descending=True, maintain_order=True)
        .filter(pl.int_range(pl.len()).over("table") < per_table)
    )


def _part(parquet: Any, columns: Columns, group: int) -> pl.DataFrame:
    names = [name for name, _ in columns]
    parts = [
        _compact(pl.DataFrame(part)) for _, part in files.parts(parquet, columns, names, [group])
    ]
    return pl.concat(parts)


def _compact(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows with repeated texts as categories, in a third of the memory."""
    return rows.with_columns(
        pl.col(name).cast(pl.Categorical()) for name in rows.columns if name in _REPEATED
    )


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
