"""The features of rows: the numbers that a forest is trained on and scores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.model.anomaly import Feature

_DAY = 86_400 * 10**6
MAX_NUMBER = 1e30
"""Larger numbers count as this one: differences and shares of it are still finite."""


def feature_values(
    rows: pl.DataFrame, features: Sequence[Feature], moment: datetime, loaded: datetime
) -> list[npt.NDArray[np.float32]]:
    """The values of features, one array for each: finite, whatever the rows contain.

    The age of a time is its age in days at the model's moment. For a time after that moment it is
    the time that is left when the row is loaded, and 0 once the time has passed: new rows do not
    become anomalies by being new.

    Args:
        rows: with at least the columns of the features.
        features: the features.
        moment: the model's moment.
        loaded: when the rows are loaded.
    """
    return [_finite(_values(rows[f.column], f, moment, loaded), f.fill) for f in features]


def _values(values: pl.Series, feature: Feature, moment: datetime, loaded: datetime) -> pl.Series:
    if feature.measure == "age":
        times = values.cast(pl.Datetime("us")).to_physical()
        age = (_micros(moment) - times) / _DAY
        age_when_loaded = (_micros(loaded) - times) / _DAY
        return age.zip_with((age >= 0).fill_null(True), age_when_loaded.clip(upper_bound=0.0))
    if feature.measure == "length":
        return values.str.len_chars().cast(pl.Float64)
    if feature.measure == "missing":
        return missing(values).cast(pl.Float64)
    if feature.measure == "frequency":
        by_value = dict(feature.shares)
        text = values.cast(pl.String)
        shares = text.replace_strict(list(by_value), list(by_value.values()), default=0.0)
        return shares.cast(pl.Float64).set(values.is_null(), None)
    # Missing values are NaN in numpy, whose arithmetic costs less than that of polars here.
    numbers = as_numbers(values).to_numpy(writable=True)
    np.clip(numbers, -MAX_NUMBER, MAX_NUMBER, out=numbers)
    numbers -= feature.centre
    numbers /= feature.scale
    # The inverse hyperbolic sine of numpy differs between processors.
    return pl.Series(numbers).arcsinh()


def as_numbers(values: pl.Series) -> pl.Series:
    """Numbers as floats. A numeric for which Delta has no type is text of PostgreSQL, which may be
    NaN or infinite.
    """
    return values.cast(pl.Float64, strict=False)


def missing(values: pl.Series) -> pl.Series:
    """Which of the values are NULL or NaN."""
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def _micros(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * _DAY + since.seconds * 10**6 + since.microseconds


def _finite(values: pl.Series, fill: float) -> npt.NDArray[np.float32]:
    # NULL is NaN in numpy.
    finite = values.cast(pl.Float32).to_numpy(writable=True)
    finite[np.isnan(finite)] = fill
    return finite
