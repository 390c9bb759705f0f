"""An isolation forest is trained on a sample of a table's rows, by scikit-learn."""

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

from bronze.anomaly.features import MOST, as_numbers, missing, numbers
from bronze.anomaly.forest import Scorer
from bronze.model.anomaly import Feature, Forest, Measure, Model
from bronze.model.columns import Column

LEAST = 50
"""Of fewer rows nothing is learned."""

_SAMPLE = 256
# The trees draw from so many rows, and so many of those that are farther from the median than
# this many times what all but one percent on either side are apart.
_ROWS = 2000
_FEW = 64
_FAR = 1.5
_WEIGHT = 3
# A text is a category if it has at most so many values, each of which comes often enough.
_CATEGORIES = 50
_OFTEN = 10
_TIMES = ("date", "timestamp", "timestamp_ntz")
_TEXTS = ("text", "varchar", "bpchar", "citext", "name")


def suitable_columns(column: Column) -> bool:
    """Whether a feature can be made of a column."""
    return column.is_number or column.kind.name in (*_TIMES, "boolean", "string")


def find_features(
    sample: pl.DataFrame, columns: Sequence[Column], chosen: Collection[str]
) -> list[Feature]:
    """The features that a sample of rows suggests.

    Args:
        sample: rows.
        columns: those that may be used.
        chosen: target names that people have chosen: they are used whatever they look like.
    """
    features: list[Feature] = []
    for column in columns:
        values = sample[column.target]
        measure = _measure(column, values, column.target in chosen)
        if measure is None:
            continue
        shares = _shares(values) if measure == "frequency" else ()
        centre, scale = _ordinary(values) if measure == "number" else (0.0, 1.0)
        features.append(Feature(column.target, measure, 0.0, centre, scale, shares))
        # Most columns that may be NULL often are: what nobody has asked for drowns the rest.
        if column.target in chosen and 0 < int(missing(values).sum()) < len(values):
            features.append(Feature(column.target, "missing"))
    return features


