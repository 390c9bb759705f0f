"""A copy keeps within its memory, whatever the number and the size of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bronze.backup import copy
from bronze.delta import commit
from bronze.delta.commit import Change, Shape
from bronze.execution import budget
from bronze.model.files import WrittenFile
from tests.support.memory import Peak, taken
from tests.support.small_lake import COLUMNS, SmallLake

pytestmark = pytest.mark.soak


def fill(lake: SmallLake, count: int, size: int) -> None:
    """A table of so many files of random bytes."""
    place = lake.place()
    Path(place.url).mkdir(parents=True)
    files = []
    block = os.urandom(min(size, 2**20))
    for number in range(count):
        name = f"part-{number:06}-{os.urandom(16).hex()}.zstd.parquet"
        with Path(place.url, name).open("wb") as file:
            for _ in range(max(1, size // 2**20)):
                file.write(block)
        files.append(WrittenFile(name, size, 10, '{"numRecords":10}'))
    commit.commit(place, None, Change("WRITE", files), {}, shape=Shape(COLUMNS, ()))


@pytest.mark.parametrize(("count", "size"), [(5, 128 * 2**20), (20_000, 2_000)])
def test_a_copy_takes_no_more_than_a_service_sets_aside(
    tmp_path: Path, count: int, size: int
) -> None:
    """Beside the libraries; that is less than 200 MB."""
    lake = SmallLake(tmp_path).begin()
    fill(lake, count, size)
    before = taken()
    with Peak() as peak:
        assert copy.back_up(lake.settings).exit_code == 0
    assert peak.bytes - before <= budget.COPY <= 200 * 10**6
