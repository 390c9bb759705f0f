"""Netting: one change for each key, and applied to the table as it was it gives the source."""

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

# Random histories of a real table


# Single cases, from messages that are made by hand

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
    """The message of a row that comes."""
    return b"I" + bytes(4) + b"N" + _row(new)


def update(*new: Any, old: Sequence[Any] | None = None) -> bytes:
    """The message of a row that changes; ``old`` is its key before."""
    key = b"" if old is None else b"K" + _row((old[0], None, old[1], None))
    return b"U" + bytes(4) + key + b"N" + _row(new)


def delete(text: str, number: str) -> bytes:
    """The message of a row that goes."""
    return b"D" + bytes(4) + b"K" + _row((text, None, number, None))


_spools: list[Spool] = []


@pytest.fixture(autouse=True)
def spools() -> Iterator[None]:
    """What a test has put aside is closed."""
    yield
    while _spools:
        _spools.pop().close()


def happened(*pieces: Sequence[bytes], spilled: bool = False) -> TableChanges:
    """Pieces of messages; each message is a transaction, at 100, 101 and so on."""
    positions = itertools.count(100)
    found = []
    for piece in pieces:
        lengths = np.array([len(message) for message in piece], np.int64)
        marks = tuple((line, next(positions), 10**15) for line in range(len(piece)))
        data = b"".join(piece)
        found.append(Piece(lengths, marks, data))
        if spilled:
            _spools.append(Spool())
            found[-1].put_aside(_spools[-1])
    return TableChanges(DESCRIBED, found)


def netted_rows(netted: NetChanges, place: Place) -> list[Row]:
    """The changed rows, sorted."""
    found = [row for c in netted.changes for row in changing.read(place, c, TARGETS).rows()]
    return sorted(found, key=repr)


def gone(netted: NetChanges, place: Place) -> list[Row]:
    """The keys of the rows that are gone, sorted."""
    keys = ["bz k", "bz n"]
    return sorted(row for d in netted.deletes for row in changing.read(place, d, keys).rows())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the Bronze table is to be."""
    return Place(str(tmp_path / "t"))


@pytest.mark.parametrize("spilled", [False, True])
def test_a_chain_of_keys_leads_to_the_table(place: Place, tmp_path: Path, spilled: bool) -> None:
    """A value that was never sent is looked up under the key that the row had at first."""
    stored = table(place, [("a", "kept", 1, "w"), ("b", "other", 2, None)])
    found = happened(
        [update("a", SAME, "2", "w", old=("a", "1"))],
        [update("c", SAME, "2", SAME, old=("a", "2")), update("d", SAME, "3", "x", old=("c", "2"))],
        spilled=spilled,
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("d", "kept", 3, "x")]
    assert gone(result, place) == [("a", 1), ("a", 2), ("c", 2)]
    assert result.read == 3


def test_rows_that_swap_keys_take_their_values_along(place: Place) -> None:
    """Through a key that is there for a moment only."""
    stored = table(place, [("a", "of a", 1, "1"), ("b", "of b", 1, "2")])
    found = happened(
        [
            update("t", SAME, "0", "1", old=("a", "1")),
            update("a", SAME, "1", "2", old=("b", "1")),
            update("b", SAME, "1", "1", old=("t", "0")),
        ]
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "of b", 1, "2"), ("b", "of a", 1, "1")]
    assert gone(result, place) == [("t", 0)]


@pytest.mark.parametrize("spilled", [False, True])
def test_values_are_found_in_earlier_changes(place: Place, tmp_path: Path, spilled: bool) -> None:
    """The latest one before counts, NULL too, in whatever piece; the table is not asked."""
    stored = table(place, [("a", "old", 1, "old")])
    found = happened(
        [insert("n", "new", "1", "w"), update("a", "newer", "1", None)],
        [update("a", SAME, "1", SAME), update("n", SAME, "2", "z", old=("n", "1"))],
        spilled=spilled,
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "newer", 1, None), ("n", "new", 2, "z")]


def test_a_row_that_came_again_is_another_one(place: Place) -> None:
    """What a deleted row had is nothing to the row that has its key now."""
    stored = table(place, [("a", "old", 1, "old")])
    found = happened(
        [delete("a", "1"), insert("a", "again", "1", None), update("a", SAME, "1", "w")]
    )
    result = net_changes(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "again", 1, "w")]
    assert gone(result, place) == []


def test_what_the_table_has_is_left_out(place: Place) -> None:
    """Transactions before the floor count for nothing, the one at the floor counts."""
    found = happened([insert("a", "1", "1", None)], [insert("b", "2", "2", None), delete("c", "3")])
    for floor, rows, left in ((100, 2, 3), (101, 1, 2), (102, 0, 1), (103, 0, 0)):
        result = net_changes(job(found, place, (), floor=floor))
        assert len(netted_rows(result, place)) == rows
        assert gone(result, place) == ([("c", 3)] if floor <= 102 else [])
        assert result.read == left
        assert result.empty == (floor == 103)


def test_a_truncation_counts_from_the_floor_on(place: Place) -> None:
    """It empties the table unless the table has been emptied by it before."""
    found = happened([insert("a", "1", "1", None), delete("b", "2")])
    found.emptied = 100
    result = net_changes(job(found, place, (), floor=100))
    assert result.emptied
    assert not result.deletes
    assert not net_changes(job(found, place, (), floor=101)).emptied
    alone = TableChanges(DESCRIBED, [], emptied=100)
    assert not net_changes(job(alone, place, (), floor=100)).empty
    assert net_changes(job(alone, place, (), floor=101)).empty


@pytest.mark.parametrize("message", [insert("a", "v", None, "w"), update(None, "v", "1", "w")])
def test_a_row_without_a_key_is_refused(place: Place, message: bytes) -> None:
    """NULL in any column of the key is the table's fault, and not told as a value."""
    with pytest.raises(TableRefused) as raised:
        net_changes(job(happened([insert("b", "", "1", ""), message]), place, ()))
    assert raised.value.table == "public.t"


@pytest.mark.parametrize("rows", [[], [("b", "v", 1, "")], [("a", None, 1, "")]])
def test_a_value_that_the_table_has_not_is_a_mismatch(place: Place, rows: list[Row]) -> None:
    """Where a row is missing, or has no value because it was rejected, all has to be compared."""
    stored = table(place, rows)
    with pytest.raises(Mismatch):
        net_changes(job(happened([update("a", SAME, "1", "w")]), place, stored))


def test_a_row_that_is_there_twice_is_a_mismatch(place: Place) -> None:
    """Nobody can say which of the table's values is meant."""
    stored = table(place, [("a", "one", 1, ""), ("a", "two", 1, "")])
    with pytest.raises(Mismatch):
        net_changes(job(happened([update("a", SAME, "1", "w")]), place, stored))


def test_many_deletions_go_through_a_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the table has statistics of columns that are not of its key."""
    monkeypatch.setattr("bronze.cdc.net_changes._IN_MEMORY", 0)
    result = net_changes(job(happened([delete("a", "1"), delete("b", "2")]), place, ()))
    assert [type(one).__name__ for one in result.deletes] == ["WrittenFile"]
    assert gone(result, place) == [("a", 1), ("b", 2)]


def test_a_file_is_read_a_few_times_only(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many values are found in it."""
    first = [insert(f"k{i}", f"v{i}", "1", None) for i in range(200)]
    second = [update(f"k{i}", SAME, "1", "w") for i in range(200)]
    found = happened(first, second, spilled=True)
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
