"""Merging into a table with partitions."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path

import pytest
from deltalake import write_deltalake

from bronze.delta import commit
from bronze.delta.write import row_edits
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from tests.support.merging import (
    BEFORE,
    DATED,
    NOW,
    PLAIN,
    UTC,
    Bench,
    bits,
    by_pyarrow,
    dated,
    days_of,
    frame,
    keys_of,
    plain,
    values_of,
)

REGIONS = ["plain", "a b", "é%/x", "50%20", None]


def test_files_in_partitions_keep_their_place(tmp_path: Path) -> None:
    """Files in folders of any partition value, NULL too, are found, rewritten and removed."""
    layout = (*PLAIN, ("region", DeltaType("string")))
    bench = Bench(Place(str(tmp_path / "t")), layout, ("id",))
    rows = [(*plain(10 * i + j), region) for i, region in enumerate(REGIONS) for j in range(2)]
    write_deltalake(
        bench.place.url,
        frame(layout, rows).to_arrow(),
        partition_by=["region"],
        configuration={"delta.enableChangeDataFeed": "true"},
    )
    before = bench.state.files
    assert sorted(map(str, (dict(f.partition)["region"] for f in before))) == sorted(
        map(str, REGIONS)
    )
    new = [(*plain(10 * i, "b", NOW), region) for i, region in enumerate(REGIONS)]
    landed = bench.changed([frame(layout, new)])
    assert set(landed.rewritten) == {file.path for file in before}
    kept = [
        (*plain(10 * i, "b", NOW, load_timestamp=BEFORE.loaded_at), region)
        for i, region in enumerate(REGIONS)
    ]
    wanted = Counter(map(bits, [*kept, *rows[1::2]]))
    assert by_pyarrow(bench) == wanted
    assert sorted(map(str, (dict(f.partition)["region"] for f in bench.state.files))) == sorted(
        map(str, REGIONS)
    )
    told = Counter(("update_preimage", bits(one)) for one in rows[::2])
    told.update(("update_postimage", bits(one)) for one in kept)
    assert bench.told(landed.version) == told


@pytest.mark.parametrize("few", [0, 100])
def test_a_row_moves_with_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """A row whose date changes leaves its partition for the other, as one update of the feed."""
    monkeypatch.setattr(row_edits, "_MAX_SLICED", few)
    bench = Bench(Place(str(tmp_path / "t")), DATED, ("id",), "at")
    shape = commit.Shape(DATED, ("id",), partition="at_date")
    commit.commit(bench.place, None, commit.Change("WRITE"), {}, shape=shape)
    one, two = (dt.datetime(2024, 2, day, 23, 59, 59, 999_999, tzinfo=UTC) for day in (28, 29))
    old = [dated(1, one), dated(2, one), dated(3, two), dated(4, None)]
    bench.changed([frame(DATED, old)])
    assert days_of(bench) == {"2024-02-28": 2, "2024-02-29": 1, None: 1}
    assert by_pyarrow(bench) == Counter(map(bits, old))
    new = [dated(1, two, NOW), dated(4, one, NOW), dated(3, None, NOW), dated(5, two, NOW)]
    landed = bench.changed([frame(DATED, new)])
    kept = [
        tuple({**values_of(DATED, after), "load_timestamp": BEFORE.loaded_at}.values())
        for after in new[:3]
    ]
    assert by_pyarrow(bench) == Counter(map(bits, [old[1], *kept, new[3]]))
    assert landed.inserted.rows == 1
    assert sum(one.updated for one in landed.merged) == 3
    told = Counter(("update_preimage", bits(old[i])) for i in (0, 3, 2))
    told.update(("update_postimage", bits(after)) for after in kept)
    told["insert", bits(new[3])] += 1
    assert bench.told(landed.version) == told


def test_polars_finds_the_dates_of_partitions_too(tmp_path: Path) -> None:
    """A reader that goes by the names of folders rather than by the log sees the same dates."""
    bench = Bench(Place(str(tmp_path / "t")), DATED, ("id",), "at")
    shape = commit.Shape(DATED, ("id",), partition="at_date")
    commit.commit(bench.place, None, commit.Change("WRITE"), {}, shape=shape)
    rows = [dated(i, dt.datetime(2024, 2, 27 + i, tzinfo=UTC)) for i in range(3)]
    bench.changed([frame(DATED, rows)])
    assert bench.content() == Counter(map(bits, rows))


@pytest.mark.parametrize("emptied", [False, True])
def test_rows_of_partitions_are_deleted(tmp_path: Path, emptied: bool) -> None:
    """By key or all at once, in files of several partitions."""
    bench = Bench(Place(str(tmp_path / "t")), DATED, ("id",), "at")
    shape = commit.Shape(DATED, ("id",), partition="at_date")
    commit.commit(bench.place, None, commit.Change("WRITE"), {}, shape=shape)
    rows = [dated(i, dt.datetime(2024, 2, 26 + i // 2, tzinfo=UTC)) for i in range(5)]
    bench.changed([frame(DATED, rows)])
    deletes = keys_of(bench, [0, 3], True)
    landed = bench.changed([], on_delete="remove", deletes=deletes, emptied=emptied)
    left = [] if emptied else [rows[1], rows[2], rows[4]]
    assert bench.content() == Counter(map(bits, left))
    gone = [one for one in rows if one not in left]
    assert bench.told(landed.version) == Counter(("delete", bits(one)) for one in gone)
