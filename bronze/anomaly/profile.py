"""Profiles: statistics of the values of rows, which can be added up over many parts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import as_numbers
from bronze.model.anomaly import SKETCH_SIZE, ColumnProfile, Monitoring, Profile

_MARGIN = 1.5


def profile_of(rows: pl.DataFrame, watch: Monitoring) -> Profile:
    """The profile of rows in clear text."""
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
    return ColumnProfile(len(values) - len(present), total, numbers, _smallest(present.hash()))


def _smallest(hashes: pl.Series) -> npt.NDArray[np.uint64]:
    """The smallest distinct hashes, sorted."""
    # Distinct hashes below a bound cost less than all, and are enough if many values differ.
    share = _MARGIN * SKETCH_SIZE / max(len(hashes), 1)
    while share < 1:
        smallest = hashes.filter(hashes < int(2**64 * share)).unique()
        if len(smallest) >= SKETCH_SIZE:
            break
        estimated = len(smallest) / share
        share = max(_MARGIN * SKETCH_SIZE / max(estimated, 1), 2 * share)
    else:
        smallest = hashes.unique()
    return np.sort(smallest.to_numpy())[:SKETCH_SIZE].copy()
