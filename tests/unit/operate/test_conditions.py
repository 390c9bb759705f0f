"""The conditions of alerts: each kind can be raised, and one outage is one alert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze.governance.tables.runs import RunRecord
from bronze.model.results import Failure
from bronze.operate.alerts import life
from bronze.operate.alerts.kinds import CHANNEL, KINDS, TEST
from bronze.operate.alerts.life import Alert, Condition, Evaluation, Key
from bronze.operate.breaker import Breaker
from bronze.operate.conditions import CROWD, Finding, conditions_of
from bronze.operate.current import view_of
from bronze.operate.facts.outlook import Outlooks
from bronze.operate.freshness import Landing, late_times
from bronze.operate.view import LakeSlow, Live, Resources, StreamFacts, View
from bronze.quality.latest import Score
from tests.support.effort import examples
from tests.support.operators import Table, at, config, history_of, rows_of, run, table
from tests.unit.operate.test_current import pause

SETTINGS = config()
ORDERS = table()
CLICKS = table("clicks", pattern="streaming", schedule="continuous", sla="1m")
LANDED = [run(ORDERS, 0, 1, rows_read=1000, score=99.0)]
FINE = Live("id", "host-1", 1, "0.1", began=at(-1), at=at(5))
STREAM = StreamFacts("shop", at(-60), as_of=at(5), heard=at(5), slot="bronze_shop")
RESOURCES = Resources(0.1, 10**8, 10**9, disk_free=10**11, disk_total=2 * 10**11)
FINDINGS = (
    "audit_broken",
    "keys_missing",
    "personal_data",
    "backup_failed",
    "drill_failed",
    "process_crashed",
    "clock_jumped",
)


def view_at(
    now: float, tables: Sequence[Table], records: Sequence[RunRecord], live: Live = FINE
) -> View:
    """The view of a service that was heard at that time."""
    history = history_of(SETTINGS, records)
    return view_of(SETTINGS, tables, history, replace(live, at=at(now)), (), (), at(now))


def raised(
    now: float = 5,
    records: Sequence[RunRecord] = LANDED,
    tables: Sequence[Table] = (ORDERS,),
    **live: Any,
) -> dict[str, Condition]:
    """The conditions by their kinds."""
    found = conditions_of(SETTINGS, view_at(now, tables, records, replace(FINE, **live)))
    return {condition.kind: condition for condition in found}


def failed(kind: str = "LakeError", **values: Any) -> RunRecord:
    """A run of orders that failed."""
    known = {"status": "failed", "error_kind": kind, "error_message": "No room."}
    return run(ORDERS, 2, 3, **known, **values)


def test_nothing_is_raised_where_all_is_well() -> None:
    """A fresh table, a live stream, a service with room."""
    facts: dict[str, Any] = {"streams": {"shop": STREAM}, "resources": RESOURCES}
    assert raised(tables=(ORDERS, CLICKS), **facts) == {}


def test_each_kind_can_be_raised() -> None:
    """With its key, since when, a sentence and the level of its kind; those of the channels come
    from alerting itself.
    """
    resting = Breaker("", 5, at(3), at(60))
    down: dict[str, Any] = {"source_errors": {"shop": Failure("SourceRefused", "No.", "")}}
    differs = run(ORDERS, 2, 3, command="verify", status="differs", error_message="1 missing.")
    cases: dict[str, dict[str, Condition]] = {
        "freshness": raised(75),
        "quality": raised(records=[run(ORDERS, 0, 1, rows_read=1000, score=84.9)]),
        "duration": raised(150, [run(ORDERS, 0, 125, scheduled=0)]),
        "failed_records": raised(records=[run(ORDERS, 0, 1, rows_read=1000, rejected=21)]),
        "resources": raised(resources=replace(RESOURCES, cpu=0.81)),
        "will_be_late": raised(62, [run(ORDERS, 0, 20)]),
        "table_failed": raised(records=[*LANDED, failed()]),
        "table_quarantined": raised(
            records=[*LANDED, failed()], breakers={f"table:{ORDERS.key}": resting}
        ),
        "schema_refused": raised(records=[*LANDED, failed("TableRefused")]),
        "verify_differs": raised(records=[*LANDED, differs]),
        "stream_down": raised(streams={"shop": replace(STREAM, error="connection lost")}),
        "slot_retains": raised(streams={"shop": replace(STREAM, retained=2 * 10**9)}),
        "slot_lost": raised(streams={"shop": replace(STREAM, left=0)}),
        "source_unreachable": raised(**down),
        "lake_unreachable": raised(lake_error="No such bucket."),
        "lake_slow": raised(lake_slow=LakeSlow(at(4), 2.0)),
        "lake_full": raised(resources=replace(RESOURCES, disk_free=10**9)),
        "config_invalid": raised(config_error="runs is not a number."),
    }
    for kind in FINDINGS:
        finding = Finding(kind, "service", at(1), f"{kind} was found")
        found = conditions_of(SETTINGS, view_at(5, [ORDERS], LANDED), [finding])
        cases[kind] = {condition.kind: condition for condition in found}
    assert set(cases) == set(KINDS) - {CHANNEL, TEST}
    for kind, conditions in cases.items():
        assert kind in conditions, kind
        condition = conditions[kind]
        assert condition.level == KINDS[kind].level
        assert condition.text.endswith(".")
        assert condition.subject
        assert condition.since <= at(150)


def test_a_table_that_its_stream_does_not_follow_has_failed() -> None:
    """With the reason."""
    facts: dict[str, Any] = {"streams": {"shop": STREAM}, "waiting": {CLICKS.key: "it has no key."}}
    found = raised(tables=(CLICKS,), records=(), **facts)["table_failed"]
    assert found.text == "public.clicks is not streamed: it has no key."


def test_conditions_say_since_when_and_how_much() -> None:
    """In sentences with the figures and thresholds."""
    late = raised(75)["freshness"]
    assert (late.since, late.subject) == (at(70), ORDERS.key)
    assert late.text.startswith("public.orders is late since 13:10")
    failing = raised(records=[run(ORDERS, 0, 1, rows_read=1000, rejected=21)])["failed_records"]
    assert failing.text == (
        "2.1% of the rows of public.orders were quarantined or have rejected values,"
        " more than 2.0%."
    )
    slot = replace(STREAM, retained=10**9, left=36 * 10**8, lost_in=3 * 3600)
    assert raised(streams={"shop": slot})["slot_retains"].text == (
        "shop keeps 1.0 GB of its log for the slot bronze_shop, which is lost in about 3 h at"
        " 1.2 GB/h."
    )
    hold = raised(resources=replace(RESOURCES, memory=9 * 10**8))["resources"].hold
    assert hold == timedelta(minutes=5)


def test_a_run_that_goes_on_is_judged_while_it_goes() -> None:
    """From its due time on."""
    going = [*LANDED, run(ORDERS, 60, scheduled=60)]
    assert "duration" not in raised(65, going)
    long = [*LANDED, run(ORDERS, 60, scheduled=-70)]
    condition = raised(65, long)["duration"]
    assert (condition.since, condition.text.split(" from ")[0]) == (
        at(50),
        "public.orders takes 2 h 15 min",
    )


def test_a_pause_with_an_end_hides_lateness_and_one_without_does_not() -> None:
    """Nobody is told of what was planned; what may have been forgotten is told."""
    history = history_of(SETTINGS, LANDED)
    for until, kinds in ((at(200), set()), (None, {"freshness"})):
        asked = (pause("orders", 3, until=until),)
        view = view_of(SETTINGS, [ORDERS], history, replace(FINE, at=at(75)), asked, (), at(75))
        assert view.tables[0].state == "late"
        assert {condition.kind for condition in conditions_of(SETTINGS, view)} == kinds


def opened(views: Sequence[tuple[datetime, list[Condition]]]) -> dict[Key, Alert]:
    """The alerts that are open after evaluations."""
    alerts: dict[Key, Alert] = {}
    for now, conditions in views:
        alerts = life.step(alerts, Evaluation(now, conditions))
    return {key: alert for key, alert in alerts.items() if alert.is_open}


@pytest.mark.soak
def test_one_outage_of_a_source_with_1000_tables_is_one_alert() -> None:
    """All tables fail and are late, the stream is down: the source explains it."""
    tables = [table(f"t{number}") for number in range(1000)]
    down = {"status": "failed", "error_kind": "SourceUnreachable", "error_message": "gone"}
    records = [run(own, 0, 1) for own in tables] + [run(own, 60, 61, **down) for own in tables]
    facts = replace(
        FINE,
        breakers={"source:shop": Breaker("", 2, at(61))},
        streams={"shop": replace(STREAM, error="gone")},
    )
    views = [(at(t), conditions_of(SETTINGS, view_at(t, tables, records, facts))) for t in (75, 76)]
    assert len(views[0][1]) > 2000
    assert set(opened(views)) == {("source_unreachable", "shop")}


def test_one_outage_of_the_lake_is_one_alert() -> None:
    """It explains what sources, streams and tables suffer."""
    records = [*LANDED, failed("LakeUnreachable")]
    facts = replace(FINE, lake_error="gone", streams={"shop": replace(STREAM, error="lake")})
    times = (75, 76)
    views = [
        (at(t), conditions_of(SETTINGS, view_at(t, [ORDERS, CLICKS], records, facts)))
        for t in times
    ]
    assert set(opened(views)) == {("lake_unreachable", "/nowhere")}


def test_a_full_lake_is_one_alert() -> None:
    """It explains that it cannot be written, and what tables suffer from that."""
    full = replace(RESOURCES, disk_free=0)
    facts = replace(FINE, lake_error="no space left", resources=full)
    records = [*LANDED, failed("LakeUnreachable")]
    views = [
        (at(t), conditions_of(SETTINGS, view_at(t, [ORDERS], records, facts))) for t in (75, 76)
    ]
    assert set(opened(views)) == {("lake_full", "/nowhere")}


def test_a_slow_lake_is_one_alert() -> None:
    """It explains what is late and what the lake has not answered in time, and no other failure; a
    single slow answer is told to nobody.
    """
    slow = replace(FINE, lake_slow=LakeSlow(at(62), 2.0), streams={"shop": STREAM})
    root = ("lake_slow", "/nowhere")
    for kind, keys in (
        ("LakeUnreachable", {root}),
        ("LakeError", {root, ("table_failed", ORDERS.key)}),
    ):
        view = [view_at(t, [ORDERS, CLICKS], [*LANDED, failed(kind)], slow) for t in (63, 75, 76)]
        assert view[1].tables[0].why or view[1].tables[1].why
        late = [own for own in view[1].tables if own.pattern == "streaming"]
        assert [own.why for own in late] == ["the lake takes 2.0 s to answer a request"]
        conditions = [(one.now, conditions_of(SETTINGS, one)) for one in view]
        assert set(opened(conditions)) == keys
    soon = [view_at(t, [ORDERS], LANDED, slow) for t in (62, 62.1)]
    assert opened([(one.now, conditions_of(SETTINGS, one)) for one in soon]) == {}


def test_missing_keys_are_one_alert() -> None:
    """They explain the tables that cannot be loaded without them, and no other."""
    findings = [Finding("keys_missing", "service", at(2), "There is no key.")]
    for error, keys in (
        ("ConfigError", {("keys_missing", "service")}),
        ("LakeError", {("keys_missing", "service"), ("table_failed", ORDERS.key)}),
    ):
        view = view_at(5, [ORDERS], [*LANDED, failed(error)])
        conditions = conditions_of(SETTINGS, view, findings)
        assert set(opened([(at(5), conditions), (at(6), conditions)])) == keys


def test_many_tables_with_the_same_trouble_are_one_alert() -> None:
    """Also where neither source nor lake explains it; a few are one alert each."""
    tables = [table(f"t{number}") for number in range(CROWD + 1)]
    records = [run(own, 0, 1) for own in tables]
    for count, keys in (
        (CROWD + 1, {("freshness", "shop")}),
        (CROWD, {("freshness", own.key) for own in tables[:CROWD]}),
    ):
        views = [
            (at(t), conditions_of(SETTINGS, view_at(t, tables[:count], records))) for t in (75, 76)
        ]
        assert set(opened(views)) == keys


def test_a_lateness_that_nobody_saw_is_told_once() -> None:
    """One that ended while no service ran, or that was shorter than an alert takes to open."""
    records = [*LANDED, run(ORDERS, 80, 85, scheduled=60)]
    soon, later = view_at(85.2, [ORDERS], records), view_at(90, [ORDERS], records)
    (late,) = conditions_of(SETTINGS, soon)
    assert (late.kind, late.since) == ("freshness", at(70))
    assert late.text == "public.orders was late from 13:10 until 13:25."
    assert conditions_of(SETTINGS, later) == []
    assert conditions_of(SETTINGS, later, unseen_since=at(75)) == [late]
    assert conditions_of(SETTINGS, later, unseen_since=at(86)) == []
    evaluations = [(at(90 + n / 6), conditions_of(SETTINGS, later, (), at(75))) for n in (0, 1)]
    alerts: dict[Key, Alert] = {}
    for now, conditions in [*evaluations, (at(92), []), (at(94), [])]:
        alerts = life.step(alerts, Evaluation(now, conditions))
    (alert,) = alerts.values()
    assert (alert.state, alert.condition.since) == ("resolved", at(70))


@given(
    runs=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 90)), max_size=10),
    has_failed=st.booleans(),
)
@hypothesis_settings(max_examples=examples(25), deadline=None)
def test_each_lateness_is_told_once_with_its_begin(
    runs: list[tuple[int, int]], has_failed: bool
) -> None:
    """Whoever looks each minute sees the latenesses that all runs together tell, each with one
    begin, however the runs overlap.
    """
    status = "failed" if has_failed else "landed"
    records = [run(ORDERS, 0, 1, run_id="first")]
    records += [
        run(ORDERS, began, began + took, status=status) for began, took in dict(runs).items()
    ]
    records.sort(key=lambda record: record.ended or record.began)
    history, outlooks = history_of(SETTINGS), Outlooks()
    waiting, seen = list(records), set()
    for minute in range(2, 300):
        new = [r for r in waiting if (r.ended or r.began) <= at(minute)]
        waiting = waiting[len(new) :]
        if new:
            history.add(rows_of(new))
        live = replace(FINE, at=at(minute))
        view = view_of(SETTINGS, [ORDERS], history, live, (), (), at(minute), outlooks)
        found = conditions_of(SETTINGS, view)
        seen |= {condition.since for condition in found if condition.kind == "freshness"}
    landings = [Landing(r.as_of, r.ended) for r in records if r.as_of and r.ended]
    dues = [at(hour * 60) for hour in range(5)]
    lates = late_times(dues, landings, timedelta(minutes=10), at(299))
    assert seen == {late.begin for late in lates}


def test_bad_quality_of_streamed_rows_is_since_they_were_recorded() -> None:
    """It stays one condition while nothing is recorded anew."""
    history = history_of(SETTINGS)
    history._scores = {CLICKS.target: Score(at(2), 30, 70.0)}
    live = replace(FINE, at=at(9), streams={"shop": replace(STREAM, as_of=at(9), heard=at(9))})
    view = view_of(SETTINGS, [CLICKS], history, live, (), (), at(9))
    found = {condition.kind: condition for condition in conditions_of(SETTINGS, view)}
    assert found["quality"].since == at(2)
    assert "public.clicks have a score of 70.0" in found["quality"].text
