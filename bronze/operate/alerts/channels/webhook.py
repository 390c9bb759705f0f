"""Any address that takes JSON by POST, signed so that it knows who sent it, and when.

The header ``X-Bronze-Signature`` is ``t=<seconds since 1970>,v1=<HMAC-SHA256 in hexadecimal>``,
the HMAC of ``<t>.<body>`` with the secret of the config (as Stripe signs its webhooks).
"""

from __future__ import annotations

import hmac
import json
from datetime import datetime

from bronze.operate.alerts.channels.http import post
from bronze.operate.alerts.notices import Notice

SIGNATURE = "X-Bronze-Signature"


def send(notice: Notice, url: str, secret: str | None, now: datetime, timeout: float) -> str:
    """Posts a notice; returns what was answered.

    Raises:
        ChannelError: it was not accepted.
    """
    body = json.dumps(
        {
            "id": notice.id,
            "act": notice.act,
            "level": notice.level,
            "kind": notice.kind,
            "subject": notice.subject,
            "title": notice.title,
            "text": notice.text,
            "at": notice.at.isoformat(),
            "by": notice.by,
            "url": notice.url,
        },
        ensure_ascii=False,
    ).encode()
    headers = {} if secret is None else {SIGNATURE: signature(secret, body, now)}
    answer = post(url, body, headers, timeout)
    return f"{answer.status}"


def signature(secret: str, body: bytes, now: datetime) -> str:
    """The value of the header for a body that is sent now."""
    seconds = int(now.timestamp())
    signed = hmac.new(secret.encode(), f"{seconds}.".encode() + body, "sha256").hexdigest()
    return f"t={seconds},v1={signed}"
