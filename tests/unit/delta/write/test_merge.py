"""Merge: what the changes say is in the table, everything else is as it was, and the feed tells."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bronze import portion
from bronze.delta import commit, files, log
from bronze.delta.statistics import SAFE
from bronze.delta.write import changes as changing
from bronze.delta.write import insert, merge
from bronze.delta.write.changes import Changes
from bronze.model.columns import Kind
from bronze.model.files import DataFile, Stored
from bronze.model.locations import Place
from bronze.model.stamp import Stamp
from bronze.model.units import ACTIVE, DELETED
from bronze.postgres.copy.read import dtype
from bronze.rows.metadata import METADATA

ON_DISK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=24,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
UTC = dt.UTC
BEFORE = Stamp(
    "018df7a0-0000-7000-8000-00000000000a",
    dt.datetime(2024, 1, 1, tzinfo=UTC),
    "s",
    "batch",
    "before",
)
NOW = Stamp(
    "018df7a0-0000-7000-8000-00000000000b",
    dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
    "s",
    "micro_batch",
    "now",
)
VALUES: tuple[tuple[str, Kind], ...] = (
    ("x", Kind("double")),
    ("text", Kind("string")),
    ("price", Kind("decimal", 20, 2)),
    ("tags", Kind("array", element=Kind("string"))),
    ("raw", Kind("binary")),
)

Layout = tuple[tuple[str, Kind], ...]
Row = tuple[Any, ...]


def layout_of(*key: tuple[str, Kind]) -> Layout:
    """A table's columns: the first key column, the values, the other key columns, and ours."""
    return (*key[:1], *VALUES, *key[1:], *METADATA)


def row(
    layout: Layout,
    key: Mapping[str, Any],
    values: Sequence[Any],
    stamp: Stamp = BEFORE,
    **more: Any,
) -> Row:
    """A Bronze row."""
    digest = hashlib.sha256(repr((dict(key), values)).encode()).hexdigest()
    whole = {
        **key,
        **dict(zip((name for name, _ in VALUES), values, strict=True)),
        "load_timestamp": stamp.loaded_at,
        "update_timestamp": stamp.loaded_at,
        "source_system": stamp.source_system,
        "record_status": ACTIVE,
        "data_quality_score": 100,
        "batch_id": stamp.batch_id,
        "ingestion_method": stamp.method,
        "data_lineage": stamp.lineage,
        "checksum": digest[:16],
        "row_hash": digest[:32],
        **more,
    }
    return tuple(whole[name] for name, _ in layout)


