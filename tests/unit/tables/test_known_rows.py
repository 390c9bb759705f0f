"""What a table holds: fingerprints that are found again, and those that are not."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
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
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import ACTIVE, DELETED, KnownRows
from bronze.postgres.copy.read import dtype
from bronze.tables import known_rows
from tests.support.effort import examples

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(20))
ON_DISK = settings(
    IN_MEMORY,
    max_examples=examples(6),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
BATCH = "018df7a0-0000-7000-8000-000000000000"
PRINTS = st.lists(st.integers(0, 12) | st.sampled_from([2**63, 2**64 - 1]), max_size=30)
OURS = (
    ("update_timestamp", DeltaType("timestamp")),
    ("record_status", DeltaType("string")),
    ("row_hash", DeltaType("string")),
)

Row = tuple[Any, ...]


def held(numbers: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A table's fingerprints."""
    return np.sort(np.array(numbers, np.uint64))


# Sets of fingerprints


@IN_MEMORY
@given(table=PRINTS, parts=st.lists(PRINTS, max_size=4))
def test_what_was_seen_and_what_was_not(table: list[int], parts: list[list[int]]) -> None:
    """Rows that the table holds are told from new ones; what no part has seen has vanished.

    A fingerprint that the table has twice, and that was seen once, has not vanished.
    """
    ours = held(table)
    places = np.zeros(len(ours), np.bool_)
    for part in parts:
        mask, where = known_rows.match_fingerprints(ours, np.array(part, np.uint64))
        assert mask.tolist() == [one in table for one in part]
        assert sorted(ours[where].tolist()) == sorted(one for one in part if one in table)
        places[where] = True
    source = set(itertools.chain.from_iterable(parts))
    vanished = known_rows.unmatched_fingerprints(ours, places)
    assert vanished.tolist() == sorted(one for one in table if one not in source)
    assert known_rows.distinct(ours) == len(set(table))


@IN_MEMORY
@given(prints=PRINTS, shares=st.integers(1, 7))
def test_shares_cover_everything_once(prints: list[int], shares: int) -> None:
    """Each fingerprint is in exactly one of the shares."""
    whole = KnownRows(Place("x"), 0, (), (), (), 0, 0, shares)
    masks = [
        known_rows.shared(replace(whole, share=i), np.array(prints, np.uint64))
        for i in range(shares)
    ]
    assert np.sum(masks, axis=0).tolist() == [1] * len(prints)


# Tables


def digest(values: Any) -> str:
    """A row's hash."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


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


def layout_of(kinds: Sequence[DeltaType]) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a table whose key has these kinds."""
    return (*((f"k{i}", kind) for i, kind in enumerate(kinds)), *OURS)


def table_of(
    place: Place,
    layout: Sequence[tuple[str, DeltaType]],
    contents: Sequence[Sequence[Sequence[Row]]],
) -> tuple[StoredFile, ...]:
    """Files of row groups of rows."""
    stored = []
    schema = {name: dtype(kind) for name, kind in layout}
    for groups in contents:
        frames = [pl.DataFrame(list(rows), schema=schema, orient="row") for rows in groups]
        file = files.write(frames, place, BATCH, ())
        assert file is not None
        stored.append(StoredFile(file.path, file.size, file.rows))
    return tuple(stored)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[DeltaType], list[list[list[Row]]]]:
    """Tables in which rows repeat, are marked as deleted, or come from somebody else."""
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
    told=st.booleans(),
    data=st.data(),
)
def test_what_a_table_is_known_by(
    tmp_path: Path,
    table: tuple[list[DeltaType], list[list[list[Row]]]],
    by_key: bool,
    shares: int,
    offset: int,
    told: bool,
    data: st.DataObject,
) -> None:
    """All live rows of all files are known, over all shares together, and found by position.

    Rows that are marked as deleted do not count, nor those without a hash, or without a key.
    """
    kinds, contents = table
    place = Place(str(tmp_path / str(next(_places))))
    layout = layout_of(kinds)
    stored = table_of(place, layout, contents)
    if not told:
        stored = tuple(replace(file, rows=-1) for file in stored)
    names = tuple(name for name, _ in layout[: len(kinds)])
    whole = KnownRows(place, 0, stored, layout, names if by_key else (), offset, 0, shares)
    flat = [list(itertools.chain.from_iterable(groups)) for groups in contents]

    def counts(one: Row) -> bool:
        there = None not in one[: len(kinds)] if by_key else one[-1] is not None
        return one[-2] != DELETED and there

    def what(one: Row) -> Any:
        return one[: len(kinds)] if by_key else one[-1]

    live = [what(one) for one in itertools.chain.from_iterable(flat) if counts(one)]
    schema = {name: dtype(kind) for name, kind in layout}
    wanted = sorted(set(live))
    lines = [
        (*one, None, None, None) if by_key else (*[None] * len(kinds), None, None, one)
        for one in wanted
    ]
    prints = known_rows.fingerprints(whole, pl.DataFrame(lines, schema=schema, orient="row"))
    by_print = dict(zip(prints.tolist(), wanted, strict=True))
    assert len(by_print) == len(wanted)

    parts = [known_rows.known_fingerprints(replace(whole, share=i)) for i in range(shares)]
    assert all((np.diff(part.astype(object)) >= 0).all() for part in parts)
    found = Counter(by_print[one] for part in parts for one in part.tolist())
    assert found == Counter(live)

    chosen = set(data.draw(st.lists(st.sampled_from(wanted)))) if wanted else set()
    gone = held([one for one, value in by_print.items() if value in chosen])
    for file, rows in zip(stored, flat, strict=True):
        places = [
            known_rows.positions(replace(whole, share=i), file, gone).tolist()
            for i in range(shares)
        ]
        assert sorted(itertools.chain.from_iterable(places)) == [
            i for i, one in enumerate(rows) if counts(one) and what(one) in chosen
        ]
    known_rows.drop_cached(place)


