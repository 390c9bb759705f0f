"""The life of alerts: one per key, told once, escalated, silenced, resolved; as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bronze.operate.alerts.life import (
    RELAPSE,
    Alert,
    Condition,
    Evaluation,
    Key,
    Message,
    Path,
    Silence,
    acknowledge,
    begin,
    restart,
    sent,
    step,
    unsent,
)
from tests.support.effort import examples

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
DOWN = ("source", "DE")
ORDERS = ("failed", "orders")
STEPS = (("first",), ("second",), ("third",))
PATHS = {
    ("failed", ""): Path(STEPS, respond=timedelta(minutes=15)),
    ("source", ""): Path((("first",),)),
    ("late", ""): Path((("first", "second"),)),
}


def at(seconds: float) -> datetime:
    """A moment, in seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def condition(key: Key, seconds: float = 0, **more: object) -> Condition:
    """A condition since a moment."""
    return Condition(*key, "critical", at(seconds), f"{key[1]} failed", **more)  # type: ignore[arg-type]


def evaluated(
    alerts: dict[Key, Alert],
    seconds: float,
    *conditions: Condition,
    silences: Sequence[Silence] = (),
    since: float | None = 0,
) -> dict[Key, Alert]:
    """The alerts after an evaluation at a moment, by a process that knows what is wrong since
    another, or by one that has looked at everything.
    """
    began = None if since is None else at(since)
    return step(alerts, Evaluation(at(seconds), conditions, silences, PATHS, since=began))


def opened() -> dict[Key, Alert]:
    """An alert that was opened at second 10."""
    failed = condition(ORDERS)
    return evaluated(evaluated({}, 0, failed), 10, failed)


def messages(alerts: dict[Key, Alert]) -> list[tuple[str, str]]:
    """What is owed, and to whom."""
    return [(message.act, message.channel) for alert in alerts.values() for message in alert.owed]


def all_sent(alerts: dict[Key, Alert]) -> dict[Key, Alert]:
    """The alerts after everything was sent."""
    after = {}
    for key, alert in alerts.items():
        after[key] = alert
        for message in alert.owed:
            after[key] = sent(begin(after[key], message), message, "fine", NOON)
    return after


def test_an_alert_opens_at_the_second_evaluation() -> None:
    """What was there once and has gone is told to nobody."""
    pending = evaluated({}, 0, condition(ORDERS))
    assert not messages(pending)
    assert messages(opened()) == [("open", "first")]
    gone = evaluated(evaluated(pending, 10), 20)
    assert gone == {}


def test_a_condition_with_a_hold_opens_when_it_has_lasted() -> None:
    """At the first evaluation after that time, not before."""
    high = condition(ORDERS, hold=timedelta(minutes=5))
    alerts = evaluated({}, 0, high)
    for seconds in (100, 200, 299):
        alerts = evaluated(alerts, seconds, replace(high, since=at(seconds)))
        assert not messages(alerts)
    assert messages(evaluated(alerts, 300, high)) == [("open", "first")]


def test_an_alert_resolves_after_two_evaluations_and_a_minute() -> None:
    """Those who were told of it are told, once."""
    alerts = all_sent(opened())
    alerts = evaluated(evaluated(alerts, 20), 40)
    assert alerts[ORDERS].state == "open"
    alerts = evaluated(alerts, 70)
    assert alerts[ORDERS].state == "resolved"
    assert messages(alerts) == [("resolve", "first")]
    assert not messages(evaluated(all_sent(alerts), 80))


def test_nobody_acknowledges_and_the_next_step_is_told() -> None:
    """After each respond time, up to the last step; all of them are told that it is resolved."""
    failed, alerts = condition(ORDERS), all_sent(opened())
    assert not messages(evaluated(alerts, 900, failed))
    alerts = evaluated(alerts, 910, failed)
    assert messages(alerts) == [("open", "second")]
    alerts = evaluated(all_sent(alerts), 1810, failed)
    assert messages(alerts) == [("open", "third")]
    alerts = evaluated(all_sent(alerts), 9999, failed)
    assert not messages(alerts)
    alerts = evaluated(evaluated(alerts, 10100), 10200)
    assert messages(alerts) == [("resolve", "first"), ("resolve", "second"), ("resolve", "third")]


