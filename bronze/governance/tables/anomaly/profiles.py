"""``governance.profiles``: statistics of the rows of each run, with which later runs are
compared.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Literal

import polars as pl

from bronze.model.anomaly import Outliers, Profile
from bronze.model.columns import DeltaType
from bronze.model.stamp import RowStamp

Scope = Literal["whole", "changes", "stream"]
"""The rows of a profile: all rows of the table, those that may have changed, or those of a stream.
Only profiles of the same scope are compared."""

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("batch_id", DeltaType("string")),
    ("profiled_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("scope", DeltaType("string")),
    ("rows", DeltaType("long")),
    ("scored", DeltaType("long")),
    ("anomalies", DeltaType("long")),
    ("model_version", DeltaType("string")),
    ("measures", DeltaType("string")),
)
MEANINGS = {
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "profiled_timestamp": "When it was made.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_table": "The Bronze table, schema.name.",
    "scope": (
        "The rows that it is of: whole (all rows), changes (those that may have changed) or "
        "stream. Only profiles of the same scope are compared."
    ),
    "rows": "Rows of the run.",
    "scored": "Rows that have an anomaly score.",
    "anomalies": "Rows that are anomalies.",
    "model_version": "The model in governance.models; NULL without one.",
    "measures": "Row count, NULL shares, means and distinct counts by column, as a JSON object.",
}
"""What each column has."""

NAME = "profiles"

MIN_ROWS = 50
"""The least number of rows for a mean or a count of values: with fewer it says little, and a mean
of few numbers reveals them.
"""


def measures(profile: Profile) -> dict[str, float]:
    """The measures of a profile by name: of the rows, and of each column."""
    measures = {"rows": float(profile.rows)}
    for name, column in profile.columns.items():
        if profile.rows:
            measures[f"null_share {name}"] = column.nulls / profile.rows
        if column.mean is not None and column.numbers >= MIN_ROWS:
            measures[f"mean {name}"] = column.mean
        measures[f"distinct {name}"] = round(column.distinct)
    return measures


def frame(
    profile: Profile,
    outliers: Outliers,
    *,
    scope: Scope,
    model: str | None,
    at: datetime,
    stamp: RowStamp,
    source_table: str,
    target_table: str,
) -> pl.DataFrame:
    """The record of one table and run as a frame with `COLUMNS`."""
    return pl.DataFrame(
        {
            "batch_id": [stamp.batch_id],
            "profiled_timestamp": pl.Series([at], dtype=pl.Datetime("us", "UTC")),
            "source_system": [stamp.source_system],
            "source_table": [source_table],
            "target_table": [target_table],
            "scope": [scope],
            "rows": [profile.rows],
            "scored": [outliers.scored],
            "anomalies": [outliers.count],
            "model_version": pl.Series([model], dtype=pl.String),
            "measures": [json.dumps(measures(profile), ensure_ascii=False)],
        }
    )
