"""The scheduler: what is due runs once, in the order of urgency, and nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bronze.model.schedule import parse_schedule
from bronze.operate.scheduler import Capacity, Decision, DueTimes, Start, TableClock, decide
from tests.support.effort import examples

NIGHT = datetime(2026, 11, 27, 2, tzinfo=UTC)
DAILY = parse_schedule("daily 02:00")
HOURLY = parse_schedule("hourly")
ORDERS = TableClock("sales.orders", "DE", DAILY, begun_for=NIGHT - timedelta(days=1))


def at(minutes: float) -> datetime:
    """A moment, in minutes after 02:00."""
    return NIGHT + timedelta(minutes=minutes)


def decided(*clocks: TableClock, minutes: float = 0, free: int = 9, pressure: str = "") -> Decision:
    """What is decided some minutes after 02:00."""
    return decide(clocks, at(minutes), Capacity(free, pressure=pressure), DueTimes())


def test_tables_that_are_due_together_are_one_run() -> None:
    """Those of one source and the same due second; another source is a run of its own."""
    items = replace(ORDERS, table="sales.items", priority=1)
    other = replace(ORDERS, table="public.orders", source="FR")
    hourly = replace(ORDERS, table="sales.prices", schedule=HOURLY)
    done = decided(ORDERS, items, other, hourly, minutes=1)
    assert [run.tables for run in done.start] == [
        ("sales.items", "sales.prices", "sales.orders"),
        ("public.orders",),
    ]
    assert {run.due for run in done.start} == {NIGHT}
    assert not done.waiting
    assert done.wake == at(60)


def test_missed_times_run_once() -> None:
    """A service that was down for days begins one run, for the last due time."""
    old = replace(ORDERS, schedule=HOURLY, begun_for=NIGHT - timedelta(days=3))
    (run,) = decided(old, minutes=30).start
    assert run.due == NIGHT
    assert not decided(replace(old, begun_for=run.due), minutes=30).start


def test_a_table_that_never_ran_is_due_at_once() -> None:
    """It does not wait for its next time of the day."""
    (run,) = decided(replace(ORDERS, begun_for=None), minutes=600).start
    assert run == Start("DE", NIGHT, "schedule", ("sales.orders",))


def test_a_table_that_never_ran_is_due_since_it_is_known() -> None:
    """Not since a due time before; tables that became known together are one run. One that still
    waits at its next due time is due since then.
    """
    new = replace(ORDERS, begun_for=None, known=at(590))
    hourly = replace(new, table="sales.prices", schedule=HOURLY)
    (run,) = decided(new, hourly, minutes=599).start
    assert run == Start("DE", at(590), "schedule", ("sales.prices", "sales.orders"))
    assert decided(hourly, minutes=601).start[0].due == at(600)


def test_a_table_that_runs_is_not_begun_again_until_it_has_ended() -> None:
    """What has become due meanwhile waits with a sentence, and begins then."""
    running = replace(ORDERS, schedule=HOURLY, begun_for=NIGHT, running=True)
    assert not decided(running, minutes=30).waiting
    late = decided(running, minutes=70)
    assert not late.start
    assert "still goes on" in late.waiting["sales.orders"]
    assert decided(replace(running, running=False), minutes=70).start[0].due == at(60)


def test_a_failed_run_is_retried_for_the_same_due_time() -> None:
    """From its time on, and in a run of its own."""
    failed = replace(ORDERS, begun_for=NIGHT, retry_at=at(5))
    assert not decided(failed, minutes=4).start
    assert decided(failed, minutes=4).wake == at(5)
    assert decided(failed, minutes=5).start == (Start("DE", NIGHT, "retry", ("sales.orders",)),)


def test_a_requested_table_begins_at_once() -> None:
    """Though nothing is due."""
    asked = replace(ORDERS, begun_for=NIGHT, requested=at(3))
    assert decided(asked, minutes=3).start == (Start("DE", at(3), "command", ("sales.orders",)),)


def test_urgent_tables_come_first_and_then_those_with_least_slack() -> None:
    """Priority, then the time until the deadline less the time that a run takes."""
    tables = [
        replace(ORDERS, table="low", source="a", priority=3, sla=60),
        replace(ORDERS, table="slow", source="b", sla=3600, expected=1800),
        replace(ORDERS, table="quick", source="c", sla=3600, expected=60),
        replace(ORDERS, table="urgent", source="d", priority=1, sla=86400),
    ]
    done = decided(*tables, minutes=1, free=3)
    assert [run.tables[0] for run in done.start] == ["urgent", "slow", "quick"]
    assert "[serve] runs" in done.waiting["low"]


def test_a_priority_rises_with_each_period_that_is_waited() -> None:
    """After two periods a table of priority 3 is as urgent as one of priority 1, and its slack is
    less.
    """
    waited = replace(ORDERS, table="low", source="a", priority=3, schedule=HOURLY, begun_for=None)
    asked = replace(waited, requested=NIGHT, begun_for=NIGHT)
    urgent = replace(ORDERS, table="urgent", source="b", schedule=HOURLY, priority=1)
    assert decided(asked, urgent, minutes=60, free=1).start[0].tables == ("urgent",)
    assert decided(asked, urgent, minutes=121, free=1).start[0].tables == ("low",)


def test_a_table_that_waits_for_its_turn_gets_it() -> None:
    """Though three urgent ones are due again before the last of them has ended, and under pressure
    as well: its own due times, which pass meanwhile, do not begin its wait again.
    """
    names = {"a": 1, "b": 1, "c": 1, "low": 3}
    for pressure in ("", "the disk of the lake is nearly full"):
        clocks = {
            name: TableClock(
                name, name, HOURLY, priority=priority, sla=300 * priority, begun_for=NIGHT
            )
            for name, priority in names.items()
        }
        times, begun = DueTimes(), []
        for step in range(1, 16):
            now = at(40 * step)
            decision = decide(list(clocks.values()), now, Capacity(1, pressure=pressure), times)
            for name, clock in clocks.items():
                waits = (clock.waits_since or now) if name in decision.queued else None
                clocks[name] = replace(clock, waits_since=waits)
            for run in decision.start:
                begun += [(table, now) for table in run.tables]
                for table in run.tables:
                    clocks[table] = replace(clocks[table], begun_for=run.due)
        waited = [now - at(60) for name, now in begun if name == "low"]
        assert timedelta(hours=2) <= waited[0] < timedelta(hours=4)


def test_blocked_tables_wait_with_their_sentence() -> None:
    """A paused table does not run, and says so, until it is looked at again."""
    paused = replace(ORDERS, blocked="paused by ada", blocked_until=at(30))
    done = decided(paused, minutes=1)
    assert not done.start
    assert done.waiting == {"sales.orders": "paused by ada"}
    assert done.wake == at(30)


def test_under_pressure_only_urgent_tables_begin() -> None:
    """Others wait, and say for what."""
    urgent = replace(ORDERS, table="urgent", priority=1)
    done = decided(ORDERS, urgent, pressure="memory is at 95 % of its limit")
    assert [run.tables for run in done.start] == [("urgent",)]
    assert "memory" in done.waiting["sales.orders"]


SCHEDULES = tuple(map(parse_schedule, ("hourly", "every 20m", "daily 02:00", "every 3h")))


class Scheduling(RuleBasedStateMachine):
    """Runs begin as decided, land or fail in any order, time passes, tables are paused."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NIGHT
        self.times = DueTimes()
        self.free = 2
        self.going: list[Start] = []
        self.begun: set[tuple[str, datetime, str]] = set()
        self.waited: dict[str, int] = {}
        self.clocks = {
            f"t{number}": TableClock(
                f"t{number}",
                f"source {number % 2}",
                SCHEDULES[number % len(SCHEDULES)],
                priority=1 + number % 3,
            )
            for number in range(9)
        }

    @rule(minutes=st.integers(1, 300))
    def pass_time(self, minutes: int) -> None:
        """The clock goes on."""
        self.now += timedelta(minutes=minutes)

    @rule()
    def work(self) -> None:
        """The service begins what is decided."""
        decision = decide(list(self.clocks.values()), self.now, Capacity(self.free), self.times)
        assert len(decision.start) <= self.free
        due = {name for name, clock in self.clocks.items() if self._is_due(clock)}
        started = [table for run in decision.start for table in run.tables]
        assert len(started) == len(set(started))
        assert due == set(started) | set(decision.waiting)
        assert decision.wake is not None
        assert decision.wake > self.now
        for run in decision.start:
            self.free -= 1
            self.going.append(run)
            for table in run.tables:
                clock = self.clocks[table]
                assert not clock.running
                assert not clock.blocked
                if run.reason == "schedule":
                    assert (table, run.due, "schedule") not in self.begun
                    self.begun.add((table, run.due, "schedule"))
                self.clocks[table] = replace(
                    clock,
                    running=True,
                    requested=None,
                    retry_at=None,
                    begun_for=max(run.due, clock.begun_for or run.due),
                )

    def _is_due(self, clock: TableClock) -> bool:
        missed = clock.begun_for is None or clock.schedule.before(self.now) > clock.begun_for
        retried = clock.retry_at is not None and clock.retry_at <= self.now and not clock.running
        return missed or retried or clock.requested is not None

    @precondition(lambda self: self.going)
    @rule(which=st.integers(0, 100), fails=st.booleans())
    def end(self, which: int, fails: bool) -> None:
        """A run ends; a failed one is to be tried again."""
        run = self.going.pop(which % len(self.going))
        self.free += 1
        for table in run.tables:
            again = self.now + timedelta(minutes=7) if fails else None
            self.clocks[table] = replace(self.clocks[table], running=False, retry_at=again)

    @rule(number=st.integers(0, 8), paused=st.booleans())
    def pause(self, number: int, paused: bool) -> None:
        """A table is paused or resumed."""
        name = f"t{number}"
        self.clocks[name] = replace(self.clocks[name], blocked="paused" if paused else "")

    @rule(number=st.integers(0, 8))
    def request(self, number: int) -> None:
        """An operator asks for a run."""
        self.clocks[f"t{number}"] = replace(self.clocks[f"t{number}"], requested=self.now)

    @invariant()
    def no_table_runs_twice_at_once(self) -> None:
        """Each table is in one run at most."""
        tables = [table for run in self.going for table in run.tables]
        assert len(tables) == len(set(tables))


TestScheduling = Scheduling.TestCase
TestScheduling.settings = hypothesis_settings(max_examples=examples(30), deadline=None)


def test_nobody_starves_at_overload() -> None:
    """With more due than one run at a time can do, each table still runs within three periods."""
    clocks = {
        name: TableClock(name, name, HOURLY, priority=priority, begun_for=NIGHT)
        for name, priority in {"a": 1, "b": 1, "c": 2, "d": 3}.items()
    }
    times, waits = DueTimes(), dict.fromkeys(clocks, timedelta())
    for step in range(1, 400):
        # Each run takes 17 minutes, and four of them are due in an hour: 113 % of the time.
        now = at(17 * step)
        for run in decide(list(clocks.values()), now, Capacity(1), times).start:
            (table,) = run.tables
            begun = clocks[table].begun_for
            assert begun is not None
            waits[table] = max(waits[table], now - begun - timedelta(hours=1))
            clocks[table] = replace(clocks[table], begun_for=run.due)
    assert max(waits.values()) < timedelta(hours=3)
