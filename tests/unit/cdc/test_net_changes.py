"""Net changes: one change for each key, with values that the stream did not send."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bronze.cdc.net_changes import net_changes
from bronze.cdc.row_changes import NetChanges
from bronze.delta.write import changes as changing
from bronze.errors import Mismatch, TableRefused
from bronze.model.locations import Place
from bronze.postgres.replication.batch import Piece, Spool, TableChanges
from bronze.postgres.replication.pgoutput import RelationMessage
from tests.support.netting import NAMES, TARGETS, Row, job, table

DESCRIBED = RelationMessage(7, "public", "t", "d", tuple((name, 25, -1) for name in NAMES))
SAME = object()


def _row(values: Sequence[Any]) -> bytes:
    found = len(values).to_bytes(2, "big")
    for value in values:
        if value is None:
            found += b"n"
        elif value is SAME:
            found += b"u"
        else:
            found += b"t" + len(value.encode()).to_bytes(4, "big") + value.encode()
    return found


def insert(*new: Any) -> bytes:
    """The message of an INSERT."""
    return b"I" + bytes(4) + b"N" + _row(new)


def update(*new: Any, old: Sequence[Any] | None = None) -> bytes:
    """The message of an UPDATE; ``old`` is the key before, if it was sent."""
    key = b"" if old is None else b"K" + _row((old[0], None, old[1], None))
    return b"U" + bytes(4) + key + b"N" + _row(new)


def delete(text: str, number: str) -> bytes:
    """The message of a DELETE."""
    return b"D" + bytes(4) + b"K" + _row((text, None, number, None))


_spools: list[Spool] = []


@pytest.fixture(autouse=True)
def spools() -> Iterator[None]:
    """Closes the spools of a test."""
    yield
    while _spools:
        _spools.pop().close()


def changes_of(*pieces: Sequence[bytes], spilled: bool = False) -> TableChanges:
    """Changes of a table in pieces; each message is a transaction, at 100, 101 and so on."""
    positions = itertools.count(100)
    found = []
    for piece in pieces:
        lengths = np.array([len(message) for message in piece], np.int64)
        marks = [(line, next(positions), 10**15) for line in range(len(piece))]
        data = b"".join(piece)
        found.append(Piece(lengths, np.array(marks, np.int64).reshape(-1, 3), data))
        if spilled:
            _spools.append(Spool())
            found[-1].move_to_spool(_spools[-1])
    return TableChanges(DESCRIBED, found)


def netted_rows(netted: NetChanges, place: Place) -> list[Row]:
    """The upserted rows, sorted."""
    found = [row for c in netted.changes for row in changing.read(place, c, TARGETS).rows()]
    return sorted(found, key=repr)


def deleted_keys(netted: NetChanges, place: Place) -> list[Row]:
    """The keys of the deleted rows, sorted."""
    keys = ["bz k", "bz n"]
    return sorted(row for d in netted.deletes for row in changing.read(place, d, keys).rows())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The place of the Bronze table."""
    return Place(str(tmp_path / "t"))


@pytest.mark.parametrize("spilled", [False, True])
def test_an_unsent_value_is_looked_up_by_the_key_before_the_batch(
    place: Place, tmp_path: Path, spilled: bool
) -> None:
    """However often the key of its row changes in the batch."""
    stored = table(place, [("a", "kept", 1, "w"), ("b", "other", 2, None)])
    found = changes_of(
        [update("a", SAME, "2", "w", old=("a", "1"))],
        [update("c", SAME, "2", SAME, old=("a", "2")), update("d", SAME, "3", "x", old=("c", "2"))],
        spilled=spilled,
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("d", "kept", 3, "x")]
    assert deleted_keys(result, place) == [("a", 1), ("a", 2), ("c", 2)]
    assert result.read == 3


def test_unsent_values_follow_rows_that_swap_keys(place: Place) -> None:
    """By way of a temporary key."""
    stored = table(place, [("a", "of a", 1, "1"), ("b", "of b", 1, "2")])
    found = changes_of(
        [
            update("t", SAME, "0", "1", old=("a", "1")),
            update("a", SAME, "1", "2", old=("b", "1")),
            update("b", SAME, "1", "1", old=("t", "0")),
        ]
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "of b", 1, "2"), ("b", "of a", 1, "1")]
    assert deleted_keys(result, place) == [("t", 0)]