def test_rows_of_a_table_and_of_the_source_meet(tmp_path: Path) -> None:
    """A key read from the source has the print that the table's has, whatever its order is."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("int"), DeltaType("string")])
    stored = table_of(place, layout, [[[(-1, "é", None, ACTIVE, "0" * 32)]]])
    what = KnownRows(place, 0, stored, layout, ("k0", "k1"), 0)
    read = pl.DataFrame({"k1": ["é", "é"], "k0": [-1, 1]}, schema_overrides={"k0": pl.Int32})
    mask, _ = known_rows.match_fingerprints(
        known_rows.known_fingerprints(what), known_rows.fingerprints(what, read)
    )
    assert mask.tolist() == [True, False]
    known_rows.drop_cached(place)


def test_a_file_without_the_columns_is_of_no_account(tmp_path: Path) -> None:
    """Rows of somebody else's, without hash and status, are not known, and cannot vanish."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("long")])
    pl.DataFrame({"k0": [1, 2]}).write_parquet(tmp_path / "theirs.parquet")
    stored = StoredFile("theirs.parquet", 0, 2)
    by_hash = KnownRows(place, 0, (stored,), layout, (), 0)
    assert known_rows.known_fingerprints(by_hash).tolist() == []
    assert known_rows.positions(by_hash, stored, held([1])).tolist() == []
    by_key = replace(by_hash, key=("k0",))
    assert known_rows.known_fingerprints(by_key).tolist() == [1, 2]
    assert known_rows.positions(by_key, stored, held([2])).tolist() == [1]
    known_rows.drop_cached(place)


@pytest.mark.parametrize("text", ["abc", "", "z" * 32, "A" * 32, "0" * 31 + "é"])
def test_a_hash_that_is_none_of_ours_is_of_no_account(tmp_path: Path, text: str) -> None:
    """Whatever others wrote as a hash: the other rows are known, and found where they are."""
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("long")])
    ours = [digest(1), digest(2)]
    rows = [(i, None, ACTIVE, one) for i, one in enumerate([ours[0], text, ours[1]])]
    stored = table_of(place, layout, [[rows]])
    what = KnownRows(place, 0, stored, layout, (), 16)
    read = pl.DataFrame({"row_hash": ours})
    prints = known_rows.fingerprints(what, read)
    assert set(prints.tolist()) <= set(known_rows.known_fingerprints(what).tolist())
    gone = held(prints.tolist()[1:])
    assert known_rows.positions(what, stored[0], gone).tolist() == [2]
    known_rows.drop_cached(place)


def test_few_sets_are_kept_and_can_be_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set is read once while it is kept; only the last ones are, and `forget` frees a table's."""
    reads: list[KnownRows] = []
    honest = known_rows._read

    def read(what: KnownRows) -> Any:
        reads.append(what)
        return honest(what)

    monkeypatch.setattr(known_rows, "_read", read)
    monkeypatch.setattr(known_rows, "_sets", {})
    layout = layout_of([DeltaType("long")])
    ones = []
    for i in range(4):
        place = Place(str(tmp_path / str(i)))
        stored = table_of(place, layout, [[[(i, None, ACTIVE, digest(i))]]])
        ones.append(KnownRows(place, 0, stored, layout, ("k0",), 0))
    for one in (*ones[:2], *ones[:2]):
        assert known_rows.known_fingerprints(one).tolist() == [ones.index(one)]
    assert reads == ones[:2]
    for one in ones[2:]:
        known_rows.known_fingerprints(one)
        assert len(known_rows._sets) == known_rows._KEPT
    assert known_rows.known_fingerprints(ones[0]).tolist() == [0]
    assert reads == [*ones, ones[0]]
    assert set(known_rows._sets) == {ones[3], ones[0]}
    known_rows.drop_cached(ones[0].place)
    assert set(known_rows._sets) == {ones[3]}
    known_rows.drop_cached(ones[1].place)
    assert set(known_rows._sets) == {ones[3]}
    known_rows.known_fingerprints(ones[0])
    assert len(reads) == 6
    assert {replace(ones[0], version=1), replace(ones[0], offset=1)} & set(
        known_rows._sets
    ) == set()


