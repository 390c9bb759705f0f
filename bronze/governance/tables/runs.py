"""``governance.runs``: what each run, verification and maintenance did to each table, and how long
it took.

It appends a record of each table when it begins and one when the table has ended, under the same
``run_id``: the one with the later ``recorded_timestamp`` counts. A record that stays ``began`` is
of a run that goes on, or whose process died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import polars as pl

from bronze.governance.frames import frame_of
from bronze.model.columns import DeltaType

Command = Literal["run", "verify", "maintain"]
Reason = Literal["command", "schedule", "retry"]
RunStatus = Literal["began", "landed", "unchanged", "equal", "differs", "done", "failed", "stopped"]

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("run_id", DeltaType("string")),
    ("batch_id", DeltaType("string")),
    ("command", DeltaType("string")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("pattern", DeltaType("string")),
    ("reason", DeltaType("string")),
    ("attempt", DeltaType("long")),
    ("scheduled_timestamp", DeltaType("timestamp")),
    ("began_timestamp", DeltaType("timestamp")),
    ("ended_timestamp", DeltaType("timestamp")),
    ("as_of_timestamp", DeltaType("timestamp")),
    ("seconds", DeltaType("double")),
    ("stages", DeltaType("string")),
    ("rows_read", DeltaType("long")),
    ("inserted", DeltaType("long")),
    ("updated", DeltaType("long")),
    ("deleted", DeltaType("long")),
    ("rejected", DeltaType("long")),
    ("quarantined", DeltaType("long")),
    ("anomalies", DeltaType("long")),
    ("score", DeltaType("double")),
    ("files", DeltaType("long")),
    ("bytes", DeltaType("long")),
    ("status", DeltaType("string")),
    ("error_kind", DeltaType("string")),
    ("error_message", DeltaType("string")),
    ("error_hint", DeltaType("string")),
    ("sqlstate", DeltaType("string")),
    ("host", DeltaType("string")),
    ("bronze_version", DeltaType("string")),
    ("recorded_timestamp", DeltaType("timestamp")),
)
MEANINGS = {
    "run_id": "The run of one command; the latest record of a run and table counts.",
    "batch_id": (
        "The batch_id of the rows: a run that began again from a new snapshot has a new one."
    ),
    "command": "run, verify or maintain.",
    "source_system": "The name of the source in the config.",
    "source_table": 'The table in PostgreSQL, schema.table. "" for what is about all tables.',
    "target_table": 'The Bronze table, schema.name. "" for what is about all tables.',
    "pattern": "The table's pattern.",
    "reason": "What began it: a command, a schedule, or a retry of one.",
    "attempt": "Which attempt it is, from 1.",
    "scheduled_timestamp": "The due time of a schedule; NULL for a command.",
    "began_timestamp": "When it began.",
    "ended_timestamp": "When the table ended; NULL while it goes on, or if the process died.",
    "as_of_timestamp": "The moment of the source that the table shows.",
    "seconds": "Seconds of the table's own work.",
    "stages": "Seconds by stage, as a JSON object.",
    "rows_read": "Rows that were read from the source.",
    "inserted": "Rows that are new in the Bronze table.",
    "updated": "Rows with other values than before.",
    "deleted": "Rows that the source no longer has.",
    "rejected": "Values that Delta cannot hold.",
    "quarantined": "Rows whose score is below the threshold.",
    "anomalies": "Rows that are unlike the others.",
    "score": "The average quality score of the rows that were read, 0 to 100; NULL without rows.",
    "files": "Files that were written.",
    "bytes": "Their bytes; of maintenance those that it has rewritten.",
    "status": "began, landed, unchanged, equal, differs, done, failed or stopped.",
    "error_kind": 'The kind of the error, as `bronze explain` takes it; "" without one.',
    "error_message": "What is wrong; of a verification how the table differs.",
    "error_hint": "What to do about it.",
    "sqlstate": 'PostgreSQL\'s error code, "" if it is not an error of PostgreSQL.',
    "host": "The machine.",
    "bronze_version": "The version of bronze that wrote it.",
    "recorded_timestamp": "When the record was written.",
}
"""What each column has."""

NAME = "runs"


@dataclass(frozen=True)
class RunRecord:
    """One record, without the time at which it is written.

    ``source_table`` and ``target_table`` are "" for what is about all tables, such as a source that
    is down; a governance table that is maintained has no ``source_table``. ``batch_id`` is that of
    the rows: a run that began again from a new snapshot has a new one.
    ``reason`` says what began the run: a ``command``, a ``schedule`` whose due time is
    ``scheduled``, or a ``retry`` of it, the ``attempt`` counting from 1. ``as_of`` is the moment of
    the snapshot that the table has now. ``seconds`` are those of the table's own work, ``stages``
    a JSON object of its parts. A verification has no counts but ``rows_read``, and in
    ``error_message`` how the table differs; maintenance none but the ``bytes`` it has rewritten.
    """

    run_id: str
    command: Command
    began: datetime
    status: RunStatus = "began"
    batch_id: str = ""
    source_system: str = ""
    source_table: str = ""
    target_table: str = ""
    pattern: str = ""
    reason: Reason = "command"
    attempt: int = 1
    scheduled: datetime | None = None
    ended: datetime | None = None
    as_of: datetime | None = None
    seconds: float | None = None
    stages: str = "{}"
    rows_read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rejected: int = 0
    quarantined: int = 0
    anomalies: int = 0
    score: float | None = None
    files: int = 0
    bytes: int = 0
    error_kind: str = ""
    error_message: str = ""
    error_hint: str = ""
    sqlstate: str = ""
    host: str = ""
    bronze_version: str = ""


def frame(records: Sequence[RunRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`, written now."""
    now = datetime.now(UTC)
    fields = [name.removesuffix("_timestamp") for name, _ in COLUMNS[:-1]]
    return frame_of(COLUMNS, [(*(getattr(r, name) for name in fields), now) for r in records])


def latest(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The records that count, of rows with `COLUMNS`: the last one of each run and table."""
    key = ["run_id", "source_system", "source_table", "target_table"]
    return rows.sort("recorded_timestamp", maintain_order=True).unique(
        key, keep="last", maintain_order=True
    )