def frame(layout: Layout, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a frame."""
    schema = {name: dtype(kind) for name, kind in layout}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def bits(one: Row) -> str:
    """A row so that it can be compared to the bit: NaN equals NaN, and -0.0 is not 0.0."""
    return repr([v.astimezone(UTC) if isinstance(v, dt.datetime) else v for v in one])


def shown(rows: pl.DataFrame) -> list[str]:
    """Each row's bits."""
    return [bits(one) for one in rows.rows()]


@dataclass
class Bench:
    """A table, and how changes are made to it: as `bronze.ingest.load` does it."""

    place: Place
    layout: Layout
    key: tuple[str, ...]
    dates_of: str | None = None

    @property
    def stats(self) -> tuple[str, ...]:
        """The columns with file statistics."""
        return tuple(n for n, kind in self.layout if n in self.key and kind.name in SAFE)

    @property
    def state(self) -> log.State:
        """The table as it is."""
        state = log.read(self.place)
        assert state is not None
        return state

    def create(self, contents: Sequence[Sequence[Sequence[Row]]]) -> list[str]:
        """Makes the table of files of row groups of rows; returns the files' paths."""
        made = []
        for groups in contents:
            frames = [frame(self.layout, group) for group in groups]
            file = files.write(frames, self.place, BEFORE.batch_id, self.stats)
            assert file is not None
            made.append(file)
        change = commit.Change("WRITE", made)
        shape = commit.Shape(self.layout, self.stats)
        commit.commit(self.place, None, change, {"batch_id": BEFORE.batch_id}, shape=shape)
        return [file.path for file in made]

    def changed(
        self,
        changes: Sequence[Changes],
        gone: Mapping[str, Sequence[int]] | None = None,
        on_delete: merge.OnDelete = "mark",
        anew: bool = False,
        deletes: Sequence[Changes] = (),
        emptied: bool = False,
    ) -> Landed:
        """Merges changes and commits them; ``gone`` are row numbers by path."""
        gone = gone or {}
        state = self.state
        found = list(state.files)
        if not gone and not anew and not emptied:
            both = (*changes, *deletes)
            found = merge.candidates(state.files, both, self.key, self.place)
        jobs = [
            merge.Merge(
                place=self.place,
                file=file,
                layout=self.layout,
                key=self.key,
                stats=self.stats,
                stamp=NOW,
                changes=tuple(changes),
                gone=np.array(gone[file.path], np.int64) if file.path in gone else None,
                deletes=tuple(deletes),
                emptied=emptied,
                on_delete=on_delete,
                anew=anew,
                dates_of=self.dates_of,
            )
            for file in found
        ]
        merged = [merge.merge(job) for job in jobs]
        rewritten = [one for one in merged if one.rewritten]
        feed = [one.feed for one in rewritten if one.feed]
        masks = insert.joined([one.found for one in merged], changes)
        moved = tuple(one.moved for one in merged if one.moved is not None)
        inserted = insert.insert(
            insert.Insert(
                place=self.place,
                layout=self.layout,
                stats=self.stats,
                batch_id=NOW.batch_id,
                changes=tuple(changes),
                found=masks,
                feed=bool(feed),
                moved=moved,
                dates_of=self.dates_of,
            )
        )
        quiet = [(one.old, one.file) for one in rewritten if one.file and not one.edits]
        loud = [one for one in rewritten if one.edits or not one.file]
        added = [*(one.file for one in loud if one.file), *inserted.files]
        feed += inserted.feed
        change = commit.Change("MERGE", added, [one.old for one in loud], feed, quiet=quiet)
        version = commit.commit(self.place, state, change, {"batch_id": NOW.batch_id})
        return Landed(version, [file.path for file in found], merged, inserted, feed)

    def rows(self, file: DataFile | Stored) -> pl.DataFrame:
        """A data file's content as it lies there."""
        path = unquote(file.path) if isinstance(file, Stored) else file.path
        return pl.read_parquet(Path(self.place.url) / path, hive_partitioning=False)

    def content(self) -> Counter[str]:
        """The table's rows, as a reader finds them."""
        names = [name for name, _ in self.layout]
        return Counter(shown(pl.read_delta(self.place.url).select(names)))

    def told(self, version: int) -> Counter[tuple[str, str]]:
        """What the change data feed says of a version."""
        table = DeltaTable(self.place.url)
        read = table.load_cdf(starting_version=version, ending_version=version).read_all()
        changes = pl.DataFrame(read)
        if not changes.height:
            return Counter()
        kinds = changes["_change_type"].to_list()
        rows = shown(changes.select([name for name, _ in self.layout]))
        return Counter(zip(kinds, rows, strict=True))


@dataclass(frozen=True)
class Landed:
    """What one change came to."""

    version: int
    looked: list[str]
    merged: list[merge.Merged]
    inserted: insert.Inserted
    feed: list[DataFile]

    @property
    def rewritten(self) -> list[str]:
        """The paths of the files that were written anew."""
        return [one.old.path for one in self.merged if one.rewritten]


# The model

_LONG = "k" * 40
_WORDS = st.text("aé\U0010ffff", max_size=2)
_STRINGS = _WORDS | _WORDS.map(_LONG.__add__)
_MOMENTS = st.integers(0, 9).map(
    lambda i: dt.datetime(2024, 1, 1, 0, 0, 0, 123_450 + i, tzinfo=UTC)
)
_DECIMALS = st.integers(-50, 50).map(lambda i: Decimal(i).scaleb(-2))
KEYS: dict[str, tuple[tuple[tuple[str, Kind], st.SearchStrategy[Any]], ...]] = {
    "long": ((("id", Kind("long")), st.integers(-20, 20) | st.just(2**53 + 1)),),
    "short": ((("id", Kind("short")), st.integers(-20, 20)),),
    "string": ((("id", Kind("string")), _STRINGS),),
    "date": ((("id", Kind("date")), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 31))),),
    "timestamp": ((("id", Kind("timestamp")), _MOMENTS),),
    "decimal": ((("id", Kind("decimal", 12, 2)), _DECIMALS),),
    "composite": (
        (("id", Kind("int")), st.integers(-3, 3)),
        (("part", Kind("string")), _STRINGS),
    ),
    "mixed": (
        (("a.b", Kind("decimal", 12, 2)), _DECIMALS),
        (("ta`g", Kind("date")), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 3))),
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
    on_delete: merge.OnDelete
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
            "_FEW": draw(st.sampled_from([0, 1, 100])),
            "_KEYS": draw(st.sampled_from([1, 4, 2_000_000])),
            "GROUP": draw(st.sampled_from([1, 3, 30_000])),
            "BYTES": draw(st.sampled_from([1, 200, 2**24])),
            "_PART_VALUES": draw(st.sampled_from([1, 20, 1_200_000])),
            "_GROUP_BYTES": draw(st.sampled_from([1, 2**25])),
            "FEWEST": 1,
        },
    )


