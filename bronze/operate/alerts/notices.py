"""Notices: what people are told about an alert, in words; the same for every channel.

A notice has no values of cells and no secrets: it is made from names, times, counts and messages of
errors, which have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from bronze.operate.alerts.life import Act, Alert, Key, Level, Message
from bronze.printable import count, visible

_OPENINGS = {
    "open": "",
    "acknowledge": "Acknowledged: ",
    "resolve": "Resolved: ",
}


@dataclass(frozen=True)
class Notice:
    """One message about an alert. All messages about one alert have the same ``id``.

    ``title`` is one line, ``lines`` are what is below it: since when, why, what happens by itself,
    the first steps, who is told next. ``url`` is the alert's page, if there is one.
    """

    id: str
    act: Act
    level: Level
    kind: str
    subject: str
    title: str
    lines: tuple[str, ...]
    at: datetime
    by: str = ""
    url: str = ""

    @property
    def text(self) -> str:
        """The whole message as plain text."""
        return "\n".join([self.title, "", *self.lines])


def alert_id(lake: str, key: Key, opening: datetime) -> str:
    """An id of one opening of an alert: messages sent twice are known as the same."""
    text = "\0".join([lake, *key, opening.astimezone(UTC).isoformat()])
    return sha256(text.encode()).hexdigest()[:32]


def notice(
    lake: str,
    alert: Alert,
    message: Message,
    *,
    why: Sequence[str] = (),
    by_itself: str = "",
    steps: Sequence[str] = (),
    told_next: str = "",
    url: str = "",
) -> Notice:
    """The notice of an act.

    Args:
        lake: the lake's root, which tells installations apart.
        alert: the alert after the act.
        message: what happened, and when.
        why: what is known about the cause: sentences.
        by_itself: what bronze does about it.
        steps: the first steps of the runbook, as commands.
        told_next: who is told next, and when.
        url: the page of the alert.
    """
    condition, act = alert.condition, message.act
    lines = [f"Since {_time(condition.since)}. {condition.kind}, {condition.level}."]
    if alert.effects:
        lines.append(
            f"{count(alert.effects, 'other alert has', 'other alerts have')} this cause: not sent."
        )
    if alert.recurring:
        lines.append("It comes and goes: it is resolved when it has stayed away for 15 minutes.")
    if act == "open":
        lines += why
        lines += [f"By itself: {by_itself}"] if by_itself else []
        lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
        lines += [told_next] if told_next else []
    elif act == "acknowledge":
        lines.append(f"{alert.by} sees to it.")
    elif alert.resolved and alert.opened == message.opening:
        lines.append(f"It lasted until {_time(alert.resolved)}.")
    title = f"{_OPENINGS[act]}{condition.text}"
    return Notice(
        id=alert_id(lake, alert.key, message.opening),
        act=act,
        level=condition.level,
        kind=condition.kind,
        subject=visible(condition.subject),
        title=_one_line(title),
        lines=tuple(map(visible, [*lines, *([url] if url else [])])),
        at=message.at,
        by=alert.by,
        url=url,
    )


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))[:250]


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
