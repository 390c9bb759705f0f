"""The scores of a forest are those of a plain walk down its trees, whatever its thresholds are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.anomaly.features import feature_values
from bronze.anomaly.forest import Scorer, check_forest
from bronze.anomaly.leaves import mean_path_length
from bronze.anomaly.training import train
from bronze.model.anomaly import Feature, Forest
from tests.support.effort import examples


def walked_scores(forest: Forest, columns: Sequence[Any]) -> Any:
    """The scores by walking down each tree, row by row."""
    lengths = np.zeros(len(columns[0]))
    ends = np.cumsum(forest.sizes)
    for start in (ends - forest.sizes).tolist():
        for row in range(len(lengths)):
            node, depth = start, 0
            while (feature := forest.feature[node]) >= 0:
                is_left = float(columns[feature][row]) <= forest.threshold[node]
                node = start + (forest.left if is_left else forest.right)[node]
                depth += 1
            lengths[row] += depth + mean_path_length(forest.rows[node : node + 1])[0]
    scale = mean_path_length(np.array([forest.sample]))[0]
    return np.exp2(-lengths / (len(ends) * scale))


def integer(chance: np.random.Generator) -> float:
    """A threshold that many nodes share."""
    return float(chance.integers(-3, 4))


def beside_float32(chance: np.random.Generator) -> float:
    """One of a few thresholds that become one float32."""
    return float(chance.integers(-2, 3)) + 0.1 + float(chance.integers(0, 4)) * 1e-12


def far(chance: np.random.Generator) -> float:
    """A threshold of any size, also beyond the range of float32."""
    return float(chance.choice([-1.0, 1.0]) * 10.0 ** chance.integers(-300, 300))


def random_forest(chance: np.random.Generator, features: int, threshold: Any) -> Forest:
    """A forest with thresholds that ``threshold`` draws, whatever a parent's threshold is."""
    nodes: list[list[Any]] = []
    sizes = []

    def grow(start: int, depth: int, rows: int) -> int:
        number = len(nodes) - start
        nodes.append([-1, 0.0, -1, -1, rows])
        if depth and rows > 1 and chance.random() < 0.95:
            left = int(chance.integers(1, rows))
            node = [int(chance.integers(features)), threshold(chance)]
            node += [grow(start, depth - 1, left), grow(start, depth - 1, rows - left), rows]
            nodes[start + number] = node
        return number

    for _ in range(int(chance.integers(1, 8))):
        start = len(nodes)
        grow(start, int(chance.integers(0, 9)), 256)
        sizes.append(len(nodes) - start)
    feature, cuts, left, right, rows = zip(*nodes, strict=True)
    return Forest(
        sample=256,
        sizes=np.array(sizes, np.int32),
        feature=np.array(feature, np.int32),
        threshold=np.array(cuts),
        left=np.array(left, np.int32),
        right=np.array(right, np.int32),
        rows=np.array(rows, np.int32),
    )


@pytest.mark.parametrize("threshold", [integer, beside_float32, far])
@given(st.integers(0, 2**32 - 1), st.integers(1, 11))
@settings(derandomize=True, database=None, deadline=None, max_examples=examples(8))
def test_scores_equal_those_of_a_walk_down_the_trees(
    threshold: Any, seed: int, features: int
) -> None:
    """Also where several nodes have one threshold, or thresholds that are one float32, and where
    thresholds are beyond the range of float32; at the thresholds, beside them, and for infinite
    values.
    """
    chance = np.random.default_rng(seed)
    forest = random_forest(chance, features, threshold)
    check_forest(forest, features)
    with np.errstate(over="ignore"):
        near = forest.threshold.astype(np.float32)
        beside = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    some = np.concatenate([near, *beside, chance.normal(size=50), [-np.inf, np.inf]])
    columns = [chance.choice(some, 40).astype(np.float32) for _ in range(features)]
    found = Scorer(forest, features).scores(columns)
    np.testing.assert_allclose(found, walked_scores(forest, columns), rtol=0, atol=1e-12)


def test_ages_of_long_ago_are_scored_by_the_trees() -> None:
    """The ages in days of times long ago are few float32, so that trees have equal thresholds."""
    chance = np.random.default_rng(7)
    moment = dt.datetime(2024, 11, 27, tzinfo=dt.UTC)
    first = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    rows = pl.DataFrame(
        {
            "amount": chance.lognormal(3, 1, 1000),
            "at": [first + dt.timedelta(seconds=int(s)) for s in chance.integers(0, 600, 1000)],
        }
    )
    features = [Feature("amount", "number", 0.0, 20.0, 200.0, ()), Feature("at", "age")]
    model = train(rows, features, moment, 1000, expected=0.01, trees=30, seed=1)
    assert model is not None
    used = model.forest.threshold[model.forest.feature == 1]
    assert len(np.unique(used.astype(np.float32))) < len(np.unique(used))
    columns = [column[:100] for column in feature_values(rows, model.features, moment, moment)]
    found = Scorer(model.forest, len(model.features)).scores(columns)
    np.testing.assert_allclose(found, walked_scores(model.forest, columns), rtol=0, atol=1e-12)
