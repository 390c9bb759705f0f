"""The budget: what tasks take of a run's memory."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from bronze.execution import budget
from bronze.postgres.copy import row_sizes
from tests.unit.test_portion import IN_MEMORY

MEMORY = st.integers(512 * 10**6, 64 * 10**9)


@IN_MEMORY
@given(memory=MEMORY, workers=st.integers(1, 64), slots=st.integers(1, 64), more=st.integers(1))
def test_the_memory_that_a_refusal_asks_for_is_enough(
    memory: int, workers: int, slots: int, more: int
) -> None:
    """A row that does not fit fits into what is asked for, though more readers are then there."""
    most = budget.largest_row(memory, budget.readers(memory, workers, slots))
    size = most + more % 10**9
    rest = budget.beside_large_row(workers)
    refused = row_sizes.row_too_large_error("t", "1", size, most, budget.COPIES, rest)
    (asked,) = re.findall(r'to "(\d+)MB"', refused.hint)
    memory = int(asked) * 10**6
    assert budget.largest_row(memory, budget.readers(memory, workers, slots)) >= size


@IN_MEMORY
@given(memory=MEMORY, readers=st.integers(1, 8), whole=st.integers(0, 10**11), packed=st.booleans())
def test_splits_fit_into_the_memory_of_a_reader(
    memory: int, readers: int, whole: int, packed: bool
) -> None:
    """They are at most 4 MiB if they are packed, at most 12 MiB otherwise, and in a file each."""
    most = budget.largest_split(packed)
    assert most == (4 if packed else 12) * 2**20
    each = budget.reader_memory(memory, readers)
    split, file = budget.split_and_file(whole, each, readers, most)
    assert split <= most
    assert split <= max(2**20, memory // readers // budget.GROWTH)
    assert split <= file


@IN_MEMORY
@given(memory=MEMORY, number=st.integers(0, 300))
def test_the_results_of_all_units_fit_into_the_memory(memory: int, number: int) -> None:
    """The more units a table has, the fewer rows each of them gives back."""
    given_back = budget.result_bytes(memory, number)
    assert 2**16 <= given_back <= 4 * 2**20
    assert given_back * number <= max(memory // 8, 2**16 * number)
