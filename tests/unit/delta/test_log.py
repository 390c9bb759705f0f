"""The Delta log: the state that is read from it, and commits by compare-and-swap."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from obstore.exceptions import AlreadyExistsError, GenericError

from bronze.delta import commit, files, log, positions, store
from bronze.delta.properties import TABLE
from bronze.delta.read.content import TableProtocol
from bronze.delta.schema import delta_schema
from bronze.delta.storage import client
from bronze.errors import CommitConflict, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place
from bronze.postgres.copy.rows_reader import dtype

BATCH = "018df7a0-0000-7000-8000-000000000000"
ID = (("id", DeltaType("long")),)
UTC = dt.UTC


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a table will be."""
    return Place(str(tmp_path / "t"))


def read(place: Place) -> log.State:
    """The table, which is there."""
    state = log.read(place)
    assert state is not None
    return state


def written(place: Place, *ids: int) -> WrittenFile:
    """A file with these ids."""
    frame = pl.DataFrame({"id": ids}, schema={"id": pl.Int64})
    file = files.write([frame], place, BATCH, ("id",))
    assert file is not None
    return file


def create(place: Place, *ids: int, reached: positions.Position | None = None) -> None:
    """A table of one file with these ids."""
    change = commit.Change("WRITE", [written(place, *ids)] if ids else [])
    shape = commit.Shape(ID, ("id",), notes=(("bronze.note", 'é "x"'),))
    commit.commit(place, None, change, {}, shape=shape, reached=reached)


def add(place: Place, state: log.State, *ids: int) -> int:
    """Appends a file, on top of what was read."""
    return commit.commit(place, state, commit.Change("WRITE", [written(place, *ids)]), {})


def ids(place: Place) -> list[int]:
    """The table's content."""
    found = pl.read_delta(place.url, storage_options=dict(place.options))
    return sorted(found["id"].to_list())


# What is read

EVERY: dict[str, tuple[DeltaType, Any, Any]] = {
    "short": (DeltaType("short"), -5, 7),
    "int": (DeltaType("int"), -(2**31), 2**31 - 1),
    "long": (DeltaType("long"), -(2**63), 2**63 - 1),
    "past.double": (DeltaType("long"), 2**53 + 1, 2**53 + 3),
    "boolean": (DeltaType("boolean"), False, True),
    "string": (DeltaType("string"), "", "é\U0010ffff"),
    "quo`te": (DeltaType("string"), 'a"b', "b\\c\n"),
    "date": (DeltaType("date"), dt.date(1, 1, 1), dt.date(9999, 12, 31)),
    "at": (
        DeltaType("timestamp"),
        dt.datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ),
    "naive": (
        DeltaType("timestamp_ntz"),
        dt.datetime(1, 1, 1, 0, 0, 0, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999),
    ),
    "nothing": (DeltaType("long"), None, None),
}
UNSAFE = {
    "x": DeltaType("double"),
    "f": DeltaType("float"),
    "d": DeltaType("decimal", 38, 10),
    "raw": DeltaType("binary"),
    "list": DeltaType("array", element=DeltaType("decimal", 5, 2)),
}


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_state_is_what_was_committed(place: Place, checkpointed: bool) -> None:
    """Columns, properties, files and their bounds are read as they were written, to the digit."""
    columns = (*((n, kind) for n, (kind, _, _) in EVERY.items()), *UNSAFE.items())
    data = [pl.Series(n, list(ends), dtype=dtype(kind)) for n, (kind, *ends) in EVERY.items()]
    data += [pl.Series(n, [None, None], dtype=dtype(kind)) for n, kind in UNSAFE.items()]
    file = files.write([pl.DataFrame(data)], place, BATCH, tuple(EVERY))
    assert file is not None
    shape = commit.Shape(columns, tuple(EVERY), notes=(("bronze.key", '["é"]'),))
    commit.commit(place, None, commit.Change("WRITE", [file]), {}, shape=shape)
    if checkpointed:
        DeltaTable(place.url).create_checkpoint()
        (Path(place.url) / "_delta_log" / f"{0:020}.json").unlink()
    state = read(place)
    assert state.version == 0
    assert state.columns == columns
    assert state.properties["bronze.key"] == '["é"]'
    assert state.properties["delta.enableChangeDataFeed"] == "true"
    assert state.partition is None
    state.writable()
    (stored,) = state.files
    assert (stored.path, stored.size, stored.rows, stored.partition) == (
        file.path,
        file.size,
        2,
        (),
    )
    low, high = dict(stored.low), dict(stored.high)
    assert "nothing" not in {*low, *high}
    for name, (_, least, most) in EVERY.items():
        if least is not None and name in low:
            assert low[name] <= least
        if most is not None and name in high:
            assert high[name] >= most
    exact = {n for n, (kind, _, _) in EVERY.items() if kind.name in ("short", "int", "long")}
    for name in exact - {"nothing"}:
        assert (low[name], high[name]) == EVERY[name][1:]


