"""Netting: one change for each key, and applied to the table as it was it gives the source."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bronze.cdc.net_changes import Net, Netted, net
from bronze.delta import commit, files, log
from bronze.delta.write import changes as changing
from bronze.errors import Mismatch, TableRefused
from bronze.model.columns import Column, Kind, RowKey
from bronze.model.locations import Place
from bronze.model.stamp import Stamp
from bronze.postgres.catalog.types import Choices, SourceType, contract
from bronze.postgres.replication import pgoutput, slot, text_values
from bronze.postgres.replication import receiver as replication
from bronze.postgres.replication.batch import Gathered, Piece, Spool
from bronze.postgres.replication.pgoutput import Described
from bronze.postgres.replication.receiver import Receiver
from bronze.rows.metadata import COMMITTED, METADATA, digests, stamped
from tests.conftest import Source
from tests.support import wire

NOW = Stamp(
    "018df7a0-0000-7000-8000-00000000000b",
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    "s",
    "streaming",
)
NAMES = ("k", "v", "n", "w")
TYPES = (
    SourceType("text", -1, "text"),
    SourceType("text", -1, "text"),
    SourceType("int4", -1, "integer"),
    SourceType("text", -1, "text"),
)
CHOICES = Choices({})
# The target names are others than the source's.
COLUMNS: tuple[Column, ...] = tuple(
    contract(name, f"bz {name}", name, kind, CHOICES)
    for name, kind in zip(NAMES, TYPES, strict=True)
)
TEXTS = tuple(
    text_values.text(column, kind, CHOICES) for column, kind in zip(COLUMNS, TYPES, strict=True)
)
KEY = ("k", "n")
ROW_KEY = RowKey((COLUMNS[0], COLUMNS[2]), ("bz k", "bz n"))
TARGETS = tuple(column.target for column in COLUMNS)
LAYOUT: tuple[tuple[str, Kind], ...] = (
    *((column.target, column.kind) for column in COLUMNS),
    *METADATA,
    (COMMITTED, Kind("timestamp")),
)
STATS = ("bz n", "bz v")

Row = tuple[Any, ...]


def table(place: Place, rows: Sequence[Row]) -> tuple[Any, ...]:
    """Makes the Bronze table of some rows, in two files; returns those."""
    schema = {c.target: pl.Int32 if c.kind.name == "int" else pl.String for c in COLUMNS}
    half = len(rows) // 2
    added = []
    for part in (rows[:half], rows[half:]):
        frame = pl.DataFrame(list(part), schema=schema, orient="row")
        nothing = pl.Series([None] * frame.height, dtype=pl.String)
        made = stamped(frame, *digests(frame, nothing, len(COLUMNS)), NOW).with_columns(
            pl.lit(None, pl.Datetime("us", "UTC")).alias(COMMITTED)
        )
        file = files.write([made], place, NOW.batch_id, STATS)
        added += [file] if file else []
    shape = commit.Shape(LAYOUT, STATS)
    commit.commit(place, None, commit.Change("WRITE", added), {}, shape=shape)
    state = log.read(place)
    assert state is not None
    return state.files


def job(gathered: Gathered, place: Place, stored: Sequence[Any], **more: Any) -> Net:
    """What is to be netted."""
    given: dict[str, Any] = {
        "table": "public.t",
        "gathered": gathered,
        "floor": 0,
        "columns": COLUMNS,
        "texts": TEXTS,
        "row_key": ROW_KEY,
        "identity": KEY,
        "place": place,
        "stored": tuple(stored),
        "layout": LAYOUT,
        "stats": STATS,
        "stamp": NOW,
        "base": len(COLUMNS),
    }
    return Net(**(given | more))


def applied(rows: Mapping[Row, Row], netted: Netted, place: Place) -> dict[Row, Row]:
    """A table's rows by key, once what was netted is in it."""
    key = ["bz k", "bz n"]
    after = {} if netted.emptied else dict(rows)
    for deletes in netted.deletes:
        for gone in changing.read(place, deletes, key).rows():
            after.pop(gone, None)
    seen: list[Row] = []
    for change in netted.changes:
        held = changing.read(place, change, [name for name, _ in LAYOUT])
        seen += held.select(key).rows()
        # What is said to be a row's hash is that of its values.
        nothing = pl.Series([None] * held.height, dtype=pl.String)
        again, _ = digests(held.select(TARGETS), nothing, len(COLUMNS))
        assert again.equals(held["row_hash"])
        assert held[COMMITTED].null_count() == 0
        after |= dict(zip(held.select(key).rows(), held.select(TARGETS).rows(), strict=True))
    assert len(seen) == len(set(seen))
    gone_keys = [k for d in netted.deletes for k in changing.read(place, d, key).rows()]
    assert not set(seen) & set(gone_keys)
    return after


