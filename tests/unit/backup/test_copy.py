"""A copy has what each version of a generation needs, and nothing is copied twice."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from bronze.backup import copy, manifest, table_log
from bronze.delta import log
from bronze.delta.commit import Change, commit
from bronze.delta.layout import vacuum
from bronze.errors import ConfigError, FileDamaged, LakeError
from tests.support.small_lake import SmallLake, manifests


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """A lake with an audit log."""
    return SmallLake(tmp_path).begin()


def test_a_copy_has_every_version_since_the_checkpoint(lake: SmallLake) -> None:
    """The log begins at the newest checkpoint; each version from there on can be read as in the
    lake, and the copy can be read as a lake.
    """
    for number in range(23):
        lake.append(f"w{number}")
    done = lake.back_up()
    table = manifest.read(lake.settings.copy_root, 1).tables[0]  # type: ignore[arg-type]
    assert (done.exit_code, table.version, table.checkpoint) == (0, 22, 20)
    for version in range(20, 23):
        assert lake.words(lake.copy, version) == lake.words(lake.lake, version)
    hint = json.loads((lake.copy / "bronze/bz_orders/_delta_log/_last_checkpoint").read_text())
    assert hint["version"] == 20
    entries = [p.name for p in (lake.copy / "bronze/bz_orders/_delta_log").glob("*.json")]
    assert min(entries) == f"{20:020}.json"
    theirs, ours = lake.objects(lake.copy, "bronze"), lake.objects(lake.lake, "bronze")
    del theirs["bz_orders/_delta_log/_last_checkpoint"]
    assert theirs == {path: ours[path] for path in theirs}


def test_a_second_pass_copies_nothing_and_a_third_what_is_new(lake: SmallLake) -> None:
    """Without changes only a manifest is put; after a commit its entry and its file are copied."""
    lake.append("a", "b")
    first = lake.back_up()
    before = lake.objects(lake.copy)
    second = lake.back_up()
    after = lake.objects(lake.copy)
    assert (second.objects, second.requests) == (0, 0)
    assert {table.status for table in second.tables} == {"unchanged"}
    assert set(after) - set(before) == {f"_backup/manifests/{2:020}.json"}
    lake.append("c")
    third = lake.back_up()
    assert (third.objects, third.total_objects) == (2, first.total_objects + 2)
    assert lake.words(lake.copy) == ["a", "b", "c"]


def test_manifests_form_a_chain(lake: SmallLake) -> None:
    """Each has the hash of the one before, versions, positions, and the head of the audit log."""
    lake.append("a", position=7)
    lake.back_up()
    lake.append("b", position=9)
    lake.back_up()
    root = lake.settings.copy_root
    assert root is not None
    first, second = manifest.read(root, 1), manifest.read(root, 2)
    assert (first.previous, second.previous) == (
        "",
        manifest.sha256(manifests(lake)[0].read_bytes()),
    )
    assert second.audit[0] >= 1
    assert len(second.audit[1]) == 64
    assert {table.table.label: table.version for table in second.tables} == {
        "bronze.bz_orders": 1,
        "governance.audit_log": 0,
    }
    assert 9 in second.tables[0].positions.values()
    assert manifest.at(root, second.made).id == 2
    assert manifest.at(root, first.made).id == 1
    with pytest.raises(ConfigError, match="has no generation of 2000-01-01"):
        manifest.at(root, first.made.replace(year=2000, month=1, day=1))


def test_another_object_in_the_copy_stops_with_its_name(lake: SmallLake) -> None:
    """An entry that the copy has with other bytes is not replaced; no generation is made."""
    lake.append("a")
    lake.back_up()
    lake.append("b")
    entry = lake.copy / "bronze/bz_orders/_delta_log" / f"{1:020}.json"
    entry.write_text("{}")
    with pytest.raises(FileDamaged, match=f"bronze/bz_orders/_delta_log/{1:020}.json of the copy"):
        lake.back_up()
    assert len(manifests(lake)) == 1
    assert entry.read_text() == "{}"


def test_a_vacuumed_file_is_missing_only_where_no_generation_needs_it(lake: SmallLake) -> None:
    """A file that only an earlier version needs may be gone; one that is needed is named, and the
    table stays at its last version while the others go on.
    """
    lake.append("a")
    lake.append("x", name="bz_other")
    lake.back_up()
    state_file = next((lake.lake / "bronze/bz_orders").glob("*.parquet"))
    lake.append("b")
    lake.append("y", name="bz_other")
    state_file.rename(state_file.with_suffix(".away"))
    assert lake.back_up().exit_code == 0, "the copy has the file already"
    newest = max((lake.lake / "bronze/bz_orders").glob("*.parquet"), key=lambda p: p.name)
    lake.append("c")
    lost = max((lake.lake / "bronze/bz_orders").glob("*.parquet"), key=lambda p: p.name)
    assert lost != newest
    lost.unlink()
    lake.append("z", name="bz_other")
    done = lake.back_up()
    states = {table.target: (table.status, table.version) for table in done.tables}
    assert (done.exit_code, states["bronze.bz_orders"]) == (1, ("failed", 1))
    assert states["bronze.bz_other"] == ("copied", 2)
    failure = next(table.error for table in done.tables if table.error)
    assert lost.name in failure.message
    table = manifest.read(lake.settings.copy_root, done.generation).tables[0]  # type: ignore[arg-type]
    assert (table.version, lost.name in table.error) == (1, True)


def test_files_since_the_checkpoint_that_were_vacuumed_are_no_error(lake: SmallLake) -> None:
    """The first copy of a table whose earlier files were deleted has the newest version."""
    lake.append("a")
    lake.append("b")
    place = lake.place()
    state = log.read(place)
    assert state is not None
    gone = state.files[0]
    commit(place, state, Change("DELETE", removed=[gone]), {})
    (lake.lake / "bronze/bz_orders" / gone.path).unlink()
    assert lake.back_up().exit_code == 0
    assert lake.words(lake.copy) == lake.words(lake.lake)


def test_change_feed_files_and_deletion_vectors_are_copied(lake: SmallLake) -> None:
    """Files that only an action of the log names belong to a generation."""
    lake.append("a")
    folder = lake.lake / "bronze/bz_orders"
    (folder / "_change_data").mkdir()
    (folder / "_change_data/cdc-1.parquet").write_bytes(b"feed")
    # The example of the Delta protocol.
    vector = "ab^-aqEH.-t@S}K{vb[*k^"
    name = "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    (folder / "ab").mkdir()
    (folder / name).write_bytes(b"vector")
    data = next(folder.glob("*.parquet")).name
    dv = {
        "storageType": "u",
        "pathOrInlineDv": vector,
        "offset": 1,
        "sizeInBytes": 6,
        "cardinality": 1,
    }
    actions = [
        {"commitInfo": {"timestamp": 1, "operation": "DELETE"}},
        {"cdc": {"path": "_change_data/cdc-1.parquet", "partitionValues": {}, "size": 4}},
        {"remove": {"path": data, "dataChange": True}},
        {"add": {"path": data, "partitionValues": {}, "size": 1, "modificationTime": 1,
                 "dataChange": True, "deletionVector": dv}},
    ]  # fmt: skip
    entry = folder / "_delta_log" / f"{1:020}.json"
    entry.write_text("\n".join(map(json.dumps, actions)))
    assert lake.back_up().exit_code == 0
    assert (lake.copy / "bronze/bz_orders/_change_data/cdc-1.parquet").read_bytes() == b"feed"
    assert (lake.copy / "bronze/bz_orders" / name).read_bytes() == b"vector"
    assert name in table_log.read(lake.place(), 1).live


def test_a_table_that_was_made_again_keeps_its_copy(lake: SmallLake) -> None:
    """Its log has entries of the same names: it is named, the copy of the one before stays, and the
    other tables go on.
    """
    for word in ("a", "b", "c"):
        lake.append(word)
    lake.back_up()
    before = lake.objects(lake.copy, "bronze")
    shutil.rmtree(lake.lake / "bronze/bz_orders")
    lake.append("other")
    done = lake.back_up()
    assert done.exit_code == 1
    assert "is not the one that was copied before" in str(done.tables)
    for word in ("d", "e", "f"):
        lake.append(word)
    assert "is not the one that was copied before" in str(lake.back_up().tables)
    assert lake.objects(lake.copy, "bronze") == before


def test_a_lake_that_was_restored_to_an_earlier_generation(lake: SmallLake) -> None:
    """Its audit log is older than that of the copy: it is named, and the generation keeps the log
    and its end as they were copied before.
    """
    lake.append("a")
    earlier = lake.lake.with_name("earlier")
    shutil.copytree(lake.lake, earlier)
    lake.begin()
    lake.back_up()
    shutil.rmtree(lake.lake)
    earlier.rename(lake.lake)
    done = lake.back_up()
    assert done.exit_code == 1
    assert "was restored to an earlier version" in str(done.tables)
    root = lake.settings.copy_root
    assert root is not None
    first, second = manifest.read(root, 1), manifest.read(root, 2)
    assert second.audit == first.audit


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("lake", "is inside the lake"),
        ("lake/copy", "is inside the lake"),
        (".", "is inside its copy"),
        ("../{name}/lake/../lake/x", "is inside the lake"),
    ],
)
def test_a_copy_and_its_lake_are_apart(tmp_path: Path, root: str, message: str) -> None:
    """One inside of the other is refused, however it is spelled."""
    path = str(tmp_path / root.format(name=tmp_path.name))
    lake = SmallLake(tmp_path, {"root": path}).begin()
    with pytest.raises(ConfigError, match=message):
        lake.back_up()


def test_what_is_no_place_for_a_copy_is_refused(tmp_path: Path) -> None:
    """Generations of another lake; a folder with other things; an empty lake; no [backup]."""
    one = SmallLake(tmp_path / "one").begin()
    one.append("a")
    one.back_up()
    other = SmallLake(tmp_path / "two", {"root": str(one.copy)}).begin()
    with pytest.raises(ConfigError, match="has generations of another lake"):
        other.back_up()
    full = SmallLake(tmp_path / "three").begin()
    (full.copy / "photos").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not empty: it has photos"):
        full.back_up()
    with pytest.raises(LakeError, match="nothing was loaded into it yet"):
        SmallLake(tmp_path / "four").back_up()
    settings = one.settings.model_copy(update={"backup": type(one.settings.backup)()})
    with pytest.raises(ConfigError, match=r"has no \[backup\]"):
        copy.back_up(settings)


def test_a_clock_behind_the_last_generation_is_refused(lake: SmallLake) -> None:
    """Generations are found by their times: one from the future stops the next."""
    lake.append("a")
    lake.back_up()
    root = lake.settings.copy_root
    assert root is not None
    late = manifest.read(root, 1)
    late = replace(late, id=2, previous=late.hash, made=late.made.replace(year=late.made.year + 1))
    manifest.create(root, manifest.name_of(2), manifest.serialise(late))
    with pytest.raises(LakeError, match=r"clock of this machine is .* behind generation 2"):
        lake.back_up()


def test_two_processes_do_not_make_one_generation(
    lake: SmallLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is put only if it is absent: the later process says so."""
    lake.append("a")
    lake.back_up()
    lake.append("b")
    create = manifest.create

    def overtaken(place: object, path: str, data: bytes) -> bool:
        if path == manifest.name_of(2):
            monkeypatch.undo()
            lake.back_up()
        return create(place, path, data)  # type: ignore[arg-type]

    monkeypatch.setattr(manifest, "create", overtaken)
    with pytest.raises(LakeError, match="Another process has made generation 2"):
        lake.back_up()
    assert lake.back_up().exit_code == 0


