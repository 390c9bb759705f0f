"""Data files: what is written is what is read back."""

from __future__ import annotations

import datetime as dt
import errno
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError
from polars.testing import assert_frame_equal

from bronze.delta import files, store
from bronze.errors import FileDamaged, LakeError, LakeUnreachable
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from tests.support.failing import Failing

BATCH = "018df7a0-0000-7000-8000-000000000000"

SCHEMA: dict[str, Any] = {
    "short": pl.Int16,
    "int": pl.Int32,
    "long": pl.Int64,
    "float": pl.Float32,
    "double": pl.Float64,
    "boolean": pl.Boolean,
    "decimal": pl.Decimal(38, 10),
    "small.decimal": pl.Decimal(5, 2),
    "string": pl.String,
    "binary": pl.Binary,
    "date": pl.Date,
    "at": pl.Datetime("us", "UTC"),
    'naive "at"': pl.Datetime("us"),
    "list": pl.List(pl.String),
    "numbers.list.element": pl.List(pl.Decimal(12, 2)),
    "a.b": pl.String,
}
ROW: tuple[Any, ...] = (
    *(-(2**15), -(2**31), -(2**63), float("nan"), -0.0, True),
    *(Decimal("-9999999999999999999999999999.9999999999"), Decimal("-0.01"), "é🚀\0", b"\xff\0"),
    *(dt.date(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC)),
    *(dt.datetime(1, 1, 1, 0, 0, 0, 1), ["", None, "x"], [Decimal("1.10"), None], "b"),
)


