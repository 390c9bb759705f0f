"""Profiles of rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import SKETCH_SIZE, Monitoring, Profile


@pytest.mark.parametrize("distinct", [1, 12, SKETCH_SIZE - 1, SKETCH_SIZE, 5_000, 30_000, 100_000])
def test_a_sketch_has_the_smallest_hashes(distinct: int) -> None:
    """Whatever the number of distinct values, none of the smallest hashes is missing."""
    values = pl.Series("v", np.random.default_rng(distinct).integers(0, distinct, 100_000))
    hashes = profile_of(pl.DataFrame([values]), Monitoring(None, ("v",))).columns["v"].hashes
    assert hashes.tolist() == np.unique(values.hash().to_numpy())[:SKETCH_SIZE].tolist()


@pytest.mark.parametrize("distinct", [12, 600, 30_000])
def test_profiles_of_parts_add_up_to_that_of_all_rows(distinct: int) -> None:
    """Each part is profiled beside what is known of the parts before it."""
    chance = np.random.default_rng(distinct)
    values = pl.Series("v", chance.integers(0, distinct, 60_000)).set(
        pl.Series(chance.random(60_000) < 0.1), None
    )
    rows, watch = pl.DataFrame([values]), Monitoring(None, ("v",), frozenset(["v"]))
    whole = profile_of(rows, watch).columns["v"]
    known = Profile()
    for start, end in pairwise([0, 0, 3, 700, 20_000, 45_000, 60_000]):
        known += profile_of(rows[start:end], watch, known)
    summed = known.columns["v"]
    assert known.rows == 60_000
    assert (summed.nulls, summed.sum, summed.numbers) == (whole.nulls, whole.sum, whole.numbers)
    assert summed.hashes.tolist() == whole.hashes.tolist()
