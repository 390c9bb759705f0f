"""``governance.streams``: the checkpoints of streams.

Each record has a position of a stream and the versions of its tables at that position, so that all
of them can be read as of one moment. The position is confirmed to the replication slot: after a
restart the source sends everything from there on again.

The records of one ``series`` belong together: ``number`` 1 has the versions of all tables, each
later one only those that have changed since the one before. `with_versions` folds them. Records of
earlier releases have no series, and the versions of all tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from bronze.governance.frames import frame_of
from bronze.governance.json_values import json_value
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
    ("series", DeltaType("string")),
    ("number", DeltaType("long")),
)
MEANINGS = {
    "stream": "The replication slot.",
    "source_system": "The name of the source in the config.",
    "position": "The position in PostgreSQL's log (LSN) that all tables have reached, as a number.",
    "source_commit_timestamp": (
        "When the last transaction was committed in the source; NULL for a heartbeat."
    ),
    "recorded_timestamp": "When the record was written.",
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "transactions": "Transactions of the batch.",
    "changes": "Row changes of the batch.",
    "lag_bytes": "Bytes of the source's log that are not applied yet.",
    "lag_seconds": "Seconds from the last commit in the source to this record.",
    "tables": (
        "The Delta versions of Bronze tables by their full names, as a JSON object; in a "
        "series those that have changed. NULL for one that waits."
    ),
    "series": "Checkpoints that belong together; NULL in records of earlier releases.",
    "number": "The number in the series, from 1, which has all tables.",
}
"""What each column has."""

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
    series: str
    number: int


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
        record.series,
        record.number,
    )
    return frame_of(COLUMNS, [row])


Versions = dict[str, int | None]
"""The versions of the tables of a stream, by their names; None for one that waits."""


def with_versions(rows: pl.DataFrame) -> Iterator[tuple[dict[str, Any], Versions]]:
    """Records in the order of their series, each with the versions of all tables.

    Args:
        rows: with `COLUMNS`; the versions are not all there if a record's series is not.

    Raises:
        LakeError: a record was changed by another writer.
    """
    # The clock may have been put back within a series.
    series, written = pl.col("series"), pl.col("recorded_timestamp")
    begun = pl.when(series.is_null()).then(written).otherwise(written.min().over("series"))
    ordered = rows.sort(begun, series, pl.col("number"), maintain_order=True)
    last, versions = None, Versions()
    for record in ordered.iter_rows(named=True):
        changed: Versions = json_value(record["tables"], NAME, dict)
        continues = record["series"] is not None and record["series"] == last
        versions = {**versions, **changed} if continues else changed
        last = record["series"]
        yield record, versions
