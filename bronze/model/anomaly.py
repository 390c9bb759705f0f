"""What is watched about a table's rows: the frozen values that models and profiles are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bronze.model.columns import Kind

Measure = Literal["number", "age", "length", "frequency", "missing"]
"""What a feature takes of a column: the number; days before the model's moment; the text's length
in characters; how common the value was in the sample, as a share; whether there is none (1 or 0).
"""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Feature:
    """One number that is made of each row.

    A number ``x`` counts as ``asinh((x - centre) / scale)``: nearly as it is among ordinary ones,
    and by its magnitude beyond. ``fill`` is what most rows have; it stands for NULL. ``shares``
    are those of a category's values, by value; other values have none.
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

    ``sizes`` are the trees' numbers of nodes. For each node: the number of its feature, -1 at a
    leaf; its threshold, rows up to which go left; its children, counted within the tree; and how
    many rows of the tree's sample of ``sample`` rows came to it.
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
    """By what rows of a table are told to be anomalies.

    ``version`` is a digest of all the rest. ``moment`` is when the model was made, ``rows`` how
    many the table had then, ``threshold`` the score above which a row is an anomaly, of which
    there are ``expected``, as a share.
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
class Watch:
    """How a table's rows are watched. Without a model they have no score.

    ``profiled`` are the columns whose values are summed up, ``averaged`` those of them that have
    a mean; ``notes`` tell people what became of the model.
    """

    model: Model | None = None
    profiled: tuple[str, ...] = ()
    averaged: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


MOST = 1000
"""So many anomalies of one run are kept, those with the highest scores; all are counted."""

SCORE, KEY = "score", "key"


@dataclass(frozen=True, eq=False)
class Outliers:
    """The anomalies among ``scored`` rows: how many they are, and the most striking of them.

    ``rows`` is a frame of their keys (JSON), scores, and features by number; None where there
    are none.
    """

    scored: int = 0
    count: int = 0
    rows: Any = field(default=None, repr=False)

    def __add__(self, other: Outliers) -> Outliers:
        import polars as pl  # the command line's help does not wait for it

        frames = [one for one in (self.rows, other.rows) if one is not None]
        rows = frames[0] if len(frames) == 1 else None
        if len(frames) > 1:
            rows = pl.concat(frames).sort([SCORE, KEY], descending=[True, False]).head(MOST)
        return Outliers(self.scored + other.scored, self.count + other.count, rows)


SKETCH = 512
"""So many of the smallest hashes of a column's values tell how many different ones there are, to
about four percent."""


@dataclass(frozen=True, eq=False)
class ColumnProfile:
    """What a column's values are like: how many are NULL, the sum of the finite numbers and how
    many these are, and the smallest hashes of its values, sorted.
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
            np.union1d(self.hashes, other.hashes)[:SKETCH],
        )

    @property
    def mean(self) -> float | None:
        """Of the finite numbers, if there are any."""
        return self.sum / self.numbers if self.numbers else None

    @property
    def distinct(self) -> float:
        """About how many different values there are."""
        if len(self.hashes) < SKETCH:
            return float(len(self.hashes))
        return (SKETCH - 1) / (float(self.hashes[-1]) / 2.0**64)


@dataclass(frozen=True, eq=False)
class Profile:
    """What many rows are like, by column."""

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def __add__(self, other: Profile) -> Profile:
        none = ColumnProfile()
        names = dict.fromkeys((*self.columns, *other.columns))
        return Profile(
            self.rows + other.rows,
            {n: self.columns.get(n, none) + other.columns.get(n, none) for n in names},
        )


NO_OUTLIERS, NO_PROFILE = Outliers(), Profile()


ANOMALY_COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("anomaly_score", Kind("double")),
    ("is_anomaly", Kind("boolean")),
)
"""The columns of a table whose rows are watched; NULL where there was no model."""
