"""Profiles of rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import SKETCH_SIZE, Monitoring


@pytest.mark.parametrize("distinct", [1, 12, SKETCH_SIZE - 1, SKETCH_SIZE, 5_000, 30_000, 100_000])
def test_a_sketch_has_the_smallest_hashes(distinct: int) -> None:
    """Whatever the number of distinct values, none of the smallest hashes is missing."""
    values = pl.Series("v", np.random.default_rng(distinct).integers(0, distinct, 100_000))
    hashes = profile_of(pl.DataFrame([values]), Monitoring(None, ("v",))).columns["v"].hashes
    assert hashes.tolist() == np.unique(values.hash().to_numpy())[:SKETCH_SIZE].tolist()
