"""Resyncs: tables that have to be compared again wait for a slot, and the others follow."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.cdc import apply_loop, new_slot, resync, stream
from bronze.cdc.new_slot import NewSlot
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.governance.tables import streams
from bronze.model.events import StreamEvent
from bronze.postgres.copy import snapshot
from bronze.postgres.replication import slot, slot_waits
from bronze.postgres.replication.receiver import Receiver
from tests.conftest import Source
from tests.integration.cdc.test_recovery import config_file
from tests.support.streams import caught_up, proven, rows, settings, streaming, until

BOTH = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
FOREIGN = "SELECT pid, backend_xid FROM pg_stat_activity WHERE application_name = 'a long report'"


@contextmanager
def open_elsewhere(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A session of another database is idle in a transaction that has written."""
    dsn = server.dsn("postgres")
    with psycopg.connect(dsn, application_name="a long report") as other:
        other.execute("SELECT pg_current_xact_id()")
        yield other
        other.rollback()


@contextmanager
def prepared(source: Source) -> Iterator[None]:
    """A prepared transaction, until it is ended."""
    with psycopg.connect(source.dsn) as preparing:
        preparing.execute("SELECT pg_current_xact_id()")
        preparing.execute("PREPARE TRANSACTION 'it''s mine'")
    try:
        yield
    finally:
        with suppress(psycopg.errors.UndefinedObject):
            source.execute("ROLLBACK PREPARED 'it''s mine'")


def both(source: Source) -> Settings:
    """Two tables that were streamed."""
    for name in ("t", "u"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text, a int, b int)")
        source.execute(f"INSERT INTO {name} VALUES (1, 'a', 1, 2), (2, 'b', 3, 4)")
    given = settings(source, BOTH)
    caught_up(given)
    return given


def temporary_slots(source: Source) -> list[tuple[Any, ...]]:
    """The temporary slots of the database."""
    return source.execute(
        "SELECT slot_name, active_pid, confirmed_flush_lsn FROM pg_replication_slots"
        " WHERE temporary AND database = current_database()"
    )


def said(steps: list[StreamEvent], *words: str) -> bool:
    """Whether a message has all these words."""
    return any(all(word in step.message for word in words) for step in steps)


def checkpoint_versions(source: Source) -> dict[str, int | None]:
    """The versions of the last checkpoint."""
    records = pl.read_delta(str(source.lake / "governance" / "streams"))
    *_, (_, versions) = streams.with_versions(records)
    return versions


