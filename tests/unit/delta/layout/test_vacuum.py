"""Vacuum: files that a reader may need stay, all others are deleted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze.delta import commit, files, log, positions
from bronze.delta.layout import vacuum as expiring
from bronze.delta.layout.vacuum import VacuumResult, expire, purge
from bronze.errors import FileDamaged, LakeError
from bronze.model.columns import DeltaType
from bronze.model.locations import Place

COLUMNS = (("id", DeltaType("long")),)
SHAPE = commit.Shape(COLUMNS, ("id",))
DAY = 24 * 3600.0
BATCH = "018df7a0-0000-7000-8000-000000000000"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a table will be."""
    return Place(str(tmp_path / "t"))


def put(place: Place, days_ago: float, *ids: int, feed: bool = False) -> int:
    """Replaces the table's content, and makes the log believe that it was some time ago."""
    state = log.read(place)
    rows = pl.DataFrame({"id": list(ids)}, schema={"id": pl.Int64})
    file = files.write([rows], place, BATCH, ("id",))
    with files.feed(place, BATCH) as told:
        if feed:
            told.add(rows.with_columns(pl.lit("insert").alias(files.CHANGE)))
    change = commit.Change(
        "MERGE" if feed else "WRITE",
        [file] if file else [],
        state.files if state else (),
        [told.file] if told.file else [],
    )
    version = commit.commit(place, state, change, {"batch_id": BATCH}, shape=SHAPE)
    age(Path(place.url) / f"_delta_log/{version:020}.json", days_ago)
    for one in (file, told.file):
        if one:
            age(Path(place.url) / one.path, days_ago)
    return version


def age(path: Path, days: float) -> None:
    """Makes a file old, and an entry of the log too."""
    at = time.time() - days * DAY
    if path.suffix == ".json":
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        for action in actions:
            if "commitInfo" in action:
                action["commitInfo"]["timestamp"] = int(at * 1000)
        path.write_text("".join(json.dumps(action) + "\n" for action in actions))
    os.utime(path, (at, at))


def ids(place: Place, version: int | None = None) -> list[int]:
    """The table's content."""
    return sorted(pl.read_delta(place.url, version=version)["id"].to_list())


def names(place: Place) -> set[str]:
    """All files of the table."""
    root = Path(place.url)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_versions_within_the_retention_stay_readable(place: Place) -> None:
    """All versions that were current within the retention read as before; older files are gone."""
    for number, days in enumerate((50, 40, 9, 6, 1)):
        put(place, days, number)
    done = expire(place, 7 * DAY, (), time.time())
    assert [ids(place, version) for version in (2, 3, 4)] == [[2], [3], [4]]
    assert done.files == 2
    assert done.bytes > 0
    with pytest.raises(Exception, match=r"(?i)not found|no such file|exist"):
        ids(place, 1)
    assert expire(place, 7 * DAY, (), time.time()).files == 0


def test_the_change_data_feed_within_the_retention_stays(place: Place) -> None:
    """Changes of entries within the retention are read as before, also those of deleted rows."""
    for number, days in enumerate((50, 40, 6, 2)):
        put(place, days, number, number + 100, feed=number != 3)
    before = changes(place, 2)
    assert {change for _, change, _ in before} == {"insert", "delete"}
    assert expire(place, 7 * DAY, (), time.time()).files == 3
    assert changes(place, 2) == before
    assert len([name for name in names(place) if name.startswith("_change_data")]) == 1


def changes(place: Place, start: int) -> list[tuple[int, str, int]]:
    """The change data feed from a version on."""
    read = pl.DataFrame(DeltaTable(place.url).load_cdf(starting_version=start).read_all())
    return sorted(read.select("_commit_version", "_change_type", "id").iter_rows())


def test_versions_to_keep_stay_readable(place: Place) -> None:
    """A version to keep reads as before, however old, and those beside it do not."""
    for number in range(8):
        put(place, 90 - 10 * number, number)
    assert expire(place, 5 * DAY, (3,), time.time()).files == 6
    assert ids(place, 3) == [3]
    assert (ids(place), ids(place, 7)) == ([7], [7])
    with pytest.raises(Exception, match=r"(?i)not found|no such file|exist"):
        ids(place, 4)


def test_a_missing_version_to_keep_is_an_error(place: Place) -> None:
    """Where a version to keep cannot be read, nothing is deleted."""
    for days in (90, 60, 30):
        put(place, days, 1)
    expire(place, 50 * DAY, (), time.time())
    before = names(place)
    with pytest.raises(LakeError):
        expire(place, 0, (0,), time.time())
    assert names(place) == before


def test_old_log_entries_are_deleted_once_a_checkpoint_replaces_them(place: Place) -> None:
    """Entries that no version needs are deleted; the table, its position and history go on."""
    reached = positions.Position("here", 77)
    for number in range(6):
        put(place, 100 - 10 * number, number)
    state = log.read(place)
    commit.commit(place, state, commit.Change("WRITE"), {}, shape=SHAPE, reached=reached)
    done = expire(place, DAY, (), time.time())
    assert done.entries == 5
    logs = {name for name in names(place) if name.endswith(".json")}
    assert min(logs) == f"_delta_log/{5:020}.json"
    state = log.read(place)
    assert state is not None
    assert (state.version, positions.read(state, "here")) == (6, 77)
    assert ids(place) == ids(place, 5) == [5]
    put(place, 0, 9)
    assert ids(place) == [9]
    assert expire(place, DAY, (), time.time()) == VacuumResult()


