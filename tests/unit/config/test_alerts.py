"""The section [alerts]: a sentence for each mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bronze.config import loading
from bronze.config.sections.alerts import AlertSettings
from bronze.errors import ConfigError

KEY = {"secret": "KEY"}
MAIL: dict[str, Any] = {
    "kind": "email",
    "name": "team",
    "server": "mail.example.com:587",
    "sender": "bronze@example.com",
    "to": "ada@example.com",
}
PAGER: dict[str, Any] = {"kind": "pagerduty", "name": "on-call", "key": KEY}
SLACK: dict[str, Any] = {"kind": "slack", "name": "data", "webhook": {"secret": "HOOK"}}
HOOK: dict[str, Any] = {"kind": "webhook", "name": "own", "url": "https://example.com/in"}


def alerts(section: dict[str, Any]) -> AlertSettings:
    """The section of a config."""
    source = {"name": "DE", "dsn": "postgresql://me@localhost/x"}
    document = {"source": source, "lake": {"root": "lake"}, "alerts": section}
    return loading.parse(copy.deepcopy(document)).alerts


def test_all_channels_and_paths_are_read() -> None:
    """Times are in seconds; without the section there are limits, and no channels."""
    section = alerts(
        {
            "channels": [MAIL, PAGER, SLACK, HOOK],
            "resources": {"more_than": 0.9, "for": "10m", "level": "critical"},
            "scenarios": {"outage": {"respond": "20m", "path": ["on-call", "team"]}},
        }
    )
    assert [channel.name for channel in section.channels] == ["team", "on-call", "data", "own"]
    assert section.scenarios.outage.path == ("on-call", "team")
    assert (section.scenarios.outage.respond, section.resources.for_) == (1200, 600)
    assert section.scenarios.security.respond == 300
    assert alerts({}) == AlertSettings()
    assert alerts({}).channels == ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"channels": [PAGER, {**SLACK, "name": "on-call"}]}, "two channels are named 'on-call'"),
        (
            {"channels": [PAGER], "scenarios": {"outage": {"respond": "5m", "path": ["oncall"]}}},
            "scenarios.outage.path names the channel 'oncall', which [[alerts.channels]] does not"
            " have; there are on-call",
        ),
        (
            {"scenarios": {"quality": {"respond": "5m", "path": "team"}}},
            "which [[alerts.channels]] does not have; there is none",
        ),
        (
            {"channels": [MAIL], "scenarios": {"quality": {"respond": 9, "path": ["team"] * 2}}},
            "names the channel 'team' twice",
        ),
        ({"scenarios": {"quality": {"respond": "0s"}}}, "alerts.scenarios.quality.respond"),
        ({"scenarios": {"quality": {"respond": "soon"}}}, 'a duration looks like "30s"'),
        ({"scenarios": {"qualty": {"respond": "5m"}}}, "did you mean quality?"),
        ({"scenarios": {"quality": {"respnd": "5m"}}}, "did you mean respond?"),
        ({"channels": [{**SLACK, "webhook": None}]}, "needs a webhook, or a token and a channel"),
        ({"channels": [{**SLACK, "token": KEY}]}, "needs a webhook, or a token and a channel"),
        (
            {"channels": [{"kind": "slack", "name": "data", "token": KEY}]},
            "channel data needs the Slack channel that its token writes to",
        ),
        ({"channels": [{**MAIL, "tls": "none"}]}, "would send in clear to mail.example.com"),
        ({"channels": [{**MAIL, "tls": "maybe"}]}, "alerts.channels.0.tls"),
        ({"channels": [{**MAIL, "to": ["ada"]}]}, "are addresses like ada@example.com"),
        ({"channels": [{**MAIL, "to": ["a@b\nBcc: c@d"]}]}, "are addresses like ada@example.com"),
        ({"channels": [{**MAIL, "to": []}]}, "alerts.channels.0.to"),
        ({"channels": [{**MAIL, "sender": "bronze"}]}, "sender: it is not an address like"),
        ({"channels": [{**MAIL, "server": "mail.example.com"}]}, "alerts.channels.0.server"),
        ({"channels": [{**MAIL, "server": "mail:99999"}]}, "has a port that does not exist"),
        ({"channels": [{**MAIL, "user": "ada"}]}, "needs user and password, or neither"),
        ({"channels": [{**MAIL, "password": KEY}]}, "needs user and password, or neither"),
        ({"channels": [{**MAIL, "pasword": KEY}]}, "alerts.channels.0.pasword (did you mean pass"),
        ({"channels": [{**PAGER, "key": "abc"}]}, "alerts.channels.0.key"),
        ({"channels": [{**PAGER, "key": {"secrt": "A"}}]}, "did you mean secret?"),
        ({"channels": [{"kind": "pagerduty", "name": "p"}]}, "alerts.channels.0.key is missing"),
        ({"channels": [{**PAGER, "url": "pagerduty.com"}]}, "alerts.channels.0.url"),
        ({"channels": [{**HOOK, "url": "ftp://example.com"}]}, "alerts.channels.0.url"),
        ({"channels": [{**HOOK, "name": ""}]}, "alerts.channels.0.name"),
        ({"channels": [{**HOOK, "kind": "sms"}]}, "alerts.channels.0.kind is one of email, slack"),
        ({"channels": [{"name": "x"}]}, "alerts.channels.0.kind is missing"),
        ({"chanels": []}, "unknown key alerts.chanels (did you mean channels?)"),
        ({"failed": {"more_than": 2, "level": "critical"}}, "alerts.failed.more_than"),
        ({"failed": {"more_than": 0.1, "level": "bad"}}, "alerts.failed.level"),
        ({"failed": {"mre_than": 0.1, "level": "warning"}}, "did you mean more_than?"),
        ({"quality": {"less_than": 101, "level": "warning"}}, "alerts.quality.less_than"),
        ({"freshness": {"more_than": "x", "level": "warning"}}, 'a duration looks like "30s"'),
        ({"heartbeat": "example.com"}, "alerts.heartbeat: it is not a URL with https://"),
    ],
)
def test_each_mistake_is_named(section: dict[str, Any], message: str) -> None:
    """With its place; no name of a library is in it."""
    with pytest.raises(ConfigError) as raised:
        alerts(section)
    assert message in raised.value.message
    assert "pydantic" not in raised.value.message