def test_other_tables_go_on_while_one_waits(
    source: Source, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table with a new column waits for a transaction in another database, and for a prepared
    one: a notice describes them, the other table follows, and both tables can be altered.
    """
    monkeypatch.setattr(new_slot, "_NOTICE_AFTER", 0.4)
    monkeypatch.setattr(new_slot, "_CHECK_INTERVAL", 0.1)
    given = both(source)
    with open_elsewhere(server) as other, prepared(source), streaming(given) as steps:
        until(lambda: steps)
        source.execute("ALTER TABLE t ADD w int DEFAULT 5")
        source.execute("INSERT INTO t VALUES (3, 'c')")
        until(lambda: said(steps, "public.t waits"), told=lambda: steps)
        note = next(step.message for step in steps if "waits" in step.message)
        pid = other.info.backend_pid
        assert f"pid {pid} (database postgres, user postgres, application a long report" in note
        assert "idle in transaction, since 20" in note
        assert "prepared transaction 'it''s mine'" in note
        assert f"SELECT pg_terminate_backend({pid})" in note
        assert "The other tables are followed meanwhile." in note
        for number in range(10, 13):
            source.execute(f"INSERT INTO u VALUES ({number}, 'd')")
            source.execute(f"UPDATE t SET v = 'e{number}' WHERE id = 1")
            until(lambda n=number: n in rows(source, "u")["id"])  # type: ignore[misc]
        assert rows(source)["id"].to_list() == [1, 2]
        until(
            lambda: checkpoint_versions(source)["bronze.bz_u"],
            told=lambda: checkpoint_versions(source),
        )
        assert checkpoint_versions(source)["bronze.bz_t"] is None
        for name in ("t", "u"):
            source.execute(f"SET lock_timeout = 500; ALTER TABLE {name} ADD x{name} int")
        source.execute("INSERT INTO u VALUES (20, 'e')")
        other.rollback()
        source.execute("ROLLBACK PREPARED 'it''s mine'")
        until(lambda: rows(source).height == 3, told=lambda: steps)
        assert set(rows(source)["w"]) == {5}
        source.execute("INSERT INTO t VALUES (4, 'd')")
        until(lambda: rows(source).height == 4)
        until(lambda: "xu" in rows(source, "u").columns)
        until(lambda: not temporary_slots(source))
        assert sum("waits" in step.message for step in steps) <= 2
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_a_stream_stops_while_a_table_waits(source: Source, server: Server) -> None:
    """It ends at once and leaves no slot. The next stream resyncs the table, as its changes that
    were left out are not sent again.
    """
    given = both(source)
    with open_elsewhere(server):
        with streaming(given) as steps:
            until(lambda: steps)
            source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c')")
            source.execute("ALTER TABLE t DROP w")
            until(lambda: temporary_slots(source))
            source.execute("INSERT INTO t VALUES (4, 'd'); INSERT INTO u VALUES (4, 'd')")
            until(lambda: 4 in rows(source, "u")["id"])
            began = time.monotonic()
        assert time.monotonic() - began < 3
        until(lambda: not temporary_slots(source))
    notes: list[str] = []
    caught_up(given, notes)
    assert any("public.t: resyncing" in note for note in notes)
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_new_tables_wait_while_the_others_follow(
    source: Source, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start of a stream, the tables with positions follow at once. With --until-caught-up
    the stream waits for all of them, says so, and can be stopped.
    """
    monkeypatch.setattr(new_slot, "_NOTICE_AFTER", 0.2)
    monkeypatch.setattr(new_slot, "_CHECK_INTERVAL", 0.1)
    both(source)
    source.execute("CREATE TABLE w (id int PRIMARY KEY)")
    source.execute("INSERT INTO w VALUES (1)")
    given = settings(source, {**BOTH, "w": {"pattern": "streaming"}})
    notes: list[StreamEvent] = []
    with open_elsewhere(server) as other:
        with streaming(given) as steps:
            source.execute("INSERT INTO u VALUES (5, 'e')")
            until(lambda: 5 in rows(source, "u")["id"], told=lambda: steps)
            assert not source.table("w").exists()
        for how in ("stop", "end"):
            stop = threading.Event()
            thread = threading.Thread(
                target=stream.stream,
                args=(given,),
                kwargs={"until_caught_up": True, "stop": stop, "notify": notes.append},
            )
            thread.start()
            notes.clear()
            until(lambda: said(notes, "public.w waits", "a long report"), told=lambda: notes)
            assert thread.is_alive()
            stop.set() if how == "stop" else other.rollback()
            thread.join(20)
            assert not thread.is_alive()
            assert source.table("w").exists() == (how == "end")
    assert rows(source, "w").height == 1
    assert None not in checkpoint_versions(source).values()
    assert checkpoint_versions(source).keys() == {"bronze.bz_t", "bronze.bz_u", "bronze.bz_w"}
    proven(source, given, "t", "u", "w")


@pytest.mark.soak
@pytest.mark.parametrize("stopped", [True, False])
def test_changes_received_before_the_slot_is_ready_are_applied(
    source: Source, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Those after the slot's position are received again, from the slot. If the stream is stopped
    meanwhile, the next one resyncs the table.
    """
    given = both(source)
    known, caught = threading.Event(), list[int]()
    wait, take = NewSlot.wait, Receiver.take
    monkeypatch.setattr(resync, "_SLOT_PATIENCE", 0)
    monkeypatch.setattr(NewSlot, "wait", lambda new, s: known.is_set() and wait(new, s))
    stops: list[threading.Event] = []

    def taking(receiver: Receiver, patience: float, beyond: int) -> Any:
        batch = take(receiver, patience, beyond)
        if receiver._name != "bronze_test" and batch:
            caught.append(batch.changes)
            if stopped:
                stops[0].set()
        return batch

    monkeypatch.setattr(Receiver, "take", taking)
    original = apply_loop.Session.__init__

    def with_stop(self: apply_loop.Session, context: Any, *given: Any) -> None:
        stops.append(context.stop)
        original(self, context, *given)

    monkeypatch.setattr(apply_loop.Session, "__init__", with_stop)
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c')")
        until(lambda: any(row[2] for row in temporary_slots(source)))
        for number in range(4, 8):
            source.execute(
                f"INSERT INTO t VALUES ({number}, 'd'); UPDATE t SET a = {number} WHERE id = 1;"
                f"DELETE FROM t WHERE id = {number - 2}; INSERT INTO u VALUES ({number})"
            )
            until(lambda n=number: n in rows(source, "u")["id"])  # type: ignore[misc]
        assert sorted(rows(source)["id"]) == [1, 2]
        known.set()
        until(lambda: caught)
        if not stopped:
            until(lambda: sorted(rows(source)["id"]) == [1, 6, 7], told=lambda: rows(source))
            assert is_proven(source, given)
            source.execute("INSERT INTO t VALUES (9, 'z')")
            until(lambda: 9 in rows(source)["id"])
            until(lambda: not temporary_slots(source))
    caught_up(given)
    proven(source, given, "t", "u")


def is_proven(source: Source, given: Settings) -> bool:
    """Whether the table equals the source."""
    proven(source, given, "t")
    return True


BETWEEN = {
    "TRUNCATE t": [],
    "INSERT INTO t VALUES (50, 'x', 5, 6); ALTER TABLE t RENAME a TO c;"
    " ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b": [50],
    "ALTER TABLE t ALTER a TYPE int USING a * 10": [50],
    "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text, a int, b int);"
    " INSERT INTO t VALUES (60)": [60],
    "ALTER TABLE t DROP b": [60],
}


@pytest.mark.soak
def test_a_table_changed_between_slot_and_lock_is_synced_again(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is truncated, altered, rewritten or recreated after its slot was created and
    before it is locked waits for another slot at once.
    """
    given = settings(source, BOTH, retry_delay=0)
    both(source)
    todo: list[str] = []
    hold = snapshot.hold

    def holding(*arguments: Any) -> Any:
        if todo and len(arguments) > 5:
            source.execute(todo[0])
            todo.clear()
        return hold(*arguments)

    monkeypatch.setattr(snapshot, "hold", holding)
    with streaming(given) as steps:
        until(lambda: steps)
        for number, (statement, left) in enumerate(BETWEEN.items()):
            todo.append(statement)
            source.execute(f"ALTER TABLE t ADD IF NOT EXISTS c{number} int")
            source.execute(f"INSERT INTO t (id, v) VALUES ({number + 20}, 'new')")
            if "CREATE" in statement:
                source.execute("ALTER TABLE t ADD d int; INSERT INTO t (id) VALUES (99)")
            until(lambda: not todo, told=lambda: steps)
            source.execute(f"INSERT INTO t (id) VALUES ({number + 70})")
            until(
                lambda n=number: n + 70 in rows(source)["id"],  # type: ignore[misc]
                told=lambda: (statement, [repr(step) for step in steps]),  # noqa: B023
            )
            assert set(left) <= set(rows(source)["id"])
            assert is_proven(source, given)
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_a_locked_table_does_not_stop_the_others(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notice names the session with the lock; after lock_timeout the table is retried later."""
    monkeypatch.setattr(new_slot, "_NOTICE_AFTER", 0.2)
    monkeypatch.setattr(new_slot, "_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.3)
    both(source)
    given = source.settings(tables=BOTH, stream={"interval": 0}, source={"lock_timeout": 1})
    hold = snapshot.hold
    with psycopg.connect(source.dsn) as other:

        def holding(*arguments: Any) -> Any:
            if len(arguments) > 5 and other.info.transaction_status == 0:
                other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            return hold(*arguments)

        monkeypatch.setattr(snapshot, "hold", holding)
        with streaming(given) as steps:
            until(lambda: steps)
            source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c')")
            until(lambda: said(steps, "lock", f"pid {other.info.backend_pid}"))
            source.execute("INSERT INTO u VALUES (3, 'c')")
            until(lambda: 3 in rows(source, "u")["id"])
            until(lambda: said(steps, "public.t is not followed", "lock_timeout"))
            monkeypatch.setattr(snapshot, "hold", hold)
            other.rollback()
            until(lambda: said(steps, "public.t is followed again"), told=lambda: steps)
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_a_resync_gives_way_to_a_session_that_alters_the_table(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ALTER waits for the lock of the resync, and all readers of the table wait behind it. So
    the resync ends and is retried; the stream goes on meanwhile.
    """
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.3)
    given = both(source)
    hold, altering = snapshot.hold, list[threading.Thread]()
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"

    @contextmanager
    def holding(*arguments: Any) -> Iterator[Any]:
        with hold(*arguments) as held:
            if len(arguments) > 5 and not altering:
                alter = ("ALTER TABLE t ADD x int DEFAULT 7",)
                altering.append(threading.Thread(target=source.execute, args=alter))
                altering[0].start()
                until(lambda: source.execute(waiting))
            yield held

    monkeypatch.setattr(snapshot, "hold", holding)
    with streaming(given) as steps:
        until(lambda: steps)
        source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c')")
        until(lambda: said(steps, "public.t is followed again"), told=lambda: steps)
        altering[0].join(30)
    assert not altering[0].is_alive()
    assert said(steps, "Another session waits to change table public.t")
    assert not said(steps, "Again in")
    proven(source, given, "t", "u")


def test_a_slot_that_cannot_be_created_does_not_stop_the_others(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server refuses the slot, the table is retried, and the others follow."""
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.3)
    given = both(source)
    original = slot._create_statement
    with streaming(given) as steps:
        until(lambda: steps)
        monkeypatch.setattr(
            slot, "_create_statement", lambda name, *rest: original("Not A Name!", *rest)
        )
        source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c')")
        until(lambda: said(steps, "public.t is not followed", "name of a slot"))
        source.execute("INSERT INTO u VALUES (3, 'c')")
        until(lambda: 3 in rows(source, "u")["id"])
        monkeypatch.setattr(slot, "_create_statement", original)
        until(lambda: said(steps, "public.t is followed again"), told=lambda: steps)
    proven(source, given, "t", "u")


@pytest.mark.soak
@pytest.mark.parametrize("first", [True, False])
def test_a_stream_killed_while_its_slot_waits(
    source: Source, server: Server, tmp_path: Path, first: bool
) -> None:
    """The server goes on creating the slot of a killed process: the next stream ends that session
    and creates its own slot.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t VALUES (1, 'a')")
    path, given = config_file(source, tmp_path), settings(source)
    if not first:
        caught_up(given)
    being_created = (
        "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()"
        f" AND confirmed_flush_lsn IS NULL AND temporary = {not first}"
    )
    with open_elsewhere(server) as other:
        for _ in range(2):
            with subprocess.Popen(
                [sys.executable, "-m", "bronze", "stream", "-c", str(path)],
                stderr=subprocess.DEVNULL,
            ) as process:
                if not first:
                    with suppress(psycopg.errors.DuplicateColumn):
                        source.execute("ALTER TABLE t ADD w int")
                    source.execute("INSERT INTO t SELECT max(id) + 1, 'b' FROM t")
                until(lambda: source.execute(being_created))
                ((pid,),) = source.execute(being_created)
                process.send_signal(signal.SIGKILL)
            time.sleep(0.2)
            assert source.execute(being_created) == [(pid,)]
        with streaming(given) as steps:
            until(lambda: source.execute(being_created) not in ([], [(pid,)]))
            assert len(source.execute(being_created)) == 1
            other.rollback()
            until(lambda: source.table("t").exists() and equals_source(given), told=lambda: steps)
            source.execute("INSERT INTO t (id) VALUES (100)")
            until(lambda: 100 in rows(source)["id"])
            until(lambda: not temporary_slots(source))
    caught_up(given)
    proven(source, given, "t")


def equals_source(given: Settings) -> bool:
    """Whether the tables equal the source."""
    from tests.support.content import differences

    return differences(given) == {}


@pytest.mark.soak
def test_sigterm_while_the_first_slot_waits(source: Source, server: Server, tmp_path: Path) -> None:
    """The command says what it waits for, ends at once, and leaves no slot at the source."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    path = config_file(source, tmp_path)
    with open_elsewhere(server) as other:
        with subprocess.Popen(
            [sys.executable, "-m", "bronze", "stream", "-c", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr
            line = process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(20) == 0
            assert time.monotonic() - began < 5
        assert f"pid {other.info.backend_pid}" in line
        query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        until(lambda: not source.execute(query))


# What a slot waits for


def test_the_notice_names_what_the_role_may_see_of_other_sessions(
    source: Source, server: Server
) -> None:
    """Without pg_read_all_stats: pid, database, user and application, and which grant helps."""
    name = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    role = f"{name}_role"
    source.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with (
            open_elsewhere(server) as other,
            closing(psycopg.connect(source.dsn.replace("postgres@", f"{role}@"))) as mine,
        ):
            found = {one.pid: one for one in slot_waits.open_transactions(mine)}
            one = found[other.info.backend_pid]
            text = slot_waits.describe_transactions([one])
            assert text.startswith(
                f"pid {one.pid} (database postgres, user postgres, application a long report)."
            )
            assert "GRANT pg_read_all_stats" in text
            with psycopg.connect(source.dsn) as seeing:
                seen = {one.pid: one for one in slot_waits.open_transactions(seeing)}[one.pid]
            assert "idle in transaction, since" in str(seen)
            assert "GRANT" not in slot_waits.describe_transactions([seen])
            assert slot_waits.describe_transactions([seen] * 7).count("a long report") == 5
            assert " and 2 more." in slot_waits.describe_transactions([seen] * 7)
    finally:
        source.execute(f"DROP ROLE {role}")