def test_an_acknowledged_alert_is_not_escalated() -> None:
    """Who was told of it learns who sees to it."""
    alerts = all_sent(opened())
    alerts[ORDERS] = acknowledge(alerts[ORDERS], "ada", at(60))
    assert messages(alerts) == [("acknowledge", "first")]
    alerts = evaluated(all_sent(alerts), 5000, condition(ORDERS))
    assert not messages(alerts)
    assert alerts[ORDERS].by == "ada"
    assert acknowledge(alerts[ORDERS], "bob", at(5001)) == alerts[ORDERS]


def test_one_outage_is_one_message() -> None:
    """A thousand tables fail as their source is down: one alert, which counts them."""
    down = condition(DOWN)
    tables = [condition(("failed", f"t{n}"), causes=(DOWN,)) for n in range(1000)]
    alerts = evaluated(evaluated({}, 0, down, *tables), 10, down, *tables)
    assert messages(alerts) == [("open", "first")]
    assert list(alerts) == [DOWN]
    assert alerts[DOWN].effects == 1000
    alerts = all_sent(alerts)
    alerts = evaluated(evaluated(alerts, 20, tables[0]), 90, tables[0])
    assert messages(alerts) == [("resolve", "first")]
    # What stays wrong without its cause is told by itself.
    alerts = evaluated(all_sent(alerts), 100, tables[0])
    assert messages(alerts) == [("open", "first")]


def test_what_comes_and_goes_is_told_once() -> None:
    """It is resolved when it has stayed away for long."""
    failed, alerts = condition(ORDERS), all_sent(opened())
    alerts = all_sent(evaluated(evaluated(alerts, 60), 120))
    alerts = evaluated(evaluated(alerts, 130, failed), 140, failed)
    assert messages(alerts) == [("open", "first")]
    assert alerts[ORDERS].recurring
    alerts = all_sent(alerts)
    alerts = all_sent({ORDERS: acknowledge(alerts[ORDERS], "ada", at(140))})
    for seconds in range(150, 1500, 150):
        alerts = evaluated(evaluated(alerts, seconds), seconds + 70)
        alerts = evaluated(alerts, seconds + 80, failed)
        assert not messages(alerts)
    away = 1430 + RELAPSE.total_seconds()
    assert messages(evaluated(evaluated(alerts, 1500), away)) == [("resolve", "first")]


def test_a_silence_delays_what_is_still_open_when_it_ends() -> None:
    """What was resolved meanwhile is told to nobody."""
    silence = Silence("failed", "*", at(600), "maintenance")
    failed = condition(ORDERS)
    alerts = evaluated(evaluated({}, 0, failed, silences=[silence]), 10, failed, silences=[silence])
    assert alerts[ORDERS].state == "open"
    assert not messages(alerts)
    assert messages(evaluated(alerts, 600, failed, silences=[silence])) == [("open", "first")]
    alerts = evaluated(evaluated(alerts, 100, silences=[silence]), 200, silences=[silence])
    assert alerts[ORDERS].state == "resolved"
    assert not messages(alerts)


def test_what_was_never_sent_is_neither_resolved_nor_acknowledged_there() -> None:
    """An opening that could not be sent is pointless once it is resolved, or seen to."""
    alerts = evaluated(evaluated(opened(), 20), 90)
    assert (alerts[ORDERS].state, messages(alerts)) == ("resolved", [])
    assert messages({ORDERS: acknowledge(opened()[ORDERS], "ada", at(20))}) == []


def test_what_may_have_arrived_is_resolved() -> None:
    """An attempt without an answer counts as heard, and so does all that is owed at a restart; one
    that certainly failed does not.
    """
    alerts = opened()
    (message,) = alerts[ORDERS].owed
    begun = begin(alerts[ORDERS], message)
    for alert in (begun, restart(alerts[ORDERS])):
        assert messages(evaluated(evaluated({ORDERS: alert}, 20), 90)) == [("resolve", "first")]
    failed = unsent(begun, message)
    assert failed == alerts[ORDERS]
    # The same if it turns out after the resolution.
    resolved = evaluated(evaluated({ORDERS: begun}, 20), 90)[ORDERS]
    assert unsent(resolved, message).owed == ()


