"""``governance.rejected_values``: values that Delta cannot store, as PostgreSQL writes them.

The records of a batch are written before its rows. A batch that dies in between leaves records of
a batch without rows: they do no harm, and the next run writes its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from bronze.model.columns import DeltaType
from bronze.model.stamp import RowStamp
from bronze.model.units import RejectedValue

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("batch_id", DeltaType("string")),
    ("rejected_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("row_key", DeltaType("string")),
    ("column_name", DeltaType("string")),
    ("source_text", DeltaType("string")),
)
MEANINGS = {
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "rejected_timestamp": "When the batch was loaded.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_table": "The Bronze table, schema.name.",
    "row_key": "The key of the row, as a JSON object; of a table without a key its hash.",
    "column_name": "The column whose value is NULL in Bronze instead.",
    "source_text": "PostgreSQL's own text of the value; of a protected column it is protected too.",
}
"""What each column has."""

NAME = "rejected_values"


def frame(
    records: Iterable[RejectedValue], *, stamp: RowStamp, source_table: str, target_table: str
) -> pl.DataFrame:
    """The records of one table and run as a frame with `COLUMNS`."""
    texts = [(record.key, record.column, record.text) for record in records]
    schema = {"row_key": pl.String, "column_name": pl.String, "source_text": pl.String}
    return pl.DataFrame(texts, schema=schema, orient="row").select(
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC")).alias("rejected_timestamp"),
        pl.lit(stamp.source_system).alias("source_system"),
        pl.lit(source_table).alias("source_table"),
        pl.lit(target_table).alias("target_table"),
        "row_key",
        "column_name",
        "source_text",
    )
