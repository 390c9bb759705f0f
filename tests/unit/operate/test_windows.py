"""Permits by the hours of the config: up at once, down after five minutes, within what fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.model.schedule import Window
from bronze.operate.service.capacity import windows
from bronze.operate.service.capacity.windows import DOWN_AFTER, Cap, limit

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WINDOW = Window("peak", 4, 20)


def settings(**sections: Any) -> Settings:
    """A config."""
    document = {"source": {"name": "test", "dsn": "host=x"}, "lake": {"root": "/lake"}}
    return loading.parse({**document, **sections})


def test_permits_follow_what_is_wanted_between_least_and_most() -> None:
    """Up at once; down only after five minutes without a need, to the most needed meanwhile."""
    known = limit(None, 0, WINDOW, (), NOW)
    assert (known.permits, known.window, known.cap) == (4, "peak", "")
    known = limit(known, 50, WINDOW, (), NOW)
    assert known.permits == 20
    known = limit(known, 6, WINDOW, (), NOW + timedelta(seconds=1))
    known = limit(known, 9, WINDOW, (), NOW + timedelta(seconds=60))
    known = limit(known, 5, WINDOW, (), NOW + DOWN_AFTER)
    assert known.permits == 20
    known = limit(known, 5, WINDOW, (), NOW + DOWN_AFTER + timedelta(seconds=1))
    assert known.permits == 9
    assert limit(known, 12, WINDOW, (), NOW + DOWN_AFTER * 2).permits == 12


def test_what_has_no_room_for_more_is_named() -> None:
    """The cap is said only where it matters, and another window counts at once."""
    caps = (Cap(6, "pool"), Cap(3, "memory"))
    known = limit(None, 50, WINDOW, caps, NOW)
    assert (known.permits, known.cap) == (3, "memory")
    assert limit(None, 2, Window("", 1, 8), caps, NOW).cap == ""
    known = limit(None, 50, WINDOW, (), NOW)
    assert limit(known, 50, Window("weekend", 1, 4), (), NOW).permits == 4


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), max_size=30))
def test_permits_are_never_beyond_a_window_and_never_less_than_wanted(
    steps: list[tuple[int, int]],
) -> None:
    """Whatever was wanted when."""
    known, now = None, NOW
    for wanted, seconds in steps:
        now += timedelta(seconds=seconds)
        known = limit(known, wanted, WINDOW, (), now)
        assert 4 <= known.permits <= 20
        assert known.permits >= min(wanted, 20)


def test_the_window_of_a_moment() -> None:
    """The one whose hours it is in, else the one without hours, else [run] workers."""
    hours = {
        "peak": {"when": "Mon-Fri 09:00-18:00", "workers": [4, 20]},
        "off_peak": {"workers": [2, 8]},
    }
    config = settings(serve={"windows": hours}, run={"workers": 3})
    assert windows.window_of(config, NOW).name == "peak"
    assert windows.window_of(config, NOW + timedelta(hours=9)).name == "off_peak"
    assert windows.most_workers(config) == 20
    default = windows.window_of(settings(run={"workers": 3}), NOW)
    assert (default.least, default.most) == (1, 3)


def test_memory_and_connections_cap() -> None:
    """512 MB and few connections have room for few tasks; the sentences name the keys."""
    config = settings(run={"memory": "512MB"})
    texts = [cap.text for cap in windows.caps(config)]
    assert any("[run] memory" in text for text in texts)
    assert any("pool.max" in text for text in texts)
    assert min(cap.most for cap in windows.caps(config)) >= 1
