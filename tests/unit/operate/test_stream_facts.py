"""What is known of a stream by its events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bronze.model.events import BatchApplied, Heard, SlotRetains, Waiting
from bronze.model.results import Failure
from bronze.operate.service.streams import facts_after, lost_in, pause_after
from bronze.operate.view import StreamFacts

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def test_a_quiet_source_is_fresh_and_a_silent_one_is_not() -> None:
    """as_of moves with what is heard once all has landed, else with what was committed."""
    facts = StreamFacts("test", NOW, tables=("public.t",))
    committed = NOW - timedelta(seconds=40)
    applied = BatchApplied(1, 1, 10, 500, 40.0, ("public.t",), committed)
    behind = facts_after(facts, applied, NOW)
    assert behind.as_of == committed
    assert behind.changes == 10
    heard = facts_after(behind, Heard(NOW, None, ("public.t",)), NOW)
    assert (heard.as_of, heard.heard) == (committed, NOW)
    later = NOW + timedelta(seconds=1)
    quiet = facts_after(heard, Heard(later, later, ("public.t",)), later)
    assert (quiet.as_of, quiet.lag_seconds) == (later, 0.0)


def test_a_stream_that_waits_says_why_until_it_is_heard() -> None:
    """The kind of the error tells whether source or lake is away."""
    facts = StreamFacts("test", NOW)
    away = Failure("SourceUnreachable", "It cannot be reached.", "")
    waits = facts_after(facts, Waiting("It cannot be reached.", 4, away), NOW)
    assert waits.error == "It cannot be reached."
    assert waits.error_kind == "SourceUnreachable"
    assert waits.retry_at == NOW + timedelta(seconds=4)
    one = facts_after(facts, Waiting("a lock", None, None, ("public.t",)), NOW)
    assert one.error == ""
    back = facts_after(waits, Heard(NOW, NOW, ()), NOW)
    assert (back.error, back.retry_at) == ("", None)


def test_when_a_slot_is_lost_at_the_present_rate() -> None:
    """Known only where there is a limit, and the log grows."""
    begun = (NOW, 1_000)
    later = NOW + timedelta(seconds=10)
    assert lost_in(begun, SlotRetains("s", 2_000, 10, "extended", 5_000), later) == 50
    assert lost_in(begun, SlotRetains("s", 2_000, 10, "extended", None), later) is None
    assert lost_in(begun, SlotRetains("s", 900, 10, "extended", 5_000), later) is None


def test_pauses_grow_and_end_somewhere() -> None:
    """At random up to twice as long each time, a minute at most."""
    assert all(0 <= pause_after(n, 2) <= min(60, 2 * 2 ** (n - 1)) for n in range(1, 40))
