"""Fingerprints of a Bronze table's rows, and the comparison of rows with them."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bronze.delta import files
from bronze.errors import LakeUnreachable
from bronze.execution import budget
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import ACTIVE, DELETED, KnownRows
from bronze.postgres.copy.rows_reader import dtype
from bronze.tables import known_rows
from tests.support.effort import examples
from tests.support.stored_rows import Row, digest, layout_of, table_of

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(20))
ON_DISK = settings(
    IN_MEMORY,
    max_examples=examples(6),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TIMEOUT = 20
PRINTS = st.lists(st.integers(0, 12) | st.sampled_from([2**63, 2**64 - 1]), max_size=30)


def index_of(numbers: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The index of these fingerprints."""
    return np.sort(np.array(numbers, np.uint64))


# Comparison with an index


@IN_MEMORY
@given(table=PRINTS, parts=st.lists(PRINTS, max_size=4))
def test_rows_of_the_source_are_matched_with_an_index(
    table: list[int], parts: list[list[int]]
) -> None:
    """Rows that the table has are matched; what no part of the source matched is unmatched.

    A fingerprint that the table has twice, and that was matched once, is not unmatched.
    """
    index = index_of(table)
    matched = np.zeros(len(index), np.bool_)
    for part in parts:
        mask, places = known_rows.match_fingerprints(index, np.array(part, np.uint64))
        assert mask.tolist() == [number in table for number in part]
        assert sorted(index[places].tolist()) == sorted(n for n in part if n in table)
        matched[places] = True
    source = set(itertools.chain.from_iterable(parts))
    unmatched = known_rows.unmatched_fingerprints(index, matched)
    assert unmatched.tolist() == sorted(number for number in table if number not in source)
    assert known_rows.count_distinct(index) == len(set(table))


@IN_MEMORY
@given(prints=PRINTS, shares=st.integers(1, 7))
def test_shares_cover_everything_once(prints: list[int], shares: int) -> None:
    """Each fingerprint is in exactly one of the shares."""
    whole = KnownRows(Place("x"), 0, (), (), (), 0, 0, shares)
    masks = [
        known_rows.in_share(replace(whole, share=i), np.array(prints, np.uint64))
        for i in range(shares)
    ]
    assert np.sum(masks, axis=0).tolist() == [1] * len(prints)


# Indexes of tables


KEYS: dict[str, tuple[tuple[DeltaType, st.SearchStrategy[Any]], ...]] = {
    "long": ((DeltaType("long"), st.integers(-9, 9) | st.sampled_from([-(2**63), 2**63 - 1])),),
    "short": ((DeltaType("short"), st.integers(-9, 9)),),
    "string": ((DeltaType("string"), st.text("aé\0", max_size=3)),),
    "date": ((DeltaType("date"), st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 9))),),
    "composite": (
        (DeltaType("int"), st.integers(-2, 2)),
        (DeltaType("string"), st.text("a", max_size=2)),
        (DeltaType("decimal", 9, 2), st.sampled_from([Decimal("0.10"), Decimal("-1.00")])),
    ),
}
_STATUS = st.sampled_from([ACTIVE, ACTIVE, ACTIVE, DELETED, None])
_places = itertools.count()


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[DeltaType], list[list[list[Row]]]]:
    """Tables in which rows repeat, are marked as deleted, or come from another writer."""
    kinds = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    keys = st.tuples(*(values for _, values in kinds))
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)

    def row(key: Row, status: str | None, foreign: int) -> Row:
        values = (None, *key[1:]) if foreign == 1 else key
        return (*values, moment, status, None if foreign == 0 else digest(key))

    rows = st.builds(row, keys, _STATUS, st.integers(0, 9))
    group = st.lists(rows, min_size=1, max_size=8)
    found = draw(st.lists(st.lists(group, min_size=1, max_size=3), max_size=3))
    return [kind for kind, _ in kinds], found


