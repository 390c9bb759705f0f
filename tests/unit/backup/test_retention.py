"""Generations expire, and what only they need; the newest one stays whatever its age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bronze import failpoint
from bronze.backup import manifest, proof, retention
from bronze.delta import log, store
from bronze.delta.commit import Change, commit
from tests.support.small_lake import SmallLake, manifests


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """Three generations; the last one does not need the file of the first."""
    lake = SmallLake(tmp_path).begin()
    lake.append("first")
    lake.back_up()
    place, state = lake.place(), log.read(lake.place())
    assert state is not None
    commit(place, state, Change("DELETE", removed=state.files), {})
    for number in range(22):
        lake.append(f"w{number}")
    lake.back_up()
    lake.append("newest")
    lake.back_up()
    return lake


def expire(lake: SmallLake, days: float) -> int:
    """Deletes what has expired as of so many days from now."""
    root = lake.settings.copy_root
    newest = manifest.latest(root) if root else None
    assert root is not None
    assert newest is not None
    now = datetime.now(UTC) + timedelta(days=days)
    return retention.expire(root, lake.settings.backup, newest, store.delete, now)


def test_what_only_expired_generations_need_is_deleted(lake: SmallLake) -> None:
    """Manifest, objects and lists; the newest generation is whole, and earlier entries are gone."""
    before = lake.objects(lake.copy)
    assert expire(lake, 29) == 0
    assert lake.objects(lake.copy) == before
    assert expire(lake, 31) == 2
    assert [path.name for path in manifests(lake)] == [f"{3:020}.json"]
    assert proof.verify_copy(lake.settings).faults == ()
    assert len(lake.words(lake.copy)) == 23
    names = lake.objects(lake.copy)
    assert f"bronze/bz_orders/_delta_log/{0:020}.json" not in names
    assert len([n for n in names if n.startswith("_backup/objects/bronze.bz_orders")]) == 1
    data = [n for n in names if n.startswith("bronze/bz_orders/part-")]
    assert len(data) == 23
    assert expire(lake, 3000) == 0


def test_an_expiry_that_was_killed_is_ended_by_the_next(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the manifests were deleted, and before the objects: nothing is left for ever."""

    class Killed(BaseException):
        pass

    def reach(name: str) -> None:
        if name == "expiring":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(failpoint, "reach", reach)
        with pytest.raises(Killed):
            expire(lake, 31)
    assert len(manifests(lake)) == 1
    assert expire(lake, 0) == 2
    names = lake.objects(lake.copy)
    assert f"bronze/bz_orders/_delta_log/{0:020}.json" not in names
    assert not [name for name in names if name.startswith(retention.EXPIRING)]
    assert proof.verify_copy(lake.settings).faults == ()
