"""Times and sizes as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from bronze.operate.web.markup import words

_NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (0.25, "0.2 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (90, "1 min 30 s"),
        (600, "10 min"),
        (3599, "1 h"),
        (3600 * 3 + 12 * 60, "3 h 12 min"),
        (86399, "1 d"),
        (86400 * 2 + 4 * 3600, "2 d 4 h"),
        (-300, "5 min"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    """And are rounded without a 60 in them."""
    assert words.span(seconds) == text


def test_sizes_and_shares() -> None:
    """Decimal prefixes; small shares are not nothing."""
    assert words.size(999) == "999 B"
    assert words.size(1_200_000_000) == "1.2 GB"
    assert words.size(None) == "unknown"
    assert words.share(0.83) == "83 %"
    assert words.share(0.004) == "0.4 %"
    assert words.share(None) == "unknown"


def test_times_are_of_the_zone_and_have_a_date_on_other_days() -> None:
    """In the wall clock of the config, with what machines read."""
    berlin = ZoneInfo("Europe/Berlin")
    assert words.clock(_NOW, berlin, _NOW) == "13:00"
    assert words.clock(_NOW - timedelta(days=1), berlin, _NOW) == "9 Mar 13:00"
    assert words.clock(_NOW - timedelta(days=400), berlin, _NOW) == "3 Feb 2025"
    assert 'datetime="2026-03-10T12:00:00Z"' in words.time(_NOW, berlin, _NOW)
    assert "5 min ago" in words.age(_NOW - timedelta(minutes=5), _NOW)
    assert "in 5 min" in words.age(_NOW + timedelta(minutes=5), _NOW)
