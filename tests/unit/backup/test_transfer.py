"""Objects are copied at the rate that the config has, and a pass that was killed is continued."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

import pytest

from bronze import failpoint
from bronze.backup import copy, proof, transfer
from bronze.backup.transfer import Transfer
from bronze.delta import store
from bronze.errors import LakeUnreachable, Stopped
from bronze.execution.throttle import Throttle
from bronze.model.locations import Place
from tests.support.small_lake import SmallLake


class Killed(BaseException):
    """The process ends."""


def large(lake: SmallLake, megabytes: int) -> int:
    """Replaces the data file of a table by a large one of random bytes; its size."""
    file = next((lake.lake / "bronze/bz_orders").glob("*.parquet"))
    file.write_bytes(os.urandom(megabytes * 10**6))
    return file.stat().st_size


@pytest.mark.parametrize("megabytes", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_the_rate_is_kept_within_a_tenth(tmp_path: Path, megabytes: int) -> None:
    """Of objects that are sent whole, and in parts."""
    lake = SmallLake(tmp_path, {"rate": "6MB"}).begin()
    lake.append("a")
    size = large(lake, megabytes)
    began = time.monotonic()
    done = lake.back_up()
    seconds = time.monotonic() - began
    assert done.bytes >= size
    # Beside the bytes there is the time to choose versions and to write lists.
    assert 0.9 <= seconds / (done.bytes / 6e6) <= 1.1 + 0.5 / (done.bytes / 6e6)


def test_small_objects_share_one_rate() -> None:
    """Threads together take no more than the rate."""
    throttle = Throttle(10**6)
    began = time.monotonic()
    for _ in range(30):
        throttle.take(10**4)
    assert 0.27 <= time.monotonic() - began <= 0.6


def test_a_pass_that_was_killed_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each object that it has copied: the next pass puts each missing object once, and no
    other; there is no generation before, and it is whole after.
    """
    lake = SmallLake(tmp_path).begin()
    for number in range(6):
        lake.append(f"w{number}")
    total = SmallLake(tmp_path / "other").begin()
    for number in range(6):
        total.append(f"w{number}")
    objects = total.back_up().total_objects
    copied = 0
    for _ in range(objects + 1):

        def reach(name: str) -> None:
            if name == "copied":
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(failpoint, "reach", reach)
            patched.setattr(transfer, "_THREADS", 1)
            try:
                lake.back_up()
            except Killed:
                copied += 1
                assert not (lake.copy / "_backup/manifests").exists()
            else:
                break
    else:
        pytest.fail("it was never whole")
    puts = 0
    create = store.create

    def counted(place: Place, path: str, data: bytes) -> None:
        nonlocal puts
        puts += not path.startswith("_backup")
        create(place, path, data)

    monkeypatch.setattr(store, "create", counted)
    assert lake.back_up().objects == puts == 0
    # Two objects may be on their way at once.
    assert copied >= objects // 2
    assert proof.verify_copy(lake.settings).faults == ()


def test_what_was_noted_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that ends by an error notes what it has copied; strays are deleted in the end."""
    lake = SmallLake(tmp_path).begin()
    for number in range(5):
        lake.append(f"w{number}")

    def reach(name: str) -> None:
        if name == "sealing":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(failpoint, "reach", reach)
        with pytest.raises(Killed):
            lake.back_up()
    assert list((lake.copy / transfer.PROGRESS).iterdir())
    reads = []
    one = Transfer._copy_one

    def counted(self: Transfer, folder: str, path: str) -> transfer.Copied:
        reads.append(path)
        return one(self, folder, path)

    monkeypatch.setattr(Transfer, "_copy_one", counted)
    done = lake.back_up()
    assert (reads, done.objects, done.exit_code) == ([], 0, 0)
    assert not list((lake.copy / transfer.PROGRESS).iterdir())
    assert proof.verify_copy(lake.settings).faults == ()


def test_a_copy_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    """Within a second, although the rate would have it wait; the next pass goes on."""
    lake = SmallLake(tmp_path, {"rate": "100KB"}).begin()
    lake.append("a")
    large(lake, 8)
    stop = Event()
    stop.set()
    began = time.monotonic()
    with pytest.raises(Stopped):
        copy.back_up(lake.settings, stop=stop)
    assert time.monotonic() - began < 2
    assert not list((lake.copy / "bronze").rglob("*.parquet"))


def test_errors_of_the_copy_are_not_told_of_the_lake(tmp_path: Path) -> None:
    """A file where the folder of the copy should be."""
    lake = SmallLake(tmp_path).begin()
    lake.append("a")
    lake.back_up()
    lake.append("b")
    folder = lake.copy / "bronze/bz_orders"
    folder.rename(lake.copy / "away")
    folder.write_text("not a folder")
    with pytest.raises(LakeUnreachable, match=r"The copy at .* could not be written"):
        lake.back_up()
