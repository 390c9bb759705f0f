"""The content of a Delta log by our own replay: it is what deltalake says, or deltalake says it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import commit, log
from bronze.delta.positions import Position
from bronze.delta.read import added_files, log_objects, replay
from bronze.delta.read import content as contents
from bronze.delta.read.content import Opened
from bronze.delta.read.replay import Replayed
from bronze.delta.schema import kinds
from bronze.delta.statistics import Statistics
from bronze.errors import FileDamaged, LakeError, LakeUnreachable
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place
from tests.support.effort import examples

UTC = dt.UTC
VALUES: dict[str, tuple[DeltaType, Any, st.SearchStrategy[Any]]] = {
    "short": (DeltaType("short"), pl.Int16, st.integers(-(2**15), 2**15 - 1)),
    "int": (DeltaType("int"), pl.Int32, st.integers(-(2**31), 2**31 - 1)),
    "long": (DeltaType("long"), pl.Int64, st.integers(-(2**63), 2**63 - 1)),
    "flag": (DeltaType("boolean"), pl.Boolean, st.booleans()),
    "text": (DeltaType("string"), pl.String, st.text(st.characters(codec="utf-8"), max_size=40)),
    "day": (DeltaType("date"), pl.Date, st.dates()),
    "at": (DeltaType("timestamp"), pl.Datetime("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    'na"i`ve': (DeltaType("timestamp_ntz"), pl.Datetime("us"), st.datetimes()),
}
COLUMNS = tuple((name, kind) for name, (kind, _, _) in VALUES.items())
NAMES = ("bronze/a", "bronze/a/é", "bronze/b")


def agrees(place: Place, names: tuple[str, ...] = NAMES) -> Replayed:
    """The replayed content, which is that of deltalake."""
    replayed, opened = replay._replayed(place), contents.opened(place)
    assert replayed.version == opened.version
    assert replayed.protocol == opened.protocol
    ours, theirs = replayed.metadata, opened.metadata
    assert kinds(ours.schema) == kinds(theirs.schema)
    for field in ("id", "name", "description", "partition_columns", "configuration"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert ours.created_time == theirs.created_time
    assert replayed.files() == opened.files()
    assert replayed.paths() == opened.paths()
    for name in names:
        assert replayed.transaction(name) == opened.transaction(name)
    return replayed


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str]:
    """The path of a file, and its statistics."""
    name = draw(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1))
    rows = {
        name: pl.Series(name, draw(st.lists(st.none() | values, min_size=2, max_size=2)), dtype)
        for name, (_, dtype, values) in VALUES.items()
    }
    statistics = Statistics(tuple(VALUES))
    statistics.add(pl.DataFrame(rows))
    return name, statistics.json()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), written()),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("position"), st.tuples(st.sampled_from("ab"), st.integers(0, 2**62))),
        st.tuples(st.just("property"), st.text(st.characters(codec="utf-8"))),
        st.tuples(st.just("checkpoint"), st.none()),
    ),
    max_size=8,
)


@given(STEPS)
@settings(max_examples=examples(40), deadline=None)
def test_a_replayed_log_says_what_deltalake_says(steps: list[tuple[str, Any]]) -> None:
    """After any additions, removals, positions, properties and checkpoints, to the last digit."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(f"{folder}/t")
        shape = commit.Shape(COLUMNS, tuple(VALUES), notes=(("bronze.note", 'é "x"'),))
        commit.commit(place, None, commit.Change("WRITE"), {}, shape=shape)
        for number, (step, value) in enumerate(steps):
            state = log.read(place)
            assert state is not None
            if step == "add":
                path, stats = value
                files = [WrittenFile(f"{number}{path}.parquet", 5, 2, stats)]
                commit.commit(place, state, commit.Change("WRITE", files), {})
            elif step == "remove":
                removed = state.listed_files[value : value + 1]
                commit.commit(place, state, commit.Change("DELETE", (), removed), {})
            elif step == "position":
                reached = Position(value[0], value[1], (("é", number),))
                if (state.position(f"bronze/{value[0]}") or 0) <= value[1]:
                    commit.commit(place, state, commit.Change("WRITE"), {}, reached=reached)
            elif step == "property":
                shape = commit.Shape(COLUMNS, tuple(VALUES), notes=(("bronze.note", value),))
                commit.commit(place, state, commit.Change("WRITE"), {}, shape=shape)
            else:
                DeltaTable(place.url).create_checkpoint()
        agrees(place)