@ON_DISK
@given(
    table=tables(),
    by_key=st.booleans(),
    shares=st.integers(1, 3),
    offset=st.integers(0, 16),
    counted=st.booleans(),
    data=st.data(),
)
def test_an_index_has_the_live_rows_of_all_files(
    tmp_path: Path,
    table: tuple[list[DeltaType], list[list[list[Row]]]],
    by_key: bool,
    shares: int,
    offset: int,
    counted: bool,
    data: st.DataObject,
) -> None:
    """The indexes of all shares together have all live rows, whose positions are found again.

    Rows marked as deleted are left out, and those without a hash, or without a key.
    """
    kinds, contents = table
    place = Place(str(tmp_path / str(next(_places))))
    layout = layout_of(kinds)
    stored = table_of(place, layout, contents)
    if not counted:
        stored = tuple(replace(file, rows=-1) for file in stored)
    names = tuple(name for name, _ in layout[: len(kinds)])
    whole = KnownRows(place, 0, stored, layout, names if by_key else (), offset, 0, shares)
    flat = [list(itertools.chain.from_iterable(groups)) for groups in contents]

    def counts(row: Row) -> bool:
        present = None not in row[: len(kinds)] if by_key else row[-1] is not None
        return row[-2] != DELETED and present

    def identity(row: Row) -> Any:
        return row[: len(kinds)] if by_key else row[-1]

    live = [identity(row) for row in itertools.chain.from_iterable(flat) if counts(row)]
    schema = {name: dtype(kind) for name, kind in layout}
    identities = sorted(set(live))
    lines = [
        (*one, None, None, None) if by_key else (*[None] * len(kinds), None, None, one)
        for one in identities
    ]
    prints = known_rows.fingerprints(whole, pl.DataFrame(lines, schema=schema, orient="row"))
    by_print = dict(zip(prints.tolist(), identities, strict=True))
    assert len(by_print) == len(identities)

    parts = [known_rows.index_of(replace(whole, share=i)) for i in range(shares)]
    assert all((np.diff(part.astype(object)) >= 0).all() for part in parts)
    found = Counter(by_print[one] for part in parts for one in part.tolist())
    assert found == Counter(live)

    chosen = set(data.draw(st.lists(st.sampled_from(identities)))) if identities else set()
    prints_of_chosen = index_of([one for one, value in by_print.items() if value in chosen])
    for file, rows in zip(stored, flat, strict=True):
        places = [
            known_rows.positions(replace(whole, share=i), file, prints_of_chosen).tolist()
            for i in range(shares)
        ]
        assert sorted(itertools.chain.from_iterable(places)) == [
            i for i, row in enumerate(rows) if counts(row) and identity(row) in chosen
        ]
    known_rows.drop_index(place)


def test_a_key_of_the_source_matches_that_of_the_table(tmp_path: Path) -> None:
    """Both have the same fingerprint, whatever the order of the columns."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("int"), DeltaType("string")])
    stored = table_of(place, layout, [[[(-1, "é", None, ACTIVE, "0" * 32)]]])
    known = KnownRows(place, 0, stored, layout, ("k0", "k1"), 0)
    read = pl.DataFrame({"k1": ["é", "é"], "k0": [-1, 1]}, schema_overrides={"k0": pl.Int32})
    mask, _ = known_rows.match_fingerprints(
        known_rows.index_of(known), known_rows.fingerprints(known, read)
    )
    assert mask.tolist() == [True, False]
    known_rows.drop_index(place)


def test_rows_without_a_hash_are_left_out(tmp_path: Path) -> None:
    """A file of another writer, without the metadata columns, has keys but no hashes."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("long")])
    pl.DataFrame({"k0": [1, 2]}).write_parquet(tmp_path / "theirs.parquet")
    stored = StoredFile("theirs.parquet", 0, 2)
    by_hash = KnownRows(place, 0, (stored,), layout, (), 0)
    assert known_rows.index_of(by_hash).tolist() == []
    assert known_rows.positions(by_hash, stored, index_of([1])).tolist() == []
    by_key = replace(by_hash, key=("k0",))
    assert known_rows.index_of(by_key).tolist() == [1, 2]
    assert known_rows.positions(by_key, stored, index_of([2])).tolist() == [1]
    known_rows.drop_index(place)


