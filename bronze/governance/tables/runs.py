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