def test_a_log_of_deltalake_is_replayed(tmp_path: Path) -> None:
    """Its partitions, statistics and commits are read as it reads them, before and after a
    checkpoint, and without the entries that the checkpoint replaces.
    """
    place = Place(str(tmp_path / "t"))
    rows = pl.DataFrame(
        {
            "id": range(6),
            "region": ["plain", "a b", "é%/x", None, "", "2"],
            "at": [dt.datetime(2024, 1, 1, 1, 1, 1, 123_456, tzinfo=UTC)] * 6,
            "x": [1.5] * 6,
        }
    ).to_arrow()
    write_deltalake(
        place.url, rows, partition_by=["region"], configuration={"delta.appendOnly": "false"}
    )
    agrees(place)
    write_deltalake(place.url, rows, mode="append")
    agrees(place)
    DeltaTable(place.url).delete("id = 3")
    DeltaTable(place.url).alter.set_table_properties({"delta.checkpointInterval": "7"})
    agrees(place)
    DeltaTable(place.url).create_checkpoint()
    for old in sorted((tmp_path / "t" / "_delta_log").glob("*.json"))[:-1]:
        old.unlink()
    agrees(place)
    write_deltalake(place.url, rows, mode="append")
    write_deltalake(place.url, rows, mode="overwrite")
    agrees(place)


def test_a_checkpoint_newer_than_the_hint_is_used(tmp_path: Path) -> None:
    """The hint may be older than the last checkpoint, or missing."""
    place, folder = Place(str(tmp_path / "t")), tmp_path / "t" / "_delta_log"
    rows = pl.DataFrame({"id": [1]}).to_arrow()
    write_deltalake(place.url, rows)
    DeltaTable(place.url).create_checkpoint()
    hint = (folder / "_last_checkpoint").read_bytes()
    write_deltalake(place.url, rows, mode="append")
    DeltaTable(place.url).create_checkpoint()
    for replaced in folder.glob("*.json"):
        replaced.unlink()
    for older in (hint, None):
        (folder / "_last_checkpoint").unlink()
        if older:
            (folder / "_last_checkpoint").write_bytes(older)
        assert len(agrees(place).files()) == 2


def entry(folder: Path, version: int, *actions: dict[str, Any]) -> None:
    """Writes an entry of the log."""
    lines = "".join(json.dumps(action) + "\n" for action in actions)
    (folder / f"{version:020}.json").write_text(lines)


def added(**more: Any) -> dict[str, Any]:
    """An action that adds a file."""
    values = {"path": "x.parquet", "partitionValues": {}, "size": 1, "modificationTime": 1}
    return {"add": {**values, "dataChange": True, **more}}


def remove_entry(folder: Path) -> None:
    """Leaves a gap."""
    (folder / f"{1:020}.json").unlink()


def cut_entry(folder: Path) -> None:
    """Cuts an entry in the middle of a line."""
    path = folder / f"{1:020}.json"
    path.write_bytes(path.read_bytes()[:-20])


def add_deletion_vector(folder: Path) -> None:
    """A file whose deleted rows are named in a way that is not known."""
    vector = {"storageType": "u", "pathOrInlineDv": "x", "sizeInBytes": 1, "cardinality": 1}
    entry(folder, 3, added(deletionVector=vector))


def add_feature(folder: Path) -> None:
    """A feature of readers."""
    features = {"readerFeatures": ["columnMapping"], "writerFeatures": ["columnMapping"]}
    entry(folder, 3, {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}})


def add_twice(folder: Path) -> None:
    """Two actions of one file in an entry."""
    entry(folder, 3, added(), {"remove": {"path": "x.parquet", "dataChange": True}})


def rename_checkpoint(folder: Path) -> None:
    """A checkpoint that is one of two parts."""
    checkpoint = next(folder.glob("*.checkpoint.parquet"))
    checkpoint.rename(folder / checkpoint.name.replace(".checkpoint.", ".checkpoint.1.2."))


