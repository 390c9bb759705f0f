"""Models, scores, reasons and profiles, without a database."""

from __future__ import annotations

import datetime as dt
import json
import math
import pickle
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.anomaly import training
from bronze.anomaly.detection import reasons_of, score_rows
from bronze.anomaly.features import feature_values
from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import MAX_OUTLIERS, SKETCH_SIZE, Feature, Model, Monitoring
from bronze.model.columns import Column, DeltaType
from bronze.model.stamp import RowStamp
from bronze.model.units import Findings
from tests.support.effort import examples

DAY = dt.datetime(2026, 1, 10, tzinfo=dt.UTC)
STAMP = RowStamp("a batch", DAY, "shop", "batch")


def columns(**kinds: str) -> list[Column]:
    """Contracts of columns by name and kind."""
    return [
        Column(name, name, "", DeltaType(kind), "same", "", "", "", "", base_type="text")  # type: ignore[arg-type]
        for name, kind in kinds.items()
    ]


def shop(height: int, seed: int = 1) -> pl.DataFrame:
    """Ordinary rows."""
    chance = np.random.default_rng(seed)
    days = chance.integers(0, 300, height)
    return pl.DataFrame(
        {
            "id": np.arange(height),
            "price": chance.normal(100, 15, height),
            "pieces": chance.integers(1, 9, height),
            "state": chance.choice(["new", "paid", "sent"], height),
            "sold": [DAY - dt.timedelta(days=int(day)) for day in days],
        }
    )


KINDS = {"price": "double", "pieces": "long", "state": "string", "sold": "timestamp"}


def model(rows: pl.DataFrame, kinds: dict[str, str] | None = None, **given: Any) -> Model:
    """A model of rows."""
    wanted = {"expected": 0.01, "trees": 20, "seed": 7, **given}
    features = training.find_features(rows, columns(**(kinds or KINDS)), set())
    made = training.train(rows, features, DAY, rows.height, **wanted)
    assert made is not None
    return made


def test_the_same_sample_gives_the_same_version() -> None:
    """A different seed, expected share or sample gives a different version."""
    rows = shop(500)
    first = model(rows)
    assert first.version == model(rows).version
    others = [model(rows, seed=8), model(rows, expected=0.02), model(shop(500, 2))]
    assert len({first.version, *(other.version for other in others)}) == 4


def test_about_the_expected_share_of_rows_are_anomalies() -> None:
    """The scores of the expected share of the sample are above the threshold."""
    rows = shop(5000)
    made, found = score_rows(rows, Monitoring(model(rows, expected=0.02)), ["id"], STAMP)
    assert 0.01 <= made["is_anomaly"].mean() <= 0.03  # type: ignore[operator]
    assert found.count == made["is_anomaly"].sum()
    assert found.scored == 5000
    assert made["anomaly_score"].is_between(0, 1).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [("price", 1e9), ("price", -1e300), ("price", math.inf), ("pieces", 10**17)],
)
def test_the_first_reason_is_the_column_of_the_outlier(column: str, value: float) -> None:
    """A large outlier is an anomaly, and the first reason is its column."""
    planted = shop(3000).with_columns(
        pl.when(pl.col("id") % 500 == 7).then(value).otherwise(pl.col(column)).alias(column)
    )
    planted = planted.cast({"pieces": pl.Int64, "price": pl.Float64})
    made = model(planted, expected=0.002, trees=100)
    rows, found = score_rows(planted, Monitoring(made), ["id"], STAMP)
    assert set(rows.filter("is_anomaly")["id"]) >= {7, 507, 1007, 1507, 2007, 2507}
    reasons = dict(zip(found.rows["key"], reasons_of(made, found), strict=True))
    first = json.loads(reasons[json.dumps({"id": 507})])[0]
    assert first["column"] == column
    assert first["contribution"] > 0.5


def test_an_unknown_category_scores_higher_than_a_common_one() -> None:
    """A value that is not in the sample is less likely than one that most rows have, whatever the
    seed.
    """
    few = pl.when(pl.col("id") % 10 < 8).then(pl.lit("paid")).otherwise(pl.col("state"))
    rows = shop(3000).with_columns(few.alias("state"))
    two = pl.DataFrame({"id": [1, 2], "price": [100.0, 100.0], "state": ["paid", "stolen"]})
    for seed in range(5):
        made = model(rows, {"state": "string", "price": "double"}, trees=50, seed=seed)
        known, unseen = score_rows(two, Monitoring(made), ["id"], STAMP)[0]["anomaly_score"]
        assert unseen > known


def test_new_rows_are_no_anomalies_because_they_are_new() -> None:
    """The age of a time after the model's moment is 0 once it has passed, and negative before."""
    ages = [Feature("sold", "age")]
    later = DAY + dt.timedelta(days=400)
    times = [DAY - dt.timedelta(days=3), DAY + dt.timedelta(days=399), later + dt.timedelta(days=9)]
    rows = pl.DataFrame({"sold": [*times, None]})
    assert feature_values(rows, ages, DAY, later)[0].tolist() == [3, 0, -9, 0]