@pytest.mark.parametrize("broken", ["", "not json", "\xff", "[1]", '{"add": {}}', '{"txn": 1}'])
def test_an_entry_that_cannot_be_read_is_an_error(place: Place, broken: str) -> None:
    """A checkpoint may stand for it, and yet nobody knows which files it named: none is deleted."""
    for number in range(3):
        put(place, 100 - number, number)
    DeltaTable(place.url).create_checkpoint()
    entry = Path(place.url) / f"_delta_log/{1:020}.json"
    entry.write_bytes(broken.encode("latin-1"))
    (entry.parent / "notes.json").write_text("no entry")
    before = names(place)
    state = log.read(place)
    assert state is not None
    for read in (
        lambda: expire(place, DAY, (), time.time()),
        lambda: purge(place, time.time()),
        lambda: expiring.unnamed_files(state, list(expiring.objects_of(place))),
        lambda: list(log.infos(place)),
    ):
        with pytest.raises(FileDamaged, match="is not an entry of a Delta log") as caught:
            read()
        assert "backup" in caught.value.hint
    assert names(place) == before
    assert state.foreign_since(0) == ("version 1, whose entry in the log cannot be read",)


@pytest.mark.parametrize(
    "info", ["", '{"commitInfo": {}}\n', '{"commitInfo": {"timestamp": "x"}}\n']
)
def test_an_entry_that_does_not_say_its_time_is_as_old_as_its_file(place: Place, info: str) -> None:
    """Another writer may have left it out."""
    for number in range(3):
        put(place, 100 - 10 * number, number)
    entry = Path(place.url) / f"_delta_log/{1:020}.json"
    told = [line for line in entry.read_text().splitlines() if "commitInfo" not in line]
    entry.write_text(info + "".join(line + "\n" for line in told))
    os.utime(entry, (time.time() - 90 * DAY,) * 2)
    assert expire(place, 85 * DAY, (), time.time()).entries == 1
    assert ids(place) == [2]


def test_entries_of_the_last_thirty_days_stay(place: Place) -> None:
    """The log keeps the committed batches for as long as a sweep reads them."""
    for number, days in enumerate((29, 20, 10, 5)):
        put(place, days, number)
    assert expire(place, 0, (), time.time()).entries == 0
    assert len(DeltaTable(place.url).history()) == 4


@pytest.mark.parametrize(("hours", "dead"), [(23.5, False), (24.5, True)])
def test_a_file_that_the_log_does_not_name(place: Place, hours: float, dead: bool) -> None:
    """It may be of a run at work, and is spared for a day, whatever the retention."""
    put(place, 2, 1)
    orphans = [f"part-{BATCH}-{'0' * 32}.zstd.parquet", "foreign.parquet", "_change_data/x.parquet"]
    for name in orphans:
        path = Path(place.url) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        age(path, hours / 24)
    assert expire(place, 0, (), time.time()).files == 3 * dead
    assert (set(orphans) <= names(place)) is not dead


def test_an_orphan_is_kept_for_the_retention(place: Place) -> None:
    """A longer retention spares files of dead runs for longer too."""
    put(place, 50, 1)
    orphan = Path(place.url) / "foreign.parquet"
    orphan.write_bytes(b"x")
    age(orphan, 20)
    assert expire(place, 30 * DAY, (), time.time()).files == 0
    assert expire(place, 10 * DAY, (), time.time()) == VacuumResult(1, 1, 0)


def test_other_files_in_the_folder_are_kept(place: Place) -> None:
    """Hidden folders, manifests and other people's notes stay."""
    put(place, 50, 1)
    others = ["_delta_index/x.parquet", "README.md", "_symlink/manifest", ".hidden/x.parquet"]
    for name in others:
        path = Path(place.url) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        age(path, 400)
    assert expire(place, 0, (), time.time()) == VacuumResult()
    assert set(others) < names(place)


def test_foreign_partitions_with_odd_names(tmp_path: Path) -> None:
    """Paths that the log and the store write differently are one and the same file."""
    place = Place(str(tmp_path / "t"))
    for value in ("a b/é%", "_c"):
        frame = pl.DataFrame({"id": [1], "_p": [value]})
        write_deltalake(place.url, frame.to_arrow(), mode="append", partition_by=["_p"])
    DeltaTable(place.url).delete("\"_p\" = '_c'")
    for path in Path(place.url).rglob("*.parquet"):
        age(path, 40)
    later = time.time() + 2 * DAY
    assert expire(place, DAY, (), later).files == 1
    assert pl.read_delta(place.url)["_p"].to_list() == ["a b/é%"]


def test_vacuum_of_a_missing_table_deletes_nothing(place: Place) -> None:
    """A place without a table is no error, and stays as it is."""
    assert expire(place, 0, (), time.time()) == VacuumResult()
    assert not Path(place.url).exists()


def test_a_negative_retention_is_refused(place: Place) -> None:
    """A retention in the future would delete what is live."""
    with pytest.raises(ValueError, match="negative"):
        expire(place, -1, (), time.time())


def test_files_committed_during_a_purge_are_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that comes after the table was read is no older one."""
    put(place, 0, 1)
    put(place, 0, 2)
    lying = expiring.objects_of

    def meanwhile(where: Place) -> Any:
        put(place, 0, 3)
        return lying(where)

    monkeypatch.setattr(expiring, "objects_of", meanwhile)
    assert purge(place, time.time()).files == 1
    assert ids(place) == [3]
