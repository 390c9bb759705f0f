"""The scores of an isolation forest, equal to scikit-learn's ``-score_samples`` to its last digits.

Rather than to walk down the trees row by row, a row's leaf is found by what its features rule out
(after QuickScorer, Lucchese and others, SIGIR 2015): the leaves of a tree are bits, each interval
between the thresholds of a feature has a mask of those that are left, and of the masks of all
features exactly one bit stays. So a tree costs a lookup for each feature, for all rows at once.
Features with few different values in the rows at hand are looked up together.
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
# Of each word so many bits stand for leaves. Words are looked up in pairs, as values of 16 bytes.
_USED = 60
_PAIR = 2 * _USED
# A bit of the i-th word times the i-th of these has 12 highest bits that no other bit has.
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
# Rows that are scored at once: what is made of them stays in the processor's cache.
_ROWS = 1 << 14
# Features are looked up together as long as they have fewer combinations than a share of the rows.
_COMBINED = 4
_EULER = 0.5772156649015329
_KEPT = 4


Masks = list[npt.NDArray[np.uint64] | None]
_Whole = tuple[list[tuple[int, Codes]], Floats]
# A tree whose features part all rows into no more cells than this is one table of these.
_CELLS = 1 << 16


class Scorer:
    """A proven forest made ready to score."""

    def __init__(self, forest: Forest, features: int) -> None:
        bounds = np.cumsum([0, *forest.sizes])
        trees = [slice(a, b) for a, b in pairwise(bounds)]
        inner = forest.feature >= 0
        # What is compared is a float32: the largest one below a threshold parts the same values.
        cuts = _below(forest.threshold)
        self._cuts = [np.unique(cuts[inner & (forest.feature == f)]) for f in range(features)]
        self._masks = []
        self._values = []
        for tree in trees:
            masks, values = self._tree(forest, tree, cuts[tree])
            self._masks.append(masks)
            self._values.append(values)
        self._tables = [self._whole(f, t) for f, t in zip(self._masks, self._values, strict=True)]
        self._scale = len(trees) * float(_expected(np.array([forest.sample]))[0])

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
            some = np.zeros((1, len(number)), np.bool_)
            cleared = np.vstack([some, np.logical_or.accumulate(low)])
            cleared |= np.vstack([np.logical_or.accumulate(high[::-1])[::-1], some])
            own = np.packbits(~cleared & used, axis=1, bitorder="little").view(np.uint64)
            place = np.searchsorted(cuts[nodes], np.append(known, np.inf), side="left")
            spread = own[place].reshape(len(known) + 1, pairs, 2)
            masks.append(np.ascontiguousarray(spread.transpose(1, 0, 2)))
        ends = np.flatnonzero(feature < 0)
        values = np.zeros(_SLOTS)
        at = first[ends]
        bits = np.uint64(1) << (at % _USED).astype(np.uint64)
        slots = (bits * _MULTIPLIERS[at // _USED]) >> _SHIFT
        values[slots] = depth[ends] + _expected(forest.rows[tree][ends])
        return masks, values

    def _whole(self, masks: Masks, values: Floats) -> _Whole | None:
        """A tree as one table over all intervals of all its features, where these are few."""
        used = [f for f, mask in enumerate(masks) if mask is not None]
        found: Any = None
        places: list[tuple[int, Codes]] = []
        cells = 1
        for f in reversed(used):
            mask: Any = masks[f]
            # Neighbouring intervals between thresholds of other trees have the same mask.
            differs = (mask[:, 1:] != mask[:, :-1]).any(axis=(0, 2))
            own = np.append(0, np.cumsum(differs))
            kept = mask[:, np.append(0, np.flatnonzero(differs) + 1)]
            places.append((f, own * cells))
            cells *= kept.shape[1]
            if cells > _CELLS:
                return None
            found = kept if found is None else kept[:, :, None, :] & found[:, None]
            found = found.reshape(len(found), cells, 2)
        if found is None:
            return None
        product = (found * _MULTIPLIERS[: 2 * len(found)].reshape(-1, 1, 2)).sum(axis=(0, 2))
        return places, values[(product >> _SHIFT).astype(np.intp)]

    def scores(self, columns: Sequence[npt.NDArray[np.float32]]) -> Floats:
        """The scores, from 0 to 1, of rows whose features are given one by one."""
        height = len(columns[0])
        codes = [
            np.searchsorted(c, x, side="left") for c, x in zip(self._cuts, columns, strict=True)
        ]
        axes = _axes(codes, [len(cuts) + 1 for cuts in self._cuts], height)
        lengths = np.zeros(height)
        trees = zip(self._masks, self._values, self._tables, strict=True)
        for masks, values, whole in trees:
            if whole is not None:
                lengths += _cell(whole, codes)
                continue
            tables = [table for axis in axes if (table := _table(axis, masks)) is not None]
            if not tables:
                # A tree of one leaf.
                lengths += values.max()
                continue
            for start in range(0, height, _ROWS):
                part = slice(start, start + _ROWS)
                lengths[part] += _looked_up(tables, part, values)
        return np.asarray(np.exp2(-lengths / self._scale))


def _cell(whole: _Whole, codes: Sequence[Codes]) -> Floats:
    places, values = whole
    at: Any = None
    for feature, place in places:
        mine = np.take(place, codes[feature], mode="clip")
        at = mine if at is None else np.add(at, mine, out=at)
    return np.asarray(np.take(values, at, mode="clip"))


Axis = tuple[Codes, list[tuple[int, Codes]]]
"""What is looked up at once: each row's combination, and for each feature every combination's
interval."""


def _axes(codes: Sequence[Codes], counts: Sequence[int], height: int) -> list[Axis]:
    axes: list[Axis] = []
    for number, (code, count) in enumerate(zip(codes, counts, strict=True)):
        if count > 1:
            axes.append(_compact(code, count, [(number, np.arange(count))]))
    while len(axes) > 1:
        axes.sort(key=_width)
        (one, mine), (other, its) = axes[:2]
        narrow, wide = _width(axes[0]), _width(axes[1])
        if narrow * wide * _COMBINED > max(height, _ROWS // _COMBINED):
            break
        both = [(f, np.repeat(bins, wide)) for f, bins in mine]
        both += [(f, np.tile(bins, narrow)) for f, bins in its]
        axes[:2] = [_compact(one * wide + other, narrow * wide, both)]
    return axes


def _width(axis: Axis) -> int:
    return len(axis[1][0][1])


def _compact(codes: Codes, count: int, bins: list[tuple[int, Codes]]) -> Axis:
    """An axis with those combinations alone that rows have."""
    present = np.flatnonzero(np.bincount(codes, minlength=count))
    places = np.zeros(count, np.intp)
    places[present] = np.arange(len(present))
    return places[codes], [(f, bin_[present]) for f, bin_ in bins]


def _table(
    axis: Axis, masks: Sequence[npt.NDArray[np.uint64] | None]
) -> tuple[Codes, npt.NDArray[np.complex128]] | None:
    """Each row's combination, and every combination's mask in a tree; None if it rules out none."""
    found: npt.NDArray[np.uint64] | None = None
    for feature, bins in axis[1]:
        mask = masks[feature]
        if mask is not None:
            mine = mask[:, bins]
            found = mine if found is None else found & mine
    if found is None:
        return None
    return axis[0], found.view(np.complex128)[:, :, 0]


def _looked_up(
    tables: Sequence[tuple[Codes, npt.NDArray[np.complex128]]], part: slice, values: Floats
) -> Floats:
    product: Any = None
    for pair in range(len(tables[0][1])):
        left: Any = None
        for codes, masks in tables:
            mine = np.take(masks[pair], codes[part], mode="clip").view(np.uint64)
            left = mine if left is None else np.bitwise_and(left, mine, out=left)
        one, other = _MULTIPLIERS[2 * pair : 2 * pair + 2]
        found = left[0::2] * one + left[1::2] * other
        product = found if product is None else product + found
    return np.asarray(np.take(values, (product >> _SHIFT).view(np.int64), mode="clip"))


def _spans(
    feature: npt.NDArray[np.int32], left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]
) -> tuple[Codes, Codes, Codes, Floats]:
    """Of each node: its first leaf, the first one to its right, the one behind its last; its
    depth.
    """
    leaf, below, above = (feature < 0).tolist(), left.tolist(), right.tolist()
    count = [1] * len(leaf)
    for node in range(len(leaf) - 1, -1, -1):
        if not leaf[node]:
            count[node] = count[below[node]] + count[above[node]]
    first, middle, depth = [0] * len(leaf), [0] * len(leaf), [0.0] * len(leaf)
    for node in range(len(leaf)):
        if not leaf[node]:
            one, other = below[node], above[node]
            first[one], first[other] = first[node], first[node] + count[one]
            middle[node] = first[other]
            depth[one] = depth[other] = depth[node] + 1
    begins = np.array(first)
    return begins, np.array(middle), begins + np.array(count), np.array(depth)


def _expected(rows: npt.NDArray[Any]) -> Floats:
    """The mean path length of an unsuccessful search among so many rows (Liu and others, 2008)."""
    many = np.maximum(rows, 2).astype(np.float64)
    found = 2.0 * (np.log(np.maximum(many - 1.0, 1.0)) + _EULER) - 2.0 * (many - 1.0) / many
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, found))


def _below(thresholds: Floats) -> npt.NDArray[np.float32]:
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def prove(forest: Forest, features: int) -> None:
    """Makes sure that the arrays are trees, which neither lead astray nor round in circles.

    Raises:
        LakeError: what is there is no forest.
    """
    nodes = len(forest.feature)
    arrays = (forest.threshold, forest.left, forest.right, forest.rows)
    good = (
        len(forest.sizes) > 0
        and forest.sample > 1
        and all(len(array) == nodes for array in arrays)
        and bool((forest.sizes > 0).all())
        and int(forest.sizes.sum()) == nodes
        and int(forest.feature.max()) < features
    )
    if good:
        size = np.repeat(forest.sizes, forest.sizes)
        own = np.arange(nodes) - np.repeat(np.cumsum(forest.sizes) - forest.sizes, forest.sizes)
        inner = forest.feature >= 0
        leaves = np.add.reduceat(~inner, np.cumsum(forest.sizes) - forest.sizes)
        sides = (forest.left[inner], forest.right[inner])
        good = (
            bool(np.isfinite(forest.threshold[inner]).all())
            and all(bool(((s > own[inner]) & (s < size[inner])).all()) for s in sides)
            and bool((forest.rows > 0).all())
            and bool((leaves <= _LEAVES).all())
            and _each_once(forest, inner)
        )
    if not good:
        raise LakeError("A stored anomaly model is damaged: its arrays are no trees.")


def _each_once(forest: Forest, inner: npt.NDArray[np.bool_]) -> bool:
    """Whether every node but the roots is a child exactly once."""
    starts = np.repeat(np.cumsum(forest.sizes) - forest.sizes, forest.sizes)[inner]
    children = np.concatenate([starts + forest.left[inner], starts + forest.right[inner]])
    times = np.bincount(children, minlength=len(inner))
    roots = np.cumsum(forest.sizes) - forest.sizes
    expected = np.ones(len(inner), np.int64)
    expected[roots] = 0
    return bool((times == expected).all())


def scorer(version: str, forest: Forest, features: int) -> Scorer:
    """The scorer of a model's version, made once per process."""
    with _lock:
        if version not in _scorers:
            while len(_scorers) >= _KEPT:
                del _scorers[next(iter(_scorers))]
            _scorers[version] = Scorer(forest, features)
        return _scorers[version]


_scorers: dict[str, Scorer] = {}
_lock = threading.Lock()
