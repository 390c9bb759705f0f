"""Commits: all or nothing, in order, whoever else writes."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tenacity
from deltalake import DeltaTable, write_deltalake

from bronze.delta import commit, file_names, files, log, positions
from bronze.errors import BronzeError, CommitConflict, LakeError, Overtaken
from bronze.governance import writer
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place

COLUMNS = (("id", DeltaType("long")),)
SHAPE = commit.Shape(COLUMNS, ("id",))
DAY = 24 * 3600.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a table will be."""
    return Place(str(tmp_path / "t"))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicts are retried without a pause."""
    for function in (commit.replace, writer.append_rows):
        monkeypatch.setattr(function.retry, "wait", tenacity.wait_none())  # type: ignore[union-attr]


def batch(seconds_ago: float = 0.0) -> str:
    """The UUIDv7 of a run that began a while ago."""
    digits = f"{int((time.time() - seconds_ago) * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


def written(place: Place, ids: Sequence[int], batch_id: str = "") -> WrittenFile:
    """A file with these ids."""
    frame = pl.DataFrame({"id": list(ids)}, schema={"id": pl.Int64})
    file = files.write([frame], place, batch_id or batch(), ("id",))
    assert file is not None
    return file


def put(place: Place, ids: Sequence[int], at: int, timeline: str = "here", name: str = "") -> int:
    """Makes ``ids`` the table's content, as of a position."""
    name = name or batch()
    data = [written(place, ids, name)] if ids else []
    reached = positions.Position(timeline, at)
    return commit.replace(place, SHAPE, data, reached, {"batch_id": name})


def ids(place: Place, version: int | None = None) -> list[int]:
    """The table's content."""
    frame = pl.read_delta(place.url, version=version)
    return sorted(frame["id"].to_list())


def held(place: Place, timeline: str = "here") -> int | None:
    """The position that the table holds."""
    state = log.read(place)
    assert state is not None
    return positions.read(state, timeline)


def test_a_missing_table_is_none(place: Place) -> None:
    """A place without a table is no error."""
    assert log.read(place) is None


def test_replace_creates_then_replaces(place: Place) -> None:
    """The first commit creates the table, each later one replaces its whole content."""
    assert put(place, [1, 2], 10) == 0
    assert put(place, [2, 3], 20) == 1
    assert put(place, [], 30) == 2
    assert [ids(place, version) for version in (0, 1, 2)] == [[1, 2], [2, 3], []]
    assert ids(place) == []


def test_a_table_may_be_empty_at_first(place: Place) -> None:
    """A table without rows is created with its schema."""
    assert put(place, [], 1) == 0
    assert pl.read_delta(place.url).schema == {"id": pl.Int64}


def test_facts_are_in_the_history(place: Place) -> None:
    """A commit's info holds the run's facts."""
    put(place, [1], 1, name=batch(5))
    put(place, [2], 2)
    facts = [json.loads(entry[commit.FACTS]) for entry in DeltaTable(place.url).history()]
    assert facts[1] == {"batch_id": file_names.batch_of(_path(place, 0))}


def _path(place: Place, version: int) -> str:
    (uri,) = DeltaTable(place.url, version=version).file_uris()
    return str(uri).rpartition("/")[2]


def test_the_table_has_its_position(place: Place) -> None:
    """The position is part of the commit, survives checkpoints, and is one for each history."""
    put(place, [1], 2**62)
    put(place, [2], 7, "restored")
    DeltaTable(place.url).create_checkpoint()
    assert held(place) == 2**62
    assert held(place, "restored") == 7
    assert held(place, "other") is None


def test_the_position_never_goes_back(place: Place) -> None:
    """A run that another has overtaken is refused, and changes nothing; the same one may repeat."""
    put(place, [1], 20)
    with pytest.raises(Overtaken, match=r"later state .*20.*19") as caught:
        put(place, [9], 19)
    assert caught.value.hint
    assert (ids(place), held(place), DeltaTable(place.url).version()) == ([1], 20, 0)
    put(place, [2], 20)
    assert (ids(place), held(place)) == ([2], 20)


def racing(
    monkeypatch: pytest.MonkeyPatch, rival: Callable[[], object], times: int
) -> Callable[[], int]:
    """Lets a rival commit after each of the first reads; returns how many reads there were."""
    reads = 0
    honest = log.read

    def read(place: Place) -> log.State | None:
        nonlocal reads
        state = honest(place)
        reads += 1
        if reads <= times:
            rival()
        return state

    monkeypatch.setattr(commit, "read", read)
    return lambda: reads


def _foreign(place: Place) -> Callable[[], object]:
    row = pl.DataFrame({"id": [-1]}, schema={"id": pl.Int64})
    return lambda: write_deltalake(place.url, row.to_arrow(), mode="append")


