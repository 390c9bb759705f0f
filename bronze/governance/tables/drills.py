"""``governance.drills``: the drills of recovery, one record each: how long it took to restore the
newest generation of the copy, how much would have been lost, and whether all of it can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Literal

import polars as pl

from bronze.governance.frames import frame_of, schema_of
from bronze.model.columns import DeltaType

DrillOutcome = Literal["passed", "too slow", "too old", "failed"]

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("drill_id", DeltaType("string")),
    ("began_timestamp", DeltaType("timestamp")),
    ("ended_timestamp", DeltaType("timestamp")),
    ("result", DeltaType("string")),
    ("message", DeltaType("string")),
    ("generation", DeltaType("long")),
    ("generation_timestamp", DeltaType("timestamp")),
    ("recovery_seconds", DeltaType("double")),
    ("lost_seconds", DeltaType("double")),
    ("rto_seconds", DeltaType("long")),
    ("rpo_seconds", DeltaType("long")),
    ("tables", DeltaType("long")),
    ("objects", DeltaType("long")),
    ("bytes", DeltaType("long")),
    ("rows", DeltaType("long")),
    ("decrypted", DeltaType("string")),
    ("actor", DeltaType("string")),
    ("host", DeltaType("string")),
    ("bronze_version", DeltaType("string")),
)
MEANINGS = {
    "drill_id": "The id of the drill.",
    "began_timestamp": "When it began.",
    "ended_timestamp": "When it ended.",
    "result": (
        "passed, too slow (more than rto_seconds), too old (more than rpo_seconds) or failed."
    ),
    "message": "Why it has not passed.",
    "generation": "The generation of the copy that was restored.",
    "generation_timestamp": "When the generation was made; NULL if there is none.",
    "recovery_seconds": "Seconds until all was restored, verified and read.",
    "lost_seconds": "Seconds of changes that the copy lacks.",
    "rto_seconds": "The limit of recovery_seconds in the config.",
    "rpo_seconds": "The limit of lost_seconds in the config.",
    "tables": "Tables that were restored.",
    "objects": "Objects that were restored.",
    "bytes": "Their bytes.",
    "rows": "Rows that were read.",
    "decrypted": (
        'The column of which a value was decrypted, "" if the lake has no encrypted value.'
    ),
    "actor": "Who ran it.",
    "host": "The machine.",
    "bronze_version": "The version of bronze that wrote it.",
}
"""What each column has."""

NAME = "drills"


@dataclass(frozen=True)
class DrillRecord:
    """One drill. ``result`` is "too slow" above ``rto_seconds``, "too old" above ``rpo_seconds``;
    ``message`` is why it has not passed. ``recovery_seconds`` are those from its begin until all
    was restored, verified and read, ``lost_seconds`` the changes that the copy lacks. ``decrypted``
    is the column of which a value was decrypted, "" if the lake has no encrypted value.
    """

    drill_id: str
    began: datetime
    ended: datetime
    result: DrillOutcome
    message: str
    generation: int
    made: datetime | None
    recovery_seconds: float
    lost_seconds: float
    rto_seconds: int
    rpo_seconds: int
    tables: int
    objects: int
    bytes: int
    rows: int
    decrypted: str
    actor: str
    host: str
    bronze_version: str


def frame(record: DrillRecord) -> pl.DataFrame:
    """The record as a frame with `COLUMNS`."""
    return frame_of(COLUMNS, [astuple(record)])


def records(rows: pl.DataFrame) -> Sequence[DrillRecord]:
    """The records of such a frame, the earliest first."""
    ordered = rows.sort("began_timestamp", "drill_id")
    return [DrillRecord(*row) for row in ordered.select(list(schema_of(COLUMNS))).rows()]