_places = itertools.count()

_LIMITED = {
    "_FEW": [merge],
    "_KEYS": [merge],
    "GROUP": [changing],
    "BYTES": [changing],
    "_PART_VALUES": [files],
    "_GROUP_BYTES": [files],
    "FEWEST": [portion],
}


def _values(layout: Layout, one: Row) -> dict[str, Any]:
    return dict(zip((name for name, _ in layout), one, strict=True))


def _after(case: Case, number: int, new: Mapping[Any, Row]) -> Row | None:
    """What a row of the table has to become; None where it has to go."""
    names = [name for name, _ in case.layout]
    before = _values(case.layout, case.old[number])
    change = new.get(tuple(before[name] for name in case.key))
    if change is not None:
        after = _values(case.layout, change)
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


def _feed(before: Row, after: Row | None) -> Iterator[tuple[str, str]]:
    if after is None:
        yield "delete", bits(before)
    elif after is not before:
        yield "update_preimage", bits(before)
        yield "update_postimage", bits(after)


@ON_DISK
@given(case=cases())
def test_a_merge_does_what_the_model_does(tmp_path: Path, case: Case) -> None:
    """Rows are replaced, revived, marked, removed and added; all others stay, in their order.

    The feed says exactly that, and only files with a changed row are written anew.
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

    new = {tuple(_values(case.layout, one)[name] for name in case.key): one for one in case.new}
    keys = [tuple(_values(case.layout, one)[name] for name in case.key) for one in case.old]
    fresh = [one for key, one in new.items() if key not in set(keys)]
    wanted: Counter[str] = Counter(map(bits, fresh))
    told: Counter[tuple[str, str]] = Counter(("insert", bits(one)) for one in fresh)
    results = {one.old.path: one for one in landed.merged}
    kept = {file.path for file in bench.state.files}
    for path, mine in numbers.items():
        after = {number: _after(case, number, new) for number in mine}
        left = [bits(one) for one in after.values() if one is not None]
        pairs = [pair for n in mine for pair in _feed(case.old[n], after[n])]
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
                assert shown(bench.rows(file)) == left
                assert file.rows == len(left)
            assert results[path].updated == sum(
                keys[n] in new and after[n] is not case.old[n] for n in mine
            )
            assert results[path].deleted == sum(n in case.gone for n in mine)
        was = [_values(case.layout, case.old[n]) for n in mine if keys[n] in new]
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

ID: tuple[str, Kind] = ("id", Kind("long"))
PLAIN = layout_of(ID)
NOTHING = (None, "a", None, None, None)


def plain(number: int, text: str = "a", stamp: Stamp = BEFORE, **more: Any) -> Row:
    """A row with a key of one number."""
    return row(PLAIN, {"id": number}, (None, text, None, None, None), stamp, **more)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A table to be, whose key is a number."""
    return Bench(Place(str(tmp_path / "t")), PLAIN, ("id",))


