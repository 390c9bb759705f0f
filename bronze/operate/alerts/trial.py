"""A trial of all channels: a real alert, opened and resolved through the whole path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.governance import actor, audit
from bronze.operate.alerts.alerting import Alerting
from bronze.operate.alerts.delivery import TERMS, Terms
from bronze.operate.alerts.kinds import KINDS, TEST
from bronze.operate.alerts.life import Act, Alert, Condition, Key

_MORE = 2.0
_GRACE = 5.0


@dataclass(frozen=True)
class ChannelAnswer:
    """What a channel answered to the opening and the resolution; ``error`` is why it failed."""

    channel: str
    kind: str
    opened: str
    resolved: str
    error: str = ""


@dataclass(frozen=True)
class Trial:
    """What all channels answered; ``unstored`` is why the alert, or the record of the
    test, was not stored, "" if it was.
    """

    answers: tuple[ChannelAnswer, ...]
    unstored: str = ""

    @property
    def exit_code(self) -> int:
        """1 if a channel failed, or the alert could not be stored."""
        return int(bool(self.unstored) or any(answer.error for answer in self.answers))


def try_channels(settings: Settings, terms: Terms = TERMS) -> Trial:
    """Opens an alert of the kind "test", waits until each channel has answered or failed once, and
    resolves it. The audit log has a record of it.

    Raises:
        ConfigError: the config has no channels.
    """
    if not settings.alerts.channels:
        raise ConfigError("The config has no channels.", hint="Add one under [[alerts.channels]].")
    subject = f"{actor.user()}@{actor.host()}"
    key: Key = (TEST, subject)
    condition = Condition(
        *key, KINDS[TEST].level, datetime.now(UTC), f"This is a test of the channels by {subject}"
    )
    alerting = Alerting(settings, terms=terms, only=lambda other: other == key)
    alerting.start()
    try:
        for _ in range(2):
            alerting.evaluate([condition], at_once=True)
        errors = _wait(alerting, key, "open", terms.deadline + _MORE)
        for _ in range(2):
            alerting.evaluate([], at_once=True)
        errors = {**_wait(alerting, key, "resolve", terms.deadline + _MORE), **errors}
    finally:
        alerting.stop(_GRACE)
    answers = tuple(
        ChannelAnswer(
            channel.name,
            channel.kind,
            _answer(alerting.alerts[key], channel.name, "open"),
            _answer(alerting.alerts[key], channel.name, "resolve"),
            errors.get(channel.name, ""),
        )
        for channel in settings.alerts.channels
    )
    trial = Trial(answers, alerting.storage_error)
    details = {
        "channels": [answer.channel for answer in answers],
        "failed": [answer.channel for answer in answers if answer.error],
    }
    result = "incomplete" if trial.exit_code else "succeeded"
    try:
        audit.record(settings, "test alerts", subject, result, details)
    except BronzeError as error:
        # What the channels have answered is to be seen all the same.
        return replace(trial, unstored=trial.unstored or error.message)
    return trial


def _wait(alerting: Alerting, key: Key, act: Act, seconds: float) -> Mapping[str, str]:
    """The errors of channels, when each has answered, or failed."""
    errors: dict[str, str] = {}

    def are_done() -> bool:
        errors.update({name: trouble.error for name, trouble in alerting.troubles().items()})
        alert = alerting.alerts[key]
        return all(message.channel in errors for message in alert.owed if message.act == act)

    with alerting.changed:
        alerting.changed.wait_for(are_done, seconds)
        missing = [m.channel for m in alerting.alerts[key].owed if m.channel not in errors]
    return {**dict.fromkeys(missing, f"no answer within {seconds:g} s"), **errors}


def _answer(alert: Alert, channel: str, act: Act) -> str:
    """What a channel answered to the present opening, or to its end."""
    return next(
        (r.answer for r in reversed(alert.receipts) if (r.channel, r.act) == (channel, act)), ""
    )
