"""Slack: by an incoming webhook, or by a bot's token and ``chat.postMessage``.

https://api.slack.com/messaging/webhooks, https://api.slack.com/methods/chat.postMessage
"""

from __future__ import annotations

import json

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.channels.http import post
from bronze.operate.alerts.notices import Notice

_ICONS = {"critical": ":red_circle:", "warning": ":large_orange_circle:"}
_LONGEST = 2900
# Errors that a later attempt can be spared of.
_PASSING = ("ratelimited", "internal_error", "fatal_error", "service_unavailable")


def send_by_webhook(notice: Notice, webhook: str, timeout: float) -> str:
    """Sends a message to a webhook's channel; returns what Slack answered.

    Raises:
        ChannelError: it was not accepted.
    """
    answer = post(webhook, json.dumps(_message(notice)).encode(), {}, timeout)
    return f"{answer.status} {answer.body[:100]}"


def send_by_token(notice: Notice, url: str, token: str, channel: str, timeout: float) -> str:
    """Sends a message to a channel as a bot; returns what Slack answered.

    Raises:
        ChannelError: it was not accepted.
    """
    body = json.dumps({"channel": channel, **_message(notice)}).encode()
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json; charset=utf-8",
    }
    answer = post(f"{url}/api/chat.postMessage", body, headers, timeout)
    document = answer.document()
    if isinstance(document, dict) and document.get("ok"):
        return f"{answer.status} ok"
    why = str(document.get("error", "")) if isinstance(document, dict) else "no JSON"
    raise ChannelError(f"Slack refused the message: {why}", retry=why in _PASSING)


def _message(notice: Notice) -> dict[str, object]:
    icon = ":white_check_mark:" if notice.act == "resolve" else _ICONS[notice.level]
    text = _escape("\n".join(notice.lines))[:_LONGEST]
    title = f"{icon} *{_escape(notice.title)}*"
    return {
        # What notifications show.
        "text": f"{icon} {_escape(notice.title)}",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": f"{title}\n{text}"}},
        ],
    }


def _escape(text: str) -> str:
    """Slack's three control characters, so that no name becomes a link or a mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