# Tables that keep every version


@st.composite
def histories(draw: st.DrawFn) -> list[list[list[tuple[int, int, str | None]]]]:
    """Files of row groups of versions: a key, what it held, and its status; each later in turn."""
    version = st.tuples(st.integers(-3, 3), st.integers(0, 2), _STATUS)
    group = st.lists(version, min_size=1, max_size=6)
    return draw(st.lists(st.lists(group, min_size=1, max_size=3), max_size=3))


@ON_DISK
@given(contents=histories(), by_key=st.booleans(), shuffled=st.randoms(use_true_random=False))
def test_of_a_history_the_last_versions_count(
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
    what = KnownRows(place, 0, stored, layout, names, 5, versions=("k0",))
    live = {key: one for key, one in last.items() if one[3] != DELETED}
    lines = pl.DataFrame(
        [(key, None, None, one[4]) for key, one in live.items()],
        schema={name: dtype(kind) for name, kind in layout},
        orient="row",
    )
    prints = known_rows.fingerprints(what, lines)
    assert known_rows.known_fingerprints(what).tolist() == sorted(prints.tolist())
    chosen = dict(list(live.items())[::2])
    gone = held(prints.tolist()[::2])
    found = {
        (stored.index(file), int(position))
        for file, places in known_rows.last_positions(what, gone)
        for position in places
    }
    assert found == {(file, position) for _, file, position, _, _ in chosen.values()}
    known_rows.drop_cached(place)


@pytest.mark.parametrize("at_once", [1, 10**7])
def test_keys_that_several_rows_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Rows that are gone count, in whatever file they are; keys with NULLs are none."""
    monkeypatch.setattr(known_rows, "_AT_ONCE", at_once)
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("int"), DeltaType("string")])

    def doubled(*keys: tuple[int | None, str]) -> bool:
        rows = [
            [[(*key, None, status, None)]]
            for key, status in zip(keys, itertools.cycle((ACTIVE, DELETED)), strict=False)
        ]
        stored = table_of(place, layout, rows)
        return known_rows.doubled(KnownRows(place, 0, stored, layout, ("k0", "k1"), 0))

    assert not doubled()
    assert not doubled((1, "a"), (1, "b"), (2, "a"), (None, "a"), (None, "a"))
    assert doubled((1, "a"), (2, "a"), (3, "a"), (1, "a"))


@pytest.mark.parametrize(("at_once", "twins"), [(10**7, 10**6), (7, 2)])
def test_rows_that_are_too_many_are_all_but_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, twins: int
) -> None:
    """One row of each key is left, a live one if there is one; only such rows are in memory."""
    monkeypatch.setattr(known_rows, "_AT_ONCE", at_once)
    monkeypatch.setattr(known_rows, "_TWINS_AT_ONCE", twins)
    kept: list[int] = []
    concatenated = pl.concat

    def concat(frames: Any, **how: Any) -> Any:
        made = concatenated(frames, **how)
        kept.append(made.height)
        return made

    layout = layout_of([DeltaType("int"), DeltaType("string")])
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)

    def row(number: int | None, status: str) -> Row:
        return (number, "a", moment, status, digest((number, "a")))

    single = [row(number, ACTIVE) for number in range(100, 400)]
    first = [*single, row(1, DELETED), row(2, ACTIVE), row(3, DELETED), row(None, ACTIVE)]
    second = [row(1, ACTIVE), row(2, ACTIVE), row(3, DELETED), row(2, DELETED), row(None, ACTIVE)]
    third = [row(number, ACTIVE) for number in (1, 5, 6, 5, 6, 7, 7)]
    stored = table_of(Place(str(tmp_path)), layout, [[first], [second, third], [single[:1]]])
    whole = KnownRows(Place(str(tmp_path)), 0, stored, layout, ("k0", "k1"), 0)
    monkeypatch.setattr(pl, "concat", concat)
    found = {file.path: rows.tolist() for file, rows in known_rows.twins(whole)}
    assert found == {
        stored[0].path: [300],
        stored[1].path: [1, 2, 3, 5, 8, 9, 11],
        stored[2].path: [0],
    }
    assert max(kept) <= 17
    once = KnownRows(Place(str(tmp_path)), 0, stored[2:], layout, ("k0", "k1"), 0)
    assert known_rows.twins(once) == []
