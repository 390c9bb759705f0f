"""What a forest sees of rows: a few numbers that are made of each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.model.anomaly import Feature

_DAY = 86_400 * 10**6
MOST = 1e30
"""Larger numbers count as this, whose differences and shares are floats still."""


def numbers(
    rows: pl.DataFrame, features: Sequence[Feature], moment: datetime, loaded: datetime
) -> list[npt.NDArray[np.float32]]:
    """The features of rows, one by one: finite, whatever the rows hold.

    A time is so many days old as it was at the model's moment. What lay in the future then is as
    far ahead as it is when the row lands, and nothing once that has passed: rows do not become
    strange by being new.

    Args:
        rows: at least the features' columns.
        features: what is made of them.
        moment: the model's.
        loaded: when the rows land.
    """
    return [_finite(_measured(rows[f.column], f, moment, loaded), f.fill) for f in features]


def _measured(values: pl.Series, feature: Feature, moment: datetime, loaded: datetime) -> pl.Series:
    if feature.measure == "age":
        times = values.cast(pl.Datetime("us")).to_physical()
        was = (_micros(moment) - times) / _DAY
        ahead = (_micros(loaded) - times) / _DAY
        return was.zip_with((was >= 0).fill_null(True), ahead.clip(upper_bound=0.0))
    if feature.measure == "length":
        return values.str.len_chars().cast(pl.Float64)
    if feature.measure == "missing":
        return missing(values).cast(pl.Float64)
    if feature.measure == "frequency":
        known = dict(feature.shares)
        text = values.cast(pl.String)
        shares = text.replace_strict(list(known), list(known.values()), default=0.0)
        return shares.cast(pl.Float64).set(values.is_null(), None)
    whole = as_numbers(values).clip(-MOST, MOST)
    return ((whole - feature.centre) / feature.scale).arcsinh()


def as_numbers(values: pl.Series) -> pl.Series:
    """Numbers as floats. A numeric that Delta has no type for is PostgreSQL's text of it, which may
    be NaN or infinite.
    """
    return values.cast(pl.Float64, strict=False)


def missing(values: pl.Series) -> pl.Series:
    """Which of the values are NULL, or no number."""
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def _micros(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * _DAY + since.seconds * 10**6 + since.microseconds


def _finite(values: pl.Series, fill: float) -> npt.NDArray[np.float32]:
    return values.fill_nan(None).fill_null(fill).cast(pl.Float32).to_numpy()
