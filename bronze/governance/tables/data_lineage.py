"""``governance.data_lineage``: where the rows of each Bronze table came from, and how.

There is one record per run and table; the column data_lineage of the rows has its id. A stream
appends the record of a table again as it goes on, under the same id: the latest one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from bronze.governance.frames import frame_of
from bronze.model.columns import DeltaType

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("lineage_id", DeltaType("string")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_system", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("transformation_type", DeltaType("string")),
    ("created_timestamp", DeltaType("timestamp")),
    ("created_by", DeltaType("string")),
    ("batch_id", DeltaType("string")),
    ("mode", DeltaType("string")),
    ("position", DeltaType("long")),
    ("snapshot", DeltaType("string")),
    ("timeline", DeltaType("string")),
    ("version_before", DeltaType("long")),
    ("version_after", DeltaType("long")),
    ("rows_read", DeltaType("long")),
    ("inserted", DeltaType("long")),
    ("updated", DeltaType("long")),
    ("deleted", DeltaType("long")),
    ("rejected", DeltaType("long")),
    ("contract_hash", DeltaType("string")),
    ("config_hash", DeltaType("string")),
    ("schema_changes", DeltaType("string")),
    ("status", DeltaType("string")),
    ("error_kind", DeltaType("string")),
)
MEANINGS = {
    "lineage_id": "The id that the rows have in their column data_lineage.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_system": "The root of the lake.",
    "target_table": "The Bronze table, schema.name.",
    "transformation_type": "The table's pattern.",
    "created_timestamp": "When the record was written. The latest of a lineage_id counts.",
    "created_by": "Who ran it.",
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "mode": "How the table was loaded this time: load, compare, changes or stream.",
    "position": "The position in PostgreSQL's log (LSN) that it shows, as a number.",
    "snapshot": "The snapshot of the source (xmin:xmax:open transactions); NULL in a stream.",
    "timeline": "The server and its timeline, in which the position is valid.",
    "version_before": "The Delta version that it builds on; NULL if it created the table.",
    "version_after": "The Delta version that it committed; NULL if none.",
    "rows_read": "Rows, or changes of a stream, that were read.",
    "inserted": "Rows that are new in the Bronze table.",
    "updated": "Rows with other values than before.",
    "deleted": "Rows that the source no longer has.",
    "rejected": "Values that Delta cannot hold.",
    "contract_hash": "The hash of the column contract: names and types.",
    "config_hash": "The hash of the config.",
    "schema_changes": "Columns that were added, dropped, widened or renamed, as a JSON array.",
    "status": "landed, unchanged, failed, or streaming while a stream goes on.",
    "error_kind": 'The kind of the error, "" without one.',
}
"""What each column has."""

NAME = "data_lineage"


@dataclass(frozen=True)
class LineageRecord:
    """One record, without the time at which it is written.

    ``transformation_type`` is the table's pattern, ``mode`` how it was loaded this time: load,
    compare, changes or stream. ``position`` is the LSN of the source, on its ``timeline``.
    ``version_before`` is the version that the commit builds on; None if it created the table.
    ``contract_hash`` is the hash of the column contract, ``schema_changes`` a JSON array.
    ``status`` is landed, unchanged, failed, or streaming for a stream that goes on.
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


def frame(records: Sequence[LineageRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`, written now."""
    now = datetime.now(UTC)
    return frame_of(
        COLUMNS, [[vars(record).get(name, now) for name, _ in COLUMNS] for record in records]
    )
