"""Merging into files that other writers added."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from bronze import portion
from bronze.delta import files
from bronze.delta.write import changes as changing
from bronze.delta.write import merge_job
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from bronze.model.units import ACTIVE, DELETED
from tests.support.merging import (
    BEFORE,
    NOTHING,
    NOW,
    PLAIN,
    UTC,
    Bench,
    bits,
    foreign,
    frame,
    layout_of,
    plain,
    row,
    stored_file,
)


@pytest.mark.parametrize("stats", [None, '{"numRecords": 3}', "{}"])
def test_a_file_without_statistics_is_always_read(bench: Bench, stats: str | None) -> None:
    """A file of which the log says nothing may hold any key; its rows are changed like others."""
    bench.create([[[plain(1)]]])
    theirs = [plain(10), plain(11, "x"), plain(12)]
    arrow = frame(PLAIN, theirs).to_arrow(compat_level=pl.CompatLevel.oldest())
    foreign(bench, "theirs.parquet", arrow, stats)
    assert stored_file(bench, "theirs.parquet").rows == (3 if stats and "3" in stats else -1)
    landed = bench.changed([frame(PLAIN, [plain(11, "y", NOW), plain(13, "z", NOW)])])
    assert landed.looked == ["theirs.parquet"]
    after = plain(11, "y", NOW, load_timestamp=BEFORE.loaded_at)
    left = [plain(1), theirs[0], after, theirs[2], plain(13, "z", NOW)]
    assert bench.content() == Counter(map(bits, left))
    assert bench.told(landed.version) == Counter(
        [
            ("update_preimage", bits(theirs[1])),
            ("update_postimage", bits(after)),
            ("insert", bits(left[-1])),
        ]
    )


def test_a_file_with_other_columns_is_read_in_the_columns_of_the_table(bench: Bench) -> None:
    """A file with other column order and Arrow types, without some columns and with nobody's."""
    bench.create([[[plain(1)]]])
    theirs = pa.table(
        {
            "nobodys": [1, 2, 3],
            "text": pa.array(["é", None, "c"]).dictionary_encode(),
            "record_status": pa.array([ACTIVE, None, DELETED], pa.string()),
            "id": pa.array([5, 6, 7], pa.int32()),
            "x": pa.array([float("nan"), -0.0, None], pa.float64()),
        }
    )
    foreign(bench, "sub dir/their%20s.parquet", theirs, None)
    (path,) = [f.path for f in bench.state.files if "their" in f.path]
    gone = {path: [0]}
    landed = bench.changed([frame(PLAIN, [plain(7, "new", NOW)])], gone)
    (file,) = [one.file for one in landed.merged if one.file]
    now = bench.rows(file)
    assert now.columns == [name for name, _ in PLAIN]
    assert now["id"].to_list() == [5, 6, 7]
    assert [repr(x) for x in now["x"]] == ["nan", "-0.0", "None"]
    assert now["text"].to_list() == ["é", None, "new"]
    assert now["record_status"].to_list() == [DELETED, None, ACTIVE]
    assert now["load_timestamp"].to_list() == [None] * 3
    assert now["row_hash"].is_null().to_list() == [True, True, False]