def test_a_table_without_files_has_none(place: Place) -> None:
    """A table that was created empty has columns and no files."""
    create(place)
    assert read(place).files == ()
    assert read(place).columns == ID


def test_partitions_are_read_from_the_log(place: Place) -> None:
    """A partitioned table's column, and each file's value of it, NULL and odd names included."""
    values = ["plain", "a b", "é%/x", None, ""]
    rows = pl.DataFrame({"id": range(5), "region": values})
    write_deltalake(place.url, rows.to_arrow(), partition_by=["region"])
    state = read(place)
    assert state.partition == "region"
    found = {file.partition: file for file in state.files}
    assert {dict(p)["region"] for p in found} == {"plain", "a b", "é%/x", None}
    for file in state.files:
        assert files.open_parquet(place, file).metadata.num_rows == file.rows


def test_positions_are_kept_by_name(place: Place) -> None:
    """A position and its marks are there under their names, up to the largest, and no other is."""
    reached = positions.Position("here", 2**62, (("deletes", 5), ("1/xmin", 0)))
    create(place, 1, reached=reached)
    state = read(place)
    name = "bronze/here"
    assert state.position(name) == 2**62
    assert state.position(f"{name}/deletes") == 5
    assert state.position(f"{name}/1/xmin") == 0
    assert state.position(f"{name}/else") is None
    assert positions.read(state, "there") is None


# Who comes first


def test_one_of_several_writers_of_a_version_wins(place: Place) -> None:
    """Of many writers of one version exactly one wins; the others get an error."""
    create(place, 0)
    state = read(place)
    start = threading.Barrier(8)

    def commit_once(number: int) -> int | None:
        start.wait(30)
        try:
            add(place, state, number)
        except CommitConflict:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [n for n in pool.map(commit_once, range(1, 9)) if n is not None]
    assert ids(place) == [0, winner]
    assert read(place).version == 1


def test_writers_that_read_again_all_commit(place: Place) -> None:
    """A writer that reads again after a conflict commits in the end; no commit is lost."""
    create(place, 0)
    start = threading.Barrier(4)

    def commit_once(number: int) -> int:
        start.wait(30)
        tries = 0
        while True:
            tries += 1
            try:
                add(place, read(place), number)
            except CommitConflict:
                continue
            return tries

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(commit_once, range(1, 5)))
    assert ids(place) == [0, 1, 2, 3, 4]
    assert read(place).version == 4


def test_a_foreign_commit_in_between_is_a_conflict(place: Place) -> None:
    """What deltalake appended between our read and our commit is seen, and stays."""
    create(place, 1)
    state = read(place)
    row = pl.DataFrame({"id": [-1]}, schema={"id": pl.Int64})
    write_deltalake(place.url, row.to_arrow(), mode="append")
    with pytest.raises(CommitConflict):
        add(place, state, 2)
    assert ids(place) == [-1, 1]
    assert add(place, read(place), 2) == 2
    assert ids(place) == [-1, 1, 2]


def test_a_table_is_created_by_one_writer(place: Place) -> None:
    """Of two writers that both found no table, one creates it."""
    create(place, 1)
    with pytest.raises(CommitConflict) as caught:
        create(place, 2)
    assert caught.value.retry
    assert place.url in caught.value.message
    assert ids(place) == [1]


