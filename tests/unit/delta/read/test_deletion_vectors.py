"""Deletion vectors of other writers: which rows of a file are deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import actions, commit, files, log
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.optimize import TableLayout
from bronze.delta.read import deletion_vectors
from bronze.errors import FileDamaged, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import DeletionVector
from bronze.model.locations import Place
from tests.support import vectors
from tests.support.effort import examples

COLUMNS = (("id", DeltaType("long")),)
BATCH = "018df7a0-0000-7000-8000-00000000000"
# An example of PROTOCOL.md, in the portable format.
INLINE = "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"
EXAMPLE = DeletionVector("i", INLINE, None, 44, 6)


def table(folder: Path, *parts: range) -> Place:
    """A table of one file for each range, with row groups of ten rows."""
    place = Place(str(folder / "t"))
    groups = [
        [pl.DataFrame({"id": rows[i : i + 10]}) for i in range(0, len(rows), 10)] for rows in parts
    ]
    written = [files.write(g, place, f"{BATCH}{n}", ("id",)) for n, g in enumerate(groups)]
    change = commit.Change("WRITE", [file for file in written if file])
    commit.commit(place, None, change, {}, shape=commit.Shape(COLUMNS, ("id",)))
    return place


def read(place: Place) -> log.State:
    """The table, which is there."""
    state = log.read(place)
    assert state is not None
    return state


def ids(place: Place) -> list[int]:
    """The ids of the rows, as bronze reads them."""
    found: list[int] = []
    for file in read(place).files:
        parquet = files.open_parquet(place, file)
        parts = list(files.parts(parquet, COLUMNS))
        starts = np.cumsum([0, *(part.num_rows for _, part in parts)])
        assert [start for start, _ in parts] == starts[:-1].tolist()
        assert sum(files.row_counts(parquet)) == starts[-1] == file.rows
        found += [i for _, part in parts for i in part["id"].to_pylist()]
    return sorted(found)


def test_the_protocols_examples_are_read(tmp_path: Path) -> None:
    """The inline vector and the path of PROTOCOL.md mean what it says."""
    place = Place(str(tmp_path))
    assert deletion_vectors.deleted_rows(place, EXAMPLE).tolist() == [3, 4, 7, 11, 18, 29]
    relative = replace(EXAMPLE, storage="u", location="ab^-aqEH.-t@S}K{vb[*k^")
    expected = "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    assert deletion_vectors.path_of(relative) == expected
    assert deletion_vectors.path_of(EXAMPLE) is None


@settings(max_examples=examples(30), deadline=None)
@given(deleted=st.sets(st.integers(0, 34)), more=st.sets(st.integers(0, 34)), kind=st.booleans())
def test_deleted_rows_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, deleted: set[int], more: set[int], kind: bool
) -> None:
    """Rows are left out wherever the vector is, and a later vector replaces an earlier one."""
    place = table(tmp_path_factory.mktemp("vectors"), range(35), range(35, 40))
    folder = Path(place.url)
    path = next(file.path for file in read(place).files if file.rows == 35)
    for rows in dict.fromkeys((tuple(sorted(deleted)), tuple(sorted(deleted | more)))):
        if not rows:
            continue
        vector = vectors.in_file(folder, "", [1], rows)[1] if kind else vectors.inline(rows)
        vectors.delete(folder, path, vector)
        assert ids(place) == sorted({*range(40)} - {*rows})
    assert len(read(place).files) == 2


def test_a_rewrite_leaves_deleted_rows_behind(tmp_path: Path) -> None:
    """Joined files have no vectors; the removed ones are named with theirs, as other readers need,
    and vacuum deletes the file of vectors once no version needs it.
    """
    place = table(tmp_path, *(range(start, start + 20) for start in range(0, 200, 20)))
    folder = Path(place.url)
    first, second, *_ = sorted(read(place).files, key=lambda file: dict(file.low)["id"])
    vector, other = vectors.in_file(folder, "ab", [0, 19], [5])
    vectors.delete(folder, first.path, vector)
    vectors.delete(folder, second.path, other)
    alive = sorted({*range(200)} - {0, 19, 25})
    assert ids(place) == alive
    wish = TableLayout((), 2**20)
    optimize.optimize_table(place, wish, batch_id=f"{BATCH}5", memory=2**27, each=map)
    state = read(place)
    assert [file.vector for file in state.files] == [None]
    assert ids(place) == alive
    assert pl.read_delta(place.url)["id"].sort().to_list() == alive
    stored = next(folder.rglob("deletion_vector_*.bin"))
    now = stored.stat().st_mtime + 10
    vacuum.expire(place, 3600, (), now)
    assert stored.exists()
    vacuum.purge(place, now)
    assert not stored.exists()
    assert ids(place) == alive


def test_a_vector_that_comes_while_a_file_is_rewritten_stays(tmp_path: Path) -> None:
    """A file whose rows another writer deletes meanwhile is not replaced by what was read."""
    place = table(tmp_path, *(range(start, start + 20) for start in range(0, 200, 20)))
    first = read(place).files[0]

    def delete_meanwhile(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        made = list(map(work, jobs))
        if not any(file.vector for file in read(place).files):
            vectors.delete(Path(place.url), first.path, vectors.inline([3]))
        return made

    gone = dict(first.low)["id"] + 3
    wish = TableLayout((), 2**20)
    optimize.optimize_table(place, wish, batch_id=f"{BATCH}5", memory=2**27, each=delete_meanwhile)
    assert ids(place) == sorted({*range(200)} - {gone})
    assert len(read(place).files) == 1


def test_vectors_are_read_from_checkpoints_and_long_logs(tmp_path: Path) -> None:
    """A checkpoint has the vectors; a log that deltalake would read is replayed all the same."""
    place = table(tmp_path, range(35))
    path = read(place).files[0].path
    vectors.delete(Path(place.url), path, vectors.inline([1, 2]))
    DeltaTable(place.url).create_checkpoint()
    for _ in range(3):
        filler = {"commitInfo": {"operation": "x" * 2**20}}
        log.write(place, read(place).version + 1, [filler])
    assert ids(place) == sorted({*range(35)} - {1, 2})
    vacuum.expire(place, 0, (1,), 4e9)
    assert ids(place) == sorted({*range(35)} - {1, 2})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cardinality": 3}, "rows"),
        ({"offset": 2}, "size or its checksum"),
        ({"storageType": "p", "pathOrInlineDv": "/etc/passwd"}, "outside"),
    ],
)
def test_wrong_vectors_are_damage(tmp_path: Path, change: dict[str, object], named: str) -> None:
    """A vector that is not what the log says is an error that says so; no row is guessed."""
    place = table(tmp_path, range(35))
    (vector,) = vectors.in_file(Path(place.url), "", [1, 2])
    vectors.delete(Path(place.url), read(place).files[0].path, {**vector, **change})
    with pytest.raises(FileDamaged, match=named):
        ids(place)


def test_vectors_of_unknown_kinds_are_refused(tmp_path: Path) -> None:
    """A table whose log names a kind of vector that is not known cannot be read."""
    place = table(tmp_path, range(35))
    vector = {**vectors.inline([1, 2]), "storageType": "x"}
    vectors.delete(Path(place.url), read(place).files[0].path, vector)
    with pytest.raises(LakeError, match="kind x is not known"):
        log.read(place)


def test_a_missing_file_of_vectors_is_named(tmp_path: Path) -> None:
    """The error names the file that is missing."""
    place = table(tmp_path, range(35))
    (vector,) = vectors.in_file(Path(place.url), "", [1, 2])
    vectors.delete(Path(place.url), read(place).files[0].path, vector)
    next(Path(place.url).glob("*.bin")).unlink()
    with pytest.raises(FileDamaged, match=r"deletion_vector_.* is missing"):
        ids(place)


def test_new_features_join_those_of_the_table(tmp_path: Path) -> None:
    """A column that needs a feature leaves the others of the table in its protocol."""
    place = table(tmp_path, range(35))
    vectors.delete(Path(place.url), read(place).files[0].path, vectors.inline([1, 2]))
    state = read(place)
    columns = (*COLUMNS, ("at", DeltaType("timestamp_ntz")))
    made = list(actions.table_actions(state, columns, None, {}, 0))
    assert {"deletionVectors", "timestampNtz"} == {*made[0]["protocol"]["readerFeatures"]}
    assert "deletionVectors" in made[0]["protocol"]["writerFeatures"]