def test_a_file_without_a_changed_key_is_not_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files with a hundred keys each, only the one with the changed key is read and written."""
    paths = bench.create([[[plain(100 * i + j) for j in range(100)]] for i in range(3)])
    read: list[str] = []
    honest = files.opened

    def opened(place: Place, file: Stored | DataFile) -> pq.ParquetFile:
        read.append(file.path)
        return honest(place, file)

    monkeypatch.setattr(files, "opened", opened)
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
    file = Stored(
        "x",
        1,
        1,
        () if low is None else (("id", low),),
        () if high is None else (("id", high),),
    )
    keys = frame(PLAIN, [plain(7)])
    found = merge.candidates([file], [keys, keys], ("id",), bench.place)
    assert found == [file] * hit


def test_bounds_say_nothing_of_a_key_that_is_null(bench: Bench) -> None:
    """What Delta cannot hold is NULL, and may be in any file."""
    file = Stored("x", 1, 1, (("id", 1),), (("id", 9),))
    for keys in ([None], [None, 100]):
        change = pl.DataFrame({"id": pl.Series(keys, dtype=pl.Int64)})
        assert merge.candidates([file], [change], ("id",), bench.place) == [file]


def test_no_changes_look_at_no_file(bench: Bench) -> None:
    """Without changes, and with changes of no rows, there is nothing to look for."""
    bench.create([[[plain(1)]]])
    stored = bench.state.files
    assert merge.candidates(stored, [], ("id",), bench.place) == []
    empty = frame(PLAIN, [])
    assert merge.candidates(stored, [empty], ("id",), bench.place) == []


# What the feed says


def test_inserts_alone_have_no_feed_of_their_own(bench: Bench) -> None:
    """A commit that only adds rows has no cdc file, and readers still see the inserts."""
    bench.create([[[plain(1), plain(3)]]])
    fresh = [plain(2, "b", NOW), plain(9, "c", NOW)]
    landed = bench.changed([frame(PLAIN, fresh)])
    assert landed.feed == []
    assert _actions(bench.place, landed.version, "cdc") == []
    assert bench.told(landed.version) == Counter(("insert", bits(one)) for one in fresh)


def _actions(place: Place, version: int, name: str) -> list[dict[str, Any]]:
    text = (Path(place.url) / "_delta_log" / f"{version:020}.json").read_text()
    return [a[name] for a in map(json.loads, text.splitlines()) if name in a]


def test_all_rows_of_a_file_may_go(bench: Bench) -> None:
    """A file whose rows all go is replaced by none, and its rows are deletes of the feed."""
    paths = bench.create([[[plain(1), plain(2)]], [[plain(3)]]])
    landed = bench.changed([], {paths[0]: [0, 1]}, "remove")
    (one,) = [one for one in landed.merged if one.rewritten]
    assert (one.file, one.deleted, one.updated) == (None, 2, 0)
    assert [file.path for file in bench.state.files] == [paths[1]]
    assert bench.told(landed.version) == Counter(
        ("delete", bits(one)) for one in (plain(1), plain(2))
    )


def test_a_row_that_changed_is_not_gone(bench: Bench) -> None:
    """A row whose hash vanished because it was changed is updated, once, and not deleted."""
    paths = bench.create([[[plain(1), plain(2)]]])
    after = plain(1, "b", NOW, load_timestamp=BEFORE.loaded_at)
    landed = bench.changed([frame(PLAIN, [plain(1, "b", NOW)])], {paths[0]: [0]}, "remove")
    assert bench.content() == Counter(map(bits, [after, plain(2)]))
    assert bench.told(landed.version) == Counter(
        [("update_preimage", bits(plain(1))), ("update_postimage", bits(after))]
    )


# Large and small edits


@pytest.mark.parametrize("edits", [1, 99, 100, 101, 250, 400])
@pytest.mark.parametrize("on_delete", ["mark", "remove"])
def test_few_and_many_edits_of_a_row_group_do_the_same(
    bench: Bench, edits: int, on_delete: merge.OnDelete
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
            wanted.append(tuple({**_values(PLAIN, one), **marks}.values()))
    (file,) = [one.file for one in landed.merged if one.file]
    assert shown(bench.rows(file)) == [bits(one) for one in wanted]
    footer = pq.read_metadata(Path(bench.place.url) / file.path)
    groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert groups == [400 - len(gone) * (on_delete == "remove"), 100, 400]


def test_columns_change_without_rows(bench: Bench) -> None:
    """A file may be written anew for its columns alone: wider, and with one more, all else kept."""
    paths = bench.create([[[plain(1), plain(2)], [plain(3)]]])
    layout = (*PLAIN[:1], ("price", Kind("decimal", 30, 4)), ("more", Kind("date")), *METADATA)
    job = merge.Merge(
        bench.place, bench.state.files[0], layout, ("id",), ("id",), NOW, (), anew=True
    )
    made = merge.merge(job)
    assert made.rewritten
    assert (made.updated, made.deleted, made.feed, made.found) == (0, 0, None, ())
    assert made.file is not None
    now = bench.rows(made.file)
    assert now.columns == [name for name, _ in layout]
    assert now.schema["price"] == pl.Decimal(30, 4)
    assert now["id"].to_list() == [1, 2, 3]
    assert now["more"].to_list() == [None] * 3
    assert files.batch_of(made.file.path) == NOW.batch_id
    assert made.old.path == paths[0]


# Masks

_MASKS = st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=4)


@settings(derandomize=True, database=None, deadline=None)
@given(masks=_MASKS, data=st.data())
def test_masks_are_joined_bit_by_bit(masks: list[list[bool]], data: st.DataObject) -> None:
    """What one file or another has the key of is found; the rest is to be inserted."""
    changes = [pl.DataFrame({"id": mask}, schema={"id": pl.Boolean}) for mask in masks]
    parts = [
        [[data.draw(st.booleans()) and bit for bit in mask] for mask in masks] for _ in range(3)
    ]
    packed = [[np.packbits(np.array(bits, np.bool_)).tobytes() for bits in one] for one in parts]
    whole = insert.joined(packed, changes)
    for i, mask in enumerate(masks):
        wanted = [j for j in range(len(mask)) if not any(one[i][j] for one in parts)]
        assert insert.unfound(whole[i], len(mask)).tolist() == wanted
    nothing = insert.joined([], changes)
    assert [len(insert.unfound(m, c.height)) for m, c in zip(nothing, changes, strict=True)] == [
        len(mask) for mask in masks
    ]


# Files of others


def foreign(bench: Bench, path: str, table: pa.Table, stats: str | None, **options: Any) -> None:
    """Adds a file of another writer to the table."""
    target = Path(bench.place.url) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, table.schema) as writer:
        if table.num_rows:
            writer.write_table(table, **options)
    add: dict[str, Any] = {
        "path": quote(path),
        "partitionValues": {},
        "size": target.stat().st_size,
        "modificationTime": 0,
        "dataChange": True,
    }
    add |= {} if stats is None else {"stats": stats}
    log.write(bench.place, bench.state.version + 1, [{"add": add}])


def _stored(bench: Bench, path: str) -> Stored:
    (found,) = [file for file in bench.state.files if file.path == path]
    return found


@pytest.mark.parametrize("stats", [None, '{"numRecords": 3}', "{}"])
def test_a_file_without_bounds_is_always_looked_at(bench: Bench, stats: str | None) -> None:
    """A file of which the log says nothing may hold any key; its rows are changed like others."""
    bench.create([[[plain(1)]]])
    theirs = [plain(10), plain(11, "x"), plain(12)]
    arrow = frame(PLAIN, theirs).to_arrow(compat_level=pl.CompatLevel.oldest())
    foreign(bench, "theirs.parquet", arrow, stats)
    assert _stored(bench, "theirs.parquet").rows == (3 if stats and "3" in stats else -1)
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


def test_a_file_of_other_columns_fits_in(bench: Bench) -> None:
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


def test_a_large_row_group_of_others_is_taken_in_parts(
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
    bench: Bench, monkeypatch: pytest.MonkeyPatch, on_delete: merge.OnDelete
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


def test_an_empty_file_of_others_is_no_obstacle(bench: Bench) -> None:
    """Spark writes files of no rows: nothing is found in them, and they stay."""
    bench.create([[[plain(1)]]])
    arrow = frame(PLAIN, []).to_arrow(compat_level=pl.CompatLevel.oldest())
    foreign(bench, "empty.parquet", arrow, '{"numRecords": 0}')
    assert pq.read_metadata(Path(bench.place.url) / "empty.parquet").num_row_groups == 0
    landed = bench.changed([frame(PLAIN, [plain(1, "b", NOW), plain(2, "c", NOW)])])
    assert landed.inserted.rows == 1
    assert {"empty.parquet"} < {file.path for file in bench.state.files}


def test_bounds_of_times_that_others_cut_lose_no_key(tmp_path: Path) -> None:
    """Other writers cut the bounds of timestamps to milliseconds: the key is there all the same."""
    moment = dt.datetime(2024, 1, 1, 0, 0, 0, 123_456, tzinfo=UTC)
    layout = layout_of(("id", Kind("timestamp")))
    bench = Bench(Place(str(tmp_path / "t")), layout, ("id",))
    bench.create([])
    rows = frame(layout, [row(layout, {"id": moment}, NOTHING)])
    write_deltalake(bench.place.url, rows.to_arrow(), mode="append")
    new = row(layout, {"id": moment}, (1.0, *NOTHING[1:]), NOW)
    landed = bench.changed([frame(layout, [new])])
    assert landed.inserted.rows == 0
    assert pl.read_delta(bench.place.url).height == 1


@pytest.mark.parametrize("text", ["k" * 400, "k" * 63 + "é" * 9, "\U0010ffff" * 90, "k" * 31 + "é"])
def test_bounds_of_long_strings_that_others_cut_lose_no_key(tmp_path: Path, text: str) -> None:
    """Other writers cut the bounds of strings in their way: the key is there all the same."""
    layout = layout_of(("id", Kind("string")))
    bench = Bench(Place(str(tmp_path / "t")), layout, ("id",))
    bench.create([])
    rows = frame(layout, [row(layout, {"id": text}, NOTHING)])
    write_deltalake(bench.place.url, rows.to_arrow(), mode="append")
    new = row(layout, {"id": text}, (1.0, *NOTHING[1:]), NOW)
    landed = bench.changed([frame(layout, [new])])
    assert landed.inserted.rows == 0
    assert pl.read_delta(bench.place.url).height == 1


def test_rows_that_others_added_are_merged_with_ours(bench: Bench) -> None:
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


REGIONS = ["plain", "a b", "é%/x", "50%20", None]


def test_files_in_partitions_keep_their_place(tmp_path: Path) -> None:
    """Files in folders of any partition value, NULL too, are found, rewritten and removed."""
    layout = (*PLAIN, ("region", Kind("string")))
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


def by_pyarrow(bench: Bench) -> Counter[str]:
    """The table's rows as pyarrow finds them, which takes partition values from the log."""
    found = pl.DataFrame(DeltaTable(bench.place.url).to_pyarrow_table())
    return Counter(shown(found.select([name for name, _ in bench.layout])))


