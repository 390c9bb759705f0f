"""Rows that are deleted by their keys, or all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from bronze.delta.write import merge_job
from bronze.model.units import DELETED
from tests.support.merging import (
    BEFORE,
    NOW,
    PLAIN,
    Bench,
    Landed,
    Row,
    bits,
    feed_of,
    frame,
    keys_of,
    plain,
    values_of,
)


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
    return tuple({**values_of(PLAIN, one), **marks}[name] for name in names)


def held_to(
    bench: Bench, landed: Landed, before: Sequence[Row], after: Mapping[int, Row | None]
) -> None:
    """The table and its feed say that rows became others (by key; None: they went)."""
    kept = {values_of(PLAIN, one)["id"]: one for one in before}
    both: dict[int, Row | None] = {**kept, **after}
    wanted = [row for row in both.values() if row is not None]
    assert bench.content() == Counter(map(bits, wanted))
    told: Counter[tuple[str, str]] = Counter()
    for number, new in after.items():
        if number in kept:
            told.update(feed_of(kept[number], new))
        elif new is not None:
            told["insert", bits(new)] += 1
    assert bench.told(landed.version) == told


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("on_delete", ["mark", "remove"])
def test_rows_are_deleted_by_key(bench: Bench, on_delete: merge_job.OnDelete, staged: bool) -> None:
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
def test_unknown_keys_delete_nothing(bench: Bench, staged: bool) -> None:
    """A file whose only such rows are marked already is not rewritten."""
    rows = [plain(1), plain(2, record_status=DELETED), plain(8)]
    paths = bench.create([[rows]])
    landed = bench.changed([], deletes=keys_of(bench, [2, 3, 99], staged), on_delete="remove")
    assert landed.looked == paths
    assert landed.rewritten == []
    assert bench.content() == Counter(map(bits, rows))


@pytest.mark.parametrize("staged", [False, True])
def test_deletes_beside_updates(bench: Bench, staged: bool) -> None:
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
def test_all_rows_are_deleted(bench: Bench, on_delete: merge_job.OnDelete, changed: bool) -> None:
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


def test_keys_are_ignored_where_all_rows_are_deleted(bench: Bench) -> None:
    """The same rows go with and without the keys of some of them."""
    rows = [plain(1), plain(2)]
    bench.create([[rows]])
    landed = bench.changed([], deletes=keys_of(bench, [1], False), emptied=True)
    held_to(bench, landed, rows, {1: gone_now(rows[0]), 2: gone_now(rows[1])})
