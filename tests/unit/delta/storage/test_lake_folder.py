"""The local folder of a lake, which may disappear while a process works with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bronze.delta import store
from bronze.delta.storage import client, lake_folder
from bronze.errors import LakeUnreachable
from bronze.model.locations import Place


def test_a_lake_that_has_disappeared_is_not_made_again(tmp_path: Path) -> None:
    """Once it is expected, whatever reads or writes in it fails; without that it is made."""
    root, table = Place(str(tmp_path / "lake")), Place(str(tmp_path / "lake" / "bronze" / "bz_t"))
    store.put(table, "one", b"1")
    lake_folder.expect(root)
    try:
        (tmp_path / "lake").rename(tmp_path / "away")
        for act in (
            lambda: store.put(table, "one", b"2"),
            lambda: store.is_missing(table),
            lambda: store.listing(table),
            lambda: client.open_store(table),
            lambda: store.writer(table, "two").__enter__(),
        ):
            with pytest.raises(LakeUnreachable, match="no such folder"):
                act()
        assert not (tmp_path / "lake").exists()
        assert store.is_missing(root)
        (tmp_path / "away").rename(tmp_path / "lake")
        assert store.listing(table) == ["one"]
    finally:
        lake_folder.expect_no_more(root)
    shutil.rmtree(tmp_path / "lake")
    store.put(table, "one", b"2")
