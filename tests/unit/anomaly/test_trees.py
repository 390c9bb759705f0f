"""Forests are grown as scikit-learn grows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.anomaly import trees
from bronze.anomaly.forest import Scorer, check_forest
from bronze.anomaly.trees import grow_forest
from bronze.model.anomaly import Forest
from tests.support.effort import examples


def grown(values: Any, seed: int = 0, count: int = 100, sample: int = 256) -> Forest:
    """A forest on these rows, whose features are equally likely."""
    weights = np.ones(values.shape[1], np.intp)
    return grow_forest(values, weights, trees=count, sample=sample, seed=seed)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 400), st.sampled_from([0, 1, 3])
)
@settings(derandomize=True, database=None, deadline=None, max_examples=examples(20))
def test_nodes_divide_the_rows_of_their_trees(
    seed: int, width: int, height: int, digits: int
) -> None:
    """Each tree has all rows of its sample in its leaves, both children of a node have rows, and
    nodes stay undivided only if they are deep or their rows are equal.
    """
    values = np.random.default_rng(seed).normal(size=(height, width)).round(digits)
    values = np.append(values, np.full((height, 1), 7.0), axis=1).astype(np.float32)
    sample = min(256, height)
    forest = grown(values, seed, 5, sample)
    check_forest(forest, width)
    start = 0
    for size in forest.sizes:
        tree = slice(start, start + size)
        start += size
        rows, inner = forest.rows[tree], forest.feature[tree] >= 0
        left, right = forest.left[tree][inner], forest.right[tree][inner]
        assert rows[0] == sample == rows[~inner].sum()
        assert (rows[inner] == rows[left] + rows[right]).all()
    if height <= 256:
        # The sample is all rows: those of a shallow leaf are equal.
        depth = depths(forest)
        for tree_leaf in leaves_of(forest, values):
            rows_of_leaf = [values[tree_leaf == leaf] for leaf in np.unique(tree_leaf)]
            counted = [depth[leaf] for leaf in np.unique(tree_leaf)]
            for group, deep in zip(rows_of_leaf, counted, strict=True):
                assert deep == trees._MAX_DEPTH or len(np.unique(group, axis=0)) == 1


def depths(forest: Forest) -> Any:
    """The depth of each node, numbered over all trees."""
    depth = np.zeros(len(forest.feature), int)
    starts = np.repeat(np.cumsum(forest.sizes) - forest.sizes, forest.sizes)
    for node in np.flatnonzero(forest.feature >= 0):
        for side in (forest.left, forest.right):
            depth[starts[node] + side[node]] = depth[node] + 1
    return depth


def leaves_of(forest: Forest, values: Any) -> list[Any]:
    """The leaf of each row in each tree, walking down, numbered over all trees."""
    found = []
    for start in np.cumsum(forest.sizes) - forest.sizes:
        node = np.full(len(values), start)
        while (forest.feature[node] >= 0).any():
            feature = np.maximum(forest.feature[node], 0)
            goes_left = values[np.arange(len(values)), feature] <= forest.threshold[node]
            below = start + np.where(goes_left, forest.left[node], forest.right[node])
            node = np.where(forest.feature[node] >= 0, below, node)
        found.append(node)
    return found


def rank_correlation(first: Any, second: Any) -> float:
    """Spearman's correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def test_rows_are_ranked_as_by_scikit_learn() -> None:
    """Scores correlate as those of two forests of scikit-learn do, and outliers come first."""
    # It takes more than a second to load, in each process that collects the tests.
    from sklearn.ensemble import IsolationForest

    chance = np.random.default_rng(5)
    values = chance.normal(size=(2000, 3)).astype(np.float32)
    values[:10] *= 8
    columns = list(np.ascontiguousarray(values.T))
    found = Scorer(grown(values), 3).scores(columns)
    theirs = [
        -IsolationForest(n_estimators=100, max_samples=256, random_state=seed)
        .fit(values)
        .score_samples(values)
        for seed in (1, 2)
    ]
    assert rank_correlation(found, theirs[0]) > rank_correlation(*theirs) - 0.02
    assert set(range(10)) <= set(np.argsort(-found)[:14].tolist())


def test_heavier_features_are_drawn_more_often() -> None:
    """A feature with three times the weight is drawn three times as often."""
    values = np.random.default_rng(2).normal(size=(1000, 2)).astype(np.float32)
    forest = grow_forest(values, np.array([3, 1]), trees=200, sample=64, seed=1)
    drawn = np.bincount(forest.feature[forest.feature >= 0])
    assert 2.7 < drawn[0] / drawn[1] < 3.3


def test_the_same_seed_gives_the_same_forest() -> None:
    """Another seed gives another forest."""
    values = np.random.default_rng(2).normal(size=(300, 2)).astype(np.float32)
    first, again, other = grown(values, 1), grown(values, 1), grown(values, 2)
    assert first.threshold.tobytes() == again.threshold.tobytes()
    assert first.threshold.tobytes() != other.threshold.tobytes()
