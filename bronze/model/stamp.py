"""What a run or a stream gives all rows that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Method = Literal["batch", "micro_batch", "full_refresh", "streaming"]


@dataclass(frozen=True)
class AuditMark:
    """A record of an audit log: the id of the log, and the record's number and hash in it."""

    log: str
    sequence: int
    hash: str


@dataclass(frozen=True)
class Stamp:
    """What a run writes beside every row. ``lineage`` is the id of the run's record of the table
    in ``governance.data_lineage``, ``audited`` the newest record of the audit log that its commits
    name, if it could be read (see `bronze.delta.audit_mark`).
    """

    batch_id: str
    loaded_at: datetime
    source_system: str
    method: Method
    lineage: str = ""
    audited: AuditMark | None = None
