"""``governance.controls``: what operators have asked of the service, from any host that reaches the
lake: to acknowledge or silence alerts, to pause tables and more.

A record holds from its time on, ``until`` its end if it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Literal

import polars as pl

from bronze.model.columns import DeltaType

Action = Literal["acknowledge", "silence", "pause", "resume", "now", "reset"]

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("control_id", DeltaType("string")),
    ("requested_timestamp", DeltaType("timestamp")),
    ("actor", DeltaType("string")),
    ("host", DeltaType("string")),
    ("action", DeltaType("string")),
    ("subject", DeltaType("string")),
    ("until_timestamp", DeltaType("timestamp")),
    ("reason", DeltaType("string")),
    ("details", DeltaType("string")),
)
MEANINGS = {
    "control_id": "The id of the request.",
    "requested_timestamp": "When it was asked; it holds from then on.",
    "actor": "Who asked.",
    "host": "The machine.",
    "action": "acknowledge, silence, pause, resume, now or reset.",
    "subject": "The table, or kind:subject of alerts, with patterns in a silence.",
    "until_timestamp": "When it ends; NULL if it does not by itself.",
    "reason": "Why, in the words of who asked.",
    "details": "More about it, as a JSON object.",
}
"""What each column has."""

NAME = "controls"
_POLARS = {"string": pl.String(), "timestamp": pl.Datetime("us", "UTC")}
SCHEMA = {name: _POLARS[kind.name] for name, kind in COLUMNS}


@dataclass(frozen=True)
class ControlRecord:
    """One request. ``subject`` is a table, or for alerts ``kind:subject``, with patterns in a
    silence; ``details`` is a JSON object.
    """

    control_id: str
    requested: datetime
    actor: str
    host: str
    action: Action
    subject: str
    until: datetime | None = None
    reason: str = ""
    details: str = "{}"


def frame(records: Sequence[ControlRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`."""
    return pl.DataFrame([astuple(record) for record in records], schema=SCHEMA, orient="row")


def records(rows: pl.DataFrame) -> list[ControlRecord]:
    """The records of such a frame, the earliest first."""
    ordered = rows.sort("requested_timestamp", "control_id")
    return [ControlRecord(*row) for row in ordered.select(list(SCHEMA)).rows()]
