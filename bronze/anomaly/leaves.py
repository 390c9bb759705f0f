"""Which leaves of a tree a row can reach, by the interval of each of its features.

The leaves of a tree are bits. Each interval between the thresholds of a feature has a mask of the
leaves that it leaves possible, and the masks of all features have exactly one bit in common: the
leaf of the row (as in QuickScorer, Lucchese and others, SIGIR 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bronze.anomaly.intervals import Values
from bronze.model.anomaly import Floats, Forest

Masks = npt.NDArray[np.uint64]
Thresholds = Mapping[int, Values]
"""The thresholds of each feature, sorted."""

MOST_LEAVES = 64
_ONE = np.uint64(1)
_EULER = 0.5772156649015329


@dataclass(frozen=True, eq=False)
class LeafGroup:
    """At most 64 neighbouring leaves of a tree.

    ``thresholds`` are those that divide these leaves from each other or from the others, ``masks``
    has a mask for each of their intervals. ``lengths`` are the path lengths of the leaves by
    number; the last one is 0, for rows that reach none of them.
    """

    thresholds: Thresholds
    masks: Mapping[int, Masks]
    lengths: Floats

    @property
    def cells(self) -> int:
        """The number of combinations of intervals."""
        return cells_of(self.thresholds)


def cells_of(thresholds: Thresholds) -> int:
    """The number of combinations of intervals between thresholds."""
    return prod(len(sorted_) + 1 for sorted_ in thresholds.values())


def leaf_numbers(masks: Masks) -> npt.NDArray[np.uint8]:
    """The number of the leaf in each mask of one leaf; 64 if there is none."""
    return np.asarray(np.bitwise_count(masks - _ONE))


def leaf_groups(forest: Forest) -> Iterator[LeafGroup]:
    """All leaves of a forest that `bronze.anomaly.forest.check_forest` has checked."""
    # Values are float32: the largest float32 up to a threshold divides them in the same way.
    thresholds = _as_float32(forest.threshold)
    for start, end in pairwise(np.cumsum([0, *forest.sizes])):
        yield from _groups_of_tree(forest, slice(start, end), thresholds[start:end])


def _groups_of_tree(forest: Forest, tree: slice, thresholds: Values) -> Iterator[LeafGroup]:
    feature = forest.feature[tree]
    first, middle, last, depth = _spans(feature, forest.left[tree], forest.right[tree])
    leaf = np.flatnonzero(feature < 0)
    lengths = np.empty(len(leaf))
    lengths[first[leaf]] = depth[leaf] + mean_path_length(forest.rows[tree][leaf])
    nodes = np.flatnonzero(feature >= 0)
    nodes = nodes[np.argsort(thresholds[nodes], kind="stable")]
    groups = -(-len(leaf) // MOST_LEAVES)
    edges = [len(leaf) * number // groups for number in range(groups + 1)]
    for start, end in pairwise(edges):
        own = nodes[(first[nodes] < end) & (last[nodes] > start)]
        before, between, after = (
            _lowest_bits(np.clip(span[own] - start, 0, end - start))
            for span in (first, middle, last)
        )
        found: dict[int, tuple[Values, Masks]] = {}
        for number in np.unique(feature[own]).tolist():
            of_feature = feature[own] == number
            found[number] = _intervals(
                thresholds[own][of_feature],
                (before ^ between)[of_feature],
                (between ^ after)[of_feature],
                _lowest_bits(np.array(end - start)),
            )
        padded = np.zeros(MOST_LEAVES + 1)
        padded[: end - start] = lengths[start:end]
        yield LeafGroup(
            {number: cuts for number, (cuts, _) in found.items()},
            {number: masks for number, (_, masks) in found.items()},
            padded,
        )


def _intervals(thresholds: Values, low: Masks, high: Masks, all_: Masks) -> tuple[Values, Masks]:
    """The thresholds of a feature that divide leaves, and the mask of each interval between them.

    ``low`` and ``high`` are the leaves on both sides of each threshold.
    """
    none = np.zeros(1, np.uint64)
    # In the i-th interval the first i nodes send a row to the right, the others to the left.
    excluded = np.append(none, np.bitwise_or.accumulate(low))
    excluded |= np.append(np.bitwise_or.accumulate(high[::-1])[::-1], none)
    masks = all_ & ~excluded
    # Between equal thresholds there are no values: of their intervals only the one before the first
    # of them and the one after the last of them remain.
    first = np.append(True, thresholds[1:] > thresholds[:-1])
    thresholds, masks = thresholds[first], masks[np.append(first, True)]
    differs = masks[1:] != masks[:-1]
    return thresholds[differs], masks[np.append(True, differs)]


def _lowest_bits(counts: Any) -> Masks:
    """Masks of the lowest bits, 0 to 64 of them."""
    shifted = _ONE << np.minimum(counts, MOST_LEAVES - 1).astype(np.uint64)
    return np.where(counts >= MOST_LEAVES, ~np.uint64(0), shifted - _ONE)


def length_table(group: LeafGroup, thresholds: Thresholds) -> Floats:
    """The path lengths in each cell between thresholds, which include those of the group."""
    masks: Any = np.array(~np.uint64(0))
    places = []
    for feature, cuts in thresholds.items():
        own = group.masks.get(feature, _ANY)
        masks = masks[..., None] & own
        inside = np.append(cuts, np.float32(np.inf))
        places.append(np.searchsorted(group.thresholds.get(feature, cuts[:0]), inside, "left"))
    return np.asarray(group.lengths[leaf_numbers(masks)][np.ix_(*places)])


_ANY = np.array([~np.uint64(0)])


def mask_table(group: LeafGroup, features: list[int]) -> Masks:
    """The masks in each cell of some of the features."""
    masks = _ANY
    for feature in features:
        if feature in group.masks:
            masks = (masks[:, None] & group.masks[feature]).ravel()
    return masks


def _spans(
    feature: npt.NDArray[np.int32], left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
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


def mean_path_length(rows: npt.NDArray[Any]) -> Floats:
    """The mean path length of an unsuccessful search in a tree with ``rows`` rows (Liu and others,
    2008).
    """
    many = np.maximum(rows, 2).astype(np.float64)
    mean = 2.0 * (np.log(np.maximum(many - 1.0, 1.0)) + _EULER) - 2.0 * (many - 1.0) / many
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, mean))


def _as_float32(thresholds: Floats) -> Values:
    """The largest float32 up to each threshold."""
    # The one below the least is infinite, which is right: only infinite values go left there.
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
        return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
