"""Merge: what the changes say is in the table, everything else is as it was, and the feed tells."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze import portion
from bronze.delta import file_names, files
from bronze.delta.write import changes as changing
from bronze.delta.write import insert, merge, merge_job, row_edits
from bronze.delta.write.changes import Changes
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import ACTIVE, DELETED
from bronze.rows.metadata import METADATA_COLUMNS
from tests.support.effort import examples
from tests.support.merging import (
    BEFORE,
    NOW,
    ON_DISK,
    PLAIN,
    UTC,
    Bench,
    Layout,
    Row,
    actions_of,
    bits,
    feed_of,
    frame,
    layout_of,
    plain,
    row,
    values_of,
    written,
)

# The model

_LONG = "k" * 40
_WORDS = st.text("aé\U0010ffff", max_size=2)
_STRINGS = _WORDS | _WORDS.map(_LONG.__add__)
_MOMENTS = st.integers(0, 9).map(
    lambda i: dt.datetime(2024, 1, 1, 0, 0, 0, 123_450 + i, tzinfo=UTC)
)
_DECIMALS = st.integers(-50, 50).map(lambda i: Decimal(i).scaleb(-2))
KEYS: dict[str, tuple[tuple[tuple[str, DeltaType], st.SearchStrategy[Any]], ...]] = {
    "long": ((("id", DeltaType("long")), st.integers(-20, 20) | st.just(2**53 + 1)),),
    "short": ((("id", DeltaType("short")), st.integers(-20, 20)),),
    "string": ((("id", DeltaType("string")), _STRINGS),),
    "date": ((("id", DeltaType("date")), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 31))),),
    "timestamp": ((("id", DeltaType("timestamp")), _MOMENTS),),
    "decimal": ((("id", DeltaType("decimal", 12, 2)), _DECIMALS),),
    "composite": (
        (("id", DeltaType("int")), st.integers(-3, 3)),
        (("part", DeltaType("string")), _STRINGS),
    ),
    "mixed": (
        (("a.b", DeltaType("decimal", 12, 2)), _DECIMALS),
        (("ta`g", DeltaType("date")), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 3))),
    ),
}
_VALUES = st.tuples(
    st.sampled_from([None, float("nan"), -0.0, 0.0, float("-inf"), 1.5]),
    st.none() | st.text("a\0é", max_size=3),
    st.none() | _DECIMALS,
    st.none() | st.lists(st.none() | st.text("a", max_size=1), max_size=2),
    st.none() | st.binary(max_size=2),
)


@dataclass(frozen=True)
class Case:
    """A table and what is done to it.

    ``files`` are those of the table: row groups of numbers of ``old``. ``new`` are the changed
    rows, ``chunks`` how they come: their numbers, and whether in a file of so many rows a group.
    """

    layout: Layout
    key: tuple[str, ...]
    old: list[Row]
    files: list[list[list[int]]]
    new: list[Row]
    chunks: list[tuple[list[int], int]]
    gone: set[int]
    on_delete: merge_job.OnDelete
    seams: dict[str, int]


def _cut(draw: st.DrawFn, items: list[int], most: int) -> list[list[int]]:
    ends = sorted(draw(st.lists(st.integers(0, len(items)), max_size=most - 1)))
    pieces = itertools.pairwise([0, *ends, len(items)])
    return [items[low:high] for low, high in pieces if high > low]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small tables with few keys, so that anything may meet anything."""
    columns = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    layout = layout_of(*(column for column, _ in columns))
    names = tuple(name for (name, _), _ in columns)
    keys = draw(st.lists(st.tuples(*(v for _, v in columns)), unique=True, max_size=30))
    count = draw(st.integers(0, len(keys)))
    old: list[Row] = []
    new: list[Row] = []
    gone: set[int] = set()
    for number, values in enumerate(keys):
        key = dict(zip(names, values, strict=True))
        if number >= count:
            new.append(row(layout, key, draw(_VALUES), NOW))
            continue
        before = draw(_VALUES)
        status = draw(st.sampled_from([ACTIVE, ACTIVE, ACTIVE, DELETED, None]))
        more: dict[str, Any] = {"record_status": status}
        if draw(st.integers(0, 9)) == 0:
            more |= {"row_hash": None, "checksum": None}
        old.append(row(layout, key, before, **more))
        action = draw(st.sampled_from(["keep", "keep", "update", "same", "gone"]))
        if action == "update":
            new.append(row(layout, key, draw(_VALUES), NOW))
        elif action == "same":
            new.append(row(layout, key, before, NOW))
        elif action == "gone" and status != DELETED:
            gone.add(number)
    held = list(range(count))
    if draw(st.booleans()):
        held = draw(st.permutations(held))
    order = draw(st.permutations(range(len(new))))
    group = st.integers(0, 4)
    return Case(
        layout,
        names,
        old,
        [_cut(draw, part, 3) for part in _cut(draw, held, 4)],
        new,
        [(part, draw(group)) for part in _cut(draw, order, 3)],
        gone,
        draw(st.sampled_from(["mark", "remove"])),
        {
            "_MAX_SLICED": draw(st.sampled_from([0, 1, 100])),
            "_KEYS_PER_JOIN": draw(st.sampled_from([1, 4, 2_000_000])),
            "GROUP": draw(st.sampled_from([1, 3, 30_000])),
            "BYTES": draw(st.sampled_from([1, 200, 2**24])),
            "_PART_VALUES": draw(st.sampled_from([1, 20, 1_200_000])),
            "_GROUP_BYTES": draw(st.sampled_from([1, 2**25])),
            "FEWEST": 1,
        },
    )


