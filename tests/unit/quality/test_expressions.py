"""Rules about one column, and expressions of users: what they mean, and which are refused."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.config.sections.quality import RuleSettings
from bronze.model.columns import Column, DeltaType
from bronze.postgres.copy.rows_reader import dtype
from bronze.quality.expressions import Unfit, columns_of, condition_of
from bronze.quality.scoring import MOMENT, expression
from tests.support.effort import examples

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PROVEN = settings(derandomize=True, database=None, deadline=None, max_examples=examples(10))


def column(kind: DeltaType, name: str = "x") -> Column:
    """A column of a type."""
    return Column(name, name, str(kind), kind, "same", "", "", "", "")


def kept(rule: dict[str, Any], kind: DeltaType, values: list[Any]) -> list[bool]:
    """Which values meet a rule on their column, after the rule was serialised."""
    made = condition_of(RuleSettings.model_validate({"column": "x", **rule}), column(kind))
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype(kind))})
    frame = frame.with_columns(pl.lit(NOW).alias(MOMENT))
    holds = expression(made.meta.serialize())
    return frame.select(holds.fill_null(True)).to_series().to_list()


DECIMAL = DeltaType("decimal", 6, 2)
_SMALL = st.integers(-40_000, 40_000)
CASES: dict[str, tuple[DeltaType, Any, Any]] = {
    "short": (DeltaType("short"), st.integers(-(2**15), 2**15 - 1), st.integers(-(2**17), 2**17)),
    "int": (DeltaType("int"), _SMALL, _SMALL | st.floats(-9, 9)),
    "decimal": (
        DECIMAL,
        st.integers(-999_999, 999_999).map(lambda n: Decimal(n).scaleb(-2)),
        st.floats(-20_000, 20_000) | _SMALL | st.decimals(-99, 99, places=3),
    ),
    "double": (DeltaType("double"), st.floats(allow_nan=False), st.floats(-9, 9) | _SMALL),
    "float": (DeltaType("float"), st.floats(-9, 9, width=32), st.floats(-9, 9)),
    "string": (DeltaType("string"), st.text("abé", max_size=3), st.text("abé", max_size=3)),
    "date": (
        DeltaType("date"),
        st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 9)),
        st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 9)),
    ),
    "timestamp": (
        DeltaType("timestamp"),
        st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2), timezones=st.just(dt.UTC)),
        st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2), timezones=st.just(dt.UTC)),
    ),
}


def _exact(value: Any, inexact: bool) -> Any:
    # A float means the number that is written in the config.
    return Decimal(str(value)) if isinstance(value, float) and not inexact else value


@pytest.mark.parametrize("case", CASES)
def test_a_range_includes_its_bounds(case: str) -> None:
    """Both bounds and NULL meet it, and bounds between two values are not rounded outwards."""
    kind, values, bounds = CASES[case]

    @PROVEN
    @given(st.lists(st.none() | values, min_size=1, max_size=8), bounds, st.none() | bounds)
    def check(cells: list[Any], low: Any, high: Any) -> None:
        limits = {"min": low} if high is None else {"min": low, "max": high}
        inexact = case in ("double", "float")
        wanted = [
            v is None
            or (_exact(low, inexact) <= v and (high is None or v <= _exact(high, inexact)))
            for v in cells
        ]
        try:
            found = kept({"range": limits}, kind, cells)
        except Unfit:
            # No value is in the range.
            found = [v is None for v in cells]
        assert found == wanted

    check()


@PROVEN
@given(st.lists(st.none() | st.text("ab.é\n🚀", max_size=5)), st.integers(0, 3), st.integers(3, 5))
def test_lengths_count_characters_and_patterns_match_anywhere(
    cells: list[str | None], low: int, high: int
) -> None:
    """Lengths are not bytes; only ^ and $ bind a pattern to the ends."""
    lengths = [v is None or low <= len(v) <= high for v in cells]
    assert kept({"length": {"min": low, "max": high}}, DeltaType("string"), cells) == lengths
    for pattern in ("a.b", "^a", "é", r"\."):
        found = [v is None or re.search(pattern, v) is not None for v in cells]
        assert kept({"pattern": pattern}, DeltaType("string"), cells) == found


@pytest.mark.parametrize(
    ("kind", "values", "good", "bad"),
    [
        (DeltaType("int"), [1, 2], 1, 3),
        (DECIMAL, [0.1, 2], Decimal("0.10"), Decimal("0.11")),
        (DeltaType("string"), ["a", ""], "", "A"),
        (DeltaType("boolean"), [True], True, False),
        (DeltaType("float"), [0.1], 0.1, 0.2),
        (DeltaType("date"), [dt.date(2020, 1, 1)], dt.date(2020, 1, 1), dt.date(2020, 1, 2)),
    ],
)
def test_accepted_values_have_the_type_of_the_column(
    kind: DeltaType, values: list[Any], good: Any, bad: Any
) -> None:
    """Listed values and NULL meet the rule; other values break it."""
    assert kept({"accepted_values": values}, kind, [good, bad, None]) == [True, False, True]


def test_not_null_and_freshness() -> None:
    """NULL breaks not_null only; ages are measured from the moment of the run, those of dates from
    their beginning.
    """
    assert kept({"not_null": True}, DeltaType("int"), [1, None]) == [True, False]
    hour = dt.timedelta(hours=1)
    times = [NOW - hour, NOW - hour - dt.timedelta(microseconds=1), NOW + hour, None]
    fresh = [True, False, True, True]
    assert kept({"freshness": "1h"}, DeltaType("timestamp"), times) == fresh
    plain = [time and time.replace(tzinfo=None) for time in times]
    assert kept({"freshness": "1h"}, DeltaType("timestamp_ntz"), plain) == fresh
    days = [dt.date(2026, 3, 1), dt.date(2026, 2, 28)]
    assert kept({"freshness": "12h"}, DeltaType("date"), days) == [True, False]


@pytest.mark.parametrize(
    ("rule", "kind", "reason"),
    [
        ({"range": {"min": 40_000}}, DeltaType("short"), "could never hold: no value of short"),
        ({"range": {"max": -10_000}}, DECIMAL, "could never hold: no value of"),
        (
            {"range": {"min": 2, "max": 1}},
            DeltaType("int"),
            "could never hold: min is more than max",
        ),
        ({"range": {"min": 1.2, "max": 1.8}}, DeltaType("int"), "could never hold"),
        ({"range": {"min": "a"}}, DeltaType("int"), "'a' is not a value of column x, which is int"),
        ({"range": {"min": True}}, DeltaType("int"), "is not a value"),
        ({"range": {"min": float("nan")}}, DeltaType("double"), "is not a value"),
        ({"range": {"min": float("inf")}}, DECIMAL, "is not a value"),
        ({"range": {"min": 1}}, DeltaType("boolean"), "has no range"),
        ({"range": {"min": 1}}, DeltaType("date"), "is not a value"),
        ({"range": {"min": NOW}}, DeltaType("timestamp_ntz"), "is not a value"),
        ({"accepted_values": [0.125]}, DECIMAL, "is not a value"),
        ({"accepted_values": [12345]}, DECIMAL, "is not a value"),
        ({"accepted_values": [2**31]}, DeltaType("int"), "is not a value"),
        ({"accepted_values": [1]}, DeltaType("string"), "is not a value"),
        ({"accepted_values": [1]}, DeltaType("boolean"), "is not a value"),
        ({"accepted_values": ["x"]}, DeltaType("binary"), "has no values to compare with"),
        ({"pattern": "a"}, DeltaType("int"), "is not text but int"),
        ({"length": {"min": 1}}, DeltaType("binary"), "is not text but binary"),
        ({"freshness": "1h"}, DeltaType("string"), "has no age"),
    ],
)
def test_rules_that_cannot_be_used_are_refused(
    rule: dict[str, Any], kind: DeltaType, reason: str
) -> None:
    """The error has the reason, and no row is read."""
    with pytest.raises(Unfit, match=re.escape(reason)):
        condition_of(RuleSettings.model_validate({"column": "x", **rule}), column(kind))


SCHEMA = {"i": pl.Int32, "d": pl.Decimal(6, 2), "s": pl.String, "t": pl.Datetime("us", "UTC")}
ROW_EXPRESSIONS: list[Callable[[], pl.Expr]] = [
    lambda: pl.sql_expr("i > 0 AND length(s) < 9 OR d BETWEEN 1 AND 2"),
    lambda: pl.sql_expr("s LIKE 'a%' AND s ~ '^a' AND upper(s) IN ('A', 'B')"),
    lambda: pl.sql_expr("CASE WHEN i > 1 THEN d > 1 ELSE s IS NULL END"),
    lambda: pl.sql_expr("coalesce(s, 'x') <> 'x' AND extract(year from t) >= 2020 AND i % 2 = 0"),
    lambda: pl.sql_expr("TRY_CAST(s AS INT) > 0"),
    lambda: pl.col("i").is_between(1, 2) & pl.col("s").str.contains("a", literal=True),
    lambda: pl.any_horizontal(pl.col("i") > 1, pl.col("d").abs() > 1),
    lambda: pl.when(pl.col("i") > 1).then(pl.col("t").dt.year() > 2000).otherwise(None),
]


def test_expressions_of_one_row_are_accepted() -> None:
    """SQL and polars expressions, with the columns that they read."""
    for make in ROW_EXPRESSIONS:
        assert set(columns_of(make(), SCHEMA)) <= set(SCHEMA)
    assert columns_of(pl.sql_expr("i > 0 AND d > i"), SCHEMA) == ("i", "d")


@pytest.mark.parametrize(
    ("holds", "reason"),
    [
        (pl.sql_expr("i > avg(i)"), "reads other rows"),
        (pl.sql_expr("row_number() OVER (ORDER BY i) > 1"), "reads other rows"),
        (pl.col("i").sum().over("s") > 1, "reads other rows"),
        (pl.col("i").is_unique(), "reads other rows"),
        (pl.col("i").shift() > 1, "reads other rows"),
        (pl.col("i").cum_sum() > 1, "reads other rows"),
        (pl.col("i").rank() > 1, "reads other rows"),
        (pl.col("i").is_first_distinct(), "reads other rows"),
        (pl.col("i").sort() > 1, "reads other rows"),
        (pl.col("s").str.join() == "a", "reads other rows"),
        ((pl.col("i") > 1).any(), "reads other rows"),
        (pl.col("i") > pl.len(), "reads other rows"),
        (pl.sql_expr("i + 1"), "it is not a condition: its value is Int"),
        (pl.sql_expr("1 > 0"), "it names no column"),
        (pl.sql_expr("nosuch > 0"), "there is no column nosuch"),
        (pl.sql_expr("s > 1"), "cannot compare string with numeric"),
    ],
)
def test_expressions_of_several_rows_are_refused(holds: pl.Expr, reason: str) -> None:
    """Their results would depend on how rows are divided into slices."""
    with pytest.raises(Unfit, match=re.escape(reason)):
        columns_of(holds, SCHEMA)
