"""What the values of rows are like, summed up so that those of many parts can be added."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import as_numbers
from bronze.model.anomaly import SKETCH_SIZE, ColumnProfile, Monitoring, Profile

_MARGIN = 1.5


def profile_of(rows: pl.DataFrame, watch: Monitoring) -> Profile:
    """The profile of clear source rows."""
    names = [name for name in watch.profiled if name in rows.columns]
    return Profile(rows.height, {name: _column(rows[name], watch) for name in names})


def _column(values: pl.Series, watch: Monitoring) -> ColumnProfile:
    present = values.drop_nulls()
    total, numbers = 0.0, 0
    if values.name in watch.averaged:
        floats = as_numbers(present).drop_nulls()
        inexact = present.dtype.is_float() or present.dtype == pl.String
        floats = floats.filter(floats.is_finite()) if inexact else floats
        total, numbers = float(floats.sum()), len(floats)
    return ColumnProfile(len(values) - len(present), total, numbers, _least(present.hash()))


def _least(hashes: pl.Series) -> npt.NDArray[np.uint64]:
    """The smallest different ones, sorted."""
    # To find those below a bound costs less than to find all, and where many differ they suffice.
    share = _MARGIN * SKETCH_SIZE / max(len(hashes), 1)
    while share < 1:
        least = hashes.filter(hashes < int(2**64 * share)).unique()
        if len(least) >= SKETCH_SIZE:
            break
        # So many different ones there are, as far as can be told.
        many = len(least) / share
        share = max(_MARGIN * SKETCH_SIZE / max(many, 1), 2 * share)
    else:
        least = hashes.unique()
    return np.sort(least.to_numpy())[:SKETCH_SIZE].copy()