_places = itertools.count()

_LIMITED = {
    "_MAX_SLICED": [row_edits],
    "_KEYS_PER_JOIN": [merge],
    "GROUP": [changing],
    "BYTES": [changing],
    "_PART_VALUES": [files],
    "_GROUP_BYTES": [files],
    "FEWEST": [portion],
}


def _after(case: Case, number: int, new: Mapping[Any, Row]) -> Row | None:
    """What a row of the table has to become; None where it has to go."""
    names = [name for name, _ in case.layout]
    before = values_of(case.layout, case.old[number])
    change = new.get(tuple(before[name] for name in case.key))
    if change is not None:
        after = values_of(case.layout, change)
        if before["row_hash"] == after["row_hash"] and before["record_status"] != DELETED:
            return case.old[number]
        after["load_timestamp"] = before["load_timestamp"]
        return tuple(after[name] for name in names)
    if number not in case.gone:
        return case.old[number]
    if case.on_delete == "remove":
        return None
    marks = {
        "record_status": DELETED,
        "update_timestamp": NOW.loaded_at,
        "batch_id": NOW.batch_id,
        "ingestion_method": NOW.method,
        "data_lineage": NOW.lineage,
    }
    return tuple({**before, **marks}[name] for name in names)


@ON_DISK
@given(case=cases())
def test_a_merge_does_what_the_model_does(tmp_path: Path, case: Case) -> None:
    """Rows are replaced, revived, marked, removed and added; all others stay, in their order.

    The feed says exactly that, and only files with a changed row are rewritten.
    """
    bench = Bench(Place(str(tmp_path / str(next(_places)))), case.layout, case.key)
    paths = bench.create([[[case.old[i] for i in group] for group in one] for one in case.files])
    numbers = {
        path: list(itertools.chain.from_iterable(groups))
        for path, groups in zip(paths, case.files, strict=True)
    }
    changes: list[Changes] = []
    for chunk, group in case.chunks:
        rows = frame(case.layout, [case.new[i] for i in chunk])
        staged = None
        if group:
            staged = files.write(rows.iter_slices(group), bench.place, NOW.batch_id, ())
        changes.append(staged or rows)
    gone = {p: [i for i, n in enumerate(ns) if n in case.gone] for p, ns in numbers.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in case.seams.items():
            for module in _LIMITED[name]:
                patch.setattr(module, name, value)
        landed = bench.changed(changes, gone if case.gone else None, case.on_delete)

    new = {tuple(values_of(case.layout, one)[name] for name in case.key): one for one in case.new}
    keys = [tuple(values_of(case.layout, one)[name] for name in case.key) for one in case.old]
    fresh = [one for key, one in new.items() if key not in set(keys)]
    wanted: Counter[str] = Counter(map(bits, fresh))
    told: Counter[tuple[str, str]] = Counter(("insert", bits(one)) for one in fresh)
    results = {one.old.path: one for one in landed.merged}
    kept = {file.path for file in bench.state.files}
    for path, mine in numbers.items():
        after = {number: _after(case, number, new) for number in mine}
        left = [bits(one) for one in after.values() if one is not None]
        pairs = [pair for n in mine for pair in feed_of(case.old[n], after[n])]
        wanted.update(left)
        told.update(pairs)
        assert (path in landed.rewritten) == bool(pairs)
        assert (path in kept) != bool(pairs)
        if any(keys[number] in new for number in mine):
            assert path in landed.looked
        if pairs:
            file = results[path].file
            assert (file is None) == (not left)
            if file is not None:
                assert written(bench.rows(file)) == left
                assert file.rows == len(left)
            assert results[path].updated == sum(
                keys[n] in new and after[n] is not case.old[n] for n in mine
            )
            assert results[path].deleted == sum(n in case.gone for n in mine)
        was = [values_of(case.layout, case.old[n]) for n in mine if keys[n] in new]
        if path in results:
            dead = [one["record_status"] == DELETED or one["row_hash"] is None for one in was]
            assert results[path].revived == sum(dead)
    assert bench.content() == wanted
    assert bench.told(landed.version) == told
    assert landed.inserted.rows == len(fresh)
    assert bool(landed.feed) == bool(landed.rewritten)
    assert len(kept) == len(set(paths) - set(landed.rewritten)) + sum(
        one.file is not None for one in landed.merged
    ) + bool(fresh)


# Which files are looked at


def test_a_file_without_a_changed_key_is_not_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files with a hundred keys each, only the one with the changed key is read and written."""
    paths = bench.create([[[plain(100 * i + j) for j in range(100)]] for i in range(3)])
    read: list[str] = []
    honest = files.open_parquet

    def opened(place: Place, file: StoredFile | WrittenFile) -> pq.ParquetFile:
        read.append(file.path)
        return honest(place, file)

    monkeypatch.setattr(files, "open_parquet", opened)
    landed = bench.changed([frame(PLAIN, [plain(150, "b", NOW), plain(999, "c", NOW)])])
    assert set(read) == {paths[1]} == set(landed.looked)
    now = {file.path for file in bench.state.files}
    assert {paths[0], paths[2]} < now
    assert len(now) == 4
    assert paths[1] not in now


def test_a_file_with_the_key_but_no_change_is_not_written(bench: Bench) -> None:
    """A row that comes again as it was is no change: no file, no feed, only its place is known."""
    paths = bench.create([[[plain(i) for i in range(9)]]])
    landed = bench.changed([frame(PLAIN, [plain(4, "a", NOW)])])
    assert landed.looked == paths
    assert landed.rewritten == []
    assert landed.inserted == insert.Inserted(0, (), ())
    assert [file.path for file in bench.state.files] == paths
    assert bench.told(landed.version) == Counter()


@pytest.mark.parametrize(
    ("low", "high", "hit"),
    [
        (None, 5, True),
        (1, None, True),
        (1, 6, False),
        (7, 7, True),
        (1, 7, True),
        (7, 9, True),
        (8, 9, False),
        (0, 100, True),
        (-(2**63), 2**63 - 1, True),
    ],
)
def test_bounds_choose_the_files(
    bench: Bench, low: int | None, high: int | None, hit: bool
) -> None:
    """A file may hold a key if its bounds do not say otherwise; without both it always may."""
    file = StoredFile(
        "x",
        1,
        1,
        () if low is None else (("id", low),),
        () if high is None else (("id", high),),
    )
    keys = frame(PLAIN, [plain(7)])
    found = merge.candidate_files([file], [keys, keys], ("id",), bench.place)
    assert found == [file] * hit


def test_bounds_say_nothing_of_a_key_that_is_null(bench: Bench) -> None:
    """What Delta cannot hold is NULL, and may be in any file."""
    file = StoredFile("x", 1, 1, (("id", 1),), (("id", 9),))
    for keys in ([None], [None, 100]):
        change = pl.DataFrame({"id": pl.Series(keys, dtype=pl.Int64)})
        assert merge.candidate_files([file], [change], ("id",), bench.place) == [file]


def test_no_changes_look_at_no_file(bench: Bench) -> None:
    """Without changes, and with changes of no rows, there is nothing to look for."""
    bench.create([[[plain(1)]]])
    stored = bench.state.files
    assert merge.candidate_files(stored, [], ("id",), bench.place) == []
    empty = frame(PLAIN, [])
    assert merge.candidate_files(stored, [empty], ("id",), bench.place) == []


# What the feed says


def test_inserts_alone_have_no_feed_of_their_own(bench: Bench) -> None:
    """A commit that only adds rows has no cdc file, and readers still see the inserts."""
    bench.create([[[plain(1), plain(3)]]])
    fresh = [plain(2, "b", NOW), plain(9, "c", NOW)]
    landed = bench.changed([frame(PLAIN, fresh)])
    assert landed.feed == []
    assert actions_of(bench.place, landed.version, "cdc") == []
    assert bench.told(landed.version) == Counter(("insert", bits(one)) for one in fresh)


def test_all_rows_of_a_file_may_be_deleted(bench: Bench) -> None:
    """A file whose rows all go is replaced by none, and its rows are deletes of the feed."""
    paths = bench.create([[[plain(1), plain(2)]], [[plain(3)]]])
    landed = bench.changed([], {paths[0]: [0, 1]}, "remove")
    (one,) = [one for one in landed.merged if one.rewritten]
    assert (one.file, one.deleted, one.updated) == (None, 2, 0)
    assert [file.path for file in bench.state.files] == [paths[1]]
    assert bench.told(landed.version) == Counter(
        ("delete", bits(one)) for one in (plain(1), plain(2))
    )


def test_a_changed_row_is_not_a_deleted_one(bench: Bench) -> None:
    """A row whose hash vanished because it was changed is updated, once, and not deleted."""
    paths = bench.create([[[plain(1), plain(2)]]])
    after = plain(1, "b", NOW, load_timestamp=BEFORE.loaded_at)
    landed = bench.changed([frame(PLAIN, [plain(1, "b", NOW)])], {paths[0]: [0]}, "remove")
    assert bench.content() == Counter(map(bits, [after, plain(2)]))
    assert bench.told(landed.version) == Counter(
        [("update_preimage", bits(plain(1))), ("update_postimage", bits(after))]
    )


# Large and small edits


@pytest.mark.parametrize(
    "edits", [1, 100, 101, 400, *(pytest.param(n, marks=pytest.mark.soak) for n in (99, 250))]
)
@pytest.mark.parametrize("on_delete", ["mark", "remove"])
def test_few_and_many_edits_of_a_row_group_do_the_same(
    bench: Bench, edits: int, on_delete: merge_job.OnDelete
) -> None:
    """Whichever way rows are put together, a row group keeps its order, and others their bytes."""
    rows = [plain(i, f"t{i}") for i in range(900)]
    paths = bench.create([[rows[:400], rows[400:500], rows[500:]]])
    generator = np.random.default_rng(edits)
    chosen = generator.permutation(400)[:edits].tolist()
    new = {i: plain(i, f"new {i}", NOW) for i in chosen[: edits - edits // 3]}
    gone = chosen[edits - edits // 3 :]
    assert set(gone) | set(new) <= set(range(400))
    staged = list(new.values())
    landed = bench.changed([frame(PLAIN, staged)], {paths[0]: sorted(gone)}, on_delete)
    wanted = []
    marks = {
        "record_status": DELETED,
        "update_timestamp": NOW.loaded_at,
        "batch_id": NOW.batch_id,
        "ingestion_method": NOW.method,
        "data_lineage": NOW.lineage,
    }
    for i, one in enumerate(rows):
        if i in new:
            wanted.append(plain(i, f"new {i}", NOW, load_timestamp=BEFORE.loaded_at))
        elif i not in gone:
            wanted.append(one)
        elif on_delete == "mark":
            wanted.append(tuple({**values_of(PLAIN, one), **marks}.values()))
    (file,) = [one.file for one in landed.merged if one.file]
    assert written(bench.rows(file)) == [bits(one) for one in wanted]
    footer = pq.read_metadata(Path(bench.place.url) / file.path)
    groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert groups == [400 - len(gone) * (on_delete == "remove"), 100, 400]


def test_a_file_is_rewritten_for_its_columns_alone(bench: Bench) -> None:
    """A file is rewritten for changed columns alone (wider, or added); its values stay."""
    paths = bench.create([[[plain(1), plain(2)], [plain(3)]]])
    layout = (
        *PLAIN[:1],
        ("price", DeltaType("decimal", 30, 4)),
        ("more", DeltaType("date")),
        *METADATA_COLUMNS,
    )
    into = Destination(bench.place, layout, ("id",), ("id",), NOW)
    job = merge_job.Merge(into, bench.state.files[0], (), rewrite=True)
    made = merge.merge(job)
    assert made.rewritten
    assert (made.updated, made.deleted, made.feed, made.matched) == (0, 0, None, ())
    assert made.file is not None
    now = bench.rows(made.file)
    assert now.columns == [name for name, _ in layout]
    assert now.schema["price"] == pl.Decimal(30, 4)
    assert now["id"].to_list() == [1, 2, 3]
    assert now["more"].to_list() == [None] * 3
    assert file_names.batch_of(made.file.path) == NOW.batch_id
    assert made.old.path == paths[0]


# Masks

_MASKS = st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=4)


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(25))
@given(masks=_MASKS, data=st.data())
def test_masks_are_joined_bit_by_bit(masks: list[list[bool]], data: st.DataObject) -> None:
    """What one file or another has the key of is found; the rest is to be inserted."""
    changes = [pl.DataFrame({"id": mask}, schema={"id": pl.Boolean}) for mask in masks]
    parts = [
        [[data.draw(st.booleans()) and bit for bit in mask] for mask in masks] for _ in range(3)
    ]
    packed = [[np.packbits(np.array(bits, np.bool_)).tobytes() for bits in one] for one in parts]
    whole = insert.join_masks(packed, changes)
    for i, mask in enumerate(masks):
        wanted = [j for j in range(len(mask)) if not any(one[i][j] for one in parts)]
        assert insert.unmatched_lines(whole[i], len(mask)).tolist() == wanted
    nothing = insert.join_masks([], changes)
    assert [
        len(insert.unmatched_lines(m, c.height)) for m, c in zip(nothing, changes, strict=True)
    ] == [len(mask) for mask in masks]


# Files of others


def test_a_job_is_a_value(bench: Bench) -> None:
    """A job may run twice: the second file is like the first, and neither touches the table."""
    bench.create([[[plain(1), plain(2)]]])
    state = bench.state
    changes = (frame(PLAIN, [plain(2, "b", NOW)]),)
    job = merge_job.Merge(
        Destination(bench.place, PLAIN, ("id",), ("id",), NOW), state.files[0], changes
    )
    one, two = merge.merge(job), merge.merge(dataclasses.replace(job))
    assert one.file is not None
    assert two.file is not None
    assert one.file.path != two.file.path
    assert dataclasses.replace(one.file, path="") == dataclasses.replace(two.file, path="")
    assert bench.rows(one.file).equals(bench.rows(two.file))
    assert bench.state.version == state.version


# Rows that are gone by their keys, or all at once