@pytest.mark.parametrize("spilled", [False, True])
def test_unsent_values_come_from_earlier_changes(
    place: Place, tmp_path: Path, spilled: bool
) -> None:
    """From the latest earlier one, in any piece, even if it is NULL; not from the table."""
    stored = table(place, [("a", "old", 1, "old")])
    found = changes_of(
        [insert("n", "new", "1", "w"), update("a", "newer", "1", None)],
        [update("a", SAME, "1", SAME), update("n", SAME, "2", "z", old=("n", "1"))],
        spilled=spilled,
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "newer", 1, None), ("n", "new", 2, "z")]


def test_a_row_inserted_after_a_delete_of_its_key_is_another_row(place: Place) -> None:
    """It does not get values of the deleted row."""
    stored = table(place, [("a", "old", 1, "old")])
    found = changes_of(
        [delete("a", "1"), insert("a", "again", "1", None), update("a", SAME, "1", "w")]
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "again", 1, "w")]
    assert deleted_keys(result, place) == []


def test_transactions_before_the_floor_are_left_out(place: Place) -> None:
    """The table has them already. The one at the floor is applied."""
    found = changes_of(
        [insert("a", "1", "1", None)], [insert("b", "2", "2", None), delete("c", "3")]
    )
    for floor, rows, changes in ((100, 2, 3), (101, 1, 2), (102, 0, 1), (103, 0, 0)):
        result = net_changes(job(found, place, (), floor=floor))
        assert len(netted_rows(result, place)) == rows
        assert deleted_keys(result, place) == ([("c", 3)] if floor <= 102 else [])
        assert result.read == changes
        assert result.empty == (floor == 103)


def test_a_truncate_before_the_floor_is_left_out(place: Place) -> None:
    """The table has it already. One at the floor is applied, also without other changes."""
    found = changes_of([insert("a", "1", "1", None), delete("b", "2")])
    found.truncated = 100
    result = net_changes(job(found, place, (), floor=100))
    assert result.truncated
    assert not result.deletes
    assert not net_changes(job(found, place, (), floor=101)).truncated
    alone = TableChanges(DESCRIBED, [], truncated=100)
    assert not net_changes(job(alone, place, (), floor=100)).empty
    assert net_changes(job(alone, place, (), floor=101)).empty


@pytest.mark.parametrize("message", [insert("a", "v", None, "w"), update(None, "v", "1", "w")])
def test_a_row_without_a_key_is_refused(place: Place, message: bytes) -> None:
    """NULL in any column of the key is an error of the table, without the row's values."""
    with pytest.raises(TableRefused) as raised:
        net_changes(job(changes_of([insert("b", "", "1", ""), message]), place, ()))
    assert raised.value.table == "public.t"


@pytest.mark.parametrize("rows", [[], [("b", "v", 1, "")], [("a", None, 1, "")]])
def test_an_unsent_value_that_the_table_does_not_have_is_a_mismatch(
    place: Place, rows: list[Row]
) -> None:
    """If its row is missing, or the value was rejected, the table has to be resynced."""
    stored = table(place, rows)
    with pytest.raises(Mismatch):
        net_changes(job(changes_of([update("a", SAME, "1", "w")]), place, stored))


def test_an_unsent_value_of_a_duplicate_row_is_a_mismatch(place: Place) -> None:
    """Which of the two values it is cannot be known."""
    stored = table(place, [("a", "one", 1, ""), ("a", "two", 1, "")])
    with pytest.raises(Mismatch):
        net_changes(job(changes_of([update("a", SAME, "1", "w")]), place, stored))


def test_many_deletes_are_written_to_a_file(place: Place) -> None:
    """Although the table has statistics of columns that are not in its key."""
    changes = changes_of([delete("a", "1"), delete("b", "2")])
    result = net_changes(job(changes, place, (), in_memory=0))
    assert [type(one).__name__ for one in result.deletes] == ["WrittenFile"]
    assert deleted_keys(result, place) == [("a", 1), ("b", 2)]


def test_a_spooled_piece_is_read_a_few_times(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many values are taken from it."""
    first = [insert(f"k{i}", f"v{i}", "1", None) for i in range(200)]
    second = [update(f"k{i}", SAME, "1", "w") for i in range(200)]
    found = changes_of(first, second, spilled=True)
    reads = itertools.count()
    read = Piece.read

    def counted(piece: Piece) -> bytes:
        next(reads)
        return read(piece)

    monkeypatch.setattr(Piece, "read", counted)
    result = net_changes(job(found, place, ()))
    assert netted_rows(result, place) == sorted(
        [(f"k{i}", f"v{i}", 1, "w") for i in range(200)], key=repr
    )
    assert next(reads) < 20
