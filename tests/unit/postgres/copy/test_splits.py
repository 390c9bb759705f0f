"""Splits of very large tables: few values in the driver, whatever their size."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from bronze.execution import budget
from bronze.model.units import PageRange, SplitGroup
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import splits

PAGE, MB, GB, TB = 8192, 2**20, 2**30, 2**40


def relation(*heaps: int, leaves: bool = False) -> Relation:
    """A table with heaps of so many pages, which can be read by themselves if there are
    ``leaves``.
    """
    names = tuple(f"ONLY public.t_{i}" for i in range(len(heaps))) if leaves else ()
    kind: Literal["table", "partitioned"] = "table" if len(heaps) == 1 else "partitioned"
    return Relation(1, "public", "t", kind, (), (), heaps, PAGE, 0, -1, True, leaves=names)


def pages_of(group: SplitGroup) -> list[tuple[str, int, int]]:
    """The heap of each split with its first page, and the page after its last; -1 without one."""
    found = []
    for heap, condition in group:
        bounds = [int(part.split(",")[0]) for part in condition.split("'(")[1:]]
        found.append((heap, bounds[0], bounds[1] if len(bounds) > 1 else -1))
    return found


@given(
    heaps=st.lists(st.integers(0, 400), min_size=17, max_size=20).filter(
        lambda heaps: sum(heaps) > 10 * 20
    ),
    step=st.integers(1, 20),
    largest=st.integers(1, 500),
)
def test_heaps_are_read_whole_one_after_another(heaps: list[int], step: int, largest: int) -> None:
    """The splits of each heap begin with its first page, have no gaps, and the last one is open; no
    split is larger than asked for, and no group, unless it is one split.
    """
    groups = splits.page_groups(relation(*heaps, leaves=True), step * PAGE, largest * PAGE)
    by_heap: dict[str, list[tuple[int, int]]] = {}
    for group in groups:
        assert group.ranges
        for heap, low, high in pages_of(group):
            by_heap.setdefault(heap, []).append((low, high))
            assert high == -1 or high - low <= step
        assert len(group) == 1 or group.size <= largest * PAGE
    assert len(by_heap) == len(heaps)
    for number, size in enumerate(heaps):
        parts = by_heap[f"ONLY public.t_{number}"]
        assert parts[0][0] == 0
        assert parts[-1][1] == -1
        assert parts[-1][0] < max(size, 1)
        assert all(end == start for (_, end), (start, _) in pairwise(parts))


@given(low=st.integers(0, 100), pages=st.integers(0, 100), step=st.integers(1, 30))
def test_a_closed_range_ends_before_the_next(low: int, pages: int, step: int) -> None:
    """A range that is not open has its last page as a bound."""
    ranges = (PageRange(low, low + pages, step, False),)
    parts = pages_of(SplitGroup(0, ranges=ranges))
    assert (parts[0][1], parts[-1][2]) == (low, low + pages)
    assert len(parts) == len(ranges[0])


def test_the_units_of_ten_terabytes_are_few_and_small() -> None:
    """A table of ten terabytes has as many units as one of one, each of a few bytes, whether it has
    one heap or a thousand.
    """
    for count in (1, 1000):
        for size in (TB, 10 * TB):
            table = relation(*[size // PAGE // count] * count, leaves=count > 1)
            largest = budget.largest_file(size, budget.LARGEST_FILE)
            groups = splits.page_groups(table, 4 * MB, largest)
            assert len(groups) <= budget.MOST_UNITS + count
            assert sum(map(len, groups)) >= size // (4 * MB)
            assert max(len(pickle.dumps(group)) for group in groups) < 500
            assert max(group.size for group in groups) <= largest


def test_partitions_that_hold_little_are_read_by_their_parent() -> None:
    """A thousand partitions of one page are one statement, not a thousand."""
    table = relation(*[1] * 1000, leaves=True)
    (group,) = splits.page_groups(table, 4 * MB, 128 * MB)
    assert group.ranges == ()
    assert len(group) == 1


def test_partitions_that_the_role_may_not_read_are_divided_by_their_parent() -> None:
    """A range of one page of each of 10,000 heaps is divided by the heaps, so that a split is no
    larger than twice what fits.
    """
    table = relation(*[100] * 10_000)
    parts = list(splits.page_ranges(table, 4 * MB))
    assert len(parts) == 100 * 10
    assert max(part.size for part in parts) <= 8 * MB
    assert all("hashoid(tableoid)" in part.where for part in parts)