@pytest.mark.parametrize("text", ["abc", "", "z" * 32, "A" * 32, "0" * 31 + "é"])
def test_malformed_hashes_are_left_out(tmp_path: Path, text: str) -> None:
    """Whatever others wrote as a hash: the other rows are in the index, with their positions."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("long")])
    ours = [digest(1), digest(2)]
    rows = [(i, None, ACTIVE, one) for i, one in enumerate([ours[0], text, ours[1]])]
    stored = table_of(place, layout, [[rows]])
    known = KnownRows(place, 0, stored, layout, (), 16)
    read = pl.DataFrame({"row_hash": ours})
    prints = known_rows.fingerprints(known, read)
    assert set(prints.tolist()) <= set(known_rows.index_of(known).tolist())
    prints_of_chosen = index_of(prints.tolist()[1:])
    assert known_rows.positions(known, stored[0], prints_of_chosen).tolist() == [2]
    known_rows.drop_index(place)


@pytest.fixture
def stored_tables(tmp_path: Path) -> Iterator[Callable[[int], KnownRows]]:
    """Makes tables, each with one row whose key is the table's number."""
    made: list[Place] = []

    def make(number: int) -> KnownRows:
        place, layout = Place(str(tmp_path / str(number))), layout_of([DeltaType("long")])
        made.append(place)
        stored = table_of(place, layout, [[[(number, None, ACTIVE, digest(number))]]])
        return KnownRows(place, 0, stored, layout, ("k0",), 0)

    yield make
    for place in made:
        known_rows.drop_index(place)