@pytest.mark.usefixtures("hurried")
def test_a_foreign_writer_between_read_and_commit(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost race is run again: the table then holds this run's rows and nothing else."""
    put(place, [1, 2], 1)
    reads = racing(monkeypatch, _foreign(place), times=2)
    assert put(place, [3], 2) == 3
    assert reads() == 3
    assert ids(place) == [3]
    assert ids(place, 2) == [-1, -1, 1, 2]


@pytest.mark.usefixtures("hurried")
def test_a_writer_that_always_wins_is_a_conflict(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries the run gives up, and nothing of it is in the table."""
    put(place, [1], 1)
    racing(monkeypatch, _foreign(place), times=99)
    with pytest.raises(CommitConflict) as caught:
        put(place, [2], 2)
    assert caught.value.retry
    monkeypatch.undo()
    assert set(ids(place)) == {-1, 1}
    assert held(place) == 1


@pytest.mark.usefixtures("hurried")
def test_another_writer_creates_the_table_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that appears between read and creation is replaced, not created again."""
    racing(monkeypatch, _foreign(place), times=1)
    assert put(place, [5], 1) == 1
    monkeypatch.undo()
    assert ids(place) == [5]


@pytest.mark.usefixtures("hurried")
def test_a_concurrent_run_with_a_later_position_wins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever overtakes this run between its read and its commit is not undone by it."""
    put(place, [1], 1)
    honest = log.read

    def rival() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(commit, "read", honest)
            put(place, [30], 30)

    racing(monkeypatch, rival, times=1)
    with pytest.raises(Overtaken, match="later state"):
        put(place, [20], 20)
    monkeypatch.undo()
    assert (ids(place), held(place)) == ([30], 30)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("created", [True, False])
def test_concurrent_runs_leave_one_consistent_table(place: Place, created: bool) -> None:
    """However runs interleave: each version is one run's rows, and the latest position stays."""
    if created:
        put(place, [0, 0], 0)
    start = threading.Barrier(4)

    def one(at: int) -> str:
        start.wait()
        try:
            return f"version {put(place, [at, at], at)}"
        except BronzeError as error:
            return type(error).__name__

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(one, [1, 2, 3, 4]))
    versions = [ids(place, v) for v in range(DeltaTable(place.url).version() + 1)]
    assert versions == sorted([k, k] for k, _ in versions)
    assert ids(place) == [4, 4]
    assert held(place) == 4
    landed = [outcome for outcome in outcomes if outcome.startswith("version")]
    assert len(set(landed)) == len(versions) - created
    assert set(outcomes) - set(landed) <= {"Overtaken"}


def swept(place: Place) -> int:
    """How many files were deleted."""
    state = log.read(place)
    assert state is not None
    return commit.sweep(state, time.time())


def test_only_files_of_ended_runs_are_swept(place: Place) -> None:
    """A file goes if its run began over a day ago and never landed here; nothing else does."""
    put(place, [1], 1, name=batch(3 * DAY))
    put(place, [2], 2, name=batch(2 * DAY))
    assert len(DeltaTable(place.url).history()) == 2
    dead = [written(place, [9], batch(days * DAY)).path for days in (1.1, 2, 20)]
    spared = [written(place, [9], batch(days * DAY)).path for days in (0, 0.9, 26, 400)]
    _foreign(place)()
    folder = Path(place.url)
    before = {path.name for path in folder.rglob("*") if path.is_file()}
    assert swept(place) == len(dead)
    after = {path.name for path in folder.rglob("*") if path.is_file()}
    assert before - after == set(dead)
    assert set(spared) < after
    assert [ids(place, version) for version in (0, 1, 2)] == [[1], [2], [-1, 2]]
    assert swept(place) == 0


def test_nothing_is_swept_if_the_log_cannot_be_read(place: Place) -> None:
    """The file may be of the commit whose entry cannot be read."""
    put(place, [1], 1)
    put(place, [2], 2)
    DeltaTable(place.url).create_checkpoint()
    dead = written(place, [9], batch(2 * DAY)).path
    (Path(place.url) / "_delta_log" / f"{0:020}.json").write_text("not json")
    (Path(place.url) / "_delta_log" / "notes.json").write_text("{}")
    assert swept(place) == 0
    assert (Path(place.url) / dead).exists()


def test_all_files_of_a_committed_run_are_kept(place: Place) -> None:
    """A file beside those that a run committed may be of a retry of it: it is left alone."""
    name = batch(2 * DAY)
    put(place, [1], 1, name=name)
    again = written(place, [1], name).path
    put(place, [2], 2)
    assert swept(place) == 0
    assert (Path(place.url) / again).exists()


def _replace(place: Place, columns: Sequence[tuple[str, DeltaType]], frame: pl.DataFrame) -> int:
    file = files.write([frame], place, batch(), ())
    assert file is not None
    shape = commit.Shape(tuple(columns), ())
    return commit.replace(place, shape, [file], positions.Position("here", 99), {})


def test_a_changed_schema_replaces_the_old_one(place: Place) -> None:
    """Columns go, come and change type in one commit; the version before reads as it was."""
    put(place, [1, 2], 1)
    columns = (("name", DeltaType("string")), ("id", DeltaType("decimal", 12, 2)))
    frame = pl.DataFrame({"name": ["x"], "id": ["1.50"]}).cast({"id": pl.Decimal(12, 2)})
    assert _replace(place, columns, frame) == 1
    now = pl.read_delta(place.url)
    assert now.equals(frame)
    assert now.schema == {"name": pl.String, "id": pl.Decimal(12, 2)}
    assert ids(place, 0) == [1, 2]
    assert pl.read_delta(place.url, version=0).schema == {"id": pl.Int64}
    assert DeltaTable(place.url).metadata().configuration["delta.enableChangeDataFeed"] == "true"


@pytest.mark.parametrize("nested", [False, True])
def test_a_timestamp_without_time_zone_may_be_added_later(place: Place, nested: bool) -> None:
    """A column that needs a feature which the table lacks lands, and the table stays readable."""
    put(place, [1], 1)
    moment: Any = dt.datetime(2024, 2, 29, 12, 0, 0, 1)
    kind = DeltaType("timestamp_ntz")
    if nested:
        moment, kind = [moment], DeltaType("array", element=kind)
    frame = pl.DataFrame({"id": [2], "at": [moment]})
    version = _replace(place, (*COLUMNS, ("at", kind)), frame)
    assert version == DeltaTable(place.url).version()
    assert pl.read_delta(place.url).equals(frame)
    assert ids(place, 0) == [1]
    put(place, [3], 100)
    assert ids(place) == [3]
    changes = DeltaTable(place.url).load_cdf(starting_version=DeltaTable(place.url).version())
    assert {row["_change_type"] for row in _rows(changes)} == {"insert", "delete"}


def _rows(reader: Any) -> list[dict[str, Any]]:
    return pl.DataFrame(reader.read_all()).to_dicts()


def test_the_change_data_feed_has_the_changes_of_each_version(place: Place) -> None:
    """Between two versions, rows that were replaced are deleted, and the new ones inserted."""
    put(place, [1, 2], 1)
    put(place, [2, 3], 2)
    changes = _rows(DeltaTable(place.url).load_cdf(starting_version=0))
    told = sorted((r["_commit_version"], r["_change_type"], r["id"]) for r in changes)
    assert told == [
        (0, "insert", 1),
        (0, "insert", 2),
        (1, "delete", 1),
        (1, "delete", 2),
        (1, "insert", 2),
        (1, "insert", 3),
    ]


@pytest.mark.usefixtures("hurried")
def test_a_governance_table_is_appended_to_by_many(place: Place) -> None:
    """Runs that append at the same time all find their records in the table."""
    start = threading.Barrier(4)

    def one(number: int) -> None:
        start.wait()
        writer.append_rows(place, COLUMNS, pl.DataFrame({"id": [number]}), batch())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert ids(place) == [0, 1, 2, 3]


def test_foreign_commits_to_a_governance_table_cost_its_writers_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has changed its rows is asked of Bronze tables alone: no append reads the log for it."""
    writer.append_rows(place, COLUMNS, pl.DataFrame({"id": [0]}), batch())
    _foreign(place)()
    monkeypatch.setattr(log, "entry", lambda *_: pytest.fail("an entry was read"))
    for number in range(1, 4):
        writer.append_rows(place, COLUMNS, pl.DataFrame({"id": [number]}), batch())
    assert ids(place) == [-1, 0, 1, 2, 3]
    state = log.read(place)
    assert state is not None
    assert state.position(log.MARK) is None


def test_names_that_differ_only_in_case_are_refused(place: Place) -> None:
    """Once such names are in the log, no reader could open the table: nothing is committed."""
    put(place, [1], 10)
    for name in ("ID", "id"):
        shape = commit.Shape((*COLUMNS, (name, DeltaType("long"))), ("id",))
        with pytest.raises(LakeError, match="Delta Lake does not distinguish them"):
            commit.commit(place, log.read(place), commit.Change("WRITE"), {}, shape=shape)
    assert DeltaTable(place.url).version() == 0
