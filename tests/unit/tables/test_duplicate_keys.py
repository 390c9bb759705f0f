"""Rows of a Bronze table that share a key, or have none."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from bronze.model.units import ACTIVE, DELETED, KnownRows
from bronze.tables import duplicate_keys
from tests.support.stored_rows import Row, digest, layout_of, table_of


@pytest.mark.parametrize("share_rows", [1, 10**7])
def test_duplicate_keys_are_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_rows: int
) -> None:
    """Deleted rows count, in whatever file they are; a key with NULLs is none."""
    monkeypatch.setattr(duplicate_keys, "_SHARE_ROWS", share_rows)
    place, layout = Place(str(tmp_path)), layout_of([DeltaType("int"), DeltaType("string")])

    def doubled(*keys: tuple[int | None, str]) -> bool:
        rows = [
            [[(*key, None, status, None)]]
            for key, status in zip(keys, itertools.cycle((ACTIVE, DELETED)), strict=False)
        ]
        stored = table_of(place, layout, rows)
        return duplicate_keys.has_duplicates(KnownRows(place, 0, stored, layout, ("k0", "k1"), 0))

    assert not doubled()
    assert not doubled((1, "a"), (1, "b"), (2, "a"), (None, "a"), (None, "a"))
    assert doubled((1, "a"), (2, "a"), (3, "a"), (1, "a"))


@pytest.mark.parametrize(("share_rows", "keys_at_once"), [(10**7, 10**6), (7, 2)])
def test_all_rows_but_one_of_each_key_are_surplus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_rows: int, keys_at_once: int
) -> None:
    """One row of each key is left, live if any is; rows of other keys take no memory."""
    monkeypatch.setattr(duplicate_keys, "_SHARE_ROWS", share_rows)
    monkeypatch.setattr(duplicate_keys, "_KEYS_AT_ONCE", keys_at_once)
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
    found = {file.path: rows.tolist() for file, rows in duplicate_keys.surplus_rows(whole)}
    assert found == {
        stored[0].path: [300],
        stored[1].path: [1, 2, 3, 5, 8, 9, 11],
        stored[2].path: [0],
    }
    assert max(kept) <= 17
    once = KnownRows(Place(str(tmp_path)), 0, stored[2:], layout, ("k0", "k1"), 0)
    assert duplicate_keys.surplus_rows(once) == []


def test_key_columns_may_have_any_name(tmp_path: Path) -> None:
    """A key column of the source may be called as a column of bronze's own reckoning."""
    place = Place(str(tmp_path))
    layout = (("row", DeltaType("long")), ("file", DeltaType("long")), *layout_of(()))
    rows: list[Row] = [(1, 1, None, DELETED, None), (1, 1, None, ACTIVE, None)]
    stored = table_of(place, layout, [[rows]])
    known = KnownRows(place, 0, stored, layout, ("row", "file"), 0)
    assert duplicate_keys.has_duplicates(known)
    assert [(file, rows.tolist()) for file, rows in duplicate_keys.surplus_rows(known)] == [
        (stored[0], [0])
    ]
