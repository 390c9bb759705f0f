"""What visitors send: tokens, and what they want done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import parse_qsl

from bronze.config.fields import to_seconds
from bronze.governance.tables.controls import Action
from bronze.operate.view import View
from bronze.operate.web.site import Refused

ACTIONS: tuple[Action, ...] = get_args(Action)
_FIELDS = 30
_LONGEST = timedelta(days=366)
_DONE: Mapping[Action, str] = {
    "pause": "{} is being paused.",
    "resume": "{} is being resumed.",
    "now": "{} runs as soon as it can.",
    "reset": "The breaker of {} is being closed.",
    "acknowledge": "{} is acknowledged.",
    "silence": "{} is silenced.",
}


@dataclass(frozen=True)
class Wish:
    """What an operator wants done."""

    action: Action
    subject: str
    until: datetime | None
    reason: str

    @property
    def done(self) -> str:
        """The sentence that says that it was asked for."""
        return _DONE[self.action].format(self.subject)


def fields_of(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a form.

    Raises:
        Refused: it is not a form.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refused(415, "The request is not a form.")
    try:
        pairs = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict"
        )
    except ValueError:
        raise Refused(400, "The form cannot be read.") from None
    return dict(pairs)


def json_of(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a JSON object.

    Raises:
        Refused: it is not an object of texts.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The request is not JSON (content-type: application/json).")
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The JSON cannot be read.") from None
    if not isinstance(value, dict) or not all(isinstance(part, str) for part in value.values()):
        raise Refused(400, "The JSON is not an object of texts.")
    return value


def wish_of(fields: Mapping[str, str], view: View) -> Wish:
    """What the fields ask for.

    Raises:
        Refused: there is no such action or table, or something is missing.
    """
    action = next((name for name in ACTIONS if name == fields.get("action")), None)
    if action is None:
        raise Refused(400, "There is no such action.", f"There are: {', '.join(ACTIONS)}.")
    subject, reason = fields.get("subject", "").strip(), fields.get("reason", "").strip()
    if fields.get("kind"):
        subject = f"{fields['kind']}:{subject}"
    if action in ("pause", "silence") and not reason:
        raise Refused(400, f"To {action}, say why: the reason is missing.")
    if action in ("acknowledge", "silence"):
        if not subject:
            raise Refused(400, "The alert is missing.", "It is written as kind:subject.")
    elif all(table.table != subject for table in view.tables):
        raise Refused(404, f"There is no table {subject!r}.")
    until = _end(fields, datetime.now(UTC)) if action in ("pause", "silence") else None
    if action == "silence" and until is None:
        raise Refused(400, "A silence needs an end.")
    return Wish(action, subject, until, reason)


def _end(fields: Mapping[str, str], now: datetime) -> datetime | None:
    """The end of a pause or a silence: ``for`` so long, or ``until`` a time."""
    length, moment = fields.get("for", "").strip(), fields.get("until", "").strip()
    if not length and not moment:
        return None
    try:
        if length:
            end = now + timedelta(seconds=float(str(to_seconds(length))))
        else:
            end = datetime.fromisoformat(moment)
    except (ValueError, OverflowError):
        raise Refused(
            400,
            f"{length or moment!r} is not a time.",
            'It looks like "2h" or "2026-05-01T08:00Z".',
        ) from None
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    if not now < end <= now + _LONGEST:
        raise Refused(400, "The end is not in the future, or more than a year ahead.")
    return end.astimezone(UTC)


def own_path(text: str) -> str:
    """A path of this server to go on to; the first page for anything else."""
    is_own = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_own and text.isascii() and len(text) < 2_000 else "/"
