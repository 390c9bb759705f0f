"""What operators ask about alerts: which there are, to acknowledge one, to silence some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.governance.tables.controls import ControlRecord
from bronze.operate import controls
from bronze.operate.alerts import store
from bronze.operate.alerts.kinds import KINDS
from bronze.operate.alerts.life import Alert, Silence
from bronze.operate.alerts.notices import alert_id


@dataclass(frozen=True)
class AlertReport:
    """An alert as it is stored. ``alert`` is what `acknowledge` takes, ``told`` are the channels
    that have got it.
    """

    alert: str
    id: str
    level: str
    state: str
    text: str
    since: datetime
    opened: datetime
    resolved: datetime | None
    acknowledged_by: str
    silenced_until: datetime | None
    told: tuple[str, ...]
    waiting: tuple[str, ...]


def alerts(settings: Settings, *, resolved: bool = False) -> list[AlertReport]:
    """The alerts that are open, the latest first; with ``resolved`` also the last resolved one of
    each kind and subject.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    known = store.load(settings) or {}
    silences = controls.silences(controls.read(settings))
    found = [alert for alert in known.values() if alert.is_open or resolved]
    reports = [_report(settings, alert, silences) for alert in found if alert.opened]
    return sorted(reports, key=lambda report: report.opened, reverse=True)


def _report(settings: Settings, alert: Alert, silences: Sequence[Silence]) -> AlertReport:
    now = datetime.now(UTC)
    ends = [silence.until for silence in silences if silence.covers(alert.key, now)]
    condition, opened = alert.condition, alert.opened or now
    return AlertReport(
        alert=":".join(alert.key),
        id=alert_id(settings.lake.root, alert.key, opened),
        level=condition.level,
        state=alert.state,
        text=condition.text,
        since=condition.since,
        opened=opened,
        resolved=alert.resolved,
        acknowledged_by=alert.by,
        silenced_until=max(ends, default=None),
        told=tuple(dict.fromkeys(r.channel for r in alert.receipts if r.act == "open")),
        waiting=tuple(dict.fromkeys(message.channel for message in alert.owed)),
    )


def acknowledge(settings: Settings, name: str, reason: str = "", *, by: str = "") -> ControlRecord:
    """Says that the caller sees to an open alert: nobody else is told of it.

    Args:
        settings: the config.
        name: the alert, as ``kind:subject`` or by its id.
        reason: what is done about it.
        by: who, if it is not the user of the operating system.

    Raises:
        ConfigError: no alert of this name is open.
        LakeError, LakeUnreachable
    """
    reports = alerts(settings)
    chosen = [report for report in reports if name in (report.alert, report.id)]
    if not chosen:
        names = ", ".join(report.alert for report in reports if report.state == "open")
        raise ConfigError(f"No alert {name} is open.", hint=f"There are: {names or 'none'}.")
    (report,) = chosen
    # It is about this opening: one that comes later is told again.
    details = {"alert_id": report.id}
    return controls.request(
        settings, "acknowledge", report.alert, reason=reason, details=details, by=by
    )


def silence(
    settings: Settings, pattern: str, until: datetime, reason: str, *, by: str = ""
) -> ControlRecord:
    """Has nobody told of alerts until a time; what is still open then is told.

    Args:
        settings: the config.
        pattern: which alerts, as ``kind:subject`` with ``*`` for anything.
        until: when it ends.
        reason: why.
        by: who asks, if it is not the user of the operating system.

    Raises:
        ConfigError: no kind is like the pattern, the end is not in the future, or has no reason.
        LakeError, LakeUnreachable
    """
    kind, _ = controls.key_of(pattern)
    if not any(fnmatchcase(name, kind) for name in KINDS):
        raise ConfigError(
            f"There is no kind of alerts {kind!r}.", hint=f"There are: {', '.join(KINDS)}."
        )
    if until <= datetime.now(UTC):
        raise ConfigError(f"The silence would have ended at {until.isoformat()} already.")
    if not reason.strip():
        raise ConfigError("A silence needs a reason.", hint="Say it with --reason.")
    return controls.request(
        settings,
        "silence",
        ":".join(controls.key_of(pattern)),
        until=until,
        reason=reason,
        by=by,
    )