def test_a_log_that_cannot_be_written_is_an_error_of_the_lake(tmp_path: Path) -> None:
    """A folder that cannot be created is an error of the lake, not a conflict."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError) as caught:
        log.write(Place(str(tmp_path / "file" / "t")), 0, [])
    assert not isinstance(caught.value, CommitConflict)
    assert "file" in caught.value.message


@pytest.mark.parametrize("error", [GenericError, AlreadyExistsError])
def test_a_commit_with_a_lost_response_is_recognised(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A store may do what it is asked and then fail to say so, or be asked twice by its client.

    Who is told of a failure deletes the files of the commit: so what is there must count.
    """
    create(place, 0)
    honest = obstore.put

    def put(*given: Any, **options: Any) -> Any:
        honest(*given, **options)
        raise error("the connection was reset")

    state = read(place)
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", put)
        assert add(place, state, 1) == 1
    assert ids(place) == [0, 1]


# Checkpoints


def test_every_twentieth_commit_is_a_checkpoint(place: Place) -> None:
    """A checkpoint is written with it, and the table is read from there without older entries."""
    create(place, 0, reached=positions.Position("here", 7))
    folder = Path(place.url) / "_delta_log"
    state = read(place)
    for version in range(1, 20):
        state = log.State(place, version - 1, state.content)
        assert add(place, state, version) == version
    assert not list(folder.glob("*.checkpoint.parquet"))
    assert add(place, log.State(place, 19, state.content), 20) == 20
    (checkpoint,) = folder.glob("*.checkpoint.parquet")
    assert checkpoint.name.startswith(f"{20:020}")
    for version in range(20):
        (folder / f"{version:020}.json").unlink()
    now = read(place)
    assert now.version == 20
    assert positions.read(now, "here") == 7
    assert sorted(dict(f.low)["id"] for f in now.files) == list(range(21))
    assert now.properties["bronze.note"] == 'é "x"'
    assert ids(place) == list(range(21))
    assert add(place, now, 21) == 21
    assert len(list(folder.glob("*.checkpoint.parquet"))) == 1


