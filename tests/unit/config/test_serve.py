"""The sections of the service in the config: what they mean, and a sentence for each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from bronze.config.settings import Settings
from bronze.errors import ConfigError


def settings(**sections: Any) -> Settings:
    """A config with these sections."""
    base: Mapping[str, Any] = {"source": {"dsn": "host=x"}, "lake": {"root": "lake"}}
    return Settings.from_dict({**base, **sections})


def test_a_table_is_due_by_its_own_schedule_or_that_of_its_pattern() -> None:
    """In the zone of the config."""
    config = settings(
        serve={"timezone": "Europe/Berlin"},
        tables={"a": {"pattern": "batch"}, "b": {"pattern": "batch", "schedule": "every 15m"}},
    )
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    due = [config.schedule_of(config.tables[name]).after(noon) for name in ("a", "b")]
    assert due == [
        datetime(2026, 1, 2, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 12, 15, tzinfo=UTC),
    ]


def test_windows_are_in_the_order_of_the_config_and_the_rest_comes_last() -> None:
    """With their least and most workers."""
    windows = {
        "off_peak": {"workers": [2, 8]},
        "peak": {"when": "Mon-Fri 09:00-18:00", "workers": [4, 20]},
        "weekend": {"when": "Sat-Sun", "workers": [1, 4]},
    }
    hours = settings(serve={"windows": windows}).serve.hours()
    assert [(w.name, w.least, w.most) for w in hours] == [
        ("peak", 4, 20),
        ("weekend", 1, 4),
        ("off_peak", 2, 8),
    ]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"serve": {"timezone": "Mars"}}, "timezone 'Mars' is not known"),
        ({"serve": {"schedule": {"batch": "99 * * * *"}}}, "its first field, is 0 to 59"),
        ({"serve": {"schedule": {"batch": "0 0 31 2 *"}}}, "no date has the day of the month"),
        ({"serve": {"schedule": {"batch": "0 * * * * *"}}}, "cron with seconds"),
        ({"serve": {"schedule": {"batch": "continuous"}}}, "only the pattern streaming"),
        ({"serve": {"schedule": {"streaming": "hourly"}}}, 'a stream is "continuous"'),
        ({"serve": {"windows": {"w": {"workers": [8, 2]}}}}, "the least comes first"),
        (
            {"serve": {"windows": {"w": {"when": "Mon 10:00-09:00", "workers": [1, 2]}}}},
            "ends before it begins",
        ),
        ({"serve": {"windows": {"w": {"wen": "Mon", "workers": [1, 2]}}}}, "did you mean when"),
        (
            {"serve": {"windows": {"a": {"workers": [1, 2]}, "b": {"workers": [1, 2]}}}},
            "only one can have the rest",
        ),
        ({"breaker": {"pause": "2h"}}, "longest is at least pause"),
        ({"web": {"listen": "8080"}}, "listen is host:port"),
        ({"web": {"listen": "localhost:99999"}}, "listen is host:port"),
        ({"web": {"listen": "0.0.0.0:80"}}, "set certificate and key, or behind_proxy"),
        ({"web": {"listen": "0.0.0.0:80", "behind_proxy": True}}, "set tokens.viewer"),
        ({"web": {"certificate": "x"}}, "set together, or neither"),
        ({"web": {"tokens": {"operater": {"secret": "X"}}}}, "did you mean operator"),
        ({"tables": {"t": {"schedule": "continuous"}}}, "does not fit pattern"),
        ({"tables": {"t": {"pattern": "streaming", "schedule": "hourly"}}}, "does not fit"),
        ({"tables": {"t": {"pattern": "streaming", "sla": 1}}}, "late most of the time"),
    ],
)
def test_a_mistake_is_a_sentence(sections: Mapping[str, Any], sentence: str) -> None:
    """Each says what is wrong and where."""
    with pytest.raises(ConfigError) as caught:
        settings(**sections)
    assert sentence in caught.value.message
    assert ": :" not in caught.value.message


def test_the_dashboard_of_this_machine_needs_no_token() -> None:
    """Its address has a host and a port, also of IPv6."""
    assert settings().web.address == ("127.0.0.1", 8080)
    assert settings(web={"listen": "[::1]:8080"}).web.address == ("::1", 8080)
