"""The choice of columns to cluster by: what it prefers, what it says, and that it does not flap."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.delta.layout import choice, optimize
from bronze.delta.layout.choice import Choice, Queries, Question
from bronze.delta.layout.optimize import TableLayout
from bronze.model.locations import Place
from tests.unit.delta.layout.test_liquid import improve
from tests.unit.delta.layout.test_optimize import content, put, rows, state_of

FIRST = dt.datetime(2024, 1, 1)


def sales(count: int = 6000) -> pl.DataFrame:
    """Sales by arrival: keys and times ascend, customers and shops come in any order."""
    draw = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "id": np.arange(count),
            "sold_at": [FIRST + dt.timedelta(minutes=n) for n in range(count)],
            "customer": draw.integers(0, 400, count),
            "shop": [f"shop {n}" for n in draw.integers(0, 40, count)],
            "ticket": [draw.bytes(8).hex() for _ in range(count)],
            "one": ["x"] * count,
        }
    )


def decided(
    queries: Queries | None = None, present: tuple[str, ...] = (), frame: pl.DataFrame | None = None
) -> Choice:
    """What is chosen for the sales."""
    frame = sales() if frame is None else frame
    question = Question((frame,), ("id",), present, 32, 10**6, queries or Queries())
    return choice.choose(question)


def test_the_columns_that_queries_filter_are_chosen() -> None:
    """The best columns by the log's filters, with a reason that has the figures."""
    found = decided(Queries({"CUSTOMER": 90, "shop": 30, "gone": 500}))
    assert sorted(found.by) == ["customer", "shop"]
    assert "customer is in 90 of 620 filters" in found.why
    assert "%" in found.why
    assert decided(Queries({"ticket": 10})).by == ("ticket",)
    # Each file has all of them anyway.
    assert decided(Queries({"one": 10})).by == ()


def test_what_arrives_in_order_is_left_in_order() -> None:
    """Filters on the key and on times skip as they are: nothing is worth a rewrite."""
    for queries in (Queries({"id": 50}), Queries({}, {"sold_at": 50})):
        found = decided(queries)
        assert found.by == ()
        assert "a rewrite is not worth it" in found.why
    shuffled = sales().sample(fraction=1, shuffle=True, seed=1)
    assert decided(Queries({"id": 50}), frame=shuffled).by == ("id",)


@pytest.mark.soak
def test_a_choice_does_not_flap() -> None:
    """What was chosen is chosen again, also where another column is a little better now."""
    queries = Queries({"customer": 90, "shop": 60})
    first = decided(queries)
    assert decided(queries, first.by).by == first.by
    near = Queries({"customer": 88, "shop": 62})
    assert near.fingerprint == queries.fingerprint
    assert decided(Queries({"customer": 70, "shop": 80}), first.by).by == first.by
    assert decided(Queries({"ticket": 100}), first.by).by == ("ticket",)


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"by": 1}', "[" * 100_000])
def test_a_property_that_cannot_be_read_is_no_choice(text: str) -> None:
    """Then columns are chosen again."""
    assert Choice.read(text) is None
    stored = Choice(("a", "b"), "why", 5, "")
    assert Choice.read(stored.text) == stored


def test_empty_samples_and_columns_of_nulls_are_no_error() -> None:
    """There is nothing to choose from."""
    empty = sales().clear()
    assert decided(frame=empty).by == ()
    nulls = sales().with_columns(customer=pl.lit(None, pl.Int64))
    assert "customer" not in decided(Queries({"customer": 1, "shop": 1}), frame=nulls).by


def test_a_table_is_clustered_by_what_was_chosen(tmp_path: Path) -> None:
    """The choice is in the table's properties; it is made once, again when the table has doubled or
    the queries differ; rows stay as they are.
    """
    place = Place(str(tmp_path / "t"))
    wish = TableLayout((), 4_000, auto=Queries({"place": 10}))
    put(place, rows(100))
    assert not optimize.is_needed(state_of(place), TableLayout((), 10**6, auto=Queries()))
    for seed in range(1, 12):
        put(place, rows(100, seed))
    before = content(place)
    assert optimize.is_needed(state_of(place), wish)
    result = improve(place, wish)
    assert result.choice is not None
    assert result.choice.by == ("place",)
    assert result.rows == 1200
    assert content(place) == before
    assert choice.chosen(state_of(place)) == ("place",)
    named = DeltaTable(place.url).history(1)[0]["operationParameters"]
    assert named["clusterBy"] == '["place"]'
    assert not optimize.is_needed(state_of(place), wish)
    put(place, rows(100, 20))
    assert improve(place, wish).choice is None
    other = TableLayout((), 4_000, auto=Queries({"name": 10}))
    assert optimize.is_needed(state_of(place), other)
    liquid = TableLayout((), 4_000, auto=Queries({"place": 10}), liquid=True)
    improve(place, liquid)
    assert state_of(place).clustering == ("place",)