def add_property(folder: Path) -> None:
    """App transactions that expire."""
    properties = {"delta.setTransactionRetentionDuration": "interval 1 days"}
    DeltaTable(folder.parent).alter.set_table_properties(properties)


@pytest.mark.parametrize(
    "change",
    [
        remove_entry,
        cut_entry,
        add_deletion_vector,
        add_feature,
        add_twice,
        rename_checkpoint,
        add_property,
    ],
)
def test_an_unusual_log_is_left_to_deltalake(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """What is damaged, or needs to be known better, is as deltalake has it, or its error."""
    place, folder = Place(str(tmp_path / "t")), tmp_path / "t" / "_delta_log"
    for mode in ("error", "append", "append"):
        write_deltalake(place.url, pl.DataFrame({"id": [1]}).to_arrow(), mode=mode)
    if change is rename_checkpoint:
        DeltaTable(place.url).create_checkpoint()
    change(folder)
    with pytest.raises(replay._UNUSUAL):
        replay._replayed(place)
    try:
        theirs = contents.opened(place)
    except (DeltaError, OSError, ValueError) as error:
        with pytest.raises(type(error)):
            replay.content_of(place)
        return
    content = replay.content_of(place)
    assert isinstance(content, Opened)
    assert content.version == theirs.version
    assert content.metadata == theirs.metadata


@pytest.mark.parametrize("limit", ["_LONGEST", "_LARGEST_CHECKPOINT"])
def test_a_long_log_is_left_to_deltalake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Its memory is not ours."""
    place = Place(str(tmp_path / "t"))
    rows = pl.DataFrame({"id": [1]}).to_arrow()
    write_deltalake(place.url, rows)
    DeltaTable(place.url).create_checkpoint()
    write_deltalake(place.url, rows, mode="append")
    agrees(place)
    monkeypatch.setattr(log_objects, limit, 10)
    content = replay.content_of(place)
    assert isinstance(content, Opened)
    assert len(content.files()) == 2


@pytest.mark.parametrize(
    "stats",
    [
        '{"numRecords": 1, "minValues": {"id": 1.5}, "maxValues": {"id": 2}}',
        '{"numRecords": 1, "minValues": {"id": "1"}, "maxValues": {"id": 2}}',
        '{"numRecords": 1, "minValues": {"id": 1}, "maxValues": {"id": 9223372036854775808}}',
        '{"numRecords": 1, "minValues": {"id": -9223372036854775809}, "maxValues": {"id": 1}}',
    ],
)
def test_statistics_of_another_type_are_left_to_deltalake(tmp_path: Path, stats: str) -> None:
    """A bound that is not of its column's type is not guessed at."""
    place, folder = Place(str(tmp_path / "t")), tmp_path / "t" / "_delta_log"
    write_deltalake(place.url, pl.DataFrame({"id": [1]}).to_arrow())
    entry(folder, 1, added(stats=stats))
    theirs = contents.opened(place)
    content = replay.content_of(place)
    assert isinstance(content, Replayed)
    try:
        files = theirs.files()
    except (DeltaError, OSError, ValueError) as error:
        with pytest.raises(type(error)):
            content.files()
    else:
        assert content.files() == files


@pytest.mark.parametrize(("kind", "bits"), [("short", 16), ("int", 32), ("long", 64)])
def test_bounds_are_within_the_range_of_their_type(kind: str, bits: int) -> None:
    """The next number on either side is an error, which leaves the statistics to deltalake."""
    limit = 2 ** (bits - 1)
    for bound in (-limit, 0, limit - 1):
        assert added_files.bound(kind, bound) == bound
    for bound in (-limit - 1, limit):
        with pytest.raises(ValueError, match="beyond the range"):
            added_files.bound(kind, bound)


def test_deeply_nested_json_is_no_traceback(tmp_path: Path) -> None:
    """The entry of another writer, its statistics and a schema can be nested at any depth."""
    deep = "[" * 100_000 + "]" * 100_000
    stats = '{"numRecords": 1, "minValues": ' + deep + "}"
    states = []
    for name, text in (
        ("t", '{"commitInfo": ' + deep + "}"),
        ("u", json.dumps(added(stats=stats))),
    ):
        write_deltalake(tmp_path / name, pl.DataFrame({"id": [1]}).to_arrow())
        (tmp_path / name / "_delta_log" / f"{1:020}.json").write_text(text + "\n")
        states.append(log.read(Place(str(tmp_path / name))))
    assert [state and state.version for state in states] == [1, 1]
    assert states[0] is not None
    assert len(states[0].files) == 1
    assert states[1] is not None
    with pytest.raises(LakeError, match="statistics of a file are nested too deeply"):
        states[1].listed_files  # noqa: B018
    with pytest.raises(FileDamaged, match="is not an entry of a Delta log"):
        log.entry(Place(str(tmp_path / "t")), 1)
    with pytest.raises(LakeError, match="nested too deeply"):
        kinds('{"fields": [{"name": "a", "type": ' + deep + "}]}")


@contextmanager
def refusing_store(status: int) -> Iterator[tuple[Place, list[str]]]:
    """A table on an object store that answers each request with a status, and the requests."""
    requests: list[str] = []

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        options = {
            "aws_access_key_id": "x",
            "aws_secret_access_key": "y",
            "aws_region": "us-east-1",
            "aws_endpoint_url": f"http://127.0.0.1:{server.server_port}",
            "allow_http": "true",
        }
        try:
            yield Place("s3://lake/t", tuple(options.items())), requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "kind"), [(403, LakeUnreachable), (400, LakeError)])
