"""The endpoints for programs, ``/api/v1/…``: what the commands print with ``--json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import date, datetime, timedelta
from typing import Any

from bronze.operate.alerts.life import Alert
from bronze.operate.view import View
from bronze.operate.web.site import Refused, Site
from bronze.printable import visible_json

_MOST = 1_000


def status(view: View) -> dict[str, Any]:
    """The whole view, as ``bronze status --json`` has it, with ``is_well``."""
    return {**asdict(view), "is_well": view.is_well}


def tables(view: View, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """The tables by their slack; ``name`` (a part of it) and ``state`` select some."""
    name, state = query.get("name", "").lower(), query.get("state", "")
    return [
        asdict(table)
        for table in view.tables
        if name in table.table.lower() and (not state or table.state == state)
    ]


def alerts(view: View, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """The open alerts; with ``all`` those that were resolved lately, too."""
    return [_alert(alert) for alert in view.alerts if alert.is_open or query.get("all")]


def _alert(alert: Alert) -> dict[str, Any]:
    condition = alert.condition
    return {
        "alert": ":".join(alert.key),
        "level": condition.level,
        "state": alert.state,
        "text": condition.text,
        "since": condition.since,
        "opened": alert.opened,
        "resolved": alert.resolved,
        "acknowledged_by": alert.by,
        "recurring": alert.recurring,
        "effects": alert.effects,
        "told": list(dict.fromkeys(r.channel for r in alert.receipts if r.act == "open")),
        "waiting": list(dict.fromkeys(message.channel for message in alert.owed)),
    }


def runs(site: Site, view: View, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """The last runs of the ``table``, the newest first; at most ``limit``.

    Raises:
        Refused: no table is named, or there is no such table.
    """
    name, limit = query.get("table", ""), query.get("limit", "100")
    if all(table.table != name for table in view.tables):
        raise Refused(404, f"There is no table {name!r}.", "Name one: /api/v1/runs?table=…")
    if not limit.isdecimal() or len(limit) > 6:
        raise Refused(400, f"{limit!r} is not a number.")
    return [asdict(run) for run in site.runs(name)[: min(int(limit), _MOST)]]


def document(value: Any) -> bytes:
    """A JSON document: times in ISO 8601, durations in seconds, null for NaN and infinity."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return visible_json(text).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