def test_a_generation_that_does_not_exist_is_named(lake: SmallLake) -> None:
    """An expired one and one that never was."""
    lake.append("a")
    lake.back_up()
    lake.back_up()
    manifests(lake)[0].unlink()
    root = lake.settings.copy_root
    assert root is not None
    with pytest.raises(ConfigError, match=r"Generation 1 .* has expired: it has 2 to 2"):
        manifest.read(root, 1)
    with pytest.raises(ConfigError, match=r"Generation 9 .* does not exist"):
        manifest.read(root, 9)
    manifests(lake)[0].write_text("{}")
    with pytest.raises(FileDamaged, match="is not a manifest"):
        manifest.latest(root)


def test_the_purge_of_a_table_is_written_down(lake: SmallLake) -> None:
    """Before anything is deleted, so that copies learn of it."""
    lake.append("a")
    vacuum.purge(lake.place(), 1_800_000_000.0)
    (entry,) = (lake.lake / "_purges").iterdir()
    document = json.loads(entry.read_text())
    assert (document["schema"], document["name"], document["version"]) == ("bronze", "bz_orders", 0)


def test_a_list_of_100000_objects_is_not_in_the_manifest(lake: SmallLake) -> None:
    """A manifest is small, and a list has few bytes an object."""
    paths = [f"part-{os.urandom(16).hex()}.zstd.parquet" for _ in range(2_000)]
    rows = pl.DataFrame(
        {"path": paths, "size": [1] * 2_000, "sha256": [os.urandom(32).hex() for _ in paths]}
    )
    assert len(manifest.list_bytes(rows)) < 100 * 2_000
    lake.append("a")
    lake.back_up()
    assert manifests(lake)[0].stat().st_size < 5_000
