"""``governance.keys``: the data keys, each wrapped by a master key that is not in the lake.

Records never change: the latest record of a table, column and purpose is the key for new values;
earlier ones decrypt old values. The table alone decrypts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from bronze.model.columns import DeltaType
from bronze.model.protection import DataKey

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("key_id", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("column_name", DeltaType("string")),
    ("purpose", DeltaType("string")),
    ("wrapped_key", DeltaType("string")),
    ("master_key_id", DeltaType("string")),
    ("created_timestamp", DeltaType("timestamp")),
)
MEANINGS = {
    "key_id": "The id of the data key; protected values begin with it.",
    "target_table": 'The Bronze table whose column it protects; "" if columns share it.',
    "column_name": "The column, or the name of a join that columns share.",
    "purpose": "What it is for: the method, or the table's row hashes.",
    "wrapped_key": "The key, encrypted by the master key.",
    "master_key_id": "The id of that master key.",
    "created_timestamp": (
        "When it was generated. The latest of a table, column and purpose is for new values."
    ),
}
"""What each column has."""

NAME = "keys"


@dataclass(frozen=True)
class KeyRecord:
    """A key, and when it was generated."""

    key: DataKey
    created: datetime


def frame(records: Iterable[KeyRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`."""
    rows = [
        (k.id, k.table, k.column, k.purpose, k.wrapped, k.master, record.created)
        for record in records
        for k in [record.key]
    ]
    schema = {name: pl.String for name, _ in COLUMNS} | {
        "created_timestamp": pl.Datetime("us", "UTC")
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def records(frame: pl.DataFrame) -> tuple[KeyRecord, ...]:
    """The records of such a frame, earliest first."""
    ordered = frame.sort("created_timestamp", maintain_order=True)
    return tuple(
        KeyRecord(DataKey(*values), created)
        for *values, created in ordered.select(name for name, _ in COLUMNS).rows()
    )