def test_a_store_that_does_not_answer_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[LakeError]
) -> None:
    """Neither by deltalake, nor for a table that was read before: its retries take long enough."""
    monkeypatch.setattr(replay, "opened", lambda *_: pytest.fail("deltalake asks the store"))
    write_deltalake(tmp_path / "t", pl.DataFrame({"id": [1]}).to_arrow())
    known = log.read(Place(str(tmp_path / "t")))
    assert known is not None
    assert isinstance(known.content, Replayed)
    with refusing_store(status) as (place, requests):
        with pytest.raises(kind, match="s3://lake/t could not be read"):
            log.read(place)
        assert set(requests) == {"/lake/t/_delta_log/_last_checkpoint"}
        requests.clear()
        with pytest.raises(kind, match="s3://lake/t could not be read"):
            log.refresh(replace(known, place=place, content=replace(known.content, place=place)))
        assert {path.partition("?")[0] for path in requests} == {"/lake"}


def test_a_missing_table_is_no_table(tmp_path: Path) -> None:
    """A folder that does not exist, or has no log, or an empty one, has no table; none is made."""
    with pytest.raises(TableNotFoundError):
        replay.content_of(Place(str(tmp_path / "t")))
    assert not (tmp_path / "t").exists()
    (tmp_path / "u" / "_delta_log").mkdir(parents=True)
    for folder in ("t", "u"):
        assert log.read(Place(str(tmp_path / folder))) is None


def test_a_state_is_read_again_only_after_a_commit(tmp_path: Path) -> None:
    """A commit, a table that was deleted, and another one in its place at the same version are all
    seen; so is a commit after a checkpoint.
    """
    place = Place(str(tmp_path / "t"))
    rows = pl.DataFrame({"id": [1]}).to_arrow()
    after: log.State | None = None
    for checkpointed in (False, True):
        write_deltalake(place.url, rows, mode="append")
        if checkpointed:
            DeltaTable(place.url).create_checkpoint()
        state = log.read(place)
        assert state is not None
        assert log.refresh(state) is state
        write_deltalake(place.url, rows, mode="append")
        after = log.refresh(state)
        assert after is not None
        assert after.version == state.version + 1
        assert len(after.files) == after.version + 1
    assert after is not None
    shutil.move(place.url, tmp_path / "old")
    assert log.refresh(after) is None
    assert not Path(place.url).exists()
    for _ in range(after.version + 1):
        write_deltalake(place.url, rows, mode="append")
    other = log.refresh(after)
    assert other is not None
    assert other.version == after.version
    assert not other.is_same(after)
