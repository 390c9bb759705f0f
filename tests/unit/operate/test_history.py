"""The history: what records of runs tell of tables and sources, in whatever parts they come."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from random import Random

import polars as pl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.operate.facts import essential_runs, run_reader
from bronze.operate.facts.table_history import Histories
from bronze.operate.freshness import Landing
from bronze.operate.history import History
from tests.support.effort import examples
from tests.support.operators import at, config, history_of, rows_of, run, table

ORDERS = table()


def test_a_table_has_its_landings_durations_and_last_runs() -> None:
    """Landed and unchanged runs land; the last run that read rows and the last verification stay
    known. What a command ran counts for the time at which it began.
    """
    records = [
        run(ORDERS, 0, 2, scheduled=0, rows_read=7),
        run(ORDERS, 60, 61, scheduled=60, status="unchanged"),
        run(ORDERS, 62, 63, command="verify", status="differs"),
        run(ORDERS, 64, 66, command="maintain", status="done"),
        run(ORDERS, 120, 125, scheduled=120, status="failed"),
        run(ORDERS, 130, 131, status="stopped"),
    ]
    known = history_of(config(), records).tables[ORDERS.key]
    assert known.landings == (Landing(at(0), at(2)), Landing(at(60), at(61)))
    assert known.durations == (120, 60)
    assert (known.first, known.begun_for) == (at(0), at(130))
    assert known.last is not None
    assert (known.last.status, known.last.began) == ("stopped", at(130))
    assert known.last_read is not None
    assert known.last_read.rows_read == 7
    assert known.verified is not None
    assert known.verified.status == "differs"


def test_runs_that_only_began_are_in_flight_until_a_later_one_ends() -> None:
    """One that is not heard of while a later one ends was of a process that died."""
    history = history_of(config(), [run(ORDERS, 0), run(ORDERS, 5)])
    assert set(history.in_flight) == {"orders 0", "orders 5"}
    history.add(rows_of([run(ORDERS, 5, 7)]))
    assert history.in_flight == {}
    history.add(rows_of([run(ORDERS, 9)]))
    assert set(history.in_flight) == {"orders 9"}
    assert [record.status for record in history.runs(ORDERS.key)] == ["began", "landed", "began"]


def test_only_the_last_day_and_the_last_hundred_runs_stay() -> None:
    """With at least two landings, however long ago they were."""
    records = [run(ORDERS, minute, minute + 1) for minute in range(-6000, 0, 30)]
    history = history_of(config(), records)
    landings = history.tables[ORDERS.key].landings
    assert landings[-1].ended - landings[1].ended <= timedelta(hours=25)
    assert len(landings) == 52
    rare = [run(ORDERS, day * 1440, day * 1440 + 1) for day in (-30, -20, -10)]
    assert len(history_of(config(), rare).tables[ORDERS.key].landings) == 2


def test_a_source_fails_from_its_first_failure_until_it_answers() -> None:
    """Also where a run fails before its tables are known; other errors say nothing of it."""
    down = {"status": "failed", "error_kind": "SourceUnreachable", "error_message": "no route"}
    before = RunRecord("r0", "run", at(60), ended=at(61), **down)  # type: ignore[arg-type]
    records = [run(ORDERS, 0, 1), before, run(ORDERS, 70, 71, **down)]
    history = history_of(config(), records)
    assert history.sources["shop"].since == at(61)
    history.add(rows_of([run(ORDERS, 80, 81, status="failed", error_kind="LakeError")]))
    assert history.sources["shop"].failure is not None
    history.add(rows_of([run(ORDERS, 90, 91)]))
    assert history.sources["shop"].failure is None


def test_the_last_day_has_the_worst_figures_of_each_half_hour() -> None:
    """The longest time from due to landed, the lowest score, the largest share of failed rows."""
    records = [
        run(ORDERS, 5, 8, scheduled=0, rows_read=200, score=90.0, quarantined=1, rejected=1),
        run(table("items"), 9, 10, scheduled=0, rows_read=50, score=80.0, quarantined=50),
        run(ORDERS, 60, 61, scheduled=60),
        run(ORDERS, -1500, -1499),
    ]
    figures = history_of(config(), records).half_hours
    assert {time: (one.processing, one.score, one.failed) for time, one in figures.items()} == {
        at(0): (600, 80, 0.01),
        at(60): (60, None, None),
    }


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["orders", "items"]),
            st.integers(0, 40),
            st.sampled_from(["began", "landed", "failed"]),
        ),
        max_size=20,
    ),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
@hypothesis_settings(max_examples=examples(100), deadline=None)
def test_records_that_come_in_parts_tell_the_same(
    events: list[tuple[str, int, str]], cuts: list[int]
) -> None:
    """A history that is kept up knows what one knows that reads all at once."""
    records = [
        run(table(name), minute, None if status == "began" else minute + 1, status=status)
        for name, minute, status in events
    ]
    rows = rows_of(records)
    whole, kept_up = History(config()), History(config())
    whole.add(rows)
    bounds = sorted({0, rows.height, *(min(cut, rows.height) for cut in cuts)})
    for begin, end in itertools.pairwise(bounds):
        kept_up.add(rows[begin:end])
    assert kept_up.tables == whole.tables
    assert kept_up.half_hours == whole.half_hours
    for key in whole.tables:
        assert kept_up.runs(key) == whole.runs(key)


@given(seed=st.integers(0, 2**32), step=st.sampled_from([20, 100, 700]))
@hypothesis_settings(max_examples=examples(40), deadline=None)
def test_few_records_tell_what_all_tell(seed: int, step: int) -> None:
    """Those that are chosen before any become objects are enough for all that is known."""
    random, records = Random(seed), []  # noqa: S311 - no secret depends on it
    weights = [random.choice([0, 1, 9]) for _ in range(4)]
    for number in range(random.randrange(150)):
        name = random.choice(["orders", "items", "items", "goods", ""])
        began = number * step + random.randint(-100, 100)
        status = random.choices(["landed", "began", "failed", "stopped"], [1, *weights[:3]])[0]
        kinds = ["SourceUnreachable", "LakeError"]
        before = random.choice([None, 0, 0.5, 90, -9000])
        values = {
            "run_id": f"r{number}",
            "command": random.choice(["run", "run", "run", "verify", "maintain"]),
            "status": status,
            "error_kind": random.choice(kinds) if status == "failed" else "",
            "scheduled": None if before is None else began - before,
            "rows_read": random.choices([0, 200], [9, 1])[0],
            "score": 99.0 - number % 7,
        }
        own = run(table(name or "none"), began, None if status == "began" else began + 3, **values)
        records.append(own if name else replace(own, source_table="", target_table=""))
    rows = runs.frame(records)
    marks = essential_runs.marks_of(rows)
    chosen = rows.filter(essential_runs.is_essential(marks))
    whole, few = Histories(("shop",)), Histories(("shop",))
    whole.add(records)
    few.add(run_reader.of_rows(chosen))
    for key, known in whole.tables.items():
        assert few.tables[key] == known
    assert few.sources == whole.sources
    assert few.chores == whole.chores
    assert few.half_hours.figures == whole.half_hours.figures


def test_few_of_many_records_are_chosen() -> None:
    """Of a table that runs each hour, those of the last day; of others some twenty."""
    for minutes, most in ((60, 28), (600, 23)):
        records = [run(ORDERS, n * minutes, n * minutes + 1, rows_read=1) for n in range(90)]
        marks = essential_runs.marks_of(runs.frame(records))
        assert 20 <= essential_runs.is_essential(marks).sum() <= most


def test_only_tables_whose_last_runs_failed_or_died_are_looked_at_by_each_run() -> None:
    """A failure of long ago does not count, nor a run that has begun and ended."""
    items, goods = table("items"), table("goods")
    records = [run(ORDERS, 0, 1, status="failed"), run(items, 0, 1, status="failed")]
    records += [run(ORDERS, minute, minute + 1) for minute in range(10, 50, 10)]
    records += [run(goods, 0), run(goods, 0, 1), run(table("new"), 5)]
    unsteady = history_of(config(), records).unsteady_runs(4)
    assert set(unsteady) == {items.key, table("new").key}
    assert [record.status for record in unsteady[items.key]] == ["failed"]


def test_the_last_due_times_of_chores_are_known() -> None:
    """Of verifications by their source, of maintenance of all; not those that a command began."""
    records = [
        run(ORDERS, 5, 6, command="verify", scheduled=5, status="equal"),
        run(ORDERS, 9, command="verify", scheduled=8),
        run(ORDERS, 20, 21, command="verify", status="equal"),
        run(ORDERS, 1, 2, command="maintain", scheduled=1, status="done"),
    ]
    chores = history_of(config(), records).chores
    assert chores == {("verify", "shop"): at(8), ("maintain", ""): at(1)}


def test_the_last_records_are_chosen_whatever_file_they_are_in() -> None:
    """The rows of overlapping parts come in the order of their times."""
    rows = rows_of([run(ORDERS, minute, minute + 1) for minute in range(12)])
    parts = [rows[0:6:2], rows[1:9:2], rows[6:12:2], rows[9:12:2]]
    ordered = pl.concat(run_reader._in_order(parts))
    assert ordered["run_id"].to_list() == rows["run_id"].to_list()