# Random histories of a real table

_SMALL = st.sampled_from(["", "a", "thirteen bytes"])
_LARGE = st.sampled_from([c * n for c in ("x", "é") for n in (2500, 4000)])
_VALUES = st.none() | _SMALL | _LARGE
_PLACES = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("put"), _PLACES, _VALUES, _VALUES),
    st.tuples(st.just("touch"), _PLACES, _VALUES, st.none()),
    st.tuples(st.just("touch"), _PLACES, _SMALL, st.none()),
    st.tuples(st.just("move"), _PLACES, _PLACES, st.none()),
    st.tuples(st.just("move"), _PLACES, _PLACES, st.none()),
    st.tuples(st.just("swap"), _PLACES, _PLACES, st.none()),
    st.tuples(st.just("delete"), _PLACES, st.none(), st.none()),
    st.tuples(st.sampled_from(["touch"] * 9 + ["truncate"]), _PLACES, _SMALL, st.none()),
)
HISTORY = st.lists(st.lists(STEP, min_size=1, max_size=5), min_size=1, max_size=6)
# Some keys are so long that they lie out of line themselves.
KEYS = [("a", 1), ("a", 2), ("b", 1), ("k" * 2200, 1), ("k" * 2200, 2), ("", 7)]

PUT = ("put", 0, "x" * 8000, "é" * 4000)
TOUCH = ("touch", 0, "a", None)


def does(connection: psycopg.Connection[Any], step: tuple[Any, ...]) -> None:
    """One step of a history, as far as it can be done."""
    action, place, first, second = step
    key = KEYS[place]

    def there(at: tuple[str, int]) -> bool:
        found = connection.execute("SELECT 1 FROM t WHERE k = %s AND n = %s", at).fetchone()
        return found is not None

    def move(old: tuple[str, int], new: tuple[str, int]) -> None:
        connection.execute("UPDATE t SET k = %s, n = %s WHERE k = %s AND n = %s", (*new, *old))

    if action == "put":
        connection.execute(
            "INSERT INTO t (k, n, v, w) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (k, n) DO UPDATE SET v = excluded.v, w = excluded.w",
            (*key, first, second),
        )
    elif action == "touch":
        connection.execute("UPDATE t SET w = %s WHERE k = %s AND n = %s", (first, *key))
    elif action == "delete":
        connection.execute("DELETE FROM t WHERE k = %s AND n = %s", key)
    elif action == "truncate":
        connection.execute("TRUNCATE t")
    elif action == "move" and not there(KEYS[first]):
        move(key, KEYS[first])
    elif action == "swap" and there(key) and there(KEYS[first]) and key != KEYS[first]:
        move(key, ("tmp", 0))
        move(KEYS[first], key)
        move(("tmp", 0), KEYS[first])


def present(source: Source) -> dict[Row, Row]:
    """The source's rows by key."""
    found = source.execute("SELECT k, v, n, w FROM t")
    return {(row[0], row[2]): row for row in found}


