"""``governance.streams``: the checkpoints of streams.

Each record has a position of a stream and the version of each of its tables at that position, so
that all of them can be read as of one moment. The position is confirmed to the replication slot:
after a restart the source sends everything from there on again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from bronze.governance.frames import frame_of
from bronze.model.columns import DeltaType

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("stream", DeltaType("string")),
    ("source_system", DeltaType("string")),
    ("position", DeltaType("long")),
    ("source_commit_timestamp", DeltaType("timestamp")),
    ("recorded_timestamp", DeltaType("timestamp")),
    ("batch_id", DeltaType("string")),
    ("transactions", DeltaType("long")),
    ("changes", DeltaType("long")),
    ("lag_bytes", DeltaType("long")),
    ("lag_seconds", DeltaType("double")),
    ("tables", DeltaType("string")),
)
NAME = "streams"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Checkpoint:
    """One record: ``tables`` is a JSON object of the versions of Bronze tables by their full names
    (records of earlier releases have the names alone). ``committed`` is when the last transaction
    was committed in the source, in microseconds since 1970; None for a heartbeat.
    """

    stream: str
    source: str
    position: int
    committed: int | None
    batch_id: str
    transactions: int
    changes: int
    lag_bytes: int
    lag_seconds: float
    tables: str


def moment(microseconds: int) -> datetime:
    """The time that is so many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)


def frame(record: Checkpoint) -> pl.DataFrame:
    """The record as a frame with `COLUMNS`."""
    committed = record.committed
    row = (
        record.stream,
        record.source,
        record.position,
        None if committed is None else moment(committed),
        datetime.now(UTC),
        record.batch_id,
        record.transactions,
        record.changes,
        record.lag_bytes,
        record.lag_seconds,
        record.tables,
    )
    return frame_of(COLUMNS, [row])
