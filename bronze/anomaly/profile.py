"""Profiles: statistics of the values of rows, which can be added up over many parts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import as_numbers
from bronze.model.anomaly import NO_PROFILE, SKETCH_SIZE, ColumnProfile, Monitoring, Profile

_MARGIN = 1.5


def profile_of(rows: pl.DataFrame, watch: Monitoring, known: Profile = NO_PROFILE) -> Profile:
    """The profile of rows in clear text, to be added to ``known``, the profile of earlier rows: it
    lacks hashes that the sum would lack anyway.
    """
    names = [name for name in watch.profiled if name in rows.columns]
    return Profile(
        rows.height,
        {name: _column(rows[name], watch, known.columns.get(name)) for name in names},
    )


def _column(values: pl.Series, watch: Monitoring, known: ColumnProfile | None) -> ColumnProfile:
    nulls = values.null_count()
    present = values.drop_nulls() if nulls else values
    total, numbers = 0.0, 0
    if values.name in watch.averaged:
        floats = as_numbers(present)
        if present.dtype.is_float() or present.dtype == pl.String:
            floats = floats.drop_nulls()
            floats = floats.filter(floats.is_finite())
        total, numbers = float(floats.sum()), len(floats)
    hashes = present.hash()
    if known is not None and len(known.hashes) == SKETCH_SIZE:
        every = hashes.to_numpy()
        return ColumnProfile(nulls, total, numbers, np.unique(every[every < known.hashes[-1]]))
    return ColumnProfile(nulls, total, numbers, _smallest(hashes))


def _smallest(hashes: pl.Series) -> npt.NDArray[np.uint64]:
    """The smallest distinct hashes, sorted."""
    # Distinct hashes below a bound cost less than all, and are enough if many values differ.
    every = hashes.to_numpy()
    share = _MARGIN * SKETCH_SIZE / max(len(every), 1)
    while share < 1:
        smallest = np.unique(every[every < np.uint64(2**64 * share)])
        if len(smallest) >= SKETCH_SIZE:
            break
        estimated = len(smallest) / share
        share = max(_MARGIN * SKETCH_SIZE / max(estimated, 1), 2 * share)
    else:
        smallest = np.sort(hashes.unique().to_numpy())
    return smallest[:SKETCH_SIZE].copy()
