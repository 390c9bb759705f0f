"""Net changes of what PostgreSQL really sends: applied, they lead to the rows of the source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bronze.cdc.net_changes import net_changes
from bronze.delta import files
from bronze.model.locations import Place
from bronze.postgres.replication import batch_builder, pgoutput, slot
from bronze.postgres.replication.batch import TableChanges
from bronze.postgres.replication.receiver import Receiver
from tests.conftest import Source
from tests.support import wire
from tests.support.netting import NAMES, Row, applied, job, table

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


def run_step(connection: psycopg.Connection[Any], step: tuple[Any, ...]) -> None:
    """A step of a history, if it is possible."""
    action, place, first, second = step
    key = KEYS[place]

    def exists(at: tuple[str, int]) -> bool:
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
    elif action == "move" and not exists(KEYS[first]):
        move(key, KEYS[first])
    elif action == "swap" and exists(key) and exists(KEYS[first]) and key != KEYS[first]:
        move(key, ("tmp", 0))
        move(KEYS[first], key)
        move(("tmp", 0), KEYS[first])


def source_rows(source: Source) -> dict[Row, Row]:
    """The source's rows by key."""
    found = source.execute("SELECT k, v, n, w FROM t")
    return {(row[0], row[2]): row for row in found}


@pytest.fixture
def receiver(source: Source) -> Iterator[Receiver]:
    """Receives the changes of ``t`` and ``marker``, about one transaction in a batch."""
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


@pytest.mark.parametrize("identity", ["DEFAULT", pytest.param("FULL", marks=pytest.mark.soak)])
def test_net_changes_lead_to_the_source_rows(
    source: Source,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    identity: str,
) -> None:
    """Applied to the rows at the floor, the batches give exactly the rows of the source.

    The stream does not send unchanged TOAST. Its values are in earlier changes, in pieces in memory
    or in a spool, or in the Delta table, whatever keys the rows have had in between.
    """
    monkeypatch.setattr(batch_builder, "_PIECE", 6_000)
    # So that the table's values are read a row or two at a time.
    monkeypatch.setattr(files, "_GROUP_BYTES", 6_000)
    source.execute(f"ALTER TABLE t REPLICA IDENTITY {identity}")
    numbers = itertools.count()
    seen = {"unsent": 0, "spooled": 0, "pieces": 0}

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
            floor, at_floor = 0, source_rows(source)
            for number, steps in enumerate(history):
                if number == at:
                    floor, at_floor = log_end(source), source_rows(source)
                with connection.transaction():
                    for step in steps:
                        run_step(connection, step)
            if at >= len(history):
                floor, at_floor = log_end(source), source_rows(source)
            end = log_end(source)
            gathered = gathered_until(connection, receiver, end)
        stored = table(place, list(at_floor.values()))
        after = dict(at_floor)
        for one in gathered:
            seen["spooled"] += sum(piece.spooled is not None for piece in one.pieces)
            seen["pieces"] += len(one.pieces) > 1
            seen["unsent"] += unchanged_toast_values(one)
            in_memory = 0 if staged else 2**25
            netted = net_changes(job(one, place, stored, floor=floor, in_memory=in_memory))
            after = applied(after, netted, place)
            place = Place(str(tmp_path / f"{identity}{next(numbers)}"))
            stored = table(place, list(after.values()))
        assert after == source_rows(source)

    check()
    assert all(seen.values()), seen


def log_end(source: Source) -> int:
    """The position at which the server's log ends."""
    ((text,),) = source.execute("SELECT pg_current_wal_insert_lsn()::text")
    return slot.lsn(text)


def gathered_until(
    connection: psycopg.Connection[Any], receiver: Receiver, end: int
) -> list[TableChanges]:
    """The changes of ``t`` until now, by batch."""
    connection.execute("INSERT INTO marker SELECT 1 FROM generate_series(1, 1500)")
    found: list[TableChanges] = []
    position = 0
    while position <= end:
        batch = receiver.take(30, 2**63)
        assert batch is not None
        position = batch.position
        found += [one for one in batch.tables.values() if one.described.name == "t"]
    return found


def unchanged_toast_values(gathered: TableChanges) -> int:
    """How many values the stream did not send."""
    count = 0
    for piece in gathered.pieces:
        found = pgoutput.read_changes(piece.read(), piece.lengths, NAMES)
        count += sum(int(flags.sum()) for flags in found.unchanged if flags is not None)
    return count