DATED: Layout = (
    *PLAIN[: -len(METADATA)],
    ("at", Kind("timestamp")),
    *METADATA,
    ("at_date", Kind("date")),
)


def dated(number: int, at: dt.datetime | None, stamp: Stamp = BEFORE, **more: Any) -> Row:
    """A row with a date."""
    text = f"{number} {at}"
    date = at and at.date()
    values = (None, text, None, None, None)
    return row(DATED, {"id": number, "at": at, "at_date": date}, values, stamp, **more)


def _days(bench: Bench) -> dict[str | None, int]:
    return {dict(file.partition)["at_date"]: file.rows for file in bench.state.files}


@pytest.mark.parametrize("few", [0, 100])
def test_a_row_moves_with_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """A row whose date changes leaves its partition for the other, as one update of the feed."""
    monkeypatch.setattr(merge, "_FEW", few)
    bench = Bench(Place(str(tmp_path / "t")), DATED, ("id",), "at")
    shape = commit.Shape(DATED, ("id",), partition="at_date")
    commit.commit(bench.place, None, commit.Change("WRITE"), {}, shape=shape)
    one, two = (dt.datetime(2024, 2, day, 23, 59, 59, 999_999, tzinfo=UTC) for day in (28, 29))
    old = [dated(1, one), dated(2, one), dated(3, two), dated(4, None)]
    bench.changed([frame(DATED, old)])
    assert _days(bench) == {"2024-02-28": 2, "2024-02-29": 1, None: 1}
    assert by_pyarrow(bench) == Counter(map(bits, old))
    new = [dated(1, two, NOW), dated(4, one, NOW), dated(3, None, NOW), dated(5, two, NOW)]
    landed = bench.changed([frame(DATED, new)])
    kept = [
        tuple({**_values(DATED, after), "load_timestamp": BEFORE.loaded_at}.values())
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


def test_a_job_is_a_value(bench: Bench) -> None:
    """A job may run twice: the second file is like the first, and neither touches the table."""
    bench.create([[[plain(1), plain(2)]]])
    state = bench.state
    changes = (frame(PLAIN, [plain(2, "b", NOW)]),)
    job = merge.Merge(bench.place, state.files[0], PLAIN, ("id",), ("id",), NOW, changes)
    one, two = merge.merge(job), merge.merge(dataclasses.replace(job))
    assert one.file is not None
    assert two.file is not None
    assert one.file.path != two.file.path
    assert dataclasses.replace(one.file, path="") == dataclasses.replace(two.file, path="")
    assert bench.rows(one.file).equals(bench.rows(two.file))
    assert bench.state.version == state.version


# Rows that are gone by their keys, or all at once


def keys_of(bench: Bench, numbers: Sequence[int], staged: bool) -> tuple[Changes, ...]:
    """Keys of deleted rows, in memory or in a file of several row groups."""
    keys = pl.DataFrame({"id": list(numbers)}, schema={"id": pl.Int64})
    if not staged:
        return (keys,)
    file = files.write(keys.iter_slices(2), bench.place, NOW.batch_id, ("id",))
    assert file is not None
    return (file,)


def gone_now(one: Row) -> Row:
    """A row once it is marked."""
    marks = {
        "record_status": DELETED,
        "update_timestamp": NOW.loaded_at,
        "batch_id": NOW.batch_id,
        "ingestion_method": NOW.method,
        "data_lineage": NOW.lineage,
    }
    names = [name for name, _ in PLAIN]
    return tuple({**_values(PLAIN, one), **marks}[name] for name in names)


def held_to(
    bench: Bench, landed: Landed, before: Sequence[Row], after: Mapping[int, Row | None]
) -> None:
    """The table and its feed say that rows became others (by key; None: they went)."""
    kept = {_values(PLAIN, one)["id"]: one for one in before}
    both: dict[int, Row | None] = {**kept, **after}
    wanted = [row for row in both.values() if row is not None]
    assert bench.content() == Counter(map(bits, wanted))
    told: Counter[tuple[str, str]] = Counter()
    for number, new in after.items():
        if number in kept:
            told.update(_feed(kept[number], new))
        elif new is not None:
            told["insert", bits(new)] += 1
    assert bench.told(landed.version) == told


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("on_delete", ["mark", "remove"])
def test_rows_go_by_their_keys(bench: Bench, on_delete: merge.OnDelete, staged: bool) -> None:
    """Live rows are marked or removed, in whatever file; no other row and no other file changes.

    Rows that are marked already are left as they are, keys that are not there are no matter, and
    the same key twice is one row.
    """
    marked = plain(3, record_status=DELETED)
    rows = [plain(1), plain(2), marked, plain(4), plain(5, record_status=None), plain(9)]
    paths = bench.create([[rows[:2], rows[2:3]], [rows[3:5]], [rows[5:]]])
    deletes = keys_of(bench, [2, 3, 5, 77, 2, -1, 6], staged)
    landed = bench.changed([], on_delete=on_delete, deletes=deletes)
    marks = on_delete == "mark"
    after = {2: gone_now(rows[1]) if marks else None, 5: gone_now(rows[4]) if marks else None}
    held_to(bench, landed, rows, after)
    assert landed.rewritten == [path for path in paths[:2] if path in landed.rewritten]
    assert len(landed.rewritten) == 2
    assert sum(one.deleted for one in landed.merged) == 2
    assert sum(one.updated for one in landed.merged) == 0
    assert landed.inserted.rows == 0
    assert paths[2] in {file.path for file in bench.state.files}


@pytest.mark.parametrize("staged", [False, True])
def test_keys_that_no_live_row_has_change_nothing(bench: Bench, staged: bool) -> None:
    """A file whose only such rows are marked already is not written anew."""
    rows = [plain(1), plain(2, record_status=DELETED), plain(8)]
    paths = bench.create([[rows]])
    landed = bench.changed([], deletes=keys_of(bench, [2, 3, 99], staged), on_delete="remove")
    assert landed.looked == paths
    assert landed.rewritten == []
    assert bench.content() == Counter(map(bits, rows))


@pytest.mark.parametrize("staged", [False, True])
def test_rows_that_go_beside_rows_that_change(bench: Bench, staged: bool) -> None:
    """In one file: a change wins over a deletion of the same key, others do as they should."""
    rows = [plain(number) for number in range(6)]
    bench.create([[rows[:3], rows[3:]]])
    new = [plain(1, "b", NOW), plain(4, "b", NOW), plain(7, "b", NOW)]
    deletes = keys_of(bench, [0, 1, 5], staged)
    landed = bench.changed([frame(PLAIN, new)], on_delete="remove", deletes=deletes)
    old = {"load_timestamp": BEFORE.loaded_at}
    after: dict[int, Row | None] = {
        0: None,
        1: plain(1, "b", NOW, **old),
        4: plain(4, "b", NOW, **old),
        5: None,
        7: new[2],
    }
    held_to(bench, landed, rows, after)
    assert (landed.merged[0].updated, landed.merged[0].deleted) == (2, 2)


@pytest.mark.parametrize("on_delete", ["mark", "remove"])
@pytest.mark.parametrize("changed", [False, True])
def test_all_rows_go_at_once(bench: Bench, on_delete: merge.OnDelete, changed: bool) -> None:
    """An emptied table has those rows only that have come since, as they were if they are equal."""
    rows = [plain(number) for number in range(5)] + [plain(5, record_status=DELETED)]
    rows += [plain(6, record_status=DELETED)]
    bench.create([[rows[:2], rows[2:4]], [rows[4:]]])
    new = [plain(1, "a", NOW), plain(2, "b", NOW), plain(6, "a", NOW), plain(8, "a", NOW)]
    changes = [frame(PLAIN, new)] if changed else []
    landed = bench.changed(changes, on_delete=on_delete, emptied=True)
    marks = on_delete == "mark"
    after: dict[int, Row | None] = {
        number: gone_now(rows[number]) if marks else None for number in range(5)
    }
    if changed:
        old = {"load_timestamp": BEFORE.loaded_at}
        del after[1]
        after |= {2: plain(2, "b", NOW, **old), 6: plain(6, "a", NOW, **old), 8: new[3]}
    held_to(bench, landed, rows, after)
    assert sum(one.deleted for one in landed.merged) == (3 if changed else 5)
    assert sum(one.revived for one in landed.merged) == (1 if changed else 0)
    again = bench.changed(changes, on_delete=on_delete, emptied=True)
    assert again.rewritten == []


def test_keys_do_not_count_where_all_rows_go(bench: Bench) -> None:
    """The same rows go with and without the keys of some of them."""
    rows = [plain(1), plain(2)]
    bench.create([[rows]])
    landed = bench.changed([], deletes=keys_of(bench, [1], False), emptied=True)
    held_to(bench, landed, rows, {1: gone_now(rows[0]), 2: gone_now(rows[1])})


@pytest.mark.parametrize("emptied", [False, True])
def test_rows_of_partitions_go(tmp_path: Path, emptied: bool) -> None:
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
