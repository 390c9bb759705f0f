"""``governance.models``: the isolation forests that find anomalies, as numbers.

A record is a model: its features as JSON, and its trees as the arrays of
`bronze.model.anomaly.Forest`. It contains no code; arrays that are not a forest are refused when
the model is used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.model.anomaly import Feature, Forest, Model
from bronze.model.columns import DeltaType

_INTS, _DOUBLES = (
    DeltaType("array", element=DeltaType("int")),
    DeltaType("array", element=DeltaType("double")),
)
_ARRAYS = ("sizes", "feature", "threshold", "left", "right", "rows")

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("model_version", DeltaType("string")),
    ("trained_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("reason", DeltaType("string")),
    ("settings", DeltaType("string")),
    ("moment", DeltaType("timestamp")),
    ("table_rows", DeltaType("long")),
    ("seed", DeltaType("long")),
    ("expected", DeltaType("double")),
    ("threshold", DeltaType("double")),
    ("features", DeltaType("string")),
    ("sample", DeltaType("int")),
    *((f"tree_{name}", _DOUBLES if name == "threshold" else _INTS) for name in _ARRAYS),
)
MEANINGS = {
    "model_version": "The id of the model.",
    "trained_timestamp": "When it was trained.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_table": "The Bronze table, schema.name.",
    "reason": "Why it was trained, such as: there was none.",
    "settings": "The hash of the settings and columns that it was trained by.",
    "moment": "When it was trained: ages of times are counted from it.",
    "table_rows": "How many rows the table had.",
    "seed": "The seed of sample and trees.",
    "expected": "The share of anomalies in the settings.",
    "threshold": "The score that only this share of the sample exceeds.",
    "features": "What is measured of each column, with centre and scale, as JSON.",
    "sample": "Rows that each tree was made of.",
    "tree_sizes": "Nodes of each tree.",
    "tree_feature": "Of each node the feature that it splits by, -1 for a leaf.",
    "tree_threshold": "Of each node the value that it splits at.",
    "tree_left": "Of each node the index of its left child.",
    "tree_right": "Of each node the index of its right child.",
    "tree_rows": "Of each node the rows of the sample in it.",
}
"""What each column has."""

NAME = "models"
SELECTION = ("trained_timestamp", "source_table", "target_table", "settings", "table_rows")
"""The columns by which a record is selected."""


@dataclass(frozen=True)
class ModelRecord:
    """A model, the table that it is for, and why it was trained."""

    model: Model
    trained: datetime
    source: str
    source_table: str
    target_table: str
    reason: str
    settings: str


def frame(record: ModelRecord) -> pl.DataFrame:
    """The record as a frame with `COLUMNS`."""
    model, forest = record.model, record.model.forest
    moment = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        {
            "model_version": [model.version],
            "trained_timestamp": pl.Series([record.trained], dtype=moment),
            "source_system": [record.source],
            "source_table": [record.source_table],
            "target_table": [record.target_table],
            "reason": [record.reason],
            "settings": [record.settings],
            "moment": pl.Series([model.moment], dtype=moment),
            "table_rows": [model.rows],
            "seed": [model.seed],
            "expected": [model.expected],
            "threshold": [model.threshold],
            "features": [json.dumps([asdict(f) for f in model.features], ensure_ascii=False)],
            "sample": pl.Series([forest.sample], dtype=pl.Int32),
            **{f"tree_{name}": [pl.Series(getattr(forest, name))] for name in _ARRAYS},
        }
    )


def model_of(row: dict[str, Any]) -> Model:
    """The model of a record.

    Raises:
        KeyError, TypeError, ValueError: the record is not a model.
    """

    def whole(name: str) -> npt.NDArray[np.int32]:
        return np.array(row[f"tree_{name}"], np.int32)

    forest = Forest(
        sample=int(row["sample"]),
        sizes=whole("sizes"),
        feature=whole("feature"),
        threshold=np.array(row["tree_threshold"], np.float64),
        left=whole("left"),
        right=whole("right"),
        rows=whole("rows"),
    )
    features = tuple(
        Feature(
            f["column"],
            f["measure"],
            float(f["fill"]),
            float(f["centre"]),
            float(f["scale"]),
            tuple((value, share) for value, share in f["shares"]),
        )
        for f in json.loads(row["features"])
    )
    return Model(
        version=row["model_version"],
        moment=row["moment"],
        rows=int(row["table_rows"]),
        seed=int(row["seed"]),
        expected=float(row["expected"]),
        threshold=float(row["threshold"]),
        features=features,
        forest=forest,
    )
