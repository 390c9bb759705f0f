"""``governance.anomalies``: rows and runs that differ from the others of their table.

The record of a row has its key, its score, and the columns that make it an anomaly, with their
contributions; the record of a run has the measure that differs from earlier runs. No record has
a value of a cell.
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
    records: pl.DataFrame, *, at: datetime, stamp: RowStamp, source_table: str, target_table: str
) -> pl.DataFrame:
    """The records of one table and run as a frame with `COLUMNS`.

    Args:
        records: the columns that differ between the records of a run, from ``level`` on.
        at: when they were found.
        stamp: the run's stamp.
        source_table: the table in the source.
        target_table: the Bronze table.
    """
    return records.select(
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("anomaly_timestamp"),
        pl.lit(stamp.source_system).alias("source_system"),
        pl.lit(source_table).alias("source_table"),
        pl.lit(target_table).alias("target_table"),
        *_RECORD_COLUMNS,
    )


_RECORD_COLUMNS: Sequence[str] = [name for name, _ in COLUMNS[5:]]
