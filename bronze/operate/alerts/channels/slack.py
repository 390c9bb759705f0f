"""Slack: by an incoming webhook, or by a bot's token and ``chat.postMessage``.

https://api.slack.com/messaging/webhooks, https://api.slack.com/methods/chat.postMessage
"""

from __future__ import annotations

import json
from itertools import accumulate

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.channels.http import post
from bronze.operate.alerts.notices import Notice
from bronze.printable import visible

_ICONS = {"critical": ":red_circle:", "warning": ":large_orange_circle:"}
# A section of a message has at most 3,000 characters.
_LONGEST = 2900
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Errors that pass by themselves.
_PASSING = ("ratelimited", "internal_error", "fatal_error", "service_unavailable")


def send_by_webhook(notice: Notice, webhook: str, timeout: float) -> str:
    """Sends a message to a webhook's channel; returns what Slack answered.

    Raises:
        ChannelError: it was not accepted.
    """
    answer = post(webhook, json.dumps(_message(notice)).encode(), {}, timeout)
    return f"{answer.status} {visible(answer.body[:100])}"


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
    raise ChannelError(f"Slack refused the message: {visible(why[:100])}", retry=why in _PASSING)


def _message(notice: Notice) -> dict[str, object]:
    icon = ":white_check_mark:" if notice.act == "resolve" else _ICONS[notice.level]
    title = _escape(notice.title, _LONGEST // 2)
    text = _escape("\n".join(notice.lines), _LONGEST - len(title))
    section = {"type": "mrkdwn", "text": f"{icon} *{title}*\n{text}"}
    return {
        # What notifications show.
        "text": f"{icon} {title}",
        "blocks": [{"type": "section", "text": section}],
    }


def _escape(text: str, longest: int) -> str:
    """The text without Slack's three control characters, so that no name becomes a link or a
    mention; what is longer is cut.
    """
    escaped = [_ESCAPES.get(character, character) for character in text]
    lengths = accumulate(map(len, escaped))
    return "".join(part for part, end in zip(escaped, lengths, strict=True) if end <= longest)
