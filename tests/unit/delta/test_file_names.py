"""Names of data files: what they say of the file, and of files of other writers nothing."""

from __future__ import annotations

import pytest

from bronze.delta import file_names

BATCH = "0192f3a4-0000-7000-8000-000000000001"


def test_the_name_of_a_file_has_its_batch() -> None:
    """Two files of a batch have different names, which both tell the batch."""
    paths = [file_names.new("", (), file_names.DATA, BATCH) for _ in range(2)]
    assert len(set(paths)) == 2
    assert [file_names.batch_of(path) for path in paths] == [BATCH, BATCH]
    assert file_names.batch_of("part-00000-0b6b1a31-c000.snappy.parquet") is None


def test_the_name_of_a_file_has_its_cluster_and_partition() -> None:
    """A value with characters that readers encode differently makes no folder."""
    name = file_names.cluster_name(BATCH, "0123abcd", "89ef4567")
    path = file_names.new("", (("day", "2026-03-02"),), file_names.DATA, name)
    assert path.startswith("day=2026-03-02/part-")
    assert file_names.cluster_of(path) == ("0123abcd", "89ef4567")
    assert file_names.batch_of(path) == BATCH
    feed = file_names.new(file_names.FEED_FOLDER, (("day", "a b"),), file_names.FEED, BATCH)
    assert feed.startswith("_change_data/cdc-")
    assert (file_names.batch_of(feed), file_names.cluster_of(feed)) == (BATCH, None)


@pytest.mark.parametrize(
    "path",
    [
        "part-00000-1a2b3c4d-c000.zstd.parquet.crc",
        "_delta_log/00000000000000000000.json",
        "_change_data/cdc-00000.parquet",
        "foreign.parquet",
    ],
)
def test_names_of_other_files_have_no_batch(path: str) -> None:
    """A name that is not of ours has no batch."""
    assert file_names.batch_of(path) is None