def _measure(column: Column, values: pl.Series, chosen: bool) -> Measure | None:
    name, present = column.kind.name, values.drop_nulls()
    if column.is_number:
        # Whole numbers of which no two are alike name something.
        text = values.dtype == pl.String
        whole = (
            not present.str.contains(".", literal=True).any()
            if text
            else (values.dtype.is_integer())
        )
        return None if whole and not chosen and present.n_unique() == len(present) else "number"
    if name in _TIMES:
        return "age"
    if name == "boolean":
        return "frequency"
    if name == "string":
        if present.n_unique() <= min(_CATEGORIES, len(present) // _OFTEN):
            return "frequency"
        return "length" if chosen or column.base_type in _TEXTS else None
    return None


def _shares(values: pl.Series) -> tuple[tuple[str, float], ...]:
    text = values.cast(pl.String).drop_nulls().alias("text")
    counts = text.value_counts(sort=True, name="count").sort("text")
    return tuple((value, count / len(text)) for value, count in counts.iter_rows())


def _ordinary(values: pl.Series) -> tuple[float, float]:
    """The median of numbers, and how far apart all but one percent on either side lie."""
    floats = as_numbers(values).fill_nan(None).drop_nulls().clip(-MOST, MOST)
    if not len(floats):
        return 0.0, 1.0
    low, middle, high = np.quantile(floats.to_numpy(), [0.01, 0.5, 0.99])
    wide = max(abs(float(floats.max()) - middle), abs(float(floats.min()) - middle))  # type: ignore[arg-type]
    return float(middle), max(float(high - low) or wide or 1.0, 1 / MOST)


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
    """A model that knows the sample; None where nothing in it differs.

    The same arguments give the same model, down to its version.
    """
    from sklearn.ensemble import IsolationForest  # it takes a second, and is seldom needed

    first = numbers(sample, features, moment, moment)
    varying = [i for i, values in enumerate(first) if values.min() < values.max()]
    if not varying:
        return None
    kept = [features[i] for i in varying]
    seen = [first[i] for i in varying]
    usual = [_usual(sample, f, v) for f, v in zip(kept, seen, strict=True)]
    kept = [replace(f, fill=m) for f, m in zip(kept, usual, strict=True)]
    seen = numbers(sample, kept, moment, moment)
    # Of a text's length, of a date, less is to be expected than of a number.
    drawn = [i for i, f in enumerate(kept) for _ in range(_WEIGHT if f.measure == "number" else 1)]
    chosen = _fitting(kept, seen, np.random.default_rng(seed))
    learned = IsolationForest(
        n_estimators=trees, max_samples=min(_SAMPLE, len(chosen)), random_state=seed
    ).fit(np.column_stack([seen[i][chosen] for i in drawn]))
    forest = _forest(learned, np.array(drawn, np.int32))
    scores = Scorer(forest, len(kept)).scores(seen)
    threshold = float(np.quantile(scores, 1 - expected, method="lower"))
    made = Model("", moment, rows, seed, expected, threshold, tuple(kept), forest)
    return replace(made, version=version(made))


def _usual(sample: pl.DataFrame, feature: Feature, values: npt.NDArray[Any]) -> float:
    if feature.measure == "missing":
        return 0.0
    present = ~missing(sample[feature.column]).to_numpy()
    return float(np.median(values[present])) if present.any() else 0.0


def _fitting(
    features: Sequence[Feature],
    seen: Sequence[npt.NDArray[np.float32]],
    chance: np.random.Generator,
) -> npt.NDArray[np.intp]:
    """The rows that the trees draw theirs from: some by chance, and a few of those far out.

    A tree sees 256 rows, in which what happens once in a thousand rows is seldom: what no tree
    has seen, none can tell from the least ordinary of the others.
    """
    far = np.zeros(len(seen[0]))
    for feature, values in zip(features, seen, strict=True):
        if feature.measure in ("number", "age", "length"):
            far = np.maximum(far, _distances(feature, values.astype(np.float64)))
    rows = chance.choice(len(far), min(_ROWS, len(far)), replace=False)
    out = np.flatnonzero(far > _FAR)
    if len(out):
        some = chance.choice(out, min(_FEW, len(out)), False, far[out] / far[out].sum())
        rows = np.concatenate([rows, some])
    return np.sort(rows)


def _distances(feature: Feature, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far values lie from the median, where ordinary ones are less than 1 apart."""
    if feature.measure == "number":
        return np.sinh(np.abs(values))
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
    return np.asarray(np.abs(values - middle) / (high - low or 1.0))


def _forest(learned: Any, drawn: npt.NDArray[np.int32]) -> Forest:
    trees = [tree.tree_ for tree in learned.estimators_]

    def joined(name: str, kind: type) -> npt.NDArray[Any]:
        return np.concatenate([getattr(tree, name) for tree in trees]).astype(kind)

    feature = joined("feature", np.int32)
    return Forest(
        sample=int(learned.max_samples_),
        sizes=np.array([tree.node_count for tree in trees], np.int32),
        feature=np.where(feature < 0, np.int32(-1), drawn[np.maximum(feature, 0)]),
        threshold=joined("threshold", np.float64),
        left=joined("children_left", np.int32),
        right=joined("children_right", np.int32),
        rows=joined("n_node_samples", np.int32),
    )


def version(model: Model) -> str:
    """The digest of all that a model tells anomalies by, in 16 hexadecimal digits."""
    features = [asdict(feature) for feature in model.features]
    said = [features, model.moment.isoformat(), model.expected, model.threshold]
    digest = hashlib.sha256(json.dumps([*said, model.forest.sample]).encode())
    for name in ("sizes", "feature", "threshold", "left", "right", "rows"):
        digest.update(getattr(model.forest, name).tobytes())
    return digest.hexdigest()[:16]
