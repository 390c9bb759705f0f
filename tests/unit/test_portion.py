"""Portions: all rows in their order, none of them larger than it may be."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bronze import portion

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=25)


@IN_MEMORY
@given(
    sizes=st.lists(st.sampled_from([0, 1, 40, 900]), max_size=60),
    most=st.integers(1, 70),
    size=st.integers(1, 2000),
)
def test_portions_hold_all_rows_and_are_bounded(sizes: list[int], most: int, size: int) -> None:
    """A portion has at most so many rows and about so many bytes, or it is one row; and it is
    not divided again.
    """
    table = pa.table({"i": range(len(sizes)), "t": ["x" * length for length in sizes]})
    parts = list(portion.of(table, most, size))
    assert [i for part in parts for i in part["i"].to_pylist()] == list(range(len(sizes)))
    for part in parts:
        assert part.num_rows <= most or not sizes
        assert part.num_rows <= 1 or part.nbytes <= size * 1.25
        assert [p.num_rows for p in portion.of(part, most, size)] == [part.num_rows]


def test_what_is_a_little_more_stays_whole() -> None:
    """So that whoever knows the row groups of a file finds just those in it."""
    table = pa.table({"t": ["x" * 100] * 10})
    assert [part.num_rows for part in portion.of(table, 10, 1_000)] == [10]
    assert [part.num_rows for part in portion.of(table, 10, 500)] == [4, 4, 2]


def test_wide_rows_are_not_taken_a_handful_at_a_time() -> None:
    """What a portion costs for each of its columns is shared by a thousand rows."""
    assert portion.rows(300_000, 10) == 30_000
    assert portion.rows(300_000, 1_600) == 1_000


def test_short_texts_take_what_points_to_them() -> None:
    """A text of one letter takes more than one byte."""
    assert portion.size(pl.DataFrame({"t": ["a"] * 1000})) >= 17_000
    assert portion.size_of([pl.DataFrame({"n": [1, 2]}), pl.DataFrame({"n": [3]})]) == 24


def test_columns_come_behind_or_in_their_places() -> None:
    """`beside` keeps the order of what is there; `plain` makes strings of enums alone."""
    frame = pl.DataFrame({"a": [1], "b": ["x"]})
    new = portion.beside(frame, [pl.Series("a", [2]), pl.Series("c", [3])])
    assert new.to_dict(as_series=False) == {"a": [2], "b": ["x"], "c": [3]}
    enums = frame.with_columns(pl.lit("y", pl.Enum(["y"])).alias("e"))
    assert portion.plain(enums).schema == {"a": pl.Int64, "b": pl.String, "e": pl.String}


@IN_MEMORY
@example(ours=[float("nan")], theirs={"nan"}, two=False)
@given(
    ours=st.lists(st.sampled_from([float("nan"), 0.0, 1.5, None]), max_size=4),
    theirs=st.sets(st.sampled_from(["nan", "0.0", "1.5", "none"]), max_size=4),
    two=st.booleans(),
)
def test_nan_and_null_are_keys_like_others(
    ours: list[float | None], theirs: set[str], two: bool
) -> None:
    """However few the rows are, and whether they are sorted."""
    known = {"nan": float("nan"), "0.0": 0.0, "1.5": 1.5, "none": None}
    keys = ["k", "z"][: 1 + two]
    kinds = {"k": pl.Float64, "z": pl.Int64}
    left = pl.DataFrame({"k": ours, "z": [1] * len(ours)}, schema=kinds).select(keys)
    right = pl.DataFrame(
        {"k": [known[name] for name in theirs], "z": [1] * len(theirs)}, schema=kinds
    ).select(keys)
    wanted = [str(key).lower() for key in ours if str(key).lower() in theirs]
    for how in ("inner", "left"):
        found = portion.joined(
            left, right.with_columns(pl.lit(True).alias("there")), keys, how
        ).filter("there")
        assert sorted(str(key).lower() for key in found["k"]) == sorted(wanted)
        assert found.columns == [*keys, "there"]
