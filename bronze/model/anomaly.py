"""Frozen values of anomaly detection: models, the anomalies they find, and profiles of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bronze.model.columns import DeltaType

Measure = Literal["number", "age", "length", "frequency", "missing"]
"""How a feature measures a value: the number itself; its age in days before the model's moment;
the length of the text in characters; the share of the value in the sample; 1 if the value is NULL
or NaN, otherwise 0.
"""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feature:
    """One number computed from each row.

    A number ``x`` becomes ``asinh((x - centre) / scale)``: nearly linear among ordinary values,
    logarithmic beyond. ``fill`` is the most common value, and replaces NULL. ``shares`` are the
    shares of a category's values, by value; a value that is not among them has the share 0.
    """

    column: str
    measure: Measure
    fill: float = 0.0
    centre: float = 0.0
    scale: float = 1.0
    shares: tuple[tuple[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class Forest:
    """The trees of an isolation forest, their nodes one after another, parents before children.

    ``sizes`` are the numbers of nodes of the trees. For each node: the number of its feature, -1 at
    a leaf; its threshold, up to which rows go left; its children, counted within the tree; and how
    many of the ``sample`` rows of the tree reach it.
    """

    sample: int
    sizes: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    threshold: Floats
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Model:
    """A trained model that scores the rows of a table.

    ``version`` is a digest of all other fields. ``moment`` is when the model was trained, ``rows``
    how many rows the table had then. A row with a score above ``threshold`` is an anomaly;
    ``expected`` is the expected share of anomalies.
    """

    version: str
    moment: datetime
    rows: int
    seed: int
    expected: float
    threshold: float
    features: tuple[Feature, ...]
    forest: Forest = field(repr=False, compare=False)


@dataclass(frozen=True)
class Monitoring:
    """How the rows of a table are monitored for anomalies. Without a model they have no score.

    ``profiled`` are the columns with a profile, ``averaged`` those of them that have a mean;
    ``notes`` are messages about the model for the user.
    """

    model: Model | None = None
    profiled: tuple[str, ...] = ()
    averaged: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


MAX_OUTLIERS = 1000
"""How many anomalies of one run are kept, those with the highest scores; all are counted."""

SCORE_COLUMN, KEY_COLUMN = "score", "key"


@dataclass(frozen=True, eq=False)
class Outliers:
    """The anomalies among ``scored`` rows: their number, and those with the highest scores.

    ``rows`` is a frame of keys (JSON), scores, and features by number; None if there are none.
    Parts can be added.
    """

    scored: int = 0
    count: int = 0
    rows: Any = field(default=None, repr=False)

    def __add__(self, other: Outliers) -> Outliers:
        import polars as pl  # imported late: the command line's help does not wait for it

        frames = [frame for frame in (self.rows, other.rows) if frame is not None]
        rows = frames[0] if len(frames) == 1 else None
        if len(frames) > 1:
            rows = (
                pl.concat(frames)
                .sort([SCORE_COLUMN, KEY_COLUMN], descending=[True, False])
                .head(MAX_OUTLIERS)
            )
        return Outliers(self.scored + other.scored, self.count + other.count, rows)


SKETCH_SIZE = 512
"""How many of the smallest hashes of a column's values are kept, to estimate the number of distinct
values to about four percent."""


@dataclass(frozen=True, eq=False)
class ColumnProfile:
    """Statistics of the values of a column: how many are NULL, the sum and the count of the finite
    numbers, and the smallest hashes of the values, sorted. Parts can be added.
    """

    nulls: int = 0
    sum: float = 0.0
    numbers: int = 0
    hashes: npt.NDArray[np.uint64] = field(
        default_factory=lambda: np.empty(0, np.uint64), repr=False
    )

    def __add__(self, other: ColumnProfile) -> ColumnProfile:
        return ColumnProfile(
            self.nulls + other.nulls,
            self.sum + other.sum,
            self.numbers + other.numbers,
            np.union1d(self.hashes, other.hashes)[:SKETCH_SIZE],
        )

    @property
    def mean(self) -> float | None:
        """The mean of the finite numbers, None if there are none."""
        return self.sum / self.numbers if self.numbers else None

    @property
    def distinct(self) -> float:
        """The estimated number of distinct values."""
        if len(self.hashes) < SKETCH_SIZE:
            return float(len(self.hashes))
        return (SKETCH_SIZE - 1) / (float(self.hashes[-1]) / 2.0**64)


@dataclass(frozen=True, eq=False)
class Profile:
    """The statistics of ``rows`` rows, by column. Parts can be added."""

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def __add__(self, other: Profile) -> Profile:
        for side, rest in ((self, other), (other, self)):
            if not side.rows and not side.columns:
                return rest
        none = ColumnProfile()
        names = dict.fromkeys((*self.columns, *other.columns))
        return Profile(
            self.rows + other.rows,
            {n: self.columns.get(n, none) + other.columns.get(n, none) for n in names},
        )


NO_OUTLIERS, NO_PROFILE = Outliers(), Profile()


ANOMALY_COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("anomaly_score", DeltaType("double")),
    ("is_anomaly", DeltaType("boolean")),
)
"""The columns that a table with anomaly detection has; NULL if there was no model."""