VALUES = st.one_of(
    st.none(), st.floats(), st.sampled_from([math.inf, -math.inf, math.nan, 1e308, -1e308, 0.0])
)


@given(st.lists(VALUES, min_size=60, max_size=80), st.lists(VALUES, min_size=1, max_size=5))
@settings(derandomize=True, database=None, deadline=None, max_examples=examples(6))
def test_any_number_has_a_score(sample: list[float | None], rows: list[float | None]) -> None:
    """Whatever the sample, NULL, infinite and huge values get finite scores."""
    kinds = {"value": "double"}
    frame = pl.DataFrame({"value": sample}, schema={"value": pl.Float64})
    features = training.find_features(frame, columns(**kinds), {"value"})
    made = training.train(frame, features, DAY, 80, expected=0.1, trees=10, seed=1)
    if made is None:
        return
    other = pl.DataFrame({"value": rows}, schema={"value": pl.Float64})
    found = score_rows(other, Monitoring(made), [], STAMP)[0]
    assert found["anomaly_score"].is_between(0, 1).all()
    assert found["is_anomaly"].null_count() == 0


@pytest.mark.parametrize("values", [[None] * 60, [5.0] * 60, [math.nan] * 60])
def test_constant_columns_give_no_model(values: list[float | None]) -> None:
    """A sample whose rows all have the same features cannot train a forest."""
    frame = pl.DataFrame({"value": values}, schema={"value": pl.Float64})
    features = training.find_features(frame, columns(value="double"), set())
    assert training.train(frame, features, DAY, 60, expected=0.1, trees=10, seed=1) is None


def test_each_kind_of_column_has_its_feature() -> None:
    """Numbers, ages, categories and lengths are features; identifiers are only if selected."""
    rows = shop(200).with_columns(
        note=pl.Series([f"{'x' * (i % 60)}{i}" for i in range(200)]), maybe=pl.lit(True)
    )
    kinds = {"id": "long", **KINDS, "note": "string", "maybe": "boolean"}
    found = training.find_features(rows, columns(**kinds), set())
    assert {(f.column, f.measure) for f in found} == {
        ("price", "number"),
        ("pieces", "number"),
        ("state", "frequency"),
        ("sold", "age"),
        ("note", "length"),
        ("maybe", "frequency"),
    }
    chosen = training.find_features(rows, columns(id="long"), {"id"})
    assert [f.measure for f in chosen] == ["number"]


def test_without_a_model_there_is_no_score() -> None:
    """The columns exist and are NULL."""
    made, found = score_rows(shop(3), Monitoring(), ["id"], STAMP)
    assert made["anomaly_score"].null_count() == made["is_anomaly"].null_count() == 3
    assert made.schema["is_anomaly"] == pl.Boolean
    assert found.count == 0


def test_findings_of_parts_add_up_to_those_of_the_whole() -> None:
    """All anomalies are counted and those with the highest scores kept, however it is divided."""
    rows = shop(6000)
    watch = Monitoring(model(rows, expected=0.3), tuple(rows.columns), frozenset({"price"}))
    parts = [rows[:10], rows[10:4000], rows[4000:]]

    def findings(part: pl.DataFrame) -> Findings:
        return Findings(score_rows(part, watch, ["id"], STAMP)[1], profile_of(part, watch))

    whole = findings(rows)
    summed = Findings()
    for part in parts:
        summed += findings(part)
    assert summed.outliers.count == whole.outliers.count > MAX_OUTLIERS
    assert summed.outliers.rows["score"].to_list() == whole.outliers.rows["score"].to_list()
    assert summed.profile.rows == 6000
    for name, column in whole.profile.columns.items():
        total = summed.profile.columns[name]
        assert total.hashes.tolist() == column.hashes.tolist(), name
        assert (total.nulls, total.numbers) == (column.nulls, column.numbers)
        assert total.sum == pytest.approx(column.sum)


@pytest.mark.parametrize("count", [1, SKETCH_SIZE - 1, 20_000])
def test_distinct_values_are_estimated(count: int) -> None:
    """Small numbers are exact, large ones are within some percent."""
    rows = pl.DataFrame({"value": [i % count for i in range(60_000)]})
    found = profile_of(rows, Monitoring(None, ("value",))).columns["value"]
    assert found.distinct == pytest.approx(count, rel=0 if count < SKETCH_SIZE else 0.15)
    assert found.mean is None


def test_a_pickled_model_gives_the_same_scores() -> None:
    """Units take models to other processes."""
    rows = shop(300)
    watch = Monitoring(model(rows))
    other: Monitoring = pickle.loads(pickle.dumps(watch))  # noqa: S301
    before, after = (
        score_rows(rows, each, ["id"], STAMP)[0]["anomaly_score"] for each in (watch, other)
    )
    assert before.to_list() == after.to_list()
    assert watch.model == other.model