def test_a_process_that_has_just_started_resolves_nothing_for_a_minute() -> None:
    """It knows nothing of the time before, however long ago an alert was opened."""
    stored = {ORDERS: restart(all_sent(opened())[ORDERS])}
    alerts = evaluated(evaluated(stored, 3600, since=3600), 3659, since=3600)
    assert alerts[ORDERS].state == "open"
    alerts = evaluated(alerts, 3660, since=3600)
    assert messages(alerts) == [("resolve", "first")]


def test_a_process_that_has_looked_at_everything_resolves_what_is_absent_at_its_end() -> None:
    """At its second evaluation, also what it has seen itself before it ran the table."""
    stored = {ORDERS: restart(all_sent(opened())[ORDERS])}
    for seen in ([], [condition(ORDERS)]):
        alerts = evaluated(stored, 18, *seen, since=18)
        alerts = evaluated(evaluated(alerts, 20, since=18), 21, since=None)
        assert messages(alerts) == [("resolve", "first")]


def test_what_comes_and_goes_from_process_to_process_is_told_once() -> None:
    """It is resolved by one that never finds it, 15 minutes after it was opened."""
    failed = condition(DOWN)

    def ran(
        alerts: dict[Key, Alert], seconds: float, *, before: bool, after: bool
    ) -> dict[Key, Alert]:
        begun = {key: restart(alert) for key, alert in all_sent(alerts).items()}
        begun = evaluated(begun, seconds, *[failed] * before, since=seconds)
        for _ in range(2):
            begun = evaluated(begun, seconds + 1, *[failed] * after, since=None)
        return begun

    alerts = ran({}, 0, before=False, after=True)
    assert messages(alerts) == [("open", "first")]
    alerts = ran(alerts, 300, before=True, after=False)
    assert messages(alerts) == [("resolve", "first")]
    alerts = ran(alerts, 600, before=False, after=True)
    assert messages(alerts) == [("open", "first")]
    for seconds, before, after in ((900, True, False), (1200, False, True), (1500, True, False)):
        alerts = ran(alerts, seconds, before=before, after=after)
        assert not messages(alerts)
    assert messages(ran(alerts, 1502, before=False, after=False)) == [("resolve", "first")]


def test_a_resolution_that_is_late_is_about_its_own_opening() -> None:
    """An alert that opens again owes both: the end of the first, and the second opening."""
    failed, alerts = condition(ORDERS), all_sent(opened())
    alerts = evaluated(evaluated(alerts, 20), 90)
    alerts = evaluated(evaluated(alerts, 100, failed), 110, failed)
    assert messages(alerts) == [("resolve", "first"), ("open", "first")]
    assert [message.opening for message in alerts[ORDERS].owed] == [at(10), at(110)]


def test_without_channels_alerts_open_and_nobody_is_told() -> None:
    """When there is a path, what is still open is told."""
    failed = condition(("other", "orders"))
    alerts = evaluated(evaluated({}, 0, failed), 10, failed)
    assert alerts[failed.key].is_open
    assert not messages(alerts)
    later = Evaluation(at(20), [failed], (), {("other", "orders"): Path((("first",),))})
    assert messages(step(alerts, later)) == [("open", "first")]


KEYS: tuple[Key, ...] = (DOWN, ORDERS, ("failed", "items"), ("late", "orders"))
OUTCOMES = ("answered", "refused", "arrived without an answer", "lost without a trace")


