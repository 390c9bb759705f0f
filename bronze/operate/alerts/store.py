"""Alerts in ``governance.alerts``, so that a restart neither repeats nor forgets one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, log
from bronze.errors import TableVanished
from bronze.governance import actor, writer
from bronze.governance.records import rows_of
from bronze.governance.tables import alerts as alerts_table
from bronze.governance.tables.alerts import AlertRecord
from bronze.model.locations import Place
from bronze.operate.alerts.life import Alert, Condition, Key, Message, Receipt
from bronze.operate.alerts.notices import alert_id
from bronze.version import VERSION


def place(settings: Settings) -> Place:
    """Where the alerts are stored."""
    return settings.place(GOVERNANCE, alerts_table.NAME)


def changes(before: Mapping[Key, Alert], after: Mapping[Key, Alert]) -> dict[Key, Alert]:
    """The alerts whose change has to be stored.

    Not those that are pending, which a restart may see for the first time, nor those that were only
    seen again.
    """
    return {
        key: alert
        for key, alert in after.items()
        if _essence(alert) != _essence(before.get(key)) and (alert.opened or alert.owed)
    }


def _essence(alert: Alert | None) -> object:
    # The sentence of a condition may have a figure that changes at each evaluation.
    return alert and (
        alert.state,
        alert.condition.level,
        alert.opened,
        alert.by,
        alert.step,
        alert.owed,
        alert.heard,
        alert.receipts,
    )


@commit.retry_conflicts
def append(settings: Settings, alerts: Iterable[Alert], *, create: bool) -> None:
    """Stores alerts in one commit.

    Args:
        settings: the config.
        alerts: the alerts.
        create: whether the table is created where there is none.

    Raises:
        LakeError, LakeUnreachable: they cannot be stored.
    """
    table = place(settings)
    state = log.read(table)
    if state is None and not create:
        raise TableVanished(
            f"The table at {table.url} no longer exists.",
            hint="Restore the lake, or start again to begin without alerts.",
        )
    records = [_record(settings.lake.root, alert) for alert in alerts]
    frame = alerts_table.frame(records)
    stats = ["recorded_timestamp"]
    writer.commit_rows(table, state, alerts_table.COLUMNS, frame, {}, stats=stats)


def load(settings: Settings) -> dict[Key, Alert] | None:
    """The alerts as they were stored last; None if there is no such table.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    rows = rows_of(place(settings), alerts_table.COLUMNS)
    if rows is None:
        return None
    return {alert.key: alert for alert in map(_alert, alerts_table.latest(rows))}


def _record(root: str, alert: Alert) -> AlertRecord:
    condition = alert.condition
    return AlertRecord(
        alert_id=alert_id(root, alert.key, alert.opened) if alert.opened else "",
        kind=condition.kind,
        subject=condition.subject,
        level=condition.level,
        state=alert.state,
        description=condition.text,
        since=condition.since,
        opened=alert.opened,
        acknowledged=alert.acknowledged,
        acknowledged_by=alert.by,
        resolved=alert.resolved,
        recurring=alert.recurring,
        step=alert.step,
        told=alert.told,
        effects=alert.effects,
        hold_seconds=condition.hold.total_seconds(),
        causes=json.dumps(condition.causes),
        owed=json.dumps([asdict(message) for message in alert.owed], default=_text),
        heard=json.dumps(alert.heard),
        receipts=json.dumps([asdict(receipt) for receipt in alert.receipts], default=_text),
        host=actor.host(),
        bronze_version=VERSION,
    )


def _text(moment: Any) -> str:
    text: str = moment.isoformat()
    return text


def _alert(record: AlertRecord) -> Alert:
    condition = Condition(
        kind=record.kind,
        subject=record.subject,
        level="critical" if record.level == "critical" else "warning",
        since=record.since,
        text=record.description,
        hold=timedelta(seconds=record.hold_seconds),
        causes=tuple((kind, subject) for kind, subject in json.loads(record.causes)),
    )
    alert = Alert(
        condition,
        present=0,
        opened=record.opened,
        acknowledged=record.acknowledged,
        by=record.acknowledged_by,
        resolved=record.resolved,
        recurring=record.recurring,
        step=record.step,
        told=record.told,
        effects=record.effects,
        owed=tuple(Message(**_times(message)) for message in json.loads(record.owed)),
        heard=tuple(json.loads(record.heard)),
        receipts=tuple(Receipt(**_times(receipt)) for receipt in json.loads(record.receipts)),
    )
    return replace(alert, state=record.state)  # type: ignore[arg-type]


def _times(values: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: datetime.fromisoformat(value) if name in ("at", "opening") else value
        for name, value in values.items()
    }
