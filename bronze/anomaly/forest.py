"""The scores of an isolation forest, equal to scikit-learn's ``-score_samples`` to its last digits.

Instead of walking down the trees row by row, the sum of path lengths is looked up by the intervals
between thresholds in which the features of a row lie. Several small trees are one table over all
combinations of their intervals. A tree with too many combinations has a table of possible leaves
for each part of its features; the leaf of a row is what they have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bronze.anomaly.intervals import Codes, Intervals, Values
from bronze.anomaly.leaves import (
    LeafGroup,
    Masks,
    Thresholds,
    cells_of,
    leaf_groups,
    leaf_numbers,
    length_table,
    mask_table,
    mean_path_length,
)
from bronze.errors import LakeError
from bronze.model.anomaly import Floats, Forest

# The most combinations of intervals in a table of path lengths, and in a table of leaves: measured,
# larger ones do not stay in the cache of the processor.
_MOST_CELLS = 1 << 14
_MOST_CELLS_OF_PART = 1 << 12
# How many tables are looked up together: their places are 16 bits each, and values of 16 bytes are
# looked up as fast as single ones.
_TABLES = 8
# How many rows are scored at once, so that their arrays stay in the cache.
_ROWS = 1 << 15
_MAX_SCORERS = 4


@dataclass(frozen=True, eq=False)
class _Places:
    """For each of some features: its part of the places in up to 8 tables, by interval. The sum
    over the features is the place in each table.
    """

    tables: int
    parts: tuple[tuple[int, npt.NDArray[np.complex128]], ...]

    def of(self, intervals: Sequence[Codes]) -> npt.NDArray[np.uint16]:
        """The place of each row in each table, by the interval of the row in each feature."""
        places: Any = None
        for feature, part in self.parts:
            own = np.take(part, intervals[feature], mode="clip").view(np.uint64)
            places = own if places is None else np.add(places, own, out=places)
        return np.asarray(places.view(np.uint16).reshape(-1, _TABLES)[:, : self.tables])


@dataclass(frozen=True, eq=False)
class _LengthTables:
    """Tables of path lengths, over combinations of intervals of all features."""

    places: _Places
    tables: tuple[Floats, ...]

    def add(self, intervals: Sequence[Codes], lengths: Floats) -> None:
        """Adds the path lengths of rows."""
        found = np.empty(len(lengths))
        for table, places in zip(self.tables, self.places.of(intervals).T, strict=True):
            lengths += np.take(table, places.astype(np.intp), mode="clip", out=found)


@dataclass(frozen=True, eq=False)
class _LeafTables:
    """Tables of the possible leaves of trees: for each part of the features their places, and a
    table for each group of leaves; and the path lengths of these leaves.
    """

    places: tuple[_Places, ...]
    tables: tuple[tuple[Masks, ...], ...]
    lengths: tuple[Floats, ...]

    def add(self, intervals: Sequence[Codes], lengths: Floats) -> None:
        """Adds the path lengths of rows."""
        by_part = [places.of(intervals).T for places in self.places]
        other = np.empty(len(lengths), np.uint64)
        for number, of_leaves in enumerate(self.lengths):
            leaves: Any = None
            for places, tables in zip(by_part, self.tables, strict=True):
                where = places[number].astype(np.intp)
                if leaves is None:
                    leaves = np.take(tables[number], where, mode="clip")
                else:
                    leaves &= np.take(tables[number], where, mode="clip", out=other)
            lengths += np.take(of_leaves, leaf_numbers(leaves), mode="clip")


@dataclass
class _SharedTable:
    """Groups of leaves that are one table of path lengths."""

    thresholds: Thresholds
    groups: list[LeafGroup] = field(default_factory=list)

    def lengths(self) -> Floats:
        """The sum of the path lengths in each cell."""
        total: Any = 0.0
        for group in self.groups:
            total = total + length_table(group, self.thresholds)
        return np.ravel(total)


class Scorer:
    """A forest that `check_forest` has checked, in the form in which it scores."""

    def __init__(self, forest: Forest, features: int) -> None:
        groups = list(leaf_groups(forest))
        self._scale = len(forest.sizes) * float(mean_path_length(np.array([forest.sample]))[0])
        # Trees of one leaf.
        leaves = [float(group.lengths[0]) for group in groups if not group.thresholds]
        self._constant = float(sum(leaves))
        groups = [group for group in groups if group.thresholds]
        cuts = [
            np.unique(np.concatenate([_none, *(g.thresholds.get(f, _none) for g in groups)]))
            for f in range(features)
        ]
        self._intervals = [Intervals(thresholds) for thresholds in cuts]
        narrow = [group for group in groups if group.cells <= _MOST_CELLS]
        wide = [group for group in groups if group.cells > _MOST_CELLS]
        self._tables: list[_LengthTables | _LeafTables] = [
            *self._length_tables(narrow),
            *self._leaf_tables(wide),
        ]

    def _length_tables(self, groups: Sequence[LeafGroup]) -> list[_LengthTables]:
        shared = _shared_tables(groups)
        every = range(len(self._intervals))
        return [
            _LengthTables(
                self._places([table.thresholds for table in batch], every),
                tuple(table.lengths() for table in batch),
            )
            for batch in _batches(shared)
        ]

    def _leaf_tables(self, groups: Sequence[LeafGroup]) -> list[_LeafTables]:
        parts = _parts_of_features(groups, len(self._intervals))
        return [
            _LeafTables(
                tuple(self._places([g.thresholds for g in batch], part) for part in parts),
                tuple(tuple(mask_table(g, part) for g in batch) for part in parts),
                tuple(group.lengths for group in batch),
            )
            for batch in _batches(groups)
        ]

    def _places(self, tables: Sequence[Thresholds], features: Sequence[int]) -> _Places:
        """The places in tables over these features, the last one of which varies fastest."""
        parts = []
        steps = np.ones(_TABLES, np.intp)
        for feature in reversed(features):
            if not any(feature in thresholds for thresholds in tables):
                continue
            ends = np.append(self._intervals[feature].thresholds, np.float32(np.inf))
            part = np.zeros((len(ends), _TABLES), np.uint16)
            for number, thresholds in enumerate(tables):
                own = thresholds.get(feature, _none)
                part[:, number] = np.searchsorted(own, ends, "left") * steps[number]
                steps[number] *= len(own) + 1
            parts.append((feature, part.view(np.complex128)[:, 0]))
        return _Places(len(tables), tuple(parts))

    def scores(self, columns: Sequence[Values]) -> Floats:
        """The scores of rows, from 0 to 1, by the values of each feature."""
        lengths = np.full(len(columns[0]), self._constant)
        for start in range(0, len(lengths), _ROWS):
            part = slice(start, start + _ROWS)
            intervals = [
                known.numbers(values[part])
                for known, values in zip(self._intervals, columns, strict=True)
            ]
            for tables in self._tables:
                tables.add(intervals, lengths[part])
        return np.asarray(np.exp2(-lengths / self._scale))


_none = np.empty(0, np.float32)


def _batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _TABLES] for start in range(0, len(items), _TABLES)]


def _shared_tables(groups: Sequence[LeafGroup]) -> list[_SharedTable]:
    """The groups in tables, each with as many groups as its cells allow."""
    tables: list[_SharedTable] = []
    for group in groups:
        own = group.thresholds
        union = own
        if tables:
            known = tables[-1].thresholds
            union = {
                feature: np.union1d(known.get(feature, _none), own.get(feature, _none))
                for feature in sorted({*known, *own})
            }
        if not tables or cells_of(union) > _MOST_CELLS:
            tables.append(_SharedTable({feature: own[feature] for feature in sorted(own)}))
        else:
            tables[-1].thresholds = union
        tables[-1].groups.append(group)
    return tables


def _parts_of_features(groups: Sequence[LeafGroup], features: int) -> list[list[int]]:
    """The features that groups use in parts, so that no group has too many cells in any part."""
    parts: list[list[int]] = []
    cells = np.array([])
    for feature in range(features):
        widths = np.array([len(group.thresholds.get(feature, _none)) + 1.0 for group in groups])
        if not groups or widths.max() == 1:
            continue
        if not parts or (cells * widths).max() > _MOST_CELLS_OF_PART:
            parts.append([])
            cells = np.ones(len(groups))
        parts[-1].append(feature)
        cells = cells * widths
    return parts


def check_forest(forest: Forest, features: int) -> None:
    """Checks that the arrays are trees: that each node exists and has one parent.

    Raises:
        LakeError: the arrays are not a forest.
    """
    nodes = len(forest.feature)
    arrays = (forest.threshold, forest.left, forest.right, forest.rows)
    valid = (
        len(forest.sizes) > 0
        and forest.sample > 1
        and all(len(array) == nodes for array in arrays)
        and bool((forest.sizes > 0).all())
        and int(forest.sizes.sum()) == nodes
        and int(forest.feature.max()) < features
    )
    if valid:
        size = np.repeat(forest.sizes, forest.sizes)
        index = np.arange(nodes) - np.repeat(np.cumsum(forest.sizes) - forest.sizes, forest.sizes)
        inner = forest.feature >= 0
        sides = (forest.left[inner], forest.right[inner])
        valid = (
            bool(np.isfinite(forest.threshold[inner]).all())
            and all(bool(((s > index[inner]) & (s < size[inner])).all()) for s in sides)
            and bool((forest.rows > 0).all())
            and _has_one_parent_each(forest, inner)
        )
    if not valid:
        raise LakeError("A stored anomaly model is damaged: its arrays are not trees.")


def _has_one_parent_each(forest: Forest, inner: npt.NDArray[np.bool_]) -> bool:
    """Whether every node but the roots is the child of exactly one node."""
    starts = np.repeat(np.cumsum(forest.sizes) - forest.sizes, forest.sizes)[inner]
    children = np.concatenate([starts + forest.left[inner], starts + forest.right[inner]])
    times = np.bincount(children, minlength=len(inner))
    roots = np.cumsum(forest.sizes) - forest.sizes
    expected = np.ones(len(inner), np.int64)
    expected[roots] = 0
    return bool((times == expected).all())


def scorer(version: str, forest: Forest, features: int) -> Scorer:
    """The scorer of a version of a model, which is cached in the process."""
    with _lock:
        if version not in _scorers:
            while len(_scorers) >= _MAX_SCORERS:
                del _scorers[next(iter(_scorers))]
            _scorers[version] = Scorer(forest, features)
        return _scorers[version]


_scorers: dict[str, Scorer] = {}
_lock = threading.Lock()
