"""Which rows are anomalies, and which of their columns make them so."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.anomaly.features import numbers
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

_REASONS = 3
_LEAST_SHARE = 0.05


def score_rows(
    rows: pl.DataFrame, watch: Monitoring, key: Sequence[str], stamp: RowStamp
) -> tuple[pl.DataFrame, Outliers]:
    """Bronze rows with their scores, and the anomalies among them.

    The model knows no protected column, so that the rows may be as they are stored.
    """
    (score, _), (said, _) = ANOMALY_COLUMNS
    model = watch.model
    if model is None or not rows.height:
        nothing = (pl.lit(None, pl.Float64).alias(score), pl.lit(None, pl.Boolean).alias(said))
        return rows.with_columns(nothing), Outliers()
    seen = numbers(rows, model.features, model.moment, stamp.loaded_at)
    scores = _scorer(model).scores(seen)
    strange = scores > model.threshold
    made = rows.with_columns(pl.Series(score, scores), pl.Series(said, strange))
    places = np.flatnonzero(strange)
    if not len(places):
        return made, Outliers(rows.height)
    most = places[np.argsort(-scores[places], kind="stable")[:MAX_OUTLIERS]]
    kept = pl.DataFrame(
        [
            _keys(rows[most], key),
            pl.Series(SCORE_COLUMN, scores[most]),
            *(pl.Series(str(i), one[most]) for i, one in enumerate(seen)),
        ]
    )
    return made, Outliers(rows.height, len(places), kept)


def _scorer(model: Model) -> Scorer:
    return scorer(model.version, model.forest, len(model.features))


def _keys(rows: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    values = rows.select(key).rows(named=True) if key else [{}] * rows.height
    return pl.Series(KEY_COLUMN, [json.dumps(v, default=str, ensure_ascii=False) for v in values])


def reasons_of(model: Model, outliers: Outliers) -> list[str]:
    """For each of the rows that are kept a JSON list of the columns that made it an anomaly.

    A column's contribution is by how much the score falls when its value is made an ordinary one,
    as a share of what all columns' do.
    """
    if outliers.rows is None:
        return []
    forest = _scorer(model)
    seen = [outliers.rows[str(i)].to_numpy() for i in range(len(model.features))]
    scores = outliers.rows[SCORE_COLUMN].to_numpy()
    names = list(dict.fromkeys(feature.column for feature in model.features))
    falls = np.zeros((len(names), len(scores)))
    for at, name in enumerate(names):
        ordinary = [
            np.full_like(one, f.fill) if f.column == name else one
            for f, one in zip(model.features, seen, strict=True)
        ]
        falls[at] = np.maximum(scores - forest.scores(ordinary), 0)
    whole = falls.sum(axis=0)
    shares = np.divide(falls, whole, out=np.zeros_like(falls), where=whole > 0)
    return [_written(names, share) for share in shares.T]


def _written(names: Sequence[str], shares: npt.NDArray[np.float64]) -> str:
    order = np.argsort(-shares, kind="stable")[:_REASONS]
    found = [
        {"column": names[at], "contribution": round(float(shares[at]), 3)}
        for at in order
        if shares[at] >= _LEAST_SHARE
    ]
    return json.dumps(found, ensure_ascii=False)