def test_a_checkpoint_that_fails_does_not_undo_the_commit(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit stands, and the table is read without the checkpoint."""
    monkeypatch.setattr(log, "_CHECKPOINT_EVERY", 1)
    create(place, 0)

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError("disk full")

    state = read(place)
    with monkeypatch.context() as patch:
        patch.setattr(client, "DeltaTable", failing)
        assert add(place, state, 1) == 1
    assert ids(place) == [0, 1]
    assert not list(Path(place.url).rglob("*.checkpoint.parquet"))
    assert add(place, read(place), 2) == 2
    assert len(list(Path(place.url).rglob("*.checkpoint.parquet"))) == 1


# What we must not write to


def put(
    place: Place,
    protocol: Mapping[str, Any],
    configuration: Mapping[str, str] | None = None,
    partition: tuple[str, ...] = (),
    schema: str = "",
) -> None:
    """A table of another writer."""
    columns = (*ID, ("a", DeltaType("string")), ("b", DeltaType("string")))
    metadata = {
        "id": "6a5b7a3e-9a55-4a1c-b3a9-3f2a1e5d7c11",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema or delta_schema(columns),
        "partitionColumns": list(partition),
        "configuration": dict(configuration or {}),
        "createdTime": 0,
    }
    log.write(place, 0, [{"protocol": dict(protocol)}, {"metaData": metadata}])


def named(*writer: str, reader: tuple[str, ...] = ()) -> dict[str, Any]:
    """A protocol that names its features."""
    return {
        "minReaderVersion": 3 if reader else 1,
        "minWriterVersion": 7,
        "writerFeatures": list(writer),
        **({"readerFeatures": list(reader)} if reader else {}),
    }


OLD = {"minReaderVersion": 1, "minWriterVersion": 4}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], tuple[str, ...], str]] = {
    "column mapping": (
        {"minReaderVersion": 2, "minWriterVersion": 5},
        {},
        (),
        "writer version 5",
    ),
    "named column mapping": (
        named("columnMapping", reader=("columnMapping",)),
        {},
        (),
        "columnMapping",
    ),
    "version 6": ({"minReaderVersion": 1, "minWriterVersion": 6}, {}, (), "writer version 6"),
    "constraint": (OLD, {"delta.constraints.positive": "id > 0"}, (), "constraints.positive"),
    "row tracking": (named("rowTracking", "domainMetadata"), {}, (), "rowTracking"),
    "partitions": (OLD, {}, ("a", "b"), "several partition columns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_features_are_refused(place: Place, name: str) -> None:
    """A table with a feature that bronze cannot write is refused; the error names the feature."""
    protocol, configuration, partition, said = REFUSED[name]
    put(place, protocol, configuration, partition)
    with pytest.raises(LakeError, match=said) as caught:
        read(place).writable()
    assert place.url in caught.value.message
    assert caught.value.hint
    with pytest.raises(LakeError, match=said):
        commit.commit(place, read(place), commit.Change("WRITE"), {})
    assert read(place).version == 0


@pytest.mark.parametrize(
    ("protocol", "configuration", "partition"),
    [
        ({"minReaderVersion": 1, "minWriterVersion": 2}, {}, ()),
        (OLD, {"delta.enableChangeDataFeed": "true"}, ("a",)),
        (named("appendOnly", "invariants"), {}, ()),
        (named("timestampNtz", "changeDataFeed", reader=("timestampNtz",)), {}, ()),
        (
            named("deletionVectors", reader=("deletionVectors",)),
            {"delta.enableDeletionVectors": "true"},
            (),
        ),
    ],
)
def test_known_features_are_written(
    place: Place,
    protocol: dict[str, Any],
    configuration: dict[str, str],
    partition: tuple[str, ...],
) -> None:
    """Old protocols, known features and one partition column are no obstacle."""
    put(place, protocol, configuration, partition)
    state = read(place)
    state.writable()
    assert state.partition == (partition[0] if partition else None)


def test_an_old_protocol_is_upgraded_to_named_features(place: Place) -> None:
    """The upgrade names the features and changes nothing else; a second one commits nothing."""
    put(place, OLD, {TABLE: "test.public.t"})
    commit.commit(place, read(place), commit.Change("WRITE"), {})
    before = read(place)
    assert commit.upgrade_protocol(place) == before.version + 1
    after = read(place)
    assert after.content.protocol == TableProtocol(
        1, 7, frozenset(), frozenset({"appendOnly", "invariants", "changeDataFeed"})
    )
    assert after.content.metadata == before.content.metadata
    assert after.foreign == before.foreign
    assert commit.upgrade_protocol(place) is None
    assert read(place).version == after.version


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"delta.generationExpression": "id + 1"}, "generated columns"),
        ({"delta.invariants": '{"expression": {"expression": "id > 0"}}'}, "invariants of columns"),
    ],
)
def test_rules_in_the_fields_of_a_schema_are_refused(
    place: Place, metadata: dict[str, str], named: str
) -> None:
    """Values that another writer checks or computes are not written past it."""
    fields = json.loads(delta_schema(ID))["fields"]
    fields[0]["metadata"] = metadata
    put(place, OLD, schema=json.dumps({"type": "struct", "fields": fields}))
    with pytest.raises(LakeError, match=named):
        read(place).writable()


@pytest.mark.parametrize(
    "field",
    [
        "byte",
        {"type": "struct", "fields": []},
        {"type": "map", "keyType": "string", "valueType": "long", "valueContainsNull": True},
        {"type": "array", "elementType": "byte", "containsNull": True},
    ],
)
def test_columns_of_unknown_types_are_refused(place: Place, field: Any) -> None:
    """A column that bronze never writes is named, with what to do about it."""
    fields = json.loads(delta_schema(ID))["fields"]
    odd = {"name": "od d", "type": field, "nullable": True, "metadata": {}}
    schema = json.dumps({"type": "struct", "fields": [*fields, odd]})
    put(place, OLD, schema=schema)
    with pytest.raises(LakeError, match=r"Column 'od d' is of type .*") as caught:
        _ = read(place).columns
    assert caught.value.hint


@pytest.mark.parametrize("broken", ["not json", '{"add": 1}', ""])
def test_a_broken_log_is_an_error_of_the_lake(place: Place, broken: str) -> None:
    """A log that cannot be read is a LakeError, which names the table."""
    create(place, 1)
    (Path(place.url) / "_delta_log" / f"{0:020}.json").write_text(broken)
    with pytest.raises(LakeError) as caught:
        _ = read(place).files
    assert place.url in caught.value.message


# On an object store


def test_one_of_several_writers_wins_on_s3(bucket: dict[str, str]) -> None:
    """The store itself refuses an entry that exists."""
    place = Place("s3://lake/put/t", tuple(bucket.items()))
    create(place, 0)
    state = read(place)
    start = threading.Barrier(4)

    def commit_once(number: int) -> int | None:
        start.wait(30)
        try:
            add(place, state, number)
        except CommitConflict:
            return None
        return number

    with ThreadPoolExecutor(4) as pool:
        winners = [n for n in pool.map(commit_once, range(1, 5)) if n is not None]
    assert len(winners) == 1
    assert ids(place) == [0, *winners]
    assert add(place, read(place), 9) == 2
    assert ids(place) == sorted([0, *winners, 9])


def test_on_s3_checkpoints_are_written(
    bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is written to the table's folder, with the same options."""
    monkeypatch.setattr(log, "_CHECKPOINT_EVERY", 2)
    place = Place("s3://lake/check/t", tuple(bucket.items()))
    create(place, 0)
    add(place, read(place), 1)
    add(place, read(place), 2)
    names = [path.rpartition("/")[2] for path in store.listing(place, "_delta_log")]
    assert f"{2:020}.checkpoint.parquet" in names
    assert ids(place) == [0, 1, 2]


def test_a_missing_bucket_is_not_a_conflict(bucket: dict[str, str]) -> None:
    """A commit that could not be written is an error of the lake, not of another writer."""
    with pytest.raises(LakeError) as caught:
        log.write(Place("s3://nowhere/t", tuple(bucket.items())), 0, [])
    assert not isinstance(caught.value, CommitConflict)
    assert "s3://nowhere/t" in caught.value.message


def comment_as_databricks_does(place: Place, text: str) -> None:
    """Commits metadata with comments of a table and a column, as ``COMMENT ON`` does there."""
    state = read(place)
    metadata = json.loads(
        (Path(place.url) / "_delta_log" / f"{0:020}.json").read_text().splitlines()[2]
    )["metaData"]
    schema = json.loads(state.content.metadata.schema)
    schema["fields"][0]["metadata"]["comment"] = text
    actions = [
        {"commitInfo": {"operation": "CHANGE COLUMN", "engineInfo": "Databricks-Runtime/17.3"}},
        {"metaData": {**metadata, "schemaString": json.dumps(schema), "description": text}},
    ]
    entry = "\n".join(map(json.dumps, actions))
    (Path(place.url) / "_delta_log" / f"{state.version + 1:020}.json").write_text(entry)


def test_comments_of_another_writer_change_no_rows(place: Place) -> None:
    """A catalog that comments a table commits metadata; only if more differs than comments, the
    table has to be compared with the source. A change of columns keeps the comments.
    """
    shape = commit.Shape(ID, ("id",), notes=(("bronze.table", "public.t"),))
    commit.commit(place, None, commit.Change("WRITE", [written(place, 1)]), {}, shape=shape)
    comment_as_databricks_does(place, "the number")
    state = read(place)
    assert state.foreign == ()
    shape = commit.Shape((*ID, ("more", DeltaType("string"))), ("id",))
    commit.commit(place, state, commit.Change("WRITE", [written(place, 2)]), {}, shape=shape)
    fields = json.loads(read(place).content.metadata.schema)["fields"]
    assert [field["metadata"] for field in fields] == [{"comment": "the number"}, {}]
    assert read(place).content.metadata.description == "the number"

    DeltaTable(place.url).alter.set_table_properties({"delta.appendOnly": "true"})
    assert "version 3" in read(place).foreign[0]
