"""What the governance tables tell of the time that a report is about. Values of rows are never
among it: columns with keys of rows are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import file_names, log
from bronze.errors import BronzeError
from bronze.governance.frames import schema_of
from bronze.governance.tables import data_lineage
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables import runs as runs_table
from bronze.governance.tables.anomaly import anomalies, profiles
from bronze.model.columns import DeltaType
from bronze.operate.facts.added import parts_of
from bronze.operate.facts.wording import clause
from bronze.printable import count
from bronze.quality import checks

MOST_ROWS = 2_000_000
"""How many records of one governance table are read, the newest first."""
_NO_CHANGES = "[]"

Columns = Sequence[tuple[str, DeltaType]]


@dataclass(frozen=True)
class Records:
    """Records since ``begin``, as frames.

    - ``runs``: runs that have ended, with columns of ``governance.runs``; one row a run and table.
    - ``landings``: rows that landed: ``target_table``, ``at``, ``batch_id``, and ``inserted``,
      ``updated``, ``deleted``; also those of streams, which record their sums from time to time.
    - ``changes``: schema changes of all times: ``target_table``, ``source_table``, ``at``,
      ``version_after``, ``schema_changes``.
    - ``figures``: of ``governance.quality`` those of rules, of scores, and of checks that were not
      met.
    - ``profiles``: how many rows were scored and are anomalies, by table and batch.
    - ``anomalies``: ``level``, ``columns`` and ``anomaly_timestamp`` by table.

    ``notes`` say what could not be read, or was left out.
    """

    begin: datetime
    runs: pl.DataFrame
    landings: pl.DataFrame
    changes: pl.DataFrame
    figures: pl.DataFrame
    profiles: pl.DataFrame
    anomalies: pl.DataFrame
    notes: tuple[str, ...] = ()


def read(settings: Settings, targets: Sequence[str] | None, begin: datetime) -> Records:
    """Reads the records of some Bronze tables, by their full names; of all of them if None.

    A governance table that does not exist has no records; one that cannot be read is a note.
    """
    reader = _Reader(settings, targets)
    lineage = reader.read(data_lineage.NAME, data_lineage.COLUMNS, _LINEAGE, _of_lineage(begin))
    return Records(
        begin=begin,
        runs=_ended(reader.read(runs_table.NAME, runs_table.COLUMNS, _RUNS, _of_runs(begin))),
        landings=landings_of(lineage, begin),
        changes=_changes_of(lineage),
        figures=reader.read(
            quality_table.NAME, quality_table.COLUMNS, _FIGURES, _of_figures(begin)
        ).unique(["batch_id", "target_table", "rule", "column_name"], keep="last"),
        profiles=reader.read(
            profiles.NAME, profiles.COLUMNS, _PROFILES, pl.col("profiled_timestamp") >= begin
        ),
        anomalies=reader.read(
            anomalies.NAME, anomalies.COLUMNS, _ANOMALIES, pl.col("anomaly_timestamp") >= begin
        ),
        notes=tuple(reader.notes),
    )


_RUNS = (
    *("run_id", "command", "source_system", "source_table", "target_table", "status"),
    *("ended_timestamp", "seconds", "recorded_timestamp"),
)
_LINEAGE = (
    *("lineage_id", "source_table", "target_table", "created_timestamp", "batch_id", "mode"),
    *(
        "version_before",
        "version_after",
        "inserted",
        "updated",
        "deleted",
        "schema_changes",
        "status",
    ),
)
_FIGURES = (
    *("batch_id", "evaluated_timestamp", "source_table", "target_table", "rule", "kind"),
    *("column_name", "severity", "checked", "failed", "measured", "allowed", "passed", "landed"),
)
_PROFILES = ("batch_id", "profiled_timestamp", "target_table", "scored", "anomalies")
_ANOMALIES = ("anomaly_timestamp", "target_table", "level", "columns")
_COUNTS = ("inserted", "updated", "deleted")


def _of_runs(begin: datetime) -> pl.Expr:
    return (pl.col("command") == "run") & (pl.col("ended_timestamp") >= begin)


def _of_lineage(begin: datetime) -> pl.Expr:
    # What a stream has recorded before is taken from what it records later.
    is_stream = pl.col("mode") == "stream"
    has_changes = pl.col("schema_changes") != _NO_CHANGES
    return (pl.col("created_timestamp") >= begin) | is_stream | has_changes


def _of_figures(begin: datetime) -> pl.Expr:
    is_rule = pl.col("kind") != "check"
    is_unmet = (pl.col("passed") == False) & (pl.col("rule") != checks.FRESHNESS)  # noqa: E712
    is_score = pl.col("rule") == checks.SCORE
    return (pl.col("evaluated_timestamp") >= begin) & (is_rule | is_unmet | is_score)


def _ended(runs: pl.DataFrame) -> pl.DataFrame:
    ended = runs_table.latest(runs.lazy()).filter(pl.col("status") != "began")
    return ended.sort("ended_timestamp").collect()


def landings_of(lineage: pl.DataFrame, begin: datetime) -> pl.DataFrame:
    """The rows that landed since ``begin``: of records of the same id, which have sums, what each
    has more than the one before it.
    """
    ordered = lineage.sort("created_timestamp", maintain_order=True)
    more = [
        (pl.col(name).fill_null(0) - pl.col(name).fill_null(0).shift(1, fill_value=0))
        .over("lineage_id")
        .clip(lower_bound=0)
        for name in _COUNTS
    ]
    return (
        ordered.with_columns(more)
        .filter(pl.col("created_timestamp") >= begin, pl.sum_horizontal(_COUNTS) > 0)
        .select("target_table", pl.col("created_timestamp").alias("at"), "batch_id", *_COUNTS)
    )


def _changes_of(lineage: pl.DataFrame) -> pl.DataFrame:
    names = ("target_table", "source_table", "version_after", "schema_changes")
    changed = lineage.filter(
        pl.col("schema_changes") != _NO_CHANGES,
        pl.col("status") != "failed",
        # A table that is made has all of its columns anew.
        pl.col("version_before").is_not_null(),
    ).sort("created_timestamp")
    once = changed.unique(["lineage_id", "schema_changes"], keep="first", maintain_order=True)
    return once.select(pl.col("created_timestamp").alias("at"), *names)


class _Reader:
    """Reads governance tables; notes what it could not."""

    def __init__(self, settings: Settings, targets: Sequence[str] | None) -> None:
        self._settings = settings
        self._targets = None if targets is None else list(targets)
        self.notes: list[str] = []

    def read(
        self, name: str, all_columns: Columns, names: Sequence[str], wanted: pl.Expr
    ) -> pl.DataFrame:
        columns = [column for column in all_columns if column[0] in names]
        empty = pl.DataFrame(schema=schema_of(columns))
        if self._targets is not None:
            wanted &= pl.col("target_table").is_in(self._targets)
        try:
            return self._rows(name, columns, empty, lambda part: part.filter(wanted))
        except BronzeError as error:
            self.notes.append(f"governance.{name} cannot be read: {clause(error.message)}.")
            return empty

    def _rows(
        self,
        name: str,
        columns: Columns,
        empty: pl.DataFrame,
        wanted: Callable[[pl.DataFrame], pl.DataFrame],
    ) -> pl.DataFrame:
        place = self._settings.place(GOVERNANCE, name)
        state = log.read(place)
        newest_first = sorted(
            state.files if state else (),
            key=lambda file: file_names.batch_of(file.path) or "",
            reverse=True,
        )
        found, rows = [empty], 0
        for number, file in enumerate(newest_first):
            if rows > MOST_ROWS:
                left = count(len(newest_first) - number, "older file")
                self.notes.append(f"{left} of governance.{name} left out: it has too many records.")
                break
            for part in parts_of(place, file, columns):
                found.append(wanted(part))
                rows += found[-1].height
        return pl.concat(found)
