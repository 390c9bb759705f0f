"""``governance.data_lineage``: where the rows of each Bronze table came from, and how.

One record per run and table, which the column data_lineage of its rows names. A stream's record
of a table is entered again as it goes on, under the same id: the latest one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

import polars as pl

from bronze.model.columns import Kind

COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("lineage_id", Kind("string")),
    ("source_system", Kind("string")),
    ("source_table", Kind("string")),
    ("target_system", Kind("string")),
    ("target_table", Kind("string")),
    ("transformation_type", Kind("string")),
    ("created_timestamp", Kind("timestamp")),
    ("created_by", Kind("string")),
    ("batch_id", Kind("string")),
    ("mode", Kind("string")),
    ("position", Kind("long")),
    ("snapshot", Kind("string")),
    ("timeline", Kind("string")),
    ("version_before", Kind("long")),
    ("version_after", Kind("long")),
    ("rows_read", Kind("long")),
    ("inserted", Kind("long")),
    ("updated", Kind("long")),
    ("deleted", Kind("long")),
    ("rejected", Kind("long")),
    ("contract_hash", Kind("string")),
    ("config_hash", Kind("string")),
    ("schema_changes", Kind("string")),
    ("status", Kind("string")),
    ("error_kind", Kind("string")),
)
NAME = "data_lineage"
_POLARS = {"string": pl.String(), "long": pl.Int64(), "timestamp": pl.Datetime("us", "UTC")}


@dataclass(frozen=True)
class Record:
    """One record, without the time at which it is entered.

    ``transformation_type`` is the table's pattern, ``mode`` how it was taken this time: load,
    compare, changes or stream. ``position`` is the log position (LSN) of the source, in the history
    ``timeline`` of it. ``version_before`` is the version that the commit was made on; None where
    the table was made. ``contract_hash`` is of what each column becomes, ``schema_changes`` a JSON
    array. ``status`` is landed, unchanged, failed, or streaming for a stream that goes on.
    """

    lineage_id: str
    source_system: str
    source_table: str
    target_system: str
    target_table: str
    transformation_type: str
    created_by: str
    batch_id: str
    mode: str
    position: int
    snapshot: str | None
    timeline: str
    version_before: int | None
    version_after: int | None
    rows_read: int
    inserted: int
    updated: int
    deleted: int
    rejected: int
    contract_hash: str
    config_hash: str
    schema_changes: str
    status: str
    error_kind: str


def frame(records: Sequence[Record]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`, entered now."""
    known = {field.name for field in fields(Record)}
    now = datetime.now(UTC)
    return pl.DataFrame(
        {
            name: [getattr(r, name) if name in known else now for r in records]
            for name, _ in COLUMNS
        },
        schema={name: _POLARS[kind.name] for name, kind in COLUMNS},
    )
