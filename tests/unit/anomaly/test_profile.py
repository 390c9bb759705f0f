"""Profiles of rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from bronze.anomaly.profile import profile_of
from bronze.model.anomaly import SKETCH_SIZE, Monitoring


@pytest.mark.parametrize("many", [1, 12, SKETCH_SIZE - 1, SKETCH_SIZE, 5_000, 30_000, 100_000])
def test_the_least_hashes_are_found(many: int) -> None:
    """However many different values there are, none of the smallest hashes is left out."""
    values = pl.Series("v", np.random.default_rng(many).integers(0, many, 100_000))
    found = profile_of(pl.DataFrame([values]), Monitoring(None, ("v",))).columns["v"].hashes
    assert found.tolist() == np.unique(values.hash().to_numpy())[:SKETCH_SIZE].tolist()
