"""``governance.streams``: the checkpoints of streams.

Each record has a position of a stream and the version of each of its tables at that position, so
that all of them can be read as of one moment. The position is confirmed to the replication slot:
after a restart the source sends everything from there on again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

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


def frame(record: Checkpoint) -> pl.DataFrame:
    """The record as a frame with `COLUMNS`."""
    moment = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        {
            "stream": [record.stream],
            "source_system": [record.source],
            "position": [record.position],
            "source_commit_timestamp": pl.Series([record.committed], dtype=pl.Int64).cast(moment),
            "recorded_timestamp": pl.Series([datetime.now(UTC)], dtype=moment),
            "batch_id": [record.batch_id],
            "transactions": [record.transactions],
            "changes": [record.changes],
            "lag_bytes": [record.lag_bytes],
            "lag_seconds": [record.lag_seconds],
            "tables": [record.tables],
        }
    )
