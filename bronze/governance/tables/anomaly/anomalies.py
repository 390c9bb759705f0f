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
MEANINGS = {
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "anomaly_timestamp": "When it was found.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_table": "The Bronze table, schema.name.",
    "level": "row or run.",
    "row_key": "The key of the row, as a JSON object; NULL for a run.",
    "anomaly_score": (
        "The score of the row, 0 to 1; of a run how far the measure is from earlier ones."
    ),
    "threshold": "The score above which it is an anomaly.",
    "model_version": "The model in governance.models; NULL for a run.",
    "columns": "The columns or the measure that cause it, with their contributions, as JSON.",
}
"""What each column has."""

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
