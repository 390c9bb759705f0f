"""The breakers of the service, from what happens and from the records of runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bronze.config.sections.serve import BreakerSettings
from bronze.governance.tables.runs import RunRecord, RunStatus
from bronze.operate.breaker import Outcome
from bronze.operate.facts.table_history import Histories, TableHistory
from bronze.operate.tables import guards, states
from bronze.operate.tables.guards import LAKE, Guards, table_subject

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
OPEN = BreakerSettings(threshold=2, pause=60, longest=3600)
TABLE = table_subject("s.public.t")


def record(hour: int, status: RunStatus, kind: str = "", *, service: bool = True) -> RunRecord:
    """A run that began at an hour."""
    began = NOW.replace(hour=hour)
    return RunRecord(
        "run",
        "run",
        began,
        status,
        reason="schedule" if service else "command",
        scheduled=began if service else None,
        ended=None if status == "began" else began + timedelta(minutes=1),
        error_kind=kind,
    )


def test_failures_open_a_table_and_a_source_rests_no_longer_each_time() -> None:
    """A table rests twice as long each time; a source or the lake as long as before."""
    known = Guards(OPEN)
    now = NOW
    for subject, longest in ((TABLE, 200), (LAKE, 75)):
        for _ in range(2):
            known.end(subject, Outcome(now, now, failed=True))
        for _ in range(2):
            until = known.of(subject).until
            assert until is not None
            known.begin(subject, until)
            known.end(subject, Outcome(until, until, failed=True))
        last = known.of(subject)
        assert last.until is not None
        assert last.failed_at is not None
        rest = (last.until - last.failed_at).total_seconds()
        assert (rest > 150) == (longest > 150)
    known.reset(TABLE)
    assert known.of(TABLE).may_begin(NOW)


def test_breakers_that_are_switched_off_never_open() -> None:
    """[breaker] enabled = false."""
    known = Guards(BreakerSettings(enabled=False, threshold=1))
    known.end(TABLE, Outcome(NOW, NOW, failed=True))
    known.rebuild({"s.public.t": [record(1, "began"), record(2, "began")]})
    assert known.breakers == {}


def test_breakers_are_rebuilt_from_records() -> None:
    """Failures of a source or of the lake, and what was stopped, count for no table."""
    known = Guards(OPEN)
    history = {
        "s.public.t": [record(1, "failed", "TableRefused"), record(2, "failed", "LakeError")],
        "s.public.away": [record(1, "failed", "SourceUnreachable")] * 3,
        "s.public.stopped": [record(hour, "stopped", "Stopped") for hour in (1, 2, 3)],
        "s.public.well": [record(1, "failed", "LakeError"), record(2, "landed")],
    }
    known.rebuild(history)
    assert set(known.breakers) == {TABLE}


def test_the_rest_after_a_crash_does_not_begin_again_with_each_restart() -> None:
    """It is counted from the beginning of the run in which the process died."""
    known = Guards(BreakerSettings(threshold=1, pause=1800, longest=3600))
    known.rebuild({"s.public.t": [record(10, "landed"), record(11, "began")]})
    until = known.of(TABLE).until
    assert until is not None
    assert timedelta(minutes=20) < until - NOW.replace(hour=11) <= timedelta(minutes=30)


def test_a_table_in_flight_at_two_crashes_in_a_row_is_poison() -> None:
    """One crash is a failure like another; runs of commands are none of the service's."""
    own = BreakerSettings(threshold=5, longest=3600)
    for records, is_poison in (
        ([record(10, "began"), record(11, "began")], True),
        ([record(10, "landed"), record(11, "began")], False),
        ([record(10, "began"), record(11, "landed")], False),
        ([record(10, "began", service=False), record(11, "began", service=False)], False),
    ):
        known = Guards(own)
        known.rebuild({"s.public.t": records})
        assert (known.of(TABLE).until is not None) == is_poison
    known.rebuild({"s.public.t": [record(10, "began"), record(11, "began")]})
    assert known.of(TABLE).until == NOW  # an hour after the last one began
    assert known.of(TABLE).may_begin(NOW)


def test_what_an_error_may_be_of() -> None:
    """A lock that another session holds is the table's trouble, although the source is busy."""
    assert guards.suspect("SourceUnreachable", "") == "source"
    assert guards.suspect("SourceBusy", "53300") == "source"
    assert guards.suspect("SourceBusy", "55P03") == "table"
    assert guards.suspect("LakeUnreachable", "") == "lake"
    assert guards.suspect("TableRefused", "42P01") == "table"


def test_what_a_restart_does_again() -> None:
    """What was stopped, died or failed for a passing reason; nothing that landed."""
    for last, is_again in (
        (record(11, "landed"), False),
        (record(11, "unchanged"), False),
        (record(11, "failed", "TableRefused"), False),
        (record(11, "failed", "SourceUnreachable"), True),
        (record(11, "stopped", "Stopped"), True),
        (record(11, "began"), True),
        (record(11, "began", service=False), False),
    ):
        state = states.state_of(history_of([record(10, "landed"), last]), None, 0, NOW)
        assert (state.retry_at == NOW) == is_again
        assert state.begun_for == NOW.replace(hour=11)


def test_a_table_whose_breaker_was_closed_since_its_last_run_is_tried_again() -> None:
    """An operator has asked for it; not if it has run since then."""
    known = history_of([record(10, "failed", "TableRefused")])
    for hour, is_again in ((9, False), (11, True)):
        state = states.state_of(known, NOW.replace(hour=hour), 0, NOW)
        assert (state.retry_at == NOW) == is_again


def history_of(records: list[RunRecord]) -> TableHistory:
    """The history of a table with these runs."""
    histories = Histories(("s",))
    named = [replace(r, run_id=str(r.began), source_table="public.t") for r in records]
    histories.add(named)
    (known,) = histories.tables.values()
    return known


def test_a_request_is_new_until_the_table_has_run_for_it() -> None:
    """Also where the clock was two hours ahead when it last ran, or is behind that of the host of
    the request.
    """
    minute = timedelta(minutes=1)
    assert states._is_new(NOW, None, NOW)
    assert states._is_new(NOW, NOW - minute, NOW)
    assert not states._is_new(NOW - minute, NOW, NOW)
    assert states._is_new(NOW - minute, NOW + 120 * minute, NOW)
    assert not states._is_new(NOW - 120 * minute, NOW + 120 * minute, NOW)
    assert not states._is_new(NOW + minute, NOW + minute, NOW)


def test_rests_are_as_long_as_before_after_a_jump_of_the_clock() -> None:
    """They move with the clock."""
    known = Guards(OPEN)
    for _ in range(2):
        known.end(TABLE, Outcome(NOW, NOW, failed=True))
    before = known.of(TABLE).until
    known.shift(timedelta(hours=2))
    assert before is not None
    assert known.of(TABLE).until == before + timedelta(hours=2)
