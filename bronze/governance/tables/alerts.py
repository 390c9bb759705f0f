"""``governance.alerts``: what was wrong, who was told of it and when, and who saw to it.

Each change of an alert appends a record; the latest one of its kind and subject counts.
``alert_id`` is one opening of it, by which channels know its messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

import polars as pl

from bronze.model.columns import DeltaType

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("alert_id", DeltaType("string")),
    ("kind", DeltaType("string")),
    ("subject", DeltaType("string")),
    ("level", DeltaType("string")),
    ("state", DeltaType("string")),
    ("description", DeltaType("string")),
    ("since_timestamp", DeltaType("timestamp")),
    ("opened_timestamp", DeltaType("timestamp")),
    ("acknowledged_timestamp", DeltaType("timestamp")),
    ("acknowledged_by", DeltaType("string")),
    ("resolved_timestamp", DeltaType("timestamp")),
    ("recurring", DeltaType("boolean")),
    ("step", DeltaType("long")),
    ("told_timestamp", DeltaType("timestamp")),
    ("effects", DeltaType("long")),
    ("hold_seconds", DeltaType("double")),
    ("causes", DeltaType("string")),
    ("owed", DeltaType("string")),
    ("heard", DeltaType("string")),
    ("receipts", DeltaType("string")),
    ("host", DeltaType("string")),
    ("bronze_version", DeltaType("string")),
    ("recorded_timestamp", DeltaType("timestamp")),
)
MEANINGS = {
    "alert_id": "One opening of an alert, by which channels know its messages.",
    "kind": "The kind of alert, such as table_failed.",
    "subject": 'What it is about: a table, a source, a channel; "" is the service.',
    "level": "warning or critical.",
    "state": "open, acknowledged or resolved; before it opens, pending.",
    "description": "What is wrong, in one sentence.",
    "since_timestamp": "Since when it is wrong.",
    "opened_timestamp": "When the alert opened; NULL if it has not yet.",
    "acknowledged_timestamp": "When somebody acknowledged it; NULL if nobody has.",
    "acknowledged_by": "Who acknowledged it.",
    "resolved_timestamp": "When it was resolved; NULL if it is not.",
    "recurring": "Whether it comes and goes.",
    "step": "How many steps of the path of channels were told.",
    "told_timestamp": "When the last channel was told; NULL if none was.",
    "effects": "How many other alerts it explains.",
    "hold_seconds": "For how many seconds it has to be absent before it is resolved.",
    "causes": "The alerts that would explain it, as a JSON list.",
    "owed": "The messages that are still to be sent, as a JSON list.",
    "heard": "The channels that may know of it, as a JSON list.",
    "receipts": "What was sent, and what the channels answered, as a JSON list.",
    "host": "The machine of the service.",
    "bronze_version": "The version of bronze that wrote it.",
    "recorded_timestamp": "When the record was written. The latest of a kind and subject counts.",
}
"""What each column has."""

NAME = "alerts"
_POLARS = {
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "long": pl.Int64(),
    "double": pl.Float64(),
    "timestamp": pl.Datetime("us", "UTC"),
}
SCHEMA = {name: _POLARS[kind.name] for name, kind in COLUMNS}


@dataclass(frozen=True)
class AlertRecord:
    """One record, without the time at which it is written.

    ``causes``, ``owed``, ``heard`` and ``receipts`` are JSON lists: the keys of what would explain
    it, the messages that are to be sent, the channels that may know of it, what was sent.
    """

    alert_id: str
    kind: str
    subject: str
    level: str
    state: str
    description: str
    since: datetime
    opened: datetime | None
    acknowledged: datetime | None
    acknowledged_by: str
    resolved: datetime | None
    recurring: bool
    step: int
    told: datetime | None
    effects: int
    hold_seconds: float
    causes: str
    owed: str
    heard: str
    receipts: str
    host: str
    bronze_version: str


def frame(records: Sequence[AlertRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`, written now."""
    now = datetime.now(UTC)
    known = {field.name for field in fields(AlertRecord)}
    values = {}
    for name in SCHEMA:
        field = name.removesuffix("_timestamp")
        values[name] = [getattr(r, field) if field in known else now for r in records]
    return pl.DataFrame(values, schema=SCHEMA)


def latest(rows: pl.DataFrame) -> list[AlertRecord]:
    """The records that count, of rows with `COLUMNS`: the last one of each kind and subject."""
    last = rows.sort("recorded_timestamp", maintain_order=True).unique(
        ["kind", "subject"], keep="last", maintain_order=True
    )
    columns = [name for name in SCHEMA if name != "recorded_timestamp"]
    return [AlertRecord(*row) for row in last.select(columns).rows()]
