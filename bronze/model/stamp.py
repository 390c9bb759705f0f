"""Metadata that a run or a stream writes into all of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

IngestionMethod = Literal["batch", "micro_batch", "full_refresh", "streaming"]


@dataclass(frozen=True)
class AuditMark:
    """A record of the audit log: the id of the log, and the number and hash of the record."""

    log: str
    sequence: int
    hash: str


@dataclass(frozen=True)
class RowStamp:
    """The metadata that a run writes into every row of a table.

    ``lineage`` is the id of its record in ``governance.data_lineage``; ``audited`` is the newest
    record of the audit log, which commits refer to, None if the log could not be read (see
    `bronze.delta.audit_mark`).
    """

    batch_id: str
    loaded_at: datetime
    source_system: str
    method: IngestionMethod
    lineage: str = ""
    audited: AuditMark | None = None
