"""Intervals are those of a binary search."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bronze.anomaly.intervals import Intervals
from tests.support.effort import examples


@example([0.0, -2.2685491804142884e38], [], 0)
@example([-np.inf, 0.0], [], 0)
@example([-np.inf, np.inf], [], 0)
@given(
    st.lists(st.floats(width=32, allow_nan=False), max_size=50, unique=True),
    st.lists(st.floats(width=32, allow_nan=False), max_size=50),
    st.integers(0, 2**32 - 1),
)
@settings(derandomize=True, database=None, deadline=None, max_examples=examples(100))
def test_each_value_lies_in_the_interval_of_a_binary_search(
    cuts: list[float], others: list[float], seed: int
) -> None:
    """For thresholds and values of any size, also infinite ones, at thresholds and beside them."""
    ordinary = np.random.default_rng(seed).normal(size=200).astype(np.float32)
    thresholds = np.unique(np.concatenate([np.array(cuts, np.float32), ordinary[:100]]))
    with np.errstate(over="ignore"):
        beside = [np.nextafter(thresholds, np.float32(side)) for side in (-np.inf, np.inf)]
    values = np.concatenate(
        [
            np.array([*others, -np.inf, np.inf, 0.0, -0.0], np.float32),
            ordinary,
            thresholds,
            *beside,
        ]
    )
    for known in (thresholds, np.unique(np.array(cuts, np.float32))):
        expected = np.searchsorted(known, values, "left")
        np.testing.assert_array_equal(Intervals(known).numbers(values), expected)