def frame(height: int, name: str = "x") -> pl.DataFrame:
    """Rows of every type, some of them NULL."""
    rows = [(None,) * len(ROW) if i % 3 == 1 else (*ROW[:-1], f"{name}{i}") for i in range(height)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def metadata(place: Place, path: str) -> Any:
    """A Parquet file's footer."""
    return pq.read_metadata(Path(place.url) / path)


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    """Every type keeps its type and its values to the bit, over several frames."""
    place = Place(str(tmp_path / "t"))
    frames = [frame(7, "a"), frame(0), frame(20, "b")]
    file = files.write(frames, place, BATCH, ("long",))
    assert file is not None
    assert file.rows == 27
    assert file.size == (tmp_path / "t" / file.path).stat().st_size
    read = pl.read_parquet(tmp_path / "t" / file.path)
    assert_frame_equal(read, pl.concat(frames))
    assert repr(read["double"][0]) == "-0.0"


def test_a_frame_is_a_row_group(tmp_path: Path) -> None:
    """Each frame becomes one row group, empty ones none."""
    place = Place(str(tmp_path))
    file = files.write([frame(0), frame(5), frame(0), frame(9)], place, BATCH, ())
    assert file is not None
    footer = metadata(place, file.path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [5, 9]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    """Nothing is written where there is nothing to write."""
    assert files.write([frame(0), frame(0)], Place(str(tmp_path)), BATCH, ()) is None
    assert files.write([], Place(str(tmp_path)), BATCH, ()) is None
    assert list(tmp_path.iterdir()) == []


def test_only_repeating_columns_have_dictionaries(tmp_path: Path) -> None:
    """A column of few values gets a dictionary, a key none, whatever their names."""
    height = 1000
    few = ["a.b", 'quo"te', "ünï code", "back`tick"]
    rows = pl.DataFrame(
        {
            **{name: [f"value {i % 5}" for i in range(height)] for name in few},
            "key.part": range(height),
            'hash "h"': [f"{i:032x}" for i in range(height)],
            "list": [[i] for i in range(height)],
            "constant": pl.Series(["x"] * height, dtype=pl.Enum(["x"])),
        }
    )
    place = Place(str(tmp_path))
    file = files.write([rows], place, BATCH, ("key.part",))
    assert file is not None
    group = metadata(place, file.path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    with_dictionary = {c.path_in_schema for c in columns if c.dictionary_page_offset is not None}
    assert with_dictionary == {*few, "constant"}
    assert {c.compression for c in columns} == {"ZSTD"}
    read = pl.read_parquet(tmp_path / file.path)
    assert_frame_equal(read, rows.with_columns(pl.col("constant").cast(pl.String)))


def test_row_groups_have_statistics_where_order_is_plain(tmp_path: Path) -> None:
    """Integers and times have row group statistics; floats, whose NaN misleads readers, none."""
    place = Place(str(tmp_path))
    file = files.write([frame(9)], place, BATCH, ())
    assert file is not None
    group = metadata(place, file.path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    known = {c.path_in_schema for c in columns if c.is_stats_set and c.statistics.has_min_max}
    assert known == {"short", "int", "long", "date", "at", 'naive "at"'}


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are written as object stores are: by uploads in parts."""
    monkeypatch.setattr(store, "is_local", lambda _: False)
    # The client itself still sees a folder, whose requests are those of every store.


@pytest.mark.usefixtures("remote")
def test_an_object_store_is_written_like_a_folder(tmp_path: Path) -> None:
    """Through the object store's interface, the file is the same, its size included."""
    place = Place(str(tmp_path / "t"))
    # Noise cannot be packed: it fills more than one part.
    noise = frame(3000).with_columns(binary=pl.Series([os.urandom(5000) for _ in range(3000)]))
    file = files.write([noise, frame(5)], place, BATCH, ("long",))
    assert file is not None
    there = tmp_path / "t" / file.path
    assert file.size == there.stat().st_size
    assert file.size > 10 * 2**20
    assert_frame_equal(pl.read_parquet(there), pl.concat([noise, frame(5)]))
    assert file.rows == 3005


def rows_that_fail() -> Iterator[pl.DataFrame]:
    """A frame, then an error."""
    yield frame(3)
    raise KeyError("mine")


def test_an_error_in_the_rows_is_raised_as_it_is(tmp_path: Path) -> None:
    """What fails while the rows are made is not taken for the store's fault."""
    with pytest.raises(KeyError, match="mine"):
        files.write(rows_that_fail(), Place(str(tmp_path)), BATCH, ())


@pytest.mark.usefixtures("remote")
def test_an_error_in_the_rows_leaves_nothing_in_a_store(tmp_path: Path) -> None:
    """An upload that is not finished makes no object."""
    with pytest.raises(KeyError, match="mine"):
        files.write(rows_that_fail(), Place(str(tmp_path)), BATCH, ())
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".parquet"]


def test_a_folder_that_cannot_be_created_is_an_error_of_the_lake(tmp_path: Path) -> None:
    """A path through a file is reported with what to do about it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeUnreachable, match="a part of its path is a file") as caught:
        files.write([frame(1)], Place(str(tmp_path / "file" / "t")), BATCH, ())
    assert caught.value.hint


# --- reads that fail -------------------------------------------------------------------------


READS: list[tuple[BaseException, type[LakeError]]] = [
    (OSError(errno.EIO, "Input/output error"), LakeUnreachable),
    (OSError(errno.ESTALE, "Stale file handle"), LakeUnreachable),
    (GenericError("Generic S3 error: operation timed out"), LakeUnreachable),
    (GenericError("Generic S3 error: error decoding response body"), LakeUnreachable),
    (PermissionDeniedError("denied"), LakeUnreachable),
    (TimeoutError("timed out"), LakeUnreachable),
    (ConnectionResetError(), LakeUnreachable),
    (OSError("could not verify page integrity, CRC checksum verification failed"), FileDamaged),
    (FileNotFoundError("gone"), FileDamaged),
    (NotFoundError("gone"), FileDamaged),
]


@pytest.mark.parametrize("reads", [0, 1])
@pytest.mark.parametrize(("error", "kind"), READS)
def test_a_read_that_fails_now_is_not_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[LakeError],
    reads: int,
) -> None:
    """A file is damaged if it is missing, or if what was read of it is no Parquet."""
    place = Place(str(tmp_path / "t"))
    file = files.write([frame(100)], place, BATCH, ())
    assert file is not None
    path = tmp_path / "t" / file.path
    monkeypatch.setattr(store, "reader", lambda *_: Failing(path, error, reads))
    with pytest.raises(LakeError) as caught:
        list(files.parts(files.open_parquet(place, file), [("long", DeltaType("long"))]))
    assert type(caught.value) is kind
    assert caught.value.hint


def test_a_file_that_cannot_be_opened_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for the first touch of it."""
    errors = READS[:3] + READS[8:]
    left = iter(errors)

    def failing(*_: object) -> None:
        raise next(left)[0]

    monkeypatch.setattr(pa, "OSFile", failing)
    (tmp_path / "t").mkdir()
    for _, kind in errors:
        with pytest.raises(LakeError) as caught:
            store.reader(Place(str(tmp_path / "t")), "part-x.parquet")
        assert type(caught.value) is kind
