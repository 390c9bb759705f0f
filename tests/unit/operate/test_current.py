"""The view: what an operator sees, by config, history, the service's facts and the time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze.governance.tables.controls import ControlRecord
from bronze.governance.tables.runs import RunRecord
from bronze.operate.alerts.life import Alert, Condition, Receipt
from bronze.operate.breaker import Breaker
from bronze.operate.current import pauses_of, view_of
from bronze.operate.facts.outlook import Outlooks
from bronze.operate.freshness import Late
from bronze.operate.history import StreamPoint
from bronze.operate.view import Live, Running, StreamFacts, TableView, View
from tests.support.effort import examples
from tests.support.operators import Table, at, config, history_of, rows_of, run, table

FAILED: dict[str, Any] = {
    "status": "failed",
    "error_kind": "LakeError",
    "error_message": "No room.",
}
REFUSED: dict[str, Any] = {
    "status": "failed",
    "error_kind": "SourceRefused",
    "error_message": "shop refused the password.",
}


def live(now: float = 0, **facts: Any) -> Live:
    """A service that was heard then, in minutes after noon, and began the day before."""
    return Live("id", "host-1", 1, "0.1", began=at(-1440), at=at(now), **facts)


def look(
    tables: list[Table],
    records: list[RunRecord],
    now: float,
    service: Live | None = None,
    *,
    controls: tuple[ControlRecord, ...] = (),
    alerts: tuple[Alert, ...] = (),
    streams: dict[str, StreamPoint] | None = None,
) -> View:
    """The view at a time, in minutes after noon."""
    settings = config()
    history = history_of(settings, records, streams)
    return view_of(settings, tables, history, service, controls, alerts, at(now))


def seen(own: Table, records: list[RunRecord], now: float, **others: Any) -> TableView:
    """The only table of a view."""
    others = {"service": live(now), **others}
    (found,) = look([own], records, now, **others).tables
    return found


def pause(subject: str, began: float, **values: Any) -> ControlRecord:
    """A request of ada to pause a table."""
    known = {"action": "pause", "reason": "migration", **values}
    return ControlRecord(f"c{began}", at(began), "ada", "host-1", subject=subject, **known)


def test_a_table_is_fresh_until_its_deadline_has_passed() -> None:
    """Then it is late since the deadline, and again fresh when a run lands."""
    orders, landed = table(), [run(table(), -60, -58, scheduled=-60)]
    before = seen(orders, landed, 5)
    assert (before.state, before.deadline, before.slack) == ("fresh", at(10), 300)
    assert (before.as_of, before.age, before.next_due) == (at(-60), 300, at(60))
    late = seen(orders, landed, 12)
    assert (late.state, late.late, late.slack) == ("late", Late(at(10), None, at(0)), -120)
    after = seen(orders, [*landed, run(orders, 12, 14, scheduled=0)], 15)
    assert (after.state, after.deadline, after.late) == ("fresh", at(70), None)


def test_lateness_that_goes_on_into_the_next_due_time_is_one() -> None:
    """It began when the first deadline was missed, although something has landed since."""
    slow = table(schedule="every 15m")
    records = [run(slow, -30, -29), run(slow, -14, 26)]
    assert seen(slow, records, 26).late == Late(at(-5), None, at(-15))
    assert seen(slow, [*records, run(slow, 27, 28)], 29).late is None


def test_a_table_without_an_sla_is_late_by_the_threshold_of_the_alerts() -> None:
    """[alerts] freshness, which is 30 minutes."""
    orders = table(sla="30m")
    free = replace(orders, settings=orders.settings.model_copy(update={"sla": None}))
    assert seen(free, [run(free, -60, -58)], 29).sla == 1800
    assert seen(free, [run(free, -60, -58)], 31).state == "late"


@pytest.mark.parametrize(
    ("state", "records", "service", "controls"),
    [
        ("fresh", [run(table(), 0, 2)], live(5), ()),
        ("running", [run(table(), 0, 2), run(table(), 4)], live(5), ()),
        ("waiting", [run(table(), -60, -58)], live(5, waiting={table().key: "no room"}), ()),
        ("paused", [run(table(), 0, 2)], live(5), (pause("orders", 3),)),
        ("will be late", [run(table(), -60, -48), run(table(), 1)], live(5), ()),
        ("never landed", [], replace(live(5), began=at(4)), ()),
        ("failed", [run(table(), -60, -58), run(table(), 0, 2, **FAILED)], live(5), ()),
        ("failed", [run(table(), -60, -58), run(table(), -15)], live(5), ()),
        (
            "quarantined",
            [run(table(), -60, -58), run(table(), 0, 2, **FAILED)],
            live(5, breakers={f"table:{table().key}": Breaker("", 5, at(2), at(9))}),
            (pause("orders", 3),),
        ),
        (
            "late",
            [run(table(), -120, -118), run(table(), 0)],
            live(5, breakers={f"table:{table().key}": Breaker("", 5, at(2), at(9))}),
            (pause("orders", 3),),
        ),
    ],
)
def test_a_table_is_in_the_worst_state_that_applies(
    state: str, records: list[RunRecord], service: Live, controls: tuple[ControlRecord, ...]
) -> None:
    """Late before quarantined, failed, about to be late, paused, running, waiting and fresh; each
    but fresh says why.
    """
    found = seen(table(), records, 5, service=service, controls=controls)
    assert found.state == state
    assert bool(found.why) == (state != "fresh")


def test_what_nobody_knows_is_not_green() -> None:
    """Without the governance tables everything is unknown; without runs nothing has landed."""
    orders = table()
    view = view_of(config(), [orders], None, live(0), (), (), at(0))
    assert view.tables[0].state == "unknown"
    assert {metric.state for metric in view.metrics} == {"unknown"}
    assert all(metric.why for metric in view.metrics)
    view = look([orders, table("new")], [run(orders, 0, 2)], 5, replace(live(5), began=at(4)))
    (freshness, *_) = view.metrics
    assert (freshness.state, freshness.why) == ("unknown", "public.new: it has never run")
    assert "1 never landed" in view.sentence


def test_a_new_table_is_late_when_it_was_due_and_has_not_landed() -> None:
    """Due since the service began, or since its first run."""
    new = table(schedule="daily 06:00", sla="1h")
    assert seen(new, [], 0, service=replace(live(0), began=at(-60))).deadline == at(18 * 60 + 60)
    assert seen(new, [], 0, service=live(0)).late == Late(at(-300), None, at(-360))
    failed = run(new, -360, -359, scheduled=-360, **FAILED)
    assert seen(new, [failed], 0, service=None).late == Late(at(-300), None, at(-360))


def test_a_table_that_is_new_to_the_service_is_due_from_then_on() -> None:
    """Not from the begin of the service; and its first run changes nothing."""
    old, new, outlooks = table("old"), table("new"), Outlooks()
    settings, service = config(), live(0)
    history = history_of(settings, [run(old, 0, 1)])
    view_of(settings, [old], history, service, (), (), at(0), outlooks)
    for now, state, records in ((95, "never landed", []), (96, "never landed", [run(new, 95)])):
        history.add(rows_of(records))
        view = view_of(settings, [old, new], history, live(now), (), (), at(now), outlooks)
        found = next(t for t in view.tables if t.table == new.label)
        assert (found.state, found.deadline) == (state, at(130))
    view = view_of(settings, [new], history, live(131), (), (), at(131), outlooks)
    assert view.tables[0].late == Late(at(130), None, at(120))


def test_a_stream_is_quiet_fresh_or_late_by_what_its_process_says() -> None:
    """A quiet source is fresh as long as it is heard; a silent one is late after its sla."""
    clicks = table("clicks", pattern="streaming", schedule="continuous", sla="1m")
    busy = StreamFacts("shop", at(-60), as_of=at(5), heard=at(5), changes_per_second=3.0)
    for facts, state in (
        (busy, "fresh"),
        (replace(busy, changes_per_second=0.0), "quiet"),
        (replace(busy, as_of=at(3), error="lost", error_kind="SourceUnreachable"), "late"),
    ):
        found = seen(clicks, [], 5, service=live(5, streams={"shop": facts}))
        assert found.state == state
    assert found.late == Late(at(4), None)
    assert found.why == "shop cannot be reached"
    assert seen(clicks, [], 5).state == "never landed"
    refused = live(5, streams={"shop": busy}, waiting={clicks.key: "it is not followed: no key."})
    found = seen(clicks, [], 5, service=refused)
    assert (found.state, found.why) == ("failed", "it is not followed: no key")


def test_a_stream_without_a_service_is_known_by_its_last_checkpoint() -> None:
    """It is as of then, and late when that is too long ago."""
    clicks = table("clicks", pattern="streaming", schedule="continuous", sla="1m")
    point = StreamPoint("shop", at(0), at(0), 0, 0.0, frozenset({clicks.target}))
    fresh = seen(clicks, [], 0.5, service=None, streams={"shop": point})
    assert (fresh.state, fresh.as_of) == ("fresh", at(0))
    assert seen(clicks, [], 2, service=None, streams={"shop": point}).state == "late"
    other = replace(point, targets=frozenset())
    assert seen(clicks, [], 0.5, service=None, streams={"shop": other}).state == "unknown"


def test_the_last_request_about_a_table_pauses_or_resumes_it() -> None:
    """By any of its names, until its end."""
    orders = table()
    asked = [pause("public.orders", 0, until=at(10))]
    assert pauses_of(asked, [orders], at(5))[orders.key].reason == "migration"
    assert pauses_of(asked, [orders], at(11)) == {}
    asked.append(pause("bronze.bz_orders", 3, action="resume"))
    assert pauses_of(asked, [orders], at(5)) == {}
    assert pauses_of([pause("customers", 0)], [orders], at(5)) == {}


def test_tables_are_in_the_order_of_their_slack() -> None:
    """The latest first, what has none between late and fresh ones."""
    tables = [table(name) for name in ("fresh", "late", "later", "new")]
    fresh, late, later, _ = tables
    records = [run(fresh, 0, 1), run(late, -60, -59), run(later, -120, -119)]
    view = look(tables, records, 15, replace(live(15), began=at(15)))
    assert [t.table.removeprefix("public.") for t in view.tables][:2] == ["later", "late"]
    slacks = [t.slack or 0.0 for t in view.tables]
    assert slacks == sorted(slacks)


def test_the_first_sentence_says_what_is_late_since_when_why_and_who_was_told() -> None:
    """In the words of the first page."""
    tables = [table(f"t{number}") for number in range(8)] + [table("orders"), table("items")]
    records = [run(own, 60, 61) for own in tables[:8]]
    records += [run(own, 0, 1) for own in tables[8:]]
    records += [run(own, 62, 63, **REFUSED) for own in tables[8:]]
    condition = Condition("source_unreachable", "shop", "critical", at(62), "shop is down")
    receipt = Receipt("open", "on-call", at(74), "ok")
    alert = Alert(condition, state="open", opened=at(63), receipts=(receipt,))
    breakers = {"source:shop": Breaker("source:shop", 1, at(63))}
    view = look(tables, records, 80, live(80, breakers=breakers), alerts=(alert,))
    assert view.sentence == (
        "2 of 10 tables are late; items since 13:10, because shop refuses connections;"
        " on-call was told at 13:14."
    )
    assert not view.is_well


@pytest.mark.parametrize(
    ("service", "records", "sentence"),
    [
        (live(5), [run(table(), 0, 2)], "The one table is fresh."),
        (None, [run(table(), 0, 2)], "No service has run. The one table is fresh."),
        (
            live(-180),
            [run(table(), 0, 2)],
            "The service on host host-1 was last heard 3 h 5 min ago. The one table is fresh.",
        ),
        (
            live(5),
            [run(table(), -60, -58), run(table(), 0, 2, **FAILED)],
            "No table is late, but of 1 table 1 failed; orders: its last run failed: No room.",
        ),
        (
            live(5),
            [run(table(), -60, -48), run(table(), 1)],
            "No table is late, but 1 of 1 table is about to be: orders ends at about 12:13,"
            " and is late from 12:10 on.",
        ),
    ],
)
def test_the_first_sentence_of_other_situations(
    service: Live | None, records: list[RunRecord], sentence: str
) -> None:
    """All well, no service, a dead one, a failure, what is about to be late."""
    assert look([table()], records, 5, service).sentence == sentence


def test_a_run_goes_on_as_the_service_says() -> None:
    """With its rows and share; without a service, if it has begun not long ago."""
    own = table()
    going = Running("run", "r1", at(1), 10, 0.42)
    records = [run(own, -60, -58), run(own, 1)]
    assert seen(own, records, 2, service=live(2, running={own.key: going})).running == going
    begun = [records[0], run(own, 1, scheduled=0, run_id="r1")]
    due = seen(own, begun, 2, service=live(2, running={own.key: going})).running
    assert due == replace(going, due=at(0))
    found = seen(own, records, 2, service=None)
    assert found.running == Running("run", "orders 1", at(1))
    assert found.expected_end == at(3)


def test_a_source_answers_again_when_the_service_has_probed_it() -> None:
    """Its last run may have failed; without a service that is what is known."""
    records = [run(table(), 0, 2, **REFUSED)]
    failing = live(5, breakers={"source:shop": Breaker("source:shop", 1, at(2))})
    for service, error in ((failing, True), (live(5), False), (None, True)):
        (source,) = look([table()], records, 5, service).sources
        assert (source.error == "refuses connections") == error
        assert source.since == (at(2) if error else None)


@given(
    runs=st.lists(st.tuples(st.integers(-600, 60), st.integers(1, 90)), max_size=12),
    status=st.sampled_from(["landed", "unchanged", "failed", "stopped"]),
    now=st.integers(60, 400),
    is_alive=st.booleans(),
)
@hypothesis_settings(max_examples=examples(200), deadline=None)
def test_green_is_only_what_has_landed_since_it_was_due(
    runs: list[tuple[int, int]], status: str, now: int, is_alive: bool
) -> None:
    """Late is exactly what is beyond its deadline; nothing is fresh without a landing in time; a
    kept memory changes nothing.
    """
    own = table()
    records = [run(own, began, began + took, status=status) for began, took in dict(runs).items()]
    settings, outlooks = config(), Outlooks()
    history = history_of(settings, [r for r in records if (r.ended or r.began) <= at(60)])
    service = live(now) if is_alive else None
    view_of(settings, [own], history, service, (), (), at(60), outlooks)
    found = view_of(settings, [own], history, service, (), (), at(now), outlooks).tables[0]
    anew = view_of(settings, [own], history, service, (), (), at(now)).tables[0]
    assert found == anew
    assert (found.late is not None) == (found.deadline is not None and found.deadline < at(now))
    if found.state in ("fresh", "running"):
        due = at(now // 60 * 60)
        landed = [r for r in records if r.status in ("landed", "unchanged") and r.as_of]
        assert any(r.as_of and r.as_of >= due - timedelta(minutes=60) for r in landed)
    if found.slack is not None:
        assert (found.slack < 0) == (found.late is not None)


def test_alerts_that_are_open_come_before_those_that_were_resolved_lately() -> None:
    """The worst first; what was resolved longer ago, or never opened, is left out."""

    def alert(name: str, level: str, state: str, **times: Any) -> Alert:
        condition = Condition("freshness", name, level, at(0), "It is late.")  # type: ignore[arg-type]
        return Alert(condition, state=state, **times)  # type: ignore[arg-type]

    alerts = (
        alert("old", "critical", "resolved", opened=at(-3000), resolved=at(-1441)),
        alert("first", "critical", "resolved", opened=at(-90), resolved=at(-80)),
        alert("second", "critical", "resolved", opened=at(-60), resolved=at(-50)),
        alert("pending", "critical", "pending"),
        alert("mild", "warning", "open", opened=at(-9)),
        alert("bad", "critical", "acknowledged", opened=at(-5), by="ada", acknowledged=at(-4)),
    )
    view = look([table()], [run(table(), 0, 1)], 5, live(5), alerts=alerts)
    assert [a.key[1] for a in view.alerts] == ["bad", "mild", "second", "first"]
    assert [a.key[1] for a in view.open_alerts] == ["bad", "mild"]
    assert view.sentence == (
        "The one table is fresh; 2 alerts are open: It is late; ada sees to it since 11:56."
    )
    resolved = look([table()], [run(table(), 0, 1)], 5, live(5), alerts=alerts[:4])
    assert resolved.is_well
    assert resolved.sentence == "The one table is fresh."
