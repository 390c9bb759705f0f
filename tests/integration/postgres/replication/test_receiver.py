"""The receiver: whole transactions in commit order, within its memory."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from bronze.errors import SourceBusy, SourceUnreachable
from bronze.postgres.replication import batch_builder, pgoutput, slot
from bronze.postgres.replication import receiver as replication
from bronze.postgres.replication.batch import Batch, TableChanges, pieces, release
from bronze.postgres.replication.receiver import Receiver
from tests.conftest import Source
from tests.support import wire
from tests.support.proxy import until

MUCH = 2**26
LONG = 3600.0
PATIENCE = 30.0


@pytest.fixture
def written(source: Source) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose commits are streamed at once; with tables ``t``, ``marker``, ``other``."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = on")
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        connection.execute("CREATE TABLE marker (n int)")
        connection.execute("CREATE TABLE other (n int)")
        yield connection


def number(source: Source, table: str) -> int:
    """A table's oid."""
    ((oid,),) = source.execute(f"SELECT '{table}'::regclass::oid::int8")
    return int(oid)


@contextmanager
def receiving(
    source: Source,
    *tables: str,
    interval: float = 0,
    memory: int = MUCH,
    size: int = 0,
    made: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[Receiver]:
    """Receives later changes; ``made`` says that the slot exists already."""
    origin = source.settings().origin("test")
    sender = slot.walsender(origin) if made else wire.opened(source)
    oids = [number(source, table) for table in tables or ("t", "marker")]
    name, publication = wire.slot_of(source), wire.PUBLICATION
    with Receiver(
        origin,
        sender,
        name,
        publication,
        oids,
        interval=interval,
        memory=memory,
        size=size,
        stop=stop,
    ) as receiver:
        yield receiver


def here(source: Source) -> int:
    """The position at which the server's log ends."""
    ((text,),) = source.execute("SELECT pg_current_wal_insert_lsn()::text")
    return slot.lsn(text)


def taken(receiver: Receiver) -> Batch:
    """The next batch."""
    batch = receiver.take(PATIENCE, 2**63)
    assert batch is not None
    return batch


def all_taken(written: psycopg.Connection[Any], source: Source, receiver: Receiver) -> list[Batch]:
    """The batches with everything that is committed, and a row of ``marker`` after it."""
    before = here(source)
    written.execute("INSERT INTO marker VALUES (1)")
    found = [taken(receiver)]
    while found[-1].position <= before:
        found.append(taken(receiver))
    return found


def rows(gathered: TableChanges) -> list[tuple[Any, ...]]:
    """The new rows of a table's changes, in order."""
    names = [name for name, _, _ in gathered.described.columns]
    return [
        row
        for piece in gathered.pieces
        for row in pgoutput.read_changes(piece.read(), piece.lengths, names).new.rows()
    ]


def marked(gathered: TableChanges) -> list[tuple[int, int]]:
    """The position and commit time of the transaction of each change."""
    found: list[tuple[int, int]] = []
    for piece in gathered.pieces:
        ends = [*(mark[0] for mark in piece.marks[1:]), len(piece.lengths)]
        assert piece.marks[0][0] == 0
        for (start, position, committed), end in zip(piece.marks, ends, strict=True):
            assert end > start
            found += [(position, committed)] * (end - start)
    return found


def test_transactions_are_whole_and_in_commit_order(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """Also interleaved ones: each is in one batch, after those that committed before it."""
    with (
        receiving(source) as receiver,
        psycopg.connect(source.dsn) as one,
        psycopg.connect(source.dsn) as two,
    ):
        expected = []
        for round_ in range(10):
            key = round_ * 10
            one.execute("INSERT INTO t VALUES (%s, 'one')", [key])
            two.execute("INSERT INTO t VALUES (%s, 'two')", [key + 1])
            one.execute("INSERT INTO t VALUES (%s, 'one')", [key + 2])
            two.execute("INSERT INTO t VALUES (%s, 'two')", [key + 3])
            mine = [(str(key), "one"), (str(key + 2), "one")]
            others = [(str(key + 1), "two"), (str(key + 3), "two")]
            order = (two, one) if round_ % 3 else (one, two)
            for connection in order:
                connection.commit()
            expected += [*others, *mine] if round_ % 3 else [*mine, *others]
        two.execute("INSERT INTO t VALUES (-1, 'never')")
        two.rollback()
        batches = all_taken(written, source, receiver)
        oid = number(source, "t")
        held = [batch.tables[oid] for batch in batches if oid in batch.tables]
        assert [row for gathered in held for row in rows(gathered)] == expected
        positions = [position for gathered in held for position, _ in marked(gathered)]
        assert positions == sorted(positions)
        assert [positions.count(p) for p in dict.fromkeys(positions)] == [2] * 20
        for gathered in held:
            assert len(rows(gathered)) % 2 == 0
        assert sum(batch.changes for batch in batches) == 41
        assert sum(batch.transactions for batch in batches) == 21
        ends = [batch.position for batch in batches]
        assert ends == sorted(set(ends))
        now = time.time() * 10**6
        assert all(now - 10**8 < c <= now for g in held for _, c in marked(g))


def test_a_table_has_marks_only_of_transactions_that_changed_it(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """Transactions of other tables take no memory."""
    with receiving(source, interval=LONG, memory=2**16) as receiver:
        written.execute("INSERT INTO t VALUES (0, 'first')")
        for _ in range(30):
            written.execute("INSERT INTO marker VALUES (1)")
        written.execute("INSERT INTO t VALUES (1, repeat('x', 100000))")
        batch = taken(receiver)
        own, other = batch.tables[number(source, "t")], batch.tables[number(source, "marker")]
        assert [len(piece.marks) for piece in own.pieces] == [2]
        assert [len(piece.marks) for piece in other.pieces] == [30]
        assert len(set(marked(other))) == 30


def test_a_batch_collects_transactions_for_the_interval(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """It is handed over after the interval. Empty transactions, which PostgreSQL 14 sends, do not
    count.
    """
    with receiving(source, interval=1) as receiver:
        began = time.monotonic()
        written.execute(
            "DO $$ BEGIN FOR k IN 1..5 LOOP INSERT INTO t VALUES (k); COMMIT;"
            " CREATE TEMPORARY TABLE u (); DROP TABLE u; COMMIT; END LOOP; END $$"
        )
        batches = [taken(receiver)]
        assert time.monotonic() - began >= 1
        # A slow machine may need longer than the interval for the five.
        while sum(batch.changes for batch in batches) < 5:
            batches.append(taken(receiver))
        assert len(batches) < 5
        assert all(batch.transactions == batch.changes for batch in batches)
        assert receiver.take(0, 2**63) is None


def test_a_batch_is_complete_at_its_memory_limit(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """Before the interval is over, and while no batch is taken."""
    with receiving(source, interval=LONG, memory=2**16) as receiver:
        for key in range(60):
            written.execute("INSERT INTO t VALUES (%s, %s)", [key, "v" * 8000])
        found: list[tuple[Any, ...]] = []
        batches: list[Batch] = []
        while len(found) < 50:
            batches.append(taken(receiver))
            found += rows(batches[-1].tables[number(source, "t")])
        assert [int(row[0]) for row in found] == list(range(len(found)))
        # Messages that libpq has read already are still added.
        assert all(2**16 - 8500 <= size < 2**17 for size in [batch.size for batch in batches])


def test_a_transaction_larger_than_the_memory_is_spooled(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read back unchanged; its file is deleted on release, or with the receiver."""
    monkeypatch.setattr(batch_builder, "_PIECE", 2**15)
    with receiving(source, memory=2**16) as receiver:
        batches: list[Batch] = []
        for _ in range(2):
            with written.transaction():
                written.execute("DELETE FROM t")
                written.execute("INSERT INTO marker VALUES (1)")
                written.execute(
                    "INSERT INTO t SELECT g, repeat(chr(64 + g % 26), g % 1000)"
                    " FROM generate_series(1, 1000) g"
                )
            batch = taken(receiver)
            gathered = batch.tables[number(source, "t")]
            expected = [(str(g), chr(64 + g % 26) * (g % 1000)) for g in range(1, 1001)]
            found = [row for row in rows(gathered) if row[0] is not None]
            assert found == expected
            assert len(set(marked(gathered))) == 1
            stored = [piece for piece in pieces(batch) if piece.spooled]
            assert len(stored) > 5
            assert all(not piece.data for piece in stored)
            kept = sum(len(piece.data) for piece in pieces(batch))
            assert kept <= 2**16
            batches.append(batch)
        first, batch = batches
        assert first.spool is not None
        assert batch.spool is not None
        assert not first.spool.closed
        release(first)
        assert (first.spool.closed, batch.spool.closed) == (True, False)
    assert batch.spool.closed


def test_a_batch_of_many_transactions_may_exceed_its_memory(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is complete at its size; what its memory does not hold is spooled."""
    monkeypatch.setattr(batch_builder, "_PIECE", 2**14)
    # At most a quarter of the size arrives at once: the first piece is within the memory.
    memory, size = 2**17, 2**18
    with receiving(source, interval=LONG, memory=memory, size=size) as receiver:
        for key in range(120):
            written.execute("INSERT INTO t VALUES (%s, %s)", [key, "v" * 4000])
        batch = taken(receiver)
        gathered = batch.tables[number(source, "t")]
        found = rows(gathered)
        assert found == [(str(key), "v" * 4000) for key in range(len(found))]
        assert len(set(marked(gathered))) == batch.transactions == len(found)
        assert size <= batch.size < 2 * size
        assert 0 < sum(len(piece.data) for piece in pieces(batch)) <= memory
        assert any(piece.spooled for piece in pieces(batch))
        release(batch)


def test_a_truncate_discards_earlier_changes_of_the_table(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later changes, and those of other tables, are kept."""
    monkeypatch.setattr(batch_builder, "_PIECE", 2**15)
    with receiving(source, memory=2**16) as receiver:
        with written.transaction():
            written.execute("INSERT INTO marker VALUES (7)")
            written.execute(
                "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1,900) g"
            )
            written.execute("TRUNCATE t, other")
            written.execute("INSERT INTO t VALUES (1, 'after')")
        batch = taken(receiver)
        own = batch.tables[number(source, "t")]
        assert rows(own) == [("1", "after")]
        assert {position for position, _ in marked(own)} == {own.truncated}
        assert rows(batch.tables[number(source, "marker")]) == [("7",)]
        assert batch.tables[number(source, "marker")].truncated is None
        assert number(source, "other") not in batch.tables
        written.execute("TRUNCATE t")
        again = taken(receiver)
        assert rows(again.tables[number(source, "t")]) == []
        assert again.tables[number(source, "t")].truncated is not None
        assert again.position > batch.position


def test_a_table_with_columns_that_change_within_a_batch_is_marked(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """Even if they change back; not if only the replica identity changes."""
    with receiving(source, interval=LONG, memory=2**15) as receiver:
        written.execute("INSERT INTO t VALUES (1, 'a')")
        written.execute("INSERT INTO marker VALUES (1)")
        written.execute("ALTER TABLE t ADD w int")
        written.execute("ALTER TABLE marker REPLICA IDENTITY FULL")
        written.execute("INSERT INTO t VALUES (2, 'b', 3)")
        written.execute("ALTER TABLE t DROP w")
        written.execute("INSERT INTO t VALUES (3, 'c')")
        written.execute("INSERT INTO marker VALUES (2)")
        written.execute("INSERT INTO t VALUES (4, repeat('x', 40000))")
        batch = taken(receiver)
        assert batch.tables[number(source, "t")].drifted
        assert not batch.tables[number(source, "marker")].drifted
        assert len(rows(batch.tables[number(source, "marker")])) == 2
        written.execute("ALTER TABLE t ADD x int")
        written.execute("INSERT INTO t VALUES (5, repeat('x', 40000), 1)")
        following = taken(receiver).tables[number(source, "t")]
        assert not following.drifted
        assert [name for name, _, _ in following.described.columns] == ["id", "v", "x"]


def test_changes_of_other_tables_make_no_batch(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """The idle position passes them."""
    with receiving(source) as receiver:
        for _ in range(3):
            written.execute("INSERT INTO other SELECT * FROM generate_series(1, 100)")
            written.execute("TRUNCATE other")
            end = here(source)
            while receiver.idle < end:
                assert receiver.take(PATIENCE, end - 1) is None
                receiver.nudge()
            written.execute("INSERT INTO marker VALUES (1)")
            batch = taken(receiver)
            assert list(batch.tables) == [number(source, "marker")]
            assert batch.position > end


def test_the_idle_position_does_not_pass_unapplied_changes(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """It stays before a batch that is being collected or is ready."""
    with receiving(source, interval=0.4) as receiver:
        before = here(source)
        written.execute("INSERT INTO t VALUES (1)")
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            receiver.nudge()
            assert receiver.idle <= before
            time.sleep(0.01)
        assert taken(receiver).changes == 1


def test_only_a_confirmation_moves_the_slot(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """Unconfirmed changes are sent again, even if they were received and taken."""

    def confirmed() -> int:
        with psycopg.connect(source.dsn, autocommit=True) as connection:
            found = slot.find(connection, wire.slot_of(source))
        assert found is not None
        assert found.confirmed is not None
        return found.confirmed

    with receiving(source) as receiver:
        start = confirmed()
        written.execute("INSERT INTO t VALUES (1)")
        first = taken(receiver)
        written.execute("INSERT INTO t VALUES (2)")
        taken(receiver)
        receiver.nudge()
        end = here(source)
        while receiver.idle < end:
            receiver.take(PATIENCE, end - 1)
            receiver.nudge()
        assert confirmed() == start
        receiver.confirm(first.position)
        until(lambda: confirmed() == first.position)
        receiver.confirm(start)
    assert confirmed() == first.position
    with receiving(source, made=True) as receiver:
        assert rows(taken(receiver).tables[number(source, "t")]) == [("2", None)]
        until(lambda: confirmed() == first.position)


def walsender(source: Source) -> int | None:
    """The process that streams from the test's slot."""
    ((pid,),) = source.execute(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", wire.slot_of(source)
    )
    return None if pid is None else int(pid)


def test_status_updates_are_sent_while_a_full_batch_waits(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """For longer than wal_sender_timeout no batch is taken and nothing read: the stream goes on."""
    name = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    source.execute(f"ALTER DATABASE {name} SET wal_sender_timeout = '500ms'")
    with receiving(source, memory=2**15) as receiver:
        pid = walsender(source)
        assert pid is not None
        for key in range(40):
            written.execute("INSERT INTO t VALUES (%s, %s)", [key, "x" * 8000])
        end = time.monotonic() + 1.25
        while time.monotonic() < end:
            assert walsender(source) == pid
            time.sleep(0.1)
        batches = all_taken(written, source, receiver)
        own = [batch.tables.get(number(source, "t")) for batch in batches]
        found = [row for gathered in own if gathered for row in rows(gathered)]
        assert [int(row[0]) for row in found] == list(range(40))
        assert walsender(source) == pid


def test_a_lost_connection_is_raised_with_the_next_batch(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """After the batch that was ready; and again with each later call."""
    with receiving(source) as receiver:
        written.execute("INSERT INTO t VALUES (1)")
        assert rows(taken(receiver).tables[number(source, "t")]) == [("1", None)]
        source.execute("SELECT pg_terminate_backend(%s)", walsender(source))
        with pytest.raises(SourceUnreachable):
            receiver.take(PATIENCE, 2**63)
        with pytest.raises(SourceUnreachable):
            receiver.take(PATIENCE, 2**63)


def test_a_slot_in_use_by_another_session_is_busy(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error allows a retry: the server may not have noticed yet that a connection was lost."""
    monkeypatch.setattr(replication, "_SLOT_PATIENCE", 0.3)
    with receiving(source) as receiver:
        with pytest.raises(SourceBusy) as raised, receiving(source, made=True):
            pass
        assert raised.value.retry
        written.execute("INSERT INTO t VALUES (1)")
        assert taken(receiver).changes == 1


def test_a_missing_slot_is_an_error_at_once(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """It allows a retry with a new slot; the connection is closed."""
    origin = source.settings().origin("test")
    sender = slot.walsender(origin)
    receiver = Receiver(origin, sender, "none", "none", [1], interval=0, memory=MUCH)
    with pytest.raises(SourceBusy, match='"none" does not exist'), receiver:
        pass
    assert sender.closed


def test_a_publication_that_is_dropped_while_streaming_is_a_retriable_error(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers before 18 end the stream with the error that another statement raises here; its hint
    says that the tables are resynced.
    """
    with receiving(source) as receiver:
        statement = "DROP PUBLICATION gone"
        monkeypatch.setattr(Receiver, "_receive", lambda _: written.execute(statement))
        with pytest.raises(SourceBusy, match='"gone" does not exist') as raised:
            receiver.take(PATIENCE, 2**63)
        assert "resynced" in raised.value.hint
        assert raised.value.retry


def test_a_stop_ends_the_wait_for_a_batch(source: Source, written: psycopg.Connection[Any]) -> None:
    """Whoever waits for a batch gets none, at once, when the stream is to stop."""
    stop = threading.Event()
    with receiving(source, stop=stop) as receiver:
        timer = threading.Timer(0.1, stop.set)
        timer.start()
        began = time.monotonic()
        assert receiver.take(PATIENCE, 2**63) is None
        assert time.monotonic() - began < PATIENCE / 2
        timer.join()


def test_the_thread_is_woken_while_it_waits_for_the_server(
    source: Source, written: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands over a batch that is due, and ends, without waiting for the end of its pause."""
    monkeypatch.setattr(replication, "_PAUSE", 30.0)
    with receiving(source) as receiver:
        before = here(source)
        written.execute("INSERT INTO t VALUES (1)")
        until(lambda: receiver._builder.batch.position > before)
        time.sleep(0.1)
        began = time.monotonic()
        assert taken(receiver).changes == 1
        time.sleep(0.1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("transactions", [pytest.param(1, marks=pytest.mark.soak), 400])
def test_the_receiver_ends_at_once_under_load(
    source: Source, written: psycopg.Connection[Any], transactions: int
) -> None:
    """While more changes arrive than are taken, in one transaction or many."""
    stop = threading.Event()

    def flood() -> None:
        with psycopg.connect(source.dsn, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = on")
            start = 10
            while not stop.is_set():
                count = 60_000 // transactions
                connection.execute(
                    "INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(%s::int, %s) g",
                    [start, start + count - 1],
                )
                start += count

    thread = threading.Thread(target=flood)
    with receiving(source, memory=2**18) as receiver:
        thread.start()
        try:
            taken(receiver)
            began = time.monotonic()
            receiver.__exit__()
            took = time.monotonic() - began
        finally:
            stop.set()
            thread.join()
    assert took < 5


def test_a_process_may_have_more_than_a_thousand_open_files(
    source: Source, written: psycopg.Connection[Any]
) -> None:
    """As one that uses many tables and connections."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            stack.callback(os.close, os.dup(0))
        with receiving(source) as receiver:
            written.execute("INSERT INTO t VALUES (1, 'a')")
            assert taken(receiver).changes == 1
