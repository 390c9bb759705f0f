"""The section [alerts] of bronze.toml: when somebody is told, who, and by which channel.

Times are in seconds, shares from 0 to 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from bronze.config.fields import NameList, Seconds, SecretName, Section, matching, to_seconds

Level = Literal["warning", "critical"]
_Url = Annotated[str, matching(r"https?://[!-~]+", "a URL with https:// or http://")]
_ADDRESS = r"[^\s@,;<>]+@[^\s@,;<>]+"


class Threshold(Section):
    """A limit of one metric, and how bad it is to be beyond it ``for`` that time."""

    level: Level
    for_: Seconds = Field(default=0, alias="for")


class AgeLimit(Threshold):
    """``more_than`` a time."""

    more_than: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)]


class ScoreLimit(Threshold):
    """``less_than`` a score from 0 to 100."""

    less_than: float = Field(ge=0, le=100)


class ShareLimit(Threshold):
    """``more_than`` a share from 0 to 1."""

    more_than: float = Field(ge=0, le=1)


class EmailChannel(Section):
    """A channel of the ``kind`` "email": ``server`` is host:port of an SMTP server.

    ``tls`` is "starttls" (port 587), "implicit" (port 465), or "none" for a server of this machine.
    """

    kind: Literal["email"]
    name: str = Field(min_length=1)
    server: Annotated[str, matching(r"\S+:\d{1,5}", "host:port of a mail server")]
    sender: Annotated[str, matching(_ADDRESS, "an address like ada@example.com")]
    to: NameList = Field(min_length=1)
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    user: str = ""
    password: SecretName | None = None

    @model_validator(mode="after")
    def _check(self) -> EmailChannel:
        if not all(re.fullmatch(_ADDRESS, address) for address in self.to):
            raise ValueError(f"to of channel {self.name} are addresses like ada@example.com")
        if not 0 < int(self.server.rpartition(":")[2]) < 2**16:
            raise ValueError(f"server of channel {self.name} has a port that does not exist")
        if bool(self.user) != (self.password is not None):
            raise ValueError(f"channel {self.name} needs user and password, or neither")
        host = self.server.rpartition(":")[0]
        if self.tls == "none" and host not in ("localhost", "127.0.0.1", "[::1]"):
            raise ValueError(
                f'channel {self.name} would send in clear to {host}: tls = "none" is only for a'
                " server of this machine"
            )
        return self


class SlackChannel(Section):
    """A channel of the ``kind`` "slack": an incoming ``webhook``, or a bot's ``token`` and the
    ``channel`` that it writes to.
    """

    kind: Literal["slack"]
    name: str = Field(min_length=1)
    webhook: SecretName | None = None
    token: SecretName | None = None
    channel: str = ""
    url: _Url = "https://slack.com"

    @model_validator(mode="after")
    def _check(self) -> SlackChannel:
        if (self.webhook is None) == (self.token is None):
            raise ValueError(f"channel {self.name} needs a webhook, or a token and a channel")
        if self.token is not None and not self.channel:
            raise ValueError(
                f"channel {self.name} needs the Slack channel that its token writes to"
            )
        return self


class PagerDutyChannel(Section):
    """A channel of the ``kind`` "pagerduty": the integration ``key`` of a service (Events v2)."""

    kind: Literal["pagerduty"]
    name: str = Field(min_length=1)
    key: SecretName
    url: _Url = "https://events.pagerduty.com"


class WebhookChannel(Section):
    """A channel of the ``kind`` "webhook": a ``url`` that gets JSON, signed with a ``secret``."""

    kind: Literal["webhook"]
    name: str = Field(min_length=1)
    url: _Url | SecretName
    secret: SecretName | None = None


class AppriseChannel(Section):
    """A channel of the ``kind`` "apprise": the ``url`` of a service that the library apprise knows,
    for which ``bronze[apprise]`` has to be installed.
    """

    kind: Literal["apprise"]
    name: str = Field(min_length=1)
    url: SecretName


Channel = Annotated[
    EmailChannel | SlackChannel | PagerDutyChannel | WebhookChannel | AppriseChannel,
    Field(discriminator="kind"),
]


CHANNELS: Mapping[str, type[Section]] = {
    "email": EmailChannel,
    "slack": SlackChannel,
    "pagerduty": PagerDutyChannel,
    "webhook": WebhookChannel,
    "apprise": AppriseChannel,
}
"""The channels by their kind."""


class ScenarioSettings(Section):
    """[alerts.scenarios]: within which time somebody answers, and the channels that are told one
    after the other until then; without a ``path`` all channels are told at once.
    """

    respond: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)]
    path: NameList = ()


class Scenarios(Section):
    """The scenarios of the runbooks."""

    quality: ScenarioSettings = ScenarioSettings(respond=15 * 60)
    performance: ScenarioSettings = ScenarioSettings(respond=30 * 60)
    security: ScenarioSettings = ScenarioSettings(respond=5 * 60)
    outage: ScenarioSettings = ScenarioSettings(respond=10 * 60)


class AlertSettings(Section):
    """[alerts]: the limits of the five metrics, the channels, and who is told."""

    freshness: AgeLimit = AgeLimit(more_than=30 * 60, level="critical")
    quality: ScoreLimit = ScoreLimit(less_than=85, level="warning")
    duration: AgeLimit = AgeLimit(more_than=2 * 3600, level="warning")
    failed: ShareLimit = ShareLimit(more_than=0.02, level="critical")
    resources: ShareLimit = ShareLimit.model_validate(
        {"more_than": 0.80, "for": 300, "level": "warning"}
    )
    heartbeat: Annotated[
        str, matching(r"(https?://\S+)?", "a URL with https:// or http://, or empty for none")
    ] = ""
    channels: tuple[Channel, ...] = ()
    scenarios: Scenarios = Scenarios()

    @model_validator(mode="after")
    def _check(self) -> AlertSettings:
        names = [channel.name for channel in self.channels]
        for mistake in (*_doubled(names), *self._unknown(names)):
            raise ValueError(mistake)
        return self

    def _unknown(self, names: list[str]) -> Iterator[str]:
        """Sentences about paths that name what is no channel, or one channel twice."""
        known = f"there are {', '.join(names)}" if names else "there is none"
        for scenario in Scenarios.model_fields:
            path: tuple[str, ...] = getattr(self.scenarios, scenario).path
            for name in path:
                if name not in names:
                    yield (
                        f"scenarios.{scenario}.path names the channel {name!r}, which"
                        f" [[alerts.channels]] does not have; {known}"
                    )
                if path.count(name) > 1:
                    yield f"scenarios.{scenario}.path names the channel {name!r} twice"


def _doubled(names: list[str]) -> Iterator[str]:
    for name in names:
        if names.count(name) > 1:
            yield f"two channels are named {name!r}: give one another name"


_LIMITS: Mapping[str, type[Section]] = {
    "freshness": AgeLimit,
    "quality": ScoreLimit,
    "duration": AgeLimit,
    "failed": ShareLimit,
    "resources": ShareLimit,
}


def section_of(path: Sequence[str]) -> type[Section]:
    """The section of [alerts] below which a key is wrong, by the path of the section."""
    if path[0] == "scenarios":
        return ScenarioSettings if path[1:] else Scenarios
    return _LIMITS.get(path[0], AlertSettings)
