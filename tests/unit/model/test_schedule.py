"""Schedules: when work is due, in the wall clock of a time zone, and the hours of windows."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.model.schedule import Schedule, Window, parse_hours, parse_schedule
from tests.support.effort import examples

BERLIN = "Europe/Berlin"
ZONES = ("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
TEXTS = (
    "hourly",
    "daily 02:00",
    "daily 02:30",
    "daily 3:00",
    "weekly Sun 02:15",
    "monthly 1 03:00",
    "every 15m",
    "every 7h",
    "every 1d",
    "*/20 * * * *",
    "0 */2 * * *",
    "30 1,2,3 * * sun",
    "0 0 29 2 *",
    "0 3 L * *",
)
# The nights and days around which Berlin's and New York's clocks change, and any other time.
MOMENTS = st.one_of(
    st.datetimes(datetime(2026, 3, 28, 12), datetime(2026, 3, 30), timezones=st.just(UTC)),
    st.datetimes(datetime(2026, 10, 24, 12), datetime(2026, 10, 26), timezones=st.just(UTC)),
    st.datetimes(datetime(2026, 3, 7, 12), datetime(2026, 3, 9), timezones=st.just(UTC)),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
)


def local(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, *, fold: int = 0
) -> datetime:
    """A time of Berlin's wall clock, in UTC."""
    at = datetime(year, month, day, hour, minute, tzinfo=ZoneInfo(BERLIN), fold=fold)
    return at.astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "now", "due"),
    [
        ("hourly", local(2026, 6, 1, 9, 30), local(2026, 6, 1, 10)),
        ("daily 02:00", local(2026, 6, 1, 2), local(2026, 6, 2, 2)),
        ("weekly Sun 05:00", local(2026, 11, 27), local(2026, 11, 29, 5)),
        ("monthly 1 03:00", local(2026, 11, 27), local(2026, 12, 1, 3)),
        ("every 15m", local(2026, 6, 1, 9, 31), local(2026, 6, 1, 9, 45)),
        ("15 6 * * mon", local(2026, 11, 27), local(2026, 11, 30, 6, 15)),
        # 02:30 does not come on this day; it runs when the hour has passed.
        ("daily 02:30", local(2026, 3, 28, 12), local(2026, 3, 29, 3)),
        # 02:30 comes twice on this day; the first one counts.
        ("daily 02:30", local(2026, 10, 24, 12), local(2026, 10, 25, 2, 30)),
        ("daily 02:30", local(2026, 10, 25, 2, 30), local(2026, 10, 26, 2, 30)),
        ("daily 02:30", local(2026, 10, 25, 2, 10, fold=1), local(2026, 10, 26, 2, 30)),
    ],
)
def test_the_next_due_time_is_that_of_the_wall_clock(
    text: str, now: datetime, due: datetime
) -> None:
    """Each form of a schedule has the next due time that its words say, on both nights when the
    clocks change as well.
    """
    schedule = parse_schedule(text, BERLIN)
    assert schedule.after(now) == due
    assert schedule.before(due) == due


@given(text=st.sampled_from(TEXTS), zone=st.sampled_from(ZONES), now=MOMENTS)
@settings(max_examples=examples(300), deadline=None)
def test_the_last_and_the_next_due_time_are_neighbours(text: str, zone: str, now: datetime) -> None:
    """No due time lies between the last one and the next one, whichever way they are found."""
    schedule = parse_schedule(text, zone)
    last, following = schedule.before(now), schedule.after(now)
    assert last <= now < following
    assert schedule.after(last) == following
    assert schedule.before(following - timedelta(microseconds=1)) == last
    assert list(schedule.between(last, following)) == [following]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("99 * * * *", "the minute, its first field, is 0 to 59"),
        ("0 0 31 2 *", "no date has the day of the month"),
        ("0 24 * * *", "the hour, its second field"),
        ("0 0 * 13 *", "the month, its fourth field"),
        ("0 0 * * 8", "the day of the week, its fifth field"),
        ("* * * * * *", "seconds is not supported"),
        ("every 5s", "more often than every 10 seconds"),
        ("monthly 31 03:00", '"0 3 L * *"'),
        ("weekly Someday 05:00", "is not a schedule"),
        ("weekly Foo 05:00", "'foo' is not a day"),
        ("daily 25:00", "is not a schedule"),
        ("now and then", "is not a schedule"),
        ("", "is not a schedule"),
    ],
)
def test_a_wrong_schedule_is_refused_with_a_sentence(text: str, why: str) -> None:
    """The sentence says what is wrong, or which forms there are."""
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_schedule(text)


def test_a_continuous_schedule_is_never_due() -> None:
    """It is for streams."""
    schedule = parse_schedule("Continuous")
    assert schedule.is_continuous
    with pytest.raises(ValueError, match="never due"):
        schedule.after(datetime.now(UTC))


def test_the_shortest_interval_is_that_of_the_next_due_times() -> None:
    """Times at uneven distances: the shortest counts."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert parse_schedule("every 15m").shortest_interval(now) == timedelta(minutes=15)
    assert parse_schedule("0,10 * * * *").shortest_interval(now) == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("Mon-Fri 09:00-18:00", local(2026, 11, 27, 9), local(2026, 11, 27, 18)),
        ("Sat-Sun", local(2026, 11, 29, 23, 59), local(2026, 11, 27, 23)),
        ("Fri-Mon", local(2026, 11, 30), local(2026, 12, 1)),
        ("tue 20:00-24:00", local(2026, 12, 1, 23, 59), local(2026, 12, 2)),
    ],
)
def test_hours_are_of_the_wall_clock(text: str, inside: datetime, outside: datetime) -> None:
    """A window has its first minute, and not the one that it ends with."""
    window = Window("peak", 1, 2, BERLIN, *parse_hours(text))
    assert window.has(inside)
    assert not window.has(outside)


@pytest.mark.parametrize("text", ["Mon 18:00-09:00", "Mon 09:00-09:00", "often", "Mon-Foo"])
def test_wrong_hours_are_refused(text: str) -> None:
    """With a sentence that shows what is possible."""
    with pytest.raises(ValueError, match="write"):
        parse_hours(text)


def test_a_window_without_days_has_no_hours() -> None:
    """It is what is left."""
    assert not Window("off_peak", 2, 8).has(datetime.now(UTC))
    assert Schedule("continuous").is_continuous
