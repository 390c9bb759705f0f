"""PagerDuty, by its Events API v2: trigger, acknowledge and resolve under one ``dedup_key``.

https://developer.pagerduty.com/docs/events-api-v2/overview/
"""

from __future__ import annotations

import json

from bronze.operate.alerts.channels.http import post
from bronze.operate.alerts.notices import Notice
from bronze.printable import visible

_ACTIONS = {"open": "trigger", "acknowledge": "acknowledge", "resolve": "resolve"}


def send(notice: Notice, url: str, key: str, timeout: float) -> str:
    """Sends an event to a service; returns what PagerDuty answered.

    Raises:
        ChannelError: it was not accepted.
    """
    event: dict[str, object] = {
        "routing_key": key,
        "event_action": _ACTIONS[notice.act],
        "dedup_key": notice.id,
    }
    if notice.act == "open":
        event["payload"] = {
            "summary": notice.title,
            "source": notice.subject or "bronze",
            "severity": notice.level,
            "timestamp": notice.at.isoformat(),
            "component": "bronze",
            "class": notice.kind,
            "custom_details": {"text": "\n".join(notice.lines)},
        }
        if notice.url:
            event["links"] = [{"href": notice.url, "text": "bronze"}]
    answer = post(f"{url}/v2/enqueue", json.dumps(event).encode(), {}, timeout)
    document = answer.document()
    said = document.get("message") if isinstance(document, dict) else None
    return f"{answer.status} {visible(str(said or 'accepted')[:100])}"
