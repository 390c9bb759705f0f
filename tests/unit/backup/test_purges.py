"""Erasures reach the copy: nothing of what was purged in the lake is left in any generation."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import polars as pl
import pytest

from bronze import failpoint
from bronze.backup import manifest, proof, purges
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.commit import Change, commit
from bronze.delta.layout import vacuum
from bronze.errors import ConfigError
from tests.support.small_lake import SmallLake


def holds(root: Path, word: str) -> list[str]:
    """The objects under a folder that hold a word: in their bytes, or decoded from Parquet."""
    found = []
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += pl.read_parquet(path).write_json().encode()
        if word.encode() in text or word.upper().encode() in text:
            found.append(str(path.relative_to(root)))
    return found


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """A lake whose copy has three generations, the person's word in each."""
    lake = SmallLake(tmp_path).begin()
    for words in (("zoltan", "bob"), ("cyd",), ("dan",)):
        lake.append(*words)
        lake.back_up()
    return lake


def test_nothing_is_left_in_any_generation(lake: SmallLake) -> None:
    """The files of the word are gone from the copy, also strays that no generation knows; the table
    begins at the purge, and the other rows are there.
    """
    assert holds(lake.copy, "zoltan")
    stray = lake.copy / "bronze/bz_orders/part-stray.parquet"
    pl.DataFrame({"word": ["zoltan"]}).write_parquet(stray)
    lake.append("eve")
    lake.erase("zoltan")
    root = lake.settings.copy_root
    assert root is not None
    assert len(purges.outstanding(lake.settings.lake_root, root)) == 1
    done = lake.back_up()
    assert (done.exit_code, done.erasures) == (0, ())
    assert holds(lake.copy, "zoltan") == []
    assert lake.words(lake.copy) == ["bob", "cyd", "dan", "eve"]
    assert purges.outstanding(lake.settings.lake_root, root) == []
    versions = purges.purged_versions(root)
    states = {
        number: purges.is_purged(manifest.read(root, number).tables[0], versions)
        for number in manifest.generations(root)
    }
    assert states == {1: True, 2: True, 3: True, 4: False}
    assert proof.verify_copy(lake.settings).faults == ()
    lake.append("fay")
    assert lake.back_up().exit_code == 0
    assert lake.words(lake.copy, 5) == ["bob", "cyd", "dan", "eve", "fay"]


def test_old_versions_that_were_purged_without_a_commit_go_too(lake: SmallLake) -> None:
    """`--old-versions` does not change the version: the table is copied again all the same."""
    state = log.read(lake.place())
    assert state is not None
    commit(lake.place(), state, Change("DELETE", removed=[state.files[-1]]), {})
    lake.back_up()
    assert holds(lake.copy, "zoltan")
    vacuum.purge(lake.place(), time.time())
    assert lake.back_up().exit_code == 0
    assert holds(lake.copy, "zoltan") == []


def test_an_erasure_that_has_not_ended_in_the_lake_is_outstanding(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its entry and the deletion: the copy says so until it was run again."""

    class Killed(BaseException):
        pass

    def reach(name: str) -> None:
        if name == "expiring":
            raise Killed

    for word in ("w", "x"):
        lake.append(word)
    with monkeypatch.context() as patched:
        patched.setattr(failpoint, "reach", reach)
        # As the checkpoint is written before the entry, it is taken away.
        with pytest.raises(Killed):
            lake.erase("zoltan")
    for path in (lake.lake / "bronze/bz_orders/_delta_log").glob("*checkpoint*"):
        path.unlink()
    done = lake.back_up()
    assert done.exit_code == 1
    assert "has not ended in the lake" in done.erasures[0].reason
    vacuum.purge(lake.place(), time.time())
    assert lake.back_up().exit_code == 0
    assert holds(lake.copy, "zoltan") == []


def test_a_locked_copy_says_until_when_an_erasure_waits(tmp_path: Path) -> None:
    """Objects that cannot be deleted yet stay, and the erasure is outstanding; nothing is noted."""
    lake = SmallLake(tmp_path).begin()
    lake.append("zoltan", "bob")
    lake.back_up()
    lake.erase("zoltan")
    root = lake.settings.copy_root
    assert root is not None
    (entry,) = purges.outstanding(lake.settings.lake_root, root)
    until = purges.purge(root, entry, None, 3600, lambda *_: None)
    assert until is not None
    assert 3500 < until.timestamp() - time.time() <= 3600
    assert purges.outstanding(lake.settings.lake_root, root) == [entry]


def test_a_table_that_was_dropped_after_an_erasure_leaves_nothing(lake: SmallLake) -> None:
    """Without the table in the lake all of its objects are deleted."""
    lake.erase("zoltan")
    shutil.rmtree(lake.lake / "bronze/bz_orders")
    assert lake.back_up().exit_code == 0
    assert holds(lake.copy, "zoltan") == []


def test_lock_needs_s3(tmp_path: Path) -> None:
    """The config of another store with a lock is refused."""
    with pytest.raises(ConfigError, match="lock needs a store with object lock"):
        Settings.from_dict(
            {
                "source": {"name": "shop", "dsn": "postgresql://nobody@nowhere/shop"},
                "lake": {"root": str(tmp_path)},
                "backup": {"root": "abfss://copy@account.dfs.core.windows.net/x", "lock": "30d"},
            }
        )


def test_a_table_that_was_made_again_after_an_erasure_is_not_taken_for_the_erased_one(
    lake: SmallLake,
) -> None:
    """Versions of the new table count from 0 again: they are not those that were purged."""
    lake.erase("zoltan")
    shutil.rmtree(lake.lake / "bronze/bz_orders")
    assert lake.back_up().exit_code == 0
    lake.append("new")
    done = lake.back_up()
    assert (done.exit_code, lake.words(lake.copy)) == (0, ["new"])
    root = lake.settings.copy_root
    assert root is not None
    newest = manifest.read(root, done.generation)
    assert not purges.is_purged(newest.tables[0], purges.purged_versions(root))
    assert proof.verify_copy(lake.settings).faults == ()


def test_two_erasures_before_one_backup(lake: SmallLake) -> None:
    """A generation between both is not whole either: the copy knows, even if it is killed between
    their deletions.
    """
    lake.erase("zoltan")
    lake.back_up()
    lake.append("eve")
    lake.back_up()
    lake.erase("bob")
    lake.append("fay")
    lake.erase("cyd")
    assert lake.back_up().exit_code == 0
    assert holds(lake.copy, "zoltan") == []
    assert lake.words(lake.copy) == ["dan", "eve", "fay"]
    assert proof.verify_copy(lake.settings).faults == ()


def test_a_purge_that_is_killed_again_and_again_is_known(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after its deletions: generations that it has taken the table from are never taken
    for whole ones.
    """

    class Killed(BaseException):
        pass

    for word, point in (("zoltan", "purging"), ("bob", "purged"), ("cyd", "purged")):

        def reach(name: str, point: str = point) -> None:
            if name == point:
                raise Killed

        lake.append(f"row-{point}")
        lake.erase(word)
        with monkeypatch.context() as patched:
            patched.setattr(failpoint, "reach", reach)
            with pytest.raises(Killed):
                lake.back_up()
        assert proof.verify_copy(lake.settings).faults == ()
    assert lake.back_up().exit_code == 0
    assert holds(lake.copy, "zoltan") == []
    assert proof.verify_copy(lake.settings).faults == ()
