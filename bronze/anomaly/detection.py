"""Which rows are anomalies, and which of their columns make them anomalies."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import feature_values
from bronze.anomaly.forest import Scorer, scorer
from bronze.model.anomaly import (
    ANOMALY_COLUMNS,
    KEY_COLUMN,
    MAX_OUTLIERS,
    SCORE_COLUMN,
    Model,
    Monitoring,
    Outliers,
)
from bronze.model.stamp import RowStamp

_MAX_REASONS = 3
_LEAST_SHARE = 0.05


def score_rows(
    rows: pl.DataFrame, watch: Monitoring, key: Sequence[str], stamp: RowStamp
) -> tuple[pl.DataFrame, Outliers]:
    """Bronze rows with their scores, and the anomalies among them.

    The model has no protected column, so that the rows may be as they are stored.
    """
    (score, _), (is_anomaly, _) = ANOMALY_COLUMNS
    model = watch.model
    if model is None or not rows.height:
        nulls = (pl.lit(None, pl.Float64).alias(score), pl.lit(None, pl.Boolean).alias(is_anomaly))
        return rows.with_columns(nulls), Outliers()
    features = feature_values(rows, model.features, model.moment, stamp.loaded_at)
    scores = _scorer(model).scores(features)
    outlying = scores > model.threshold
    scored = rows.with_columns(pl.Series(score, scores), pl.Series(is_anomaly, outlying))
    indices = np.flatnonzero(outlying)
    if not len(indices):
        return scored, Outliers(rows.height)
    highest = indices[np.argsort(-scores[indices], kind="stable")[:MAX_OUTLIERS]]
    outliers = pl.DataFrame(
        [
            _keys(rows[highest], key),
            pl.Series(SCORE_COLUMN, scores[highest]),
            *(pl.Series(str(i), values[highest]) for i, values in enumerate(features)),
        ]
    )
    return scored, Outliers(rows.height, len(indices), outliers)


def _scorer(model: Model) -> Scorer:
    return scorer(model.version, model.forest, len(model.features))


def _keys(rows: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    values = rows.select(key).rows(named=True) if key else [{}] * rows.height
    return pl.Series(KEY_COLUMN, [json.dumps(v, default=str, ensure_ascii=False) for v in values])


def reasons_of(model: Model, outliers: Outliers) -> list[str]:
    """For each of the outliers a JSON array of the columns that make it an anomaly.

    The contribution of a column is the fall of the score when its value is replaced by an ordinary
    one, as a share of the falls of all columns.
    """
    if outliers.rows is None:
        return []
    forest = _scorer(model)
    features = [outliers.rows[str(i)].to_numpy() for i in range(len(model.features))]
    scores = outliers.rows[SCORE_COLUMN].to_numpy()
    names = list(dict.fromkeys(feature.column for feature in model.features))
    falls = np.zeros((len(names), len(scores)))
    for i, name in enumerate(names):
        ordinary = [
            np.full_like(values, f.fill) if f.column == name else values
            for f, values in zip(model.features, features, strict=True)
        ]
        falls[i] = np.maximum(scores - forest.scores(ordinary), 0)
    total = falls.sum(axis=0)
    shares = np.divide(falls, total, out=np.zeros_like(falls), where=total > 0)
    return [_contributions(names, share) for share in shares.T]


def _contributions(names: Sequence[str], shares: npt.NDArray[np.float64]) -> str:
    order = np.argsort(-shares, kind="stable")[:_MAX_REASONS]
    contributions = [
        {"column": names[i], "contribution": round(float(shares[i]), 3)}
        for i in order
        if shares[i] >= _LEAST_SHARE
    ]
    return json.dumps(contributions, ensure_ascii=False)
