"""Units: what they take of a run's memory."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from bronze.config.settings import RunSettings
from bronze.ingest import units
from bronze.postgres.copy import row_sizes
from tests.unit.test_portion import IN_MEMORY

MEMORY = st.integers(512 * 10**6, 64 * 10**9)


def run_settings(memory: int, workers: int) -> RunSettings:
    """How a run works."""
    return RunSettings.model_validate({"memory": f"{memory // 10**6}MB", "workers": workers})


@IN_MEMORY
@given(memory=MEMORY, workers=st.integers(1, 64), slots=st.integers(1, 64), more=st.integers(1))
def test_the_memory_that_a_refusal_asks_for_is_enough(
    memory: int, workers: int, slots: int, more: int
) -> None:
    """A row that does not fit fits into what is asked for, though more readers are then there."""
    run = run_settings(memory, workers)
    most = units.heaviest(run, units.readers(run, slots))
    size = most + more % 10**9
    refused = row_sizes.too_large("t", "1", size, most, units.COPIES, units.rest(workers))
    (asked,) = re.findall(r'to "(\d+)MB"', refused.hint)
    run = run_settings(int(asked) * 10**6, workers)
    assert units.heaviest(run, units.readers(run, slots)) >= size


@IN_MEMORY
@given(memory=MEMORY, number=st.integers(0, 300))
def test_all_units_together_give_back_what_there_is_room_for(memory: int, number: int) -> None:
    """The more units a table has, the fewer rows each of them gives back."""
    run = run_settings(memory, 1)
    assert 2**16 <= units.few(run, number) <= 4 * 2**20
    assert units.few(run, number) * number <= max(memory // 8, 2**16 * number)
