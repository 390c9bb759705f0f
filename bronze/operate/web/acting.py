"""Acts for operators of the dashboard, as the commands do."""

from __future__ import annotations

from datetime import datetime

from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.governance.tables.controls import Action, ControlRecord
from bronze.operate import controls
from bronze.operate.alerts import requests


def act(
    settings: Settings,
    action: Action,
    subject: str,
    until: datetime | None,
    reason: str,
    by: str,
) -> ControlRecord:
    """Writes a request into ``governance.controls``, with a record in the audit log.

    Args:
        settings: the config.
        action: what is asked.
        subject: a table's label; for alerts ``kind:subject``.
        until: when it ends, if it does; a silence has to.
        reason: why; a pause and a silence need one.
        by: who asks.

    Raises:
        ConfigError: no such alert is open, or an end or a reason is missing.
        LakeError, LakeUnreachable: it cannot be written.
    """
    if action == "acknowledge":
        return requests.acknowledge(settings, subject, reason, by=by)
    if action == "silence":
        if until is None:
            raise ConfigError("A silence needs an end.")
        return requests.silence(settings, subject, until, reason, by=by)
    if action == "pause" and not reason.strip():
        raise ConfigError("A pause needs a reason.")
    return controls.request(settings, action, subject, until=until, reason=reason, by=by)