class Living(RuleBasedStateMachine):
    """Conditions come and go, people acknowledge and silence, messages are sent or fail, and the
    service starts again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.alerts: dict[Key, Alert] = {}
        self.wrong: set[Key] = set()
        self.silences: list[Silence] = []
        self.since = 0.0
        self.arrived: list[tuple[Key, Message]] = []
        self.is_certain = True

    @rule(key=st.sampled_from(KEYS))
    def turn(self, key: Key) -> None:
        """Something breaks, or is mended."""
        self.wrong ^= {key}

    @rule(seconds=st.sampled_from([5, 10, 60, 300, 1200]), whole=st.booleans())
    def evaluate(self, seconds: float, whole: bool = False) -> None:
        """Time passes, and the service looks, maybe at everything."""
        self.seconds += seconds
        conditions = [
            condition(key, self.seconds, causes=() if key == DOWN else (DOWN,))
            for key in sorted(self.wrong)
        ]
        since = None if whole else self.since
        self.alerts = evaluated(
            self.alerts, self.seconds, *conditions, silences=self.silences, since=since
        )

    @rule(key=st.sampled_from(KEYS))
    def see_to(self, key: Key) -> None:
        """Somebody acknowledges."""
        if key in self.alerts:
            self.alerts[key] = acknowledge(self.alerts[key], "ada", at(self.seconds))

    @rule(seconds=st.integers(1, 2000))
    def silence(self, seconds: float) -> None:
        """Somebody silences the failures of tables."""
        self.silences = [Silence("failed", "*", at(self.seconds + seconds), "work")]

    @rule(
        key=st.sampled_from(KEYS),
        channel=st.sampled_from(["first", "second", "third"]),
        outcome=st.sampled_from(OUTCOMES),
        also=st.booleans(),
    )
    def send(self, key: Key, channel: str, outcome: str, also: bool) -> None:
        """A message is sent, while the service may look."""
        if key not in self.alerts or not (message := self.alerts[key].next_message(channel)):
            return
        first = channel not in self.alerts[key].heard
        self.alerts[key] = begin(self.alerts[key], message)
        if also:
            self.evaluate(60)
        if outcome in OUTCOMES[0::2]:
            self.arrived.append((key, message))
        if key in self.alerts and outcome == "answered":
            self.alerts[key] = sent(self.alerts[key], message, "fine", at(self.seconds))
        elif key in self.alerts and outcome == "refused" and first:
            self.alerts[key] = unsent(self.alerts[key], message)
        elif outcome in OUTCOMES[2:]:
            self.is_certain = False

    @rule()
    def start_again(self) -> None:
        """What was owed may have been sent."""
        self.alerts = {key: restart(alert) for key, alert in self.alerts.items()}
        self.since = self.seconds
        if any(alert.owed for alert in self.alerts.values()):
            self.is_certain = False

    @invariant()
    def each_message_arrives_once(self) -> None:
        """As long as all outcomes are known, each opening is told once, and then its end."""
        if not self.is_certain:
            return
        told: dict[tuple[Key, str], str] = {}
        owed = [(key, m) for key, alert in self.alerts.items() for m in alert.owed]
        for key, message in [*self.arrived, *owed]:
            before = told.get((key, message.channel), "resolve")
            assert (message.act == "open") == (before == "resolve"), (key, message, before)
            told[key, message.channel] = message.act

    @invariant()
    def who_knows_of_an_opening_learns_its_end(self) -> None:
        """Also if an answer was lost, or the service started again."""
        resolved = {(key, m.channel, m.opening) for key, m in self.arrived if m.act == "resolve"}
        for key, alert in self.alerts.items():
            resolved |= {(key, m.channel, m.opening) for m in alert.owed if m.act == "resolve"}
        for key, message in self.arrived:
            if message.act == "open" and (key, message.channel, message.opening) not in resolved:
                alert = self.alerts[key]
                assert alert.is_open
                assert alert.opened == message.opening
                assert message.channel in alert.heard

    @invariant()
    def what_lasts_is_told(self) -> None:
        """A condition that was there at two evaluations has an open alert, or an open cause."""
        for key, alert in self.alerts.items():
            if alert.present >= 2 and key in self.wrong and not alert.condition.causes:
                assert alert.is_open


TestLiving = Living.TestCase
TestLiving.settings = hypothesis_settings(
    max_examples=examples(100), stateful_step_count=60, deadline=None
)


def test_a_cause_that_could_have_a_cause_explains_its_effects_at_once() -> None:
    """In whatever order the conditions come."""
    source = Condition("source_unreachable", "shop", "critical", NOON, "down")
    stream = replace(source, kind="stream_down", causes=(source.key,))
    late = replace(source, kind="freshness", subject="orders", causes=(stream.key, source.key))
    for conditions in permutations([late, stream, source]):
        alerts: dict[Key, Alert] = {}
        for seconds in (0, 10):
            moment = NOON + timedelta(seconds=seconds)
            alerts = step(alerts, Evaluation(moment, conditions))
        assert {key for key, alert in alerts.items() if alert.is_open} == {source.key}
    for conditions in permutations([late, stream]):
        alerts = step({}, Evaluation(NOON, conditions))
        assert set(alerts) == {stream.key}