def test_a_large_row_group_of_another_writer_is_read_in_parts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group larger than what is read at once loses no row, and becomes several."""
    monkeypatch.setattr(files, "_PART_VALUES", 100 * len(PLAIN))
    monkeypatch.setattr(portion, "FEWEST", 1)
    bench.create([[[plain(-1)]]])
    theirs = [plain(i, f"t{i}") for i in range(1000)]
    arrow = frame(PLAIN, theirs).to_arrow(compat_level=pl.CompatLevel.oldest())
    foreign(bench, "large.parquet", arrow, None, row_group_size=1000)
    new = [plain(i, "new", NOW) for i in (0, 99, 100, 555, 999)]
    landed = bench.changed([frame(PLAIN, new)], {"large.parquet": [1, 98, 101, 998]}, "remove")
    (file,) = [one.file for one in landed.merged if one.file]
    now = bench.rows(file)
    left = [i for i in range(1000) if i not in (1, 98, 101, 998)]
    assert now["id"].to_list() == left
    assert now.filter(pl.col("text") == "new")["id"].to_list() == [0, 99, 100, 555, 999]
    assert pq.read_metadata(Path(bench.place.url) / file.path).num_row_groups == 10


@pytest.mark.parametrize("on_delete", ["mark", "remove"])
def test_rows_that_become_large_are_replaced_a_few_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, on_delete: merge_job.OnDelete
) -> None:
    """A row group whose new rows are too large to be there at once becomes several, in its order,
    whatever else happens to its rows.
    """
    monkeypatch.setattr(changing, "BYTES", 2_000)
    bench.create([[[plain(i, f"t{i}") for i in range(60)]]])
    (path,) = [file.path for file in bench.state.files]
    changed = {i: "x" * (i * 30) for i in range(60) if i % 3 == 1}
    new = [plain(i, text, NOW) for i, text in changed.items()]
    landed = bench.changed([frame(PLAIN, new)], {path: [0, 30, 59]}, on_delete)
    (file,) = [one.file for one in landed.merged if one.file]
    now = bench.rows(file)
    gone = (0, 30, 59) if on_delete == "remove" else ()
    left = [i for i in range(60) if i not in gone]
    assert now["id"].to_list() == left
    assert now["text"].to_list() == [changed.get(i, f"t{i}") for i in left]
    assert pq.read_metadata(Path(bench.place.url) / file.path).num_row_groups > 5


def test_an_empty_file_of_another_writer_is_read(bench: Bench) -> None:
    """Spark writes files of no rows: nothing is found in them, and they stay."""
    bench.create([[[plain(1)]]])
    arrow = frame(PLAIN, []).to_arrow(compat_level=pl.CompatLevel.oldest())
    foreign(bench, "empty.parquet", arrow, '{"numRecords": 0}')
    assert pq.read_metadata(Path(bench.place.url) / "empty.parquet").num_row_groups == 0
    landed = bench.changed([frame(PLAIN, [plain(1, "b", NOW), plain(2, "c", NOW)])])
    assert landed.inserted.rows == 1
    assert {"empty.parquet"} < {file.path for file in bench.state.files}


def test_truncated_time_bounds_of_other_writers_lose_no_key(tmp_path: Path) -> None:
    """Other writers cut the bounds of timestamps to milliseconds: the key is there all the same."""
    moment = dt.datetime(2024, 1, 1, 0, 0, 0, 123_456, tzinfo=UTC)
    layout = layout_of(("id", DeltaType("timestamp")))
    bench = Bench(Place(str(tmp_path / "t")), layout, ("id",))
    bench.create([])
    rows = frame(layout, [row(layout, {"id": moment}, NOTHING)])
    write_deltalake(bench.place.url, rows.to_arrow(), mode="append")
    new = row(layout, {"id": moment}, (1.0, *NOTHING[1:]), NOW)
    landed = bench.changed([frame(layout, [new])])
    assert landed.inserted.rows == 0
    assert pl.read_delta(bench.place.url).height == 1


@pytest.mark.parametrize("text", ["k" * 400, "k" * 63 + "é" * 9, "\U0010ffff" * 90, "k" * 31 + "é"])
def test_truncated_string_bounds_of_other_writers_lose_no_key(tmp_path: Path, text: str) -> None:
    """Other writers cut the bounds of strings in their way: the key is there all the same."""
    layout = layout_of(("id", DeltaType("string")))
    bench = Bench(Place(str(tmp_path / "t")), layout, ("id",))
    bench.create([])
    rows = frame(layout, [row(layout, {"id": text}, NOTHING)])
    write_deltalake(bench.place.url, rows.to_arrow(), mode="append")
    new = row(layout, {"id": text}, (1.0, *NOTHING[1:]), NOW)
    landed = bench.changed([frame(layout, [new])])
    assert landed.inserted.rows == 0
    assert pl.read_delta(bench.place.url).height == 1


def test_rows_of_another_writer_are_merged(bench: Bench) -> None:
    """Rows appended by deltalake, without our columns, are updated and kept like our own."""
    bench.create([[[plain(1)]]])
    theirs = pl.DataFrame(
        {"x": [-0.0, 2.0], "id": [5, 6]}, schema={"x": pl.Float64, "id": pl.Int64}
    )
    write_deltalake(bench.place.url, theirs.to_arrow(), mode="append", schema_mode="merge")
    landed = bench.changed([frame(PLAIN, [plain(6, "b", NOW)])])
    table = pl.read_delta(bench.place.url).sort("id")
    assert table["id"].to_list() == [1, 5, 6]
    assert [repr(x) for x in table["x"]] == ["None", "-0.0", "None"]
    assert table["text"].to_list() == ["a", None, "b"]
    assert [kind for kind, _ in sorted(bench.told(landed.version))] == [
        "update_postimage",
        "update_preimage",
    ]
