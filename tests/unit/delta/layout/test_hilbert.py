"""The curve: neighbours stay neighbours, columns count alike, ranges are even."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.delta.layout import hilbert


@pytest.mark.parametrize(("dimensions", "bits"), [(2, 1), (2, 5), (3, 1), (3, 3), (4, 1), (4, 2)])
def test_consecutive_keys_are_neighbours_in_the_cube(dimensions: int, bits: int) -> None:
    """The curve visits each point of the cube once, and each next one is beside the last."""
    points = np.array(list(itertools.product(range(2**bits), repeat=dimensions)), np.uint64)
    found = hilbert.hilbert(list(points.T.copy()), bits)
    assert sorted(found.tolist()) == list(range(len(points)))
    steps = np.abs(np.diff(points[np.argsort(found)].astype(np.int64), axis=0)).sum(axis=1)
    assert set(steps.tolist()) == {1}


def test_the_largest_key_fits() -> None:
    """Four columns of the largest rank have different keys, without overflow."""
    axes = [np.array([0, 2**hilbert.BITS - 1], np.uint64) for _ in range(4)]
    assert len(set(hilbert.hilbert(axes, hilbert.BITS).tolist())) == 2


VALUES: dict[str, tuple[Any, list[Any]]] = {
    "short": (pl.Int16, [-(2**15), -1, 0, 5, 2**15 - 1]),
    "long": (pl.Int64, [-(2**63), -1, 0, 2**53, 2**53 + 1, 2**63 - 1]),
    "boolean": (pl.Boolean, [False, True]),
    "string": (pl.String, ["", " ", "A", "a", "aa", "é", "日", "🚀"]),
    "date": (pl.Date, [dt.date(1, 1, 1), dt.date(2024, 2, 29), dt.date(9999, 12, 31)]),
    "at": (pl.Datetime("us", "UTC"), [dt.datetime(1, 1, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 1)]),
    "double": (pl.Float64, [float("-inf"), -1.5, 0.0, 2.5, float("inf"), float("nan")]),
    "decimal": (pl.Decimal(20, 2), [Decimal("-9.99"), Decimal("0.00"), Decimal("100.01")]),
}


@pytest.mark.parametrize("name", VALUES)
def test_one_column_is_simply_sorted(name: str) -> None:
    """With one column rows are in its order, NULLs first, and a value unseen has its place."""
    kind, values = VALUES[name]
    column = pl.Series("x", [*values, None, *values], dtype=kind)
    by = hilbert.scales(column[::2].to_frame(), ["x"])
    mixed = column.to_frame().sample(fraction=1, shuffle=True, seed=7)
    rows, keys = hilbert.along(mixed, by)
    ordered = mixed[rows]["x"].to_list()
    assert ordered[0] is None
    assert [str(v) for v in ordered[1:]] == [str(v) for v in column.drop_nulls().sort().to_list()]
    assert (np.diff(keys.astype(np.int64)) >= 0).all()


@pytest.mark.parametrize("values", [[], [None, None]])
def test_a_sample_may_have_no_values(values: list[Any]) -> None:
    """Where nothing is known of a column, its values are one rank above NULL."""
    by = hilbert.scales(pl.DataFrame({"x": values, "y": values}, schema={"x": int, "y": str}), "xy")
    rows, _ = hilbert.along(pl.DataFrame({"x": [1, None], "y": ["a", None]}), by)
    assert rows.tolist() == [1, 0]


def test_narrow_and_wide_columns_have_the_same_weight() -> None:
    """Files cut from the curve halve a column of ten values as well as one of a million."""
    draw = np.random.default_rng(1)
    size = 40_000
    wide = (draw.random(size) ** 4 * 1e6).astype(np.int64)
    frame = pl.DataFrame({"wide": wide, "narrow": draw.integers(0, 10, size)})
    rows, _ = hilbert.along(frame, hilbert.scales(frame[::7], ["wide", "narrow"]))
    shares: dict[str, list[float]] = {"wide": [], "narrow": []}
    for part in np.array_split(rows, 64):
        for name, found in shares.items():
            low, high = frame[part][name].min(), frame[part][name].max()
            found.append(frame[name].is_between(low, high).sum() / size)  # type: ignore[arg-type]
    assert np.mean(shares["wide"]) < 0.25
    assert np.mean(shares["narrow"]) < 0.3


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=300),
    st.integers(1, 9),
    st.lists(st.integers(0, 20), max_size=300),
)
def test_ranges_hold_all_rows_in_order(sample: list[int], ranges: int, other: list[int]) -> None:
    """Ranges follow one another without gaps, for rows that the sample has never seen too."""
    by = hilbert.fence(np.array(sample, np.uint64), ranges)
    for keys in (sample, other):
        starts = hilbert.split(np.sort(np.array(keys, np.uint64)), by)
        assert len(starts) == by.ranges + 1 == ranges + 1
        assert (starts[0], starts[-1]) == (0, len(keys))
        assert (np.diff(starts) >= 0).all()


def test_a_frequent_key_is_cut() -> None:
    """Ranges are even although nine rows of ten have one key."""
    keys = np.sort(np.where(np.arange(10_000) % 10, 5, np.arange(10_000) % 11)).astype(np.uint64)
    sizes = np.diff(hilbert.split(keys, hilbert.fence(keys[::13], 8)))
    assert sizes.max() < 1.1 * sizes.min()