@pytest.fixture
def receiver(source: Source) -> Iterator[Receiver]:
    """Receives what happens in ``t`` and ``marker``, a transaction more or less at a time."""
    source.execute("CREATE TABLE t (k text, v text, n int, w text, PRIMARY KEY (k, n))")
    for name in ("k", "v", "w"):
        source.execute(f"ALTER TABLE t ALTER {name} SET STORAGE EXTERNAL")
    source.execute("CREATE TABLE marker (n int)")
    sender = wire.opened(source)
    oids = [source.execute(f"SELECT '{t}'::regclass::oid::int8")[0][0] for t in ("t", "marker")]
    with Receiver(
        source.settings().origin("test"),
        sender,
        wire.slot_of(source),
        wire.PUBLICATION,
        oids,
        # A batch ends with a marker that is larger than the memory.
        interval=3600,
        memory=20_000,
    ) as opened:
        yield opened


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_a_history_nets_to_what_the_source_has(
    source: Source,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    identity: str,
) -> None:
    """Applied to the table as at the floor, a batch gives exactly the rows of the source.

    Large values are left out by the stream; they are found in earlier changes, in pieces in memory
    or in files, or in the Delta table, whatever keys the rows have had in between.
    """
    monkeypatch.setattr(replication, "_PIECE", 6_000)
    # So that what was left out comes from the table a row or two at a time.
    monkeypatch.setattr(files, "_GROUP_BYTES", 6_000)
    source.execute(f"ALTER TABLE t REPLICA IDENTITY {identity}")
    numbers = itertools.count()
    seen = {"left out": 0, "files": 0, "pieces": 0}

    @settings(
        derandomize=True,
        database=None,
        max_examples=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(history=HISTORY, at=st.integers(0, 6), staged=st.booleans())
    # A transaction larger than the memory, and one in pieces: the random ones may miss them.
    @example(history=[[PUT, TOUCH], [*[PUT] * 5, TOUCH]], at=1, staged=False)
    @example(history=[[PUT], [PUT, PUT, TOUCH]], at=1, staged=True)
    def check(history: list[list[tuple[Any, ...]]], at: int, staged: bool) -> None:
        place = Place(str(tmp_path / f"{identity}{next(numbers)}"))
        with psycopg.connect(source.dsn, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = on")
            floor, held = 0, present(source)
            for number, steps in enumerate(history):
                if number == at:
                    floor, held = _end(source), present(source)
                with connection.transaction():
                    for step in steps:
                        does(connection, step)
            if at >= len(history):
                floor, held = _end(source), present(source)
            end = _end(source)
            gathered = _gathered(connection, receiver, end)
        stored = table(place, list(held.values()))
        after = dict(held)
        for one in gathered:
            seen["files"] += sum(piece.aside is not None for piece in one.pieces)
            seen["pieces"] += len(one.pieces) > 1
            seen["left out"] += _left_out(one)
            with pytest.MonkeyPatch.context() as patch:
                if staged:
                    patch.setattr("bronze.cdc.net_changes._IN_MEMORY", 0)
                netted = net(job(one, place, stored, floor=floor))
            after = applied(after, netted, place)
            place = Place(str(tmp_path / f"{identity}{next(numbers)}"))
            stored = table(place, list(after.values()))
        assert after == present(source)

    check()
    assert all(seen.values()), seen


def _end(source: Source) -> int:
    ((text,),) = source.execute("SELECT pg_current_wal_insert_lsn()::text")
    return slot.lsn(text)


def _gathered(connection: psycopg.Connection[Any], receiver: Receiver, end: int) -> list[Gathered]:
    """What happened to ``t`` until now, batch after batch."""
    connection.execute("INSERT INTO marker SELECT 1 FROM generate_series(1, 1500)")
    found: list[Gathered] = []
    position = 0
    while position <= end:
        batch = receiver.take(30, 2**63)
        assert batch is not None
        position = batch.position
        found += [one for one in batch.tables.values() if one.described.name == "t"]
    return found


def _left_out(gathered: Gathered) -> int:
    """How many values the stream has left out."""
    count = 0
    for piece in gathered.pieces:
        found = pgoutput.changes(piece.read(), piece.lengths, NAMES)
        count += sum(int(flags.sum()) for flags in found.unchanged if flags is not None)
    return count


# Single cases, from messages that are made by hand

DESCRIBED = Described(7, "public", "t", "d", tuple((name, 25, -1) for name in NAMES))
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


def happened(*pieces: Sequence[bytes], spilled: bool = False) -> Gathered:
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
    return Gathered(DESCRIBED, found)


def netted_rows(netted: Netted, place: Place) -> list[Row]:
    """The changed rows, sorted."""
    found = [row for c in netted.changes for row in changing.read(place, c, TARGETS).rows()]
    return sorted(found, key=repr)


def gone(netted: Netted, place: Place) -> list[Row]:
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
    result = net(job(found, place, stored))
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
    result = net(job(found, place, stored))
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
    result = net(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "newer", 1, None), ("n", "new", 2, "z")]


def test_a_row_that_came_again_is_another_one(place: Place) -> None:
    """What a deleted row had is nothing to the row that has its key now."""
    stored = table(place, [("a", "old", 1, "old")])
    found = happened(
        [delete("a", "1"), insert("a", "again", "1", None), update("a", SAME, "1", "w")]
    )
    result = net(job(found, place, stored))
    assert netted_rows(result, place) == [("a", "again", 1, "w")]
    assert gone(result, place) == []


def test_what_the_table_has_is_left_out(place: Place) -> None:
    """Transactions before the floor count for nothing, the one at the floor counts."""
    found = happened([insert("a", "1", "1", None)], [insert("b", "2", "2", None), delete("c", "3")])
    for floor, rows, left in ((100, 2, 3), (101, 1, 2), (102, 0, 1), (103, 0, 0)):
        result = net(job(found, place, (), floor=floor))
        assert len(netted_rows(result, place)) == rows
        assert gone(result, place) == ([("c", 3)] if floor <= 102 else [])
        assert result.read == left
        assert result.empty == (floor == 103)


def test_a_truncation_counts_from_the_floor_on(place: Place) -> None:
    """It empties the table unless the table has been emptied by it before."""
    found = happened([insert("a", "1", "1", None), delete("b", "2")])
    found.emptied = 100
    result = net(job(found, place, (), floor=100))
    assert result.emptied
    assert not result.deletes
    assert not net(job(found, place, (), floor=101)).emptied
    alone = Gathered(DESCRIBED, [], emptied=100)
    assert not net(job(alone, place, (), floor=100)).empty
    assert net(job(alone, place, (), floor=101)).empty


@pytest.mark.parametrize("message", [insert("a", "v", None, "w"), update(None, "v", "1", "w")])
def test_a_row_without_a_key_is_refused(place: Place, message: bytes) -> None:
    """NULL in any column of the key is the table's fault, and not told as a value."""
    with pytest.raises(TableRefused) as raised:
        net(job(happened([insert("b", "", "1", ""), message]), place, ()))
    assert raised.value.table == "public.t"


@pytest.mark.parametrize("rows", [[], [("b", "v", 1, "")], [("a", None, 1, "")]])
def test_a_value_that_the_table_has_not_is_a_mismatch(place: Place, rows: list[Row]) -> None:
    """Where a row is missing, or has no value because it was rejected, all has to be compared."""
    stored = table(place, rows)
    with pytest.raises(Mismatch):
        net(job(happened([update("a", SAME, "1", "w")]), place, stored))


def test_a_row_that_is_there_twice_is_a_mismatch(place: Place) -> None:
    """Nobody can say which of the table's values is meant."""
    stored = table(place, [("a", "one", 1, ""), ("a", "two", 1, "")])
    with pytest.raises(Mismatch):
        net(job(happened([update("a", SAME, "1", "w")]), place, stored))


def test_many_deletions_go_through_a_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the table has statistics of columns that are not of its key."""
    monkeypatch.setattr("bronze.cdc.net_changes._IN_MEMORY", 0)
    result = net(job(happened([delete("a", "1"), delete("b", "2")]), place, ()))
    assert [type(one).__name__ for one in result.deletes] == ["DataFile"]
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
    result = net(job(found, place, ()))
    assert netted_rows(result, place) == sorted(
        [(f"k{i}", f"v{i}", 1, "w") for i in range(200)], key=repr
    )
    assert next(reads) < 20
