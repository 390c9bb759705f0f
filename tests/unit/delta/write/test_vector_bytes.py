"""The bytes of deletion vectors that bronze writes, and readers that share no code with it."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable, QueryBuilder

from bronze.delta.read import deletion_vectors
from bronze.delta.write import merge
from bronze.model.files import DeletionVector
from bronze.model.locations import Place
from tests.support import vectors
from tests.support.merging import NOW, PLAIN, Bench, frame, keys_of, plain
from tests.unit.delta.read.test_deletion_vectors import EXAMPLE

NAME = UUID("d2c639aa-8816-431a-aaf6-d3fe2512ff61")
# The first is of PROTOCOL.md's example: magic, one bitmap with the high bits 0, and in it one array
# container of six numbers. The last has a second bitmap, as its row is beyond 32 bits.
BITMAPS = {
    (3, 4, 7, 11, 18, 29): (
        "d1d339640100000000000000000000003a3000000100000000000500100000000300040007000b0012001d00"
    ),
    (0,): "d1d339640100000000000000000000003a3000000100000000000000100000000000",
    (1, 2**33): (
        "d1d339640200000000000000000000003a3000000100000000000000100000000100"
        "020000003a3000000100000000000000100000000000"
    ),
}
# The version, then twice: the size and the checksum in big-endian around a bitmap.
FILE = (
    "01"
    "00000022d1d339640100000000000000000000003a3000000100000000000000100000000100eebd85f4"
    "00000022d1d339640100000000000000000000003a3000000100000000000000100000000000f7a6b4b5"
)


@pytest.mark.parametrize("rows", BITMAPS)
def test_the_bytes_of_a_bitmap(rows: tuple[int, ...], tmp_path: Path) -> None:
    """They are these, and as an inline vector they are read again."""
    data = deletion_vectors.bitmap_of(np.array(rows))
    assert data.hex() == BITMAPS[rows]
    inline = DeletionVector("i", vectors.z85(data), None, len(data), len(rows))
    assert tuple(deletion_vectors.deleted_rows(Place(str(tmp_path)), inline)) == rows


def test_the_protocols_example_is_what_bronze_writes() -> None:
    """The text of the example is that of the same bitmap."""
    data = bytes.fromhex(next(iter(BITMAPS.values())))
    assert (vectors.z85(data), len(data)) == (EXAMPLE.location, EXAMPLE.size)


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two files of a hundred rows; of the first one row 1 is deleted, of the second row 0."""
    monkeypatch.setattr(merge, "_SMALLEST_FILE", 0)
    monkeypatch.setattr(deletion_vectors, "uuid4", lambda: NAME)
    bench = Bench(Place(str(tmp_path / "t")), PLAIN, ("id",), vectors=True)
    bench.create([[[plain(n) for n in range(100)]], [[plain(n) for n in range(100, 200)]]])
    staged = [frame(PLAIN, [plain(500, "new", NOW)])]
    bench.changed(staged, None, "remove", deletes=keys_of(bench, [1, 100], staged=False))
    return bench


def test_the_bytes_of_a_file_of_vectors(marked: Bench) -> None:
    """Both vectors of a commit are in one file, each with its size and its checksum."""
    path = Path(marked.place.url) / f"deletion_vector_{NAME}.bin"
    assert path.read_bytes().hex() == FILE
    found = {file.low[0][1]: file.vector for file in marked.state.files if file.vector}
    assert {(v.offset, v.size, v.cardinality) for v in found.values()} == {(1, 34, 1), (43, 34, 1)}
    assert {deletion_vectors.path_of(v) for v in found.values()} == {path.name}


def test_a_vector_that_is_shorter_than_its_file(marked: Bench) -> None:
    """Rows after the last one of a vector are there, for polars and deltalake's engine as well."""
    expected = sorted({*range(200), 500} - {1, 100})
    folder = marked.place.url
    assert sorted(pl.read_delta(folder)["id"]) == expected
    query = QueryBuilder().register("t", DeltaTable(folder)).execute("SELECT id FROM t")
    assert sorted(pl.DataFrame(query.read_all())["id"]) == expected
