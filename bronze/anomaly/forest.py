"""The scores of an isolation forest, equal to scikit-learn's ``-score_samples`` to its last digits.

Instead of walking down the trees row by row, the leaf of a row is found by the leaves that its
features rule out (as in QuickScorer, Lucchese and others, SIGIR 2015): the leaves of a tree are
bits, each interval between the thresholds of a feature has a mask of the possible leaves, and the
masks of all features have exactly one bit in common. So a tree costs one lookup for each feature,
for all rows at once. Features with few distinct values in these rows are looked up together.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bronze.errors import LakeError
from bronze.model.anomaly import Floats, Forest

Codes = npt.NDArray[np.intp]

_WORD = 64
# How many bits of each word stand for leaves. Words are looked up in pairs, as values of 16 bytes.
_USED = 60
_PAIR = 2 * _USED
# A bit of the i-th word times the i-th multiplier has 12 highest bits that no other bit gives.
_MULTIPLIERS = np.array(
    [
        0x4164D839F767C451,
        0xB0C11FDCB91CE373,
        0x3FC1EA3F17FD3745,
        0x0D46413A62332557,
        0x1A1AFE88B33E9689,
        0x3FD423592EDCF45B,
    ],
    np.uint64,
)
_LEAVES = len(_MULTIPLIERS) * _USED
_SHIFT = np.uint64(_WORD - 12)
_SLOTS = 1 << 12
# How many rows are scored at once, so that their arrays stay in the cache of the processor.
_ROWS = 1 << 14
# Features are looked up together while the rows are this many times their combinations.
_ROWS_PER_COMBINATION = 4
_EULER = 0.5772156649015329
_MAX_SCORERS = 4
# A tree is one table if its features divide all rows into at most this many cells.
_MAX_CELLS = 1 << 16

Masks = list[npt.NDArray[np.uint64] | None]
_CellTable = tuple[list[tuple[int, Codes]], Floats]


class Scorer:
    """A forest that `check_forest` has checked, in the form in which it scores."""

    def __init__(self, forest: Forest, features: int) -> None:
        bounds = np.cumsum([0, *forest.sizes])
        trees = [slice(a, b) for a, b in pairwise(bounds)]
        inner = forest.feature >= 0
        # Values are float32: the largest float32 up to a threshold divides them in the same way.
        cuts = _as_float32(forest.threshold)
        self._cuts = [np.unique(cuts[inner & (forest.feature == f)]) for f in range(features)]
        self._masks = []
        self._values = []
        for tree in trees:
            masks, values = self._tree(forest, tree, cuts[tree])
            self._masks.append(masks)
            self._values.append(values)
        self._tables = [
            self._cell_table(masks, values)
            for masks, values in zip(self._masks, self._values, strict=True)
        ]
        self._scale = len(trees) * float(_mean_path_length(np.array([forest.sample]))[0])

    def _tree(
        self, forest: Forest, tree: slice, cuts: npt.NDArray[np.float32]
    ) -> tuple[Masks, Floats]:
        """For each feature the masks of its intervals, by pair; and the leaves' path lengths."""
        feature, left, right = forest.feature[tree], forest.left[tree], forest.right[tree]
        first, middle, last, depth = _spans(feature, left, right)
        pairs = -(-int(last[0]) // _PAIR)
        masks: Masks = []
        bit = np.arange(2 * pairs * _WORD)
        number = bit // _WORD * _USED + bit % _WORD
        used = (bit % _WORD < _USED) & (number < last[0])
        for f, known in enumerate(self._cuts):
            nodes = np.flatnonzero(feature == f)
            if not len(nodes):
                masks.append(None)
                continue
            nodes = nodes[np.argsort(cuts[nodes], kind="stable")]
            low = (number >= first[nodes, None]) & (number < middle[nodes, None])
            high = (number >= middle[nodes, None]) & (number < last[nodes, None])
            # In the i-th interval the first i nodes send a row to the right.
            none = np.zeros((1, len(number)), np.bool_)
            cleared = np.vstack([none, np.logical_or.accumulate(low)])
            cleared |= np.vstack([np.logical_or.accumulate(high[::-1])[::-1], none])
            packed = np.packbits(~cleared & used, axis=1, bitorder="little").view(np.uint64)
            interval = np.searchsorted(cuts[nodes], np.append(known, np.inf), side="left")
            spread = packed[interval].reshape(len(known) + 1, pairs, 2)
            masks.append(np.ascontiguousarray(spread.transpose(1, 0, 2)))
        nodes = np.flatnonzero(feature < 0)
        values = np.zeros(_SLOTS)
        leaf = first[nodes]
        bits = np.uint64(1) << (leaf % _USED).astype(np.uint64)
        slots = (bits * _MULTIPLIERS[leaf // _USED]) >> _SHIFT
        values[slots] = depth[nodes] + _mean_path_length(forest.rows[tree][nodes])
        return masks, values

    def _cell_table(self, masks: Masks, values: Floats) -> _CellTable | None:
        """A tree as one table over all intervals of all its features, None if they are too many."""
        used = [f for f, mask in enumerate(masks) if mask is not None]
        combined: Any = None
        places: list[tuple[int, Codes]] = []
        cells = 1
        for f in reversed(used):
            mask: Any = masks[f]
            # Neighbouring intervals between thresholds of other trees have equal masks.
            differs = (mask[:, 1:] != mask[:, :-1]).any(axis=(0, 2))
            interval = np.append(0, np.cumsum(differs))
            distinct = mask[:, np.append(0, np.flatnonzero(differs) + 1)]
            places.append((f, interval * cells))
            cells *= distinct.shape[1]
            if cells > _MAX_CELLS:
                return None
            combined = distinct if combined is None else distinct[:, :, None, :] & combined[:, None]
            combined = combined.reshape(len(combined), cells, 2)
        if combined is None:
            return None
        multipliers = _MULTIPLIERS[: 2 * len(combined)].reshape(-1, 1, 2)
        product = (combined * multipliers).sum(axis=(0, 2))
        return places, values[(product >> _SHIFT).astype(np.intp)]

    def scores(self, columns: Sequence[npt.NDArray[np.float32]]) -> Floats:
        """The scores of rows, from 0 to 1, by the values of each feature."""
        height = len(columns[0])
        codes = [
            np.searchsorted(c, x, side="left") for c, x in zip(self._cuts, columns, strict=True)
        ]
        axes = _axes(codes, [len(cuts) + 1 for cuts in self._cuts], height)
        lengths = np.zeros(height)
        trees = zip(self._masks, self._values, self._tables, strict=True)
        for masks, values, cells in trees:
            if cells is not None:
                lengths += _lengths_in_cells(cells, codes)
                continue
            tables = [table for axis in axes if (table := _table(axis, masks)) is not None]
            if not tables:
                # A tree of one leaf.
                lengths += values.max()
                continue
            for start in range(0, height, _ROWS):
                part = slice(start, start + _ROWS)
                lengths[part] += _lengths_in_tables(tables, part, values)
        return np.asarray(np.exp2(-lengths / self._scale))


def _lengths_in_cells(cells: _CellTable, codes: Sequence[Codes]) -> Floats:
    """The path length of each row in a tree that is one table."""
    places, values = cells
    cell: Any = None
    for feature, place in places:
        offset = np.take(place, codes[feature], mode="clip")
        cell = offset if cell is None else np.add(cell, offset, out=cell)
    return np.asarray(np.take(values, cell, mode="clip"))


Axis = tuple[Codes, list[tuple[int, Codes]]]
"""Features that are looked up together: the combination of each row, and for each feature the
interval of each combination."""


def _axes(codes: Sequence[Codes], counts: Sequence[int], height: int) -> list[Axis]:
    """The features as axes, narrow ones combined."""
    axes: list[Axis] = []
    for number, (code, count) in enumerate(zip(codes, counts, strict=True)):
        if count > 1:
            axes.append(_compact(code, count, [(number, np.arange(count))]))
    while len(axes) > 1:
        axes.sort(key=_width)
        (codes_1, bins_1), (codes_2, bins_2) = axes[:2]
        width_1, width_2 = _width(axes[0]), _width(axes[1])
        most = max(height, _ROWS // _ROWS_PER_COMBINATION)
        if width_1 * width_2 * _ROWS_PER_COMBINATION > most:
            break
        both = [(f, np.repeat(bins, width_2)) for f, bins in bins_1]
        both += [(f, np.tile(bins, width_1)) for f, bins in bins_2]
        axes[:2] = [_compact(codes_1 * width_2 + codes_2, width_1 * width_2, both)]
    return axes


def _width(axis: Axis) -> int:
    return len(axis[1][0][1])


def _compact(codes: Codes, count: int, bins: list[tuple[int, Codes]]) -> Axis:
    """An axis with only those combinations that rows have."""
    present = np.flatnonzero(np.bincount(codes, minlength=count))
    places = np.zeros(count, np.intp)
    places[present] = np.arange(len(present))
    return places[codes], [(f, bin_[present]) for f, bin_ in bins]


def _table(
    axis: Axis, masks: Sequence[npt.NDArray[np.uint64] | None]
) -> tuple[Codes, npt.NDArray[np.complex128]] | None:
    """The combination of each row, and the mask of each combination in a tree; None if the tree has
    none of the features.
    """
    combined: npt.NDArray[np.uint64] | None = None
    for feature, bins in axis[1]:
        mask = masks[feature]
        if mask is not None:
            selected = mask[:, bins]
            combined = selected if combined is None else combined & selected
    if combined is None:
        return None
    return axis[0], combined.view(np.complex128)[:, :, 0]


def _lengths_in_tables(
    tables: Sequence[tuple[Codes, npt.NDArray[np.complex128]]], part: slice, values: Floats
) -> Floats:
    """The path length of each row of a part in one tree."""
    product: Any = None
    for pair in range(len(tables[0][1])):
        leaves: Any = None
        for codes, masks in tables:
            possible = np.take(masks[pair], codes[part], mode="clip").view(np.uint64)
            leaves = possible if leaves is None else np.bitwise_and(leaves, possible, out=leaves)
        first, second = _MULTIPLIERS[2 * pair : 2 * pair + 2]
        term = leaves[0::2] * first + leaves[1::2] * second
        product = term if product is None else product + term
    return np.asarray(np.take(values, (product >> _SHIFT).view(np.int64), mode="clip"))


def _spans(
    feature: npt.NDArray[np.int32], left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]
) -> tuple[Codes, Codes, Codes, Floats]:
    """For each node: its first leaf, the first leaf of its right child, the leaf after its last
    one, and its depth.
    """
    leaf, below, above = (feature < 0).tolist(), left.tolist(), right.tolist()
    count = [1] * len(leaf)
    for node in range(len(leaf) - 1, -1, -1):
        if not leaf[node]:
            count[node] = count[below[node]] + count[above[node]]
    first, middle, depth = [0] * len(leaf), [0] * len(leaf), [0.0] * len(leaf)
    for node in range(len(leaf)):
        if not leaf[node]:
            low, high = below[node], above[node]
            first[low], first[high] = first[node], first[node] + count[low]
            middle[node] = first[high]
            depth[low] = depth[high] = depth[node] + 1
    starts = np.array(first)
    return starts, np.array(middle), starts + np.array(count), np.array(depth)


def _mean_path_length(rows: npt.NDArray[Any]) -> Floats:
    """The mean path length of an unsuccessful search in a tree with ``rows`` rows (Liu and others,
    2008).
    """
    many = np.maximum(rows, 2).astype(np.float64)
    mean = 2.0 * (np.log(np.maximum(many - 1.0, 1.0)) + _EULER) - 2.0 * (many - 1.0) / many
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, mean))


def _as_float32(thresholds: Floats) -> npt.NDArray[np.float32]:
    """The largest float32 up to each threshold."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


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
        leaves = np.add.reduceat(~inner, np.cumsum(forest.sizes) - forest.sizes)
        sides = (forest.left[inner], forest.right[inner])
        valid = (
            bool(np.isfinite(forest.threshold[inner]).all())
            and all(bool(((s > index[inner]) & (s < size[inner])).all()) for s in sides)
            and bool((forest.rows > 0).all())
            and bool((leaves <= _LEAVES).all())
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