def test_two_tables_are_read_at_the_same_time(
    stored_tables: Callable[[int], KnownRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose table takes long to read holds up no worker with another table."""
    slow, quick = stored_tables(1), stored_tables(2)
    begun, gate = threading.Event(), threading.Event()
    open_file = files.open_parquet

    def opened(place: Place, *rest: Any) -> Any:
        if place == slow.place:
            begun.set()
            assert gate.wait(TIMEOUT)
        return open_file(place, *rest)

    monkeypatch.setattr(files, "open_parquet", opened)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(known_rows.index_of, slow)
        assert begun.wait(TIMEOUT)
        second = pool.submit(known_rows.index_of, quick)
        try:
            assert second.result(TIMEOUT).tolist() == [2]
            assert not first.done()
        finally:
            gate.set()
        assert first.result(TIMEOUT).tolist() == [1]


def test_workers_that_compare_with_one_table_share_its_index(
    stored_tables: Callable[[int], KnownRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many workers ask at once, the table is read once, and all have the same array."""
    known, opens = stored_tables(1), Counter[str]()
    barrier = threading.Barrier(4)
    open_file = files.open_parquet

    def opened(place: Place, *rest: Any) -> Any:
        opens[place.url] += 1
        return open_file(place, *rest)

    def ask(_: int) -> Any:
        barrier.wait(TIMEOUT)
        return known_rows.index_of(replace(known))

    monkeypatch.setattr(files, "open_parquet", opened)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    assert all(other is first for other in others)
    assert opens == {known.place.url: 1}


def test_a_table_that_could_not_be_read_is_read_again(
    stored_tables: Callable[[int], KnownRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error reaches every worker that waits; a later attempt succeeds."""
    known = stored_tables(1)
    begun, gate = threading.Event(), threading.Event()
    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:

        def opened(*_: Any) -> Any:
            begun.set()
            assert gate.wait(TIMEOUT)
            raise LakeUnreachable("The lake is away.")

        patch.setattr(files, "open_parquet", opened)
        calls = [pool.submit(known_rows.index_of, known) for _ in range(2)]
        assert begun.wait(TIMEOUT)
        gate.set()
        assert all(isinstance(call.exception(TIMEOUT), LakeUnreachable) for call in calls)
    assert known_rows.index_of(known).tolist() == [1]


def test_few_indexes_are_kept_and_those_of_a_table_can_be_freed(
    stored_tables: Callable[[int], KnownRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index is built once while it is kept: as many as the budget allows, the last used ones.
    Another version of a table, or another part of its hashes, has an index of its own.
    """
    reads: list[str] = []
    open_file = files.open_parquet

    def opened(place: Place, *rest: Any) -> Any:
        reads.append(place.url)
        return open_file(place, *rest)

    monkeypatch.setattr(files, "open_parquet", opened)
    tables = [stored_tables(number) for number in range(budget.INDEXES + 1)]
    urls = [known.place.url for known in tables]
    for known in (*tables[:-1], *tables[:-1]):
        known_rows.index_of(known)
    assert reads == urls[:-1]
    known_rows.index_of(tables[-1])
    known_rows.index_of(tables[-2])
    assert reads == urls
    known_rows.index_of(tables[0])
    assert reads == [*urls, urls[0]]
    known_rows.drop_index(tables[-1].place)
    known_rows.index_of(tables[0])
    assert reads == [*urls, urls[0]]
    known_rows.drop_index(tables[0].place)
    for known in (tables[0], replace(tables[0], version=1), replace(tables[0], offset=1)):
        assert known_rows.index_of(known).tolist() == [0]
    assert reads == [*urls, *[urls[0]] * 4]


# Tables with history


@st.composite
def histories(draw: st.DrawFn) -> list[list[list[tuple[int, int, str | None]]]]:
    """Files of row groups of versions: a key, a value and a status, in the order of their times."""
    version = st.tuples(st.integers(-3, 3), st.integers(0, 2), _STATUS)
    group = st.lists(version, min_size=1, max_size=6)
    return draw(st.lists(st.lists(group, min_size=1, max_size=3), max_size=3))


@ON_DISK
@given(contents=histories(), by_key=st.booleans(), shuffled=st.randoms(use_true_random=False))
def test_the_index_of_a_history_has_the_live_last_versions(
    tmp_path: Path,
    contents: list[list[list[tuple[int, int, str | None]]]],
    by_key: bool,
    shuffled: Any,
) -> None:
    """Of each key the last version by time, wherever it lies, and only if it is not deleted."""
    count = sum(len(group) for groups in contents for group in groups)
    moments = list(range(count))
    shuffled.shuffle(moments)
    place, layout = Place(str(tmp_path / str(next(_places)))), layout_of([DeltaType("long")])
    numbers = iter(moments)
    rows: list[list[list[Row]]] = []
    last: dict[int, tuple[int, int, int, str | None, str]] = {}
    for number, groups in enumerate(contents):
        rows.append([])
        position = 0
        for group in groups:
            rows[-1].append([])
            for key, value, status in group:
                at = next(numbers)
                text = digest((key, value))
                moment = dt.datetime(2024, 1, 1, 0, 0, 0, at, tzinfo=dt.UTC)
                rows[-1][-1].append((key, moment, status, text))
                if key not in last or at > last[key][0]:
                    last[key] = (at, number, position, status, text)
                position += 1
    stored = table_of(place, layout, rows)
    names = ("k0",) if by_key else ()
    known = KnownRows(place, 0, stored, layout, names, 5, versions=("k0",))
    live = {key: one for key, one in last.items() if one[3] != DELETED}
    lines = pl.DataFrame(
        [(key, None, None, one[4]) for key, one in live.items()],
        schema={name: dtype(kind) for name, kind in layout},
        orient="row",
    )
    prints = known_rows.fingerprints(known, lines)
    assert known_rows.index_of(known).tolist() == sorted(prints.tolist())
    chosen = dict(list(live.items())[::2])
    prints_of_chosen = index_of(prints.tolist()[::2])
    found = {
        (stored.index(file), int(position))
        for file, places in known_rows.last_positions(known, prints_of_chosen)
        for position in places
    }
    assert found == {(file, position) for _, file, position, _, _ in chosen.values()}
    known_rows.drop_index(place)


def test_key_columns_of_a_history_may_have_any_name(tmp_path: Path) -> None:
    """A key column of the source may be called as a column of bronze's own reckoning."""
    place = Place(str(tmp_path))
    layout = (("row", DeltaType("long")), *layout_of(()))
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    stored = table_of(place, layout, [[[(7, moment, ACTIVE, digest(7))]]])
    known = KnownRows(place, 0, stored, layout, ("row",), 0, versions=("row",))
    assert known_rows.index_of(known).tolist() == [7]
    assert [rows.tolist() for _, rows in known_rows.last_positions(known)] == [[0]]
    known_rows.drop_index(place)
