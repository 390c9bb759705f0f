"""What operators ask of the service, through ``governance.controls`` and with a record in the audit
log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.governance import actor, audit, writer
from bronze.governance.records import rows_of
from bronze.governance.tables import controls as controls_table
from bronze.governance.tables.controls import Action, ControlRecord
from bronze.model.locations import Place
from bronze.operate.alerts.life import Key, Silence


def place(settings: Settings) -> Place:
    """Where the requests are."""
    return settings.place(GOVERNANCE, controls_table.NAME)


def request(
    settings: Settings,
    action: Action,
    subject: str,
    *,
    until: datetime | None = None,
    reason: str = "",
    details: Mapping[str, Any] | None = None,
    by: str = "",
) -> ControlRecord:
    """Writes a request, and a record of it in the audit log.

    Args:
        settings: the config.
        action: what is asked.
        subject: of which table or alert.
        until: when it ends, if it does.
        reason: why, in the operator's words.
        details: further JSON values, without secrets.
        by: who asks, if it is not the user of the operating system.

    Raises:
        ConfigError: the key of the audit log does not exist.
        LakeError, LakeUnreachable: it cannot be written.
    """
    record = ControlRecord(
        control_id=str(uuid_utils.uuid7()),
        requested=datetime.now(UTC),
        actor=by or actor.user(),
        host=actor.host(),
        action=action,
        subject=subject,
        until=until,
        reason=reason,
        details=json.dumps(dict(details or {}), ensure_ascii=False),
    )
    # The audit log first: nothing is in force that nobody is known to have asked for.
    end = {"until": until.isoformat()} if until else {}
    who = {"by": by} if by else {}
    facts = {"reason": reason, "control": record.control_id, **who, **end, **(details or {})}
    audit.record(settings, action, subject, "requested", facts)
    frame = controls_table.frame([record])
    writer.append_rows(
        place(settings), controls_table.COLUMNS, frame, record.control_id, ["requested_timestamp"]
    )
    return record


def read(settings: Settings) -> list[ControlRecord]:
    """All requests, the earliest first.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    rows = rows_of(place(settings), controls_table.COLUMNS)
    return controls_table.records(rows) if rows is not None else []


def silences(records: Iterable[ControlRecord]) -> tuple[Silence, ...]:
    """The silences among requests, those that have ended included."""
    return tuple(
        Silence(*key_of(record.subject), record.until, record.reason)
        for record in records
        if record.action == "silence" and record.until is not None
    )


def key_of(text: str) -> Key:
    """The key of an alert, or its patterns, as they are written: ``kind:subject``."""
    kind, _, subject = text.partition(":")
    return kind, subject or "*"
