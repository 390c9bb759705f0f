"""The division of a table into units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bronze.model.units import SplitGroup


@given(count=st.integers(1, 400), share=st.floats(0, 1))
def test_the_first_splits_of_a_cluster_are_a_sample(count: int, share: float) -> None:
    """Each split comes once; between those of any beginning of the order, and at both ends, there
    is no gap of more than a few times the mean one.
    """
    splits = SplitGroup(1, tuple(map(str, range(count))), scattered=True)
    order = [int(condition) for _, condition in splits]
    assert sorted(order) == list(range(count))
    first = sorted(order[: max(1, round(count * share))])
    gaps = [b - a for a, b in zip([0, *first], [*first, count - 1], strict=True)]
    assert max(gaps) <= 4 * count / len(first)
