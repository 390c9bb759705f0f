"""The scores of a forest are those of scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.anomaly import leaves
from bronze.anomaly.forest import Scorer, _LeafTables, check_forest
from bronze.anomaly.leaves import MOST_LEAVES
from bronze.errors import LakeError
from bronze.model.anomaly import Forest
from tests.support.effort import examples

if TYPE_CHECKING:
    from sklearn.ensemble import IsolationForest


def forest_of(theirs: IsolationForest) -> Forest:
    """The same trees as arrays."""
    trees = [tree.tree_ for tree in theirs.estimators_]

    def joined(name: str, kind: type) -> Any:
        return np.concatenate([getattr(tree, name) for tree in trees]).astype(kind)

    return Forest(
        sample=int(theirs.max_samples_),
        sizes=np.array([tree.node_count for tree in trees], np.int32),
        feature=np.maximum(joined("feature", np.int32), -1),
        threshold=joined("threshold", np.float64),
        left=joined("children_left", np.int32),
        right=joined("children_right", np.int32),
        rows=joined("n_node_samples", np.int32),
    )


def trained(rows: Any, trees: int, sample: int, seed: int) -> tuple[IsolationForest, Forest]:
    """A forest of scikit-learn, and ours of the same trees."""
    # It takes more than a second to load, in each process that collects the tests.
    from sklearn.ensemble import IsolationForest

    theirs = IsolationForest(n_estimators=trees, max_samples=sample, random_state=seed).fit(rows)
    return theirs, forest_of(theirs)


def kinds(chance: np.random.Generator, height: int, width: int) -> Any:
    """Columns of several kinds: continuous, with few values, constant, with a heavy tail."""
    made = [
        chance.normal(size=height),
        chance.integers(0, 3, height).astype(float),
        np.zeros(height),
        np.exp(chance.normal(0, 8, height)),
        np.where(chance.random(height) < 0.01, 1e30, chance.random(height)),
        -chance.integers(0, 10**9, height).astype(float),
    ]
    return np.column_stack(made[:width]).astype(np.float32)


@pytest.mark.soak
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(2, 700),
    st.integers(2, 256),
    st.integers(1, 12),
)
@settings(derandomize=True, database=None, deadline=None, max_examples=examples(10))
def test_scores_equal_those_of_scikit_learn(
    seed: int, width: int, height: int, sample: int, trees: int
) -> None:
    """For any data, also for rows that were not in the training sample."""
    chance = np.random.default_rng(seed)
    rows = kinds(chance, height, width)
    theirs, mine = trained(rows, trees, min(sample, height), seed)
    other = np.vstack([kinds(chance, 50, width), rows, np.full((1, width), 1e30, np.float32)])
    found = Scorer(mine, width).scores(list(np.ascontiguousarray(other.T)))
    np.testing.assert_allclose(found, -theirs.score_samples(other), rtol=0, atol=1e-12)


def test_many_columns_are_scored_in_parts() -> None:
    """Trees whose features have too many combinations for one table have the same scores, also in
    slices of a frame, and for infinite values.
    """
    chance = np.random.default_rng(4)
    rows = chance.normal(size=(600, 12)).astype(np.float32)
    theirs, mine = trained(rows, 30, 256, 4)
    scorer = Scorer(mine, 12)
    assert {type(tables) for tables in scorer._tables} >= {_LeafTables}
    far = np.where(chance.random((600, 12)) < 0.1, chance.choice([-np.inf, np.inf]), rows)
    finite = np.clip(far, np.finfo(np.float32).min, np.finfo(np.float32).max).astype(np.float32)
    found = scorer.scores(list(np.ascontiguousarray(far.astype(np.float32).T)))
    np.testing.assert_allclose(found, -theirs.score_samples(finite), rtol=0, atol=1e-12)
    some = scorer.scores(list(np.ascontiguousarray(far[100:103].astype(np.float32).T)))
    assert some.tobytes() == found[100:103].tobytes()


def test_values_at_a_threshold_go_left() -> None:
    """The nearest float32 of a threshold and its neighbours go to the same side as in
    scikit-learn.
    """
    chance = np.random.default_rng(3)
    rows = chance.normal(size=(400, 1)).astype(np.float32)
    theirs, mine = trained(rows, 20, 256, 3)
    near = mine.threshold[mine.feature >= 0].astype(np.float32)
    both = (np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf))
    other = np.concatenate([near, *both])[:, None]
    found = Scorer(mine, 1).scores([other[:, 0]])
    np.testing.assert_allclose(found, -theirs.score_samples(other), rtol=0, atol=1e-12)


def test_trees_of_more_leaves_than_a_mask_has_bits() -> None:
    """Trees of up to 256 leaves are scored as well."""
    rows = np.arange(256, dtype=np.float32)[:, None]
    theirs, mine = trained(rows, 8, 256, 0)
    assert max((tree.tree_.node_count + 1) // 2 for tree in theirs.estimators_) > MOST_LEAVES
    found = Scorer(mine, 1).scores([rows[:, 0]])
    np.testing.assert_allclose(found, -theirs.score_samples(rows), rtol=0, atol=1e-12)
    # A full tree of 256 leaves, which random data does not give.
    nodes = np.arange(511)
    inner = nodes < 255
    starts = 128.0 / 2.0 ** np.floor(np.log2(nodes[inner] + 1))
    within = nodes[inner] + 1 - 2.0 ** np.floor(np.log2(nodes[inner] + 1))
    full = Forest(
        256,
        np.array([511], np.int32),
        np.where(inner, 0, -1).astype(np.int32),
        np.append(starts * (2 * within + 1) - 0.5, np.zeros(256)),
        np.where(inner, 2 * nodes + 1, -1).astype(np.int32),
        np.where(inner, 2 * nodes + 2, -1).astype(np.int32),
        np.ones(511, np.int32),
    )
    scores = Scorer(full, 1).scores([rows[:, 0]])
    scale = 2 * (np.log(255) + leaves._EULER) - 2 * 255 / 256
    np.testing.assert_allclose(scores, 2 ** (-8 / scale))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: replace(f, sizes=f.sizes[:-1]),
        lambda f: replace(f, left=f.left[:-1]),
        lambda f: replace(f, left=np.zeros_like(f.left)),
        lambda f: replace(f, right=f.left),
        lambda f: replace(f, right=f.right + 10**6),
        lambda f: replace(f, feature=f.feature + 5),
        lambda f: replace(f, threshold=np.full_like(f.threshold, np.nan)),
        lambda f: replace(f, rows=np.zeros_like(f.rows)),
        lambda f: replace(f, sample=0),
        lambda f: replace(f, sizes=f.sizes[:0], feature=f.feature[:0]),
    ],
)
def test_arrays_that_are_not_a_forest_are_refused(damage: Any) -> None:
    """Arrays with missing nodes or cycles are an error before they are used."""
    _, mine = trained(kinds(np.random.default_rng(1), 300, 2), 5, 256, 1)
    check_forest(mine, 2)
    with pytest.raises(LakeError, match="damaged"):
        check_forest(damage(mine), 2)
