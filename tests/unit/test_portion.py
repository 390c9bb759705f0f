"""Portions of a table: all rows in their order, each portion within its limits."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bronze import portion
from tests.support.effort import examples

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(10))


@IN_MEMORY
@given(
    sizes=st.lists(st.sampled_from([0, 1, 40, 900]), max_size=60),
    most=st.integers(1, 70),
    size=st.integers(1, 2000),
)
def test_portions_have_all_rows_and_are_bounded(sizes: list[int], most: int, size: int) -> None:
    """A portion has at most ``most`` rows and about ``size`` bytes, or one row, and is not divided
    again.
    """
    table = pa.table({"i": range(len(sizes)), "t": ["x" * length for length in sizes]})
    parts = list(portion.portions_of(table, most, size))
    assert [i for part in parts for i in part["i"].to_pylist()] == list(range(len(sizes)))
    for part in parts:
        assert part.num_rows <= most or not sizes
        assert part.num_rows <= 1 or part.nbytes <= size * 1.25
        assert [p.num_rows for p in portion.portions_of(part, most, size)] == [part.num_rows]


def test_a_table_slightly_larger_than_a_portion_is_not_divided() -> None:
    """So the row groups of a file that was written in portions can be read as portions."""
    table = pa.table({"t": ["x" * 100] * 10})
    assert [part.num_rows for part in portion.portions_of(table, 10, 1_000)] == [10]
    assert [part.num_rows for part in portion.portions_of(table, 10, 500)] == [4, 4, 2]


def test_portions_of_wide_rows_have_at_least_a_thousand_rows() -> None:
    """A portion has a fixed cost for each column, which many rows share."""
    assert portion.rows(300_000, 10) == 30_000
    assert portion.rows(300_000, 1_600) == 1_000


def test_the_size_of_texts_includes_their_views() -> None:
    """A text of one letter needs more than one byte of memory."""
    assert portion.size(pl.DataFrame({"t": ["a"] * 1000})) >= 17_000
    assert portion.size_of([pl.DataFrame({"n": [1, 2]}), pl.DataFrame({"n": [3]})]) == 24


def test_columns_are_replaced_or_appended() -> None:
    """`beside` keeps the order of existing columns; `plain` makes strings of enums only."""
    frame = pl.DataFrame({"a": [1], "b": ["x"]})
    new = portion.with_columns(frame, [pl.Series("a", [2]), pl.Series("c", [3])])
    assert new.to_dict(as_series=False) == {"a": [2], "b": ["x"], "c": [3]}
    enums = frame.with_columns(pl.lit("y", pl.Enum(["y"])).alias("e"))
    assert portion.without_enums(enums).schema == {"a": pl.Int64, "b": pl.String, "e": pl.String}


@IN_MEMORY
@example(ours=[float("nan")], theirs={"nan"}, two=False)
@given(
    ours=st.lists(st.sampled_from([float("nan"), 0.0, 1.5, None]), max_size=4),
    theirs=st.sets(st.sampled_from(["nan", "0.0", "1.5", "none"]), max_size=4),
    two=st.booleans(),
)
def test_a_join_matches_nan_with_nan_and_null_with_null(
    ours: list[float | None], theirs: set[str], two: bool
) -> None:
    """For any number of rows, sorted or not."""
    known = {"nan": float("nan"), "0.0": 0.0, "1.5": 1.5, "none": None}
    keys = ["k", "z"][: 1 + two]
    kinds = {"k": pl.Float64, "z": pl.Int64}
    left = pl.DataFrame({"k": ours, "z": [1] * len(ours)}, schema=kinds).select(keys)
    right = pl.DataFrame(
        {"k": [known[name] for name in theirs], "z": [1] * len(theirs)}, schema=kinds
    ).select(keys)
    expected = [str(key).lower() for key in ours if str(key).lower() in theirs]
    for how in ("inner", "left"):
        matches = portion.join(
            left, right.with_columns(pl.lit(True).alias("there")), keys, how
        ).filter("there")
        assert sorted(str(key).lower() for key in matches["k"]) == sorted(expected)
        assert matches.columns == [*keys, "there"]
