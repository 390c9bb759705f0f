"""Lateness: an interval that follows from due times and landings, whoever looks and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.operate.freshness import (
    Landing,
    Late,
    expected_end,
    expected_seconds,
    late_stream,
    late_times,
)
from tests.support.effort import examples

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
SLA = timedelta(minutes=10)


def at(minutes: float) -> datetime:
    """A moment, in minutes after noon."""
    return NOON + timedelta(minutes=minutes)


def lates(dues: list[int], landed: list[tuple[int, int]], now: int) -> tuple[Late, ...]:
    """Late times of a table with these due times, and landings as (as of, ended), in minutes."""
    landings = [Landing(at(as_of), at(ended)) for as_of, ended in landed]
    return late_times([at(due) for due in dues], landings, SLA, at(now))


def test_a_table_is_late_from_its_deadline_until_it_lands() -> None:
    """Not before the deadline; without an end while nothing has landed."""
    assert lates([0], [], 10) == ()
    assert lates([0], [], 11) == (Late(at(10), None, at(0)),)
    assert lates([0], [(1, 15)], 20) == (Late(at(10), at(15), at(0)),)
    assert lates([0], [(1, 9)], 20) == ()


def test_a_snapshot_before_the_due_time_does_not_count() -> None:
    """A run that began before the table was due does not have what was wanted."""
    assert lates([5], [(4, 8)], 20) == (Late(at(15), None, at(5)),)
    assert lates([5], [(5, 8)], 20) == ()


def test_several_missed_due_times_are_one_late_time() -> None:
    """While the table stays late, later due times begin no second interval."""
    assert lates([0, 60, 120], [(130, 135)], 200) == (Late(at(10), at(135), at(0)),)
    assert lates([0, 60], [(20, 25), (61, 80)], 90) == (
        Late(at(10), at(25), at(0)),
        Late(at(70), at(80), at(60)),
    )


@given(
    dues=st.lists(st.integers(0, 300), unique=True).map(sorted),
    runs=st.lists(st.tuples(st.integers(-20, 300), st.integers(0, 60)), max_size=12),
    now=st.integers(0, 400),
)
@settings(max_examples=examples(300), deadline=None)
def test_lateness_is_what_a_look_at_each_minute_would_say(
    dues: list[int], runs: list[tuple[int, int]], now: int
) -> None:
    """At each moment: late if a due time's deadline has passed and no run since it has ended."""
    landed = sorted(((as_of, as_of + took) for as_of, took in runs), key=lambda run: run[1])
    intervals = lates(dues, landed, now)
    for minute in range(now):
        moment = minute + 0.5
        is_late = any(
            due + 10 < moment
            and not any(as_of >= due and ended <= moment for as_of, ended in landed)
            for due in dues
        )
        inside = any(
            late.begin < at(moment) and (late.end is None or at(moment) < late.end)
            for late in intervals
        )
        assert inside == is_late, minute


def test_a_stream_is_late_when_its_state_is_older_than_its_sla() -> None:
    """Since the moment at which it became so."""
    assert late_stream(at(0), SLA, at(10)) is None
    assert late_stream(at(0), SLA, at(12)) == Late(at(10), None)


def test_the_next_duration_is_expected_from_the_last_ones() -> None:
    """Nine out of ten of the last twenty runs took no longer."""
    assert expected_seconds([]) is None
    assert expected_seconds([7]) == 7
    assert expected_seconds([1000] * 5 + list(range(20))) == 18
    assert expected_end(at(0), 120, at(1)) == at(2)
    assert expected_end(at(0), 120, at(5)) == at(5)
    assert expected_end(None, 60, at(5)) == at(6)
