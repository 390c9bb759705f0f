"""Trains an isolation forest on a sample of a table's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import MAX_NUMBER, as_numbers, feature_values, missing
from bronze.anomaly.forest import Scorer
from bronze.anomaly.trees import grow_forest
from bronze.model.anomaly import Feature, Measure, Model
from bronze.model.columns import Column

MIN_ROWS = 50
"""The least number of rows to train on."""

_SAMPLE = 256
# The trees draw from at most _ROWS rows by chance and _FAR_ROWS rows that lie farther from the
# median than _FAR times the distance between the 1st and the 99th percentile.
_ROWS = 2000
_FAR_ROWS = 64
_FAR = 1.5
# How much more often a tree draws a number than another feature.
_WEIGHT = 3
# A text is a category with at most this many values, and at least this many rows for each.
_CATEGORIES = 50
_ROWS_PER_CATEGORY = 10
_TIMES = ("date", "timestamp", "timestamp_ntz")
_TEXTS = ("text", "varchar", "bpchar", "citext", "name")


def suitable_columns(column: Column) -> bool:
    """Whether a column can be a feature."""
    return column.is_number or column.kind.name in (*_TIMES, "boolean", "string")


def find_features(
    sample: pl.DataFrame, columns: Sequence[Column], chosen: Collection[str]
) -> list[Feature]:
    """The features for a table, by a sample of its rows.

    Args:
        sample: rows.
        columns: the columns that may be used.
        chosen: target names in the config: they are used whatever their values are.
    """
    features: list[Feature] = []
    for column in columns:
        values = sample[column.target]
        measure = _measure(column, values, column.target in chosen)
        if measure is None:
            continue
        shares = _shares(values) if measure == "frequency" else ()
        centre, scale = _centre_and_scale(values) if measure == "number" else (0.0, 1.0)
        features.append(Feature(column.target, measure, 0.0, centre, scale, shares))
        # Many columns are NULL often: as features that are not asked for they would prevail.
        if column.target in chosen and 0 < int(missing(values).sum()) < len(values):
            features.append(Feature(column.target, "missing"))
    return features


def _measure(column: Column, values: pl.Series, chosen: bool) -> Measure | None:
    name, present = column.kind.name, values.drop_nulls()
    if column.is_number:
        # Whole numbers that are all distinct are identifiers.
        text = values.dtype == pl.String
        whole = (
            not present.str.contains(".", literal=True).any() if text else values.dtype.is_integer()
        )
        return None if whole and not chosen and present.n_unique() == len(present) else "number"
    if name in _TIMES:
        return "age"
    if name == "boolean":
        return "frequency"
    if name == "string":
        if present.n_unique() <= min(_CATEGORIES, len(present) // _ROWS_PER_CATEGORY):
            return "frequency"
        return "length" if chosen or column.base_type in _TEXTS else None
    return None


def _shares(values: pl.Series) -> tuple[tuple[str, float], ...]:
    text = values.cast(pl.String).drop_nulls().alias("text")
    counts = text.value_counts(sort=True, name="count").sort("text")
    return tuple((value, count / len(text)) for value, count in counts.iter_rows())


def _centre_and_scale(values: pl.Series) -> tuple[float, float]:
    """The median of numbers, and the distance between their 1st and 99th percentile."""
    floats = as_numbers(values).fill_nan(None).drop_nulls().clip(-MAX_NUMBER, MAX_NUMBER)
    if not len(floats):
        return 0.0, 1.0
    low, middle, high = np.quantile(floats.to_numpy(), [0.01, 0.5, 0.99])
    width = max(abs(float(floats.max()) - middle), abs(float(floats.min()) - middle))  # type: ignore[arg-type]
    return float(middle), max(float(high - low) or width or 1.0, 1 / MAX_NUMBER)


def train(
    sample: pl.DataFrame,
    features: Sequence[Feature],
    moment: datetime,
    rows: int,
    *,
    expected: float,
    trees: int,
    seed: int,
) -> Model | None:
    """A model of the sample; None if all its rows have the same features.

    The same arguments give the same model, down to its version.
    """
    first = feature_values(sample, features, moment, moment)
    varying = [i for i, values in enumerate(first) if values.min() < values.max()]
    if not varying:
        return None
    kept = [features[i] for i in varying]
    fills = [_fill(sample, f, first[i]) for f, i in zip(kept, varying, strict=True)]
    kept = [replace(f, fill=fill) for f, fill in zip(kept, fills, strict=True)]
    values = feature_values(sample, kept, moment, moment)
    # The length of a text, or a date, says less about a row than a number.
    weights = np.array([_WEIGHT if f.measure == "number" else 1 for f in kept])
    rows_drawn = _training_rows(kept, values, np.random.default_rng(seed))
    forest = grow_forest(
        np.column_stack(values)[rows_drawn],
        weights,
        trees=trees,
        sample=min(_SAMPLE, len(rows_drawn)),
        seed=seed,
    )
    scores = Scorer(forest, len(kept)).scores(values)
    threshold = float(np.quantile(scores, 1 - expected, method="lower"))
    model = Model("", moment, rows, seed, expected, threshold, tuple(kept), forest)
    return replace(model, version=version(model))


def _fill(sample: pl.DataFrame, feature: Feature, values: npt.NDArray[Any]) -> float:
    """The ordinary value of a feature, which replaces a missing one."""
    if feature.measure == "missing":
        return 0.0
    present = ~missing(sample[feature.column]).to_numpy()
    return float(np.median(values[present])) if present.any() else 0.0


def _training_rows(
    features: Sequence[Feature],
    columns: Sequence[npt.NDArray[np.float32]],
    chance: np.random.Generator,
) -> npt.NDArray[np.intp]:
    """The rows that the trees draw from: some by chance, and some that lie far from the median.

    A tree draws 256 rows, which seldom include one that occurs once in a thousand: a forest cannot
    distinguish rows that none of its trees has drawn from the least ordinary of the others.
    """
    far = np.zeros(len(columns[0]))
    for feature, values in zip(features, columns, strict=True):
        if feature.measure in ("number", "age", "length"):
            far = np.maximum(far, _distances(feature, values.astype(np.float64)))
    rows = chance.choice(len(far), min(_ROWS, len(far)), replace=False)
    out = np.flatnonzero(far > _FAR)
    if len(out):
        some = chance.choice(out, min(_FAR_ROWS, len(out)), False, far[out] / far[out].sum())
        rows = np.concatenate([rows, some])
    return np.sort(rows)


def _distances(feature: Feature, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The distances of values from the median; those of ordinary values are below 1."""
    if feature.measure == "number":
        return np.sinh(np.abs(values))
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
    return np.asarray(np.abs(values - middle) / (high - low or 1.0))


def version(model: Model) -> str:
    """The digest of all that the scores of a model depend on, as 16 hexadecimal digits."""
    features = [asdict(feature) for feature in model.features]
    parts = [features, model.moment.isoformat(), model.expected, model.threshold]
    digest = hashlib.sha256(json.dumps([*parts, model.forest.sample]).encode())
    for name in ("sizes", "feature", "threshold", "left", "right", "rows"):
        digest.update(getattr(model.forest, name).tobytes())
    return digest.hexdigest()[:16]
