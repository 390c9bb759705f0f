"""The five metrics: exactly as defined, and unknown where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bronze.governance.tables.runs import RunRecord
from bronze.operate.current import view_of
from bronze.operate.view import Live, Metric, Resources, StreamFacts
from bronze.quality.latest import Score
from tests.support.operators import Table, at, config, history_of, run, table

ORDERS, ITEMS = table(), table("items")
RESOURCES = Resources(0.5, 8 * 10**8, 10**9)


def metrics(
    now: float,
    records: Sequence[RunRecord],
    tables: Sequence[Table] = (ORDERS, ITEMS),
    scores: Mapping[str, Score] | None = None,
    **facts: Any,
) -> dict[str, Metric]:
    """The metrics of a service that began at noon and is heard now."""
    settings = config()
    live = Live("id", "host-1", 1, "0.1", began=at(0), at=at(now), **facts)
    history = history_of(settings, records)
    history._scores = scores or {}
    view = view_of(settings, tables, history, live, (), (), at(now))
    return {metric.name: metric for metric in view.metrics}


def test_freshness_is_of_the_table_that_uses_most_of_its_time() -> None:
    """By its own sla; the age is the time since the first due time that has not landed."""
    slow = table("slow", sla="2h")
    records = [run(ORDERS, 60, 61), run(slow, 5, 6)]
    fresh = metrics(125, records, [ORDERS, slow])["freshness"]
    assert (fresh.value, fresh.threshold, fresh.worst) == (3900, 7200, "public.slow")
    assert fresh.state == "ok"
    late = metrics(131, records, [ORDERS, slow])["freshness"]
    assert (late.value, late.threshold, late.worst) == (660, 600, "public.orders")
    assert (late.state, late.why) == ("critical", "public.orders is 11 min overdue")


def test_freshness_of_a_stream_is_the_age_of_its_state() -> None:
    """As of the moment up to which everything has landed."""
    clicks = table("clicks", pattern="streaming", schedule="continuous", sla="1m")
    stream = StreamFacts("shop", at(0), as_of=at(4), heard=at(5))
    found = metrics(4.5, [], [clicks], streams={"shop": stream})["freshness"]
    assert (found.value, found.threshold, found.state) == (30, 60, "ok")


def test_quality_is_of_the_last_runs_that_read_rows() -> None:
    """A later run without rows changes nothing; the lowest score counts."""
    records = [
        run(ORDERS, 0, 1, rows_read=10, score=80.0),
        run(ORDERS, 2, 3, rows_read=5, score=90.0),
        run(ORDERS, 4, 5, status="unchanged"),
        run(ITEMS, 0, 1, rows_read=5, score=95.0),
    ]
    found = metrics(6, records)["quality"]
    assert (found.value, found.worst, found.state) == (90, "public.orders", "ok")
    bad = metrics(6, [*records, run(ITEMS, 4, 5, rows_read=1, score=84.9)])["quality"]
    assert (bad.value, bad.state, bad.why) == (84.9, "warning", "public.items is below it")


def test_quality_of_a_stream_is_that_of_the_rows_it_has_recorded_last() -> None:
    """Until then it is unknown, with the reason, also beside tables whose quality is known."""
    clicks = table("clicks", pattern="streaming", schedule="continuous", sla="1m")
    unknown = metrics(6, [], [clicks])["quality"]
    why = "no quality of the streamed rows of public.clicks is recorded yet"
    assert (unknown.state, unknown.value, unknown.why) == ("unknown", None, why)
    beside = metrics(6, [run(ORDERS, 0, 1, rows_read=9, score=99.0)], [ORDERS, clicks])["quality"]
    assert (beside.state, beside.value, beside.why) == ("ok", 99, why)
    known = metrics(6, [], [clicks], scores={clicks.target: Score(at(5), 40, 84.0)})["quality"]
    assert (known.state, known.value, known.worst) == ("warning", 84, "public.clicks")


def test_duration_is_from_due_to_landed_and_of_a_run_that_goes_on() -> None:
    """A run of a command counts from its begin; one that failed does not."""
    records = [
        run(ORDERS, 5, 8, scheduled=0),
        run(ITEMS, 0, 4),
        run(ITEMS, 5, 500, status="failed"),
    ]
    found = metrics(9, records)["duration"]
    assert (found.value, found.worst, found.state) == (480, "public.orders", "ok")
    going = metrics(130, [*records[:2], run(ITEMS, 122, scheduled=5)])["duration"]
    assert (going.value, going.worst, going.state) == (7500, "public.items", "warning")
    failed = metrics(9, [run(ITEMS, 0, 4), run(ITEMS, 5, 6, status="failed")])["duration"]
    assert (failed.state, failed.why) == ("unknown", "no table's last run has landed")


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({"rows_read": 100, "quarantined": 2}, 0.02),
        ({"rows_read": 100, "quarantined": 2, "rejected": 1}, 0.03),
        ({"rows_read": 100, "quarantined": 100, "rejected": 100}, 1.0),
        ({"rows_read": 99, "quarantined": 99}, None),
        ({"rows_read": 0}, None),
    ],
)
def test_failed_records_are_a_share_of_at_least_100_rows(
    values: dict[str, int], share: float | None
) -> None:
    """Rows that were quarantined and values that were rejected, at most all."""
    found = metrics(6, [run(ORDERS, 0, 1, **values)])["failed"]
    assert found.value == share
    assert found.state == ("unknown" if share is None else "ok" if share <= 0.02 else "critical")


def test_resources_are_the_larger_share_of_processors_and_memory() -> None:
    """Without a service, or before it has measured, they are unknown."""
    found = metrics(5, [], resources=RESOURCES)["resources"]
    assert (found.value, found.worst, found.state) == (0.8, "memory", "ok")
    busy = metrics(5, [], resources=replace(RESOURCES, cpu=0.81))["resources"]
    assert (busy.worst, busy.state, busy.why) == ("CPU", "warning", "CPU is at 81%")
    assert metrics(5, [])["resources"].why == "the service has not measured them yet"


def test_resources_have_the_largest_shares_of_the_last_day_that_the_service_knows() -> None:
    """A half hour in which no service ran has none, and neither has one of earlier days."""
    usage = ((at(-1500), 0.9), (at(-1410), 0.7), (at(0), 0.4))
    found = metrics(20, [], resources=RESOURCES, usage=usage)["resources"]
    assert found.recent == ((at(-1410), 0.7), (at(0), 0.4))


def test_what_nothing_is_known_of_is_unknown_with_a_reason() -> None:
    """Without runs; freshness also where one table of several is not known."""
    for metric in metrics(5, []).values():
        assert metric.state == "unknown"
        assert metric.why
    assert metrics(5, [run(ORDERS, 0, 1)])["freshness"].state == "unknown"
    assert metrics(5, [run(ORDERS, 0, 1), run(ITEMS, 0, 1)])["freshness"].state == "ok"


def test_metrics_have_the_worst_values_of_the_last_day() -> None:
    """By half hours, of all tables."""
    records = [
        run(ORDERS, 0, 2, scheduled=0, rows_read=200, score=99.0),
        run(ITEMS, 0, 1, scheduled=0),
        run(ORDERS, 65, 70, scheduled=60, rows_read=200, score=91.0, rejected=4),
        run(ITEMS, 60, 61, scheduled=60),
    ]
    found = metrics(75, records)
    assert found["freshness"].recent == ((at(60), 600),)
    assert found["duration"].recent == ((at(0), 120), (at(60), 600))
    assert found["quality"].recent == ((at(0), 99), (at(60), 91))
    assert found["failed"].recent == ((at(0), 0), (at(60), 0.02))
    assert metrics(3000, records)["duration"].recent == ()
