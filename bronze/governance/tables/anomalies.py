"""``governance.anomalies``: rows, and runs, that are unlike the others of their table.

A row is told by its key, with its score and the columns that made it an anomaly, by their shares;
of a run the measure is told that is far from what it was in earlier ones. No cell's value is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from bronze.model.columns import DeltaType
from bronze.model.stamp import RowStamp

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("batch_id", DeltaType("string")),
    ("anomaly_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("level", DeltaType("string")),
    ("row_key", DeltaType("string")),
    ("anomaly_score", DeltaType("double")),
    ("threshold", DeltaType("double")),
    ("model_version", DeltaType("string")),
    ("columns", DeltaType("string")),
)
NAME = "anomalies"
ROW, RUN = "row", "run"


def frame(
    found: pl.DataFrame, *, at: datetime, stamp: RowStamp, source_table: str, target_table: str
) -> pl.DataFrame:
    """The records of one table's run as a frame with `COLUMNS`.

    Args:
        found: with those of `COLUMNS` that differ between the records of a run.
        at: when they were found.
        stamp: the run's.
        source_table: the table in the source.
        target_table: the Bronze table.
    """
    return found.select(
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("anomaly_timestamp"),
        pl.lit(stamp.source_system).alias("source_system"),
        pl.lit(source_table).alias("source_table"),
        pl.lit(target_table).alias("target_table"),
        *_own,
    )


_own: Sequence[str] = [name for name, _ in COLUMNS[5:]]
