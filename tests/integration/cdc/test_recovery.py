"""Recovery: a slot, source, connection, lake or table is lost, or comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from bronze.cdc import apply_loop, resync, stream
from bronze.config.settings import Settings
from bronze.delta import commit, log, positions
from bronze.demo.server import Server
from bronze.execution import budget
from bronze.ingest import pipeline
from bronze.model.events import BatchApplied
from bronze.model.locations import Place
from bronze.postgres.replication import slot
from bronze.postgres.replication.receiver import Receiver
from tests.conftest import Source
from tests.support.content import differences
from tests.support.proxy import proxied
from tests.support.streams import (
    TABLE,
    caught_up,
    proven,
    rows,
    settings,
    streaming,
    table_state,
    until,
)


def is_active(source: Source) -> bool:
    """Whether a session of the server still has the stream's slot."""
    query = "SELECT active FROM pg_replication_slots WHERE slot_name = 'bronze_test'"
    return source.execute(query) == [(True,)]


def test_missed_changes_are_resynced_after_slot_loss(source: Source) -> None:
    """Whether the slot was advanced, dropped, or invalidated by the server (which is reported): all
    rows are compared, and only differences are written.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
    given, notes = settings(source), list[str]()
    caught_up(given)
    until(lambda: not is_active(source))
    found = {}

    def follow(how: str) -> None:
        (table,) = caught_up(given, notes).tables
        found[how] = (table.inserted, table.updated, table.deleted)
        assert differences(given) == {}, how
        until(lambda: not is_active(source))

    source.execute("UPDATE t SET v = 'w' WHERE id = 1")
    source.execute("SELECT pg_replication_slot_advance('bronze_test', pg_current_wal_lsn())")
    follow("moved")
    source.execute("SELECT pg_drop_replication_slot('bronze_test')")
    source.execute("UPDATE t SET v = 'x' WHERE id = 1")
    source.execute("DELETE FROM t WHERE id = 2")
    follow("dropped")
    assert not any("was lost" in note for note in notes)
    source.execute("UPDATE t SET v = 'y' WHERE id = 1")
    source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    try:
        source.execute("SELECT pg_reload_conf()")
        for _ in range(3):
            source.execute("INSERT INTO t (id) VALUES (1000) ON CONFLICT DO NOTHING")
            source.execute("SELECT pg_switch_wal()")
        until(lambda: lost_slot(source))
        follow("lost")
    finally:
        source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        source.execute("SELECT pg_reload_conf()")
    assert any("was lost" in note for note in notes)
    assert found == {"moved": (0, 1, 0), "dropped": (0, 1, 1), "lost": (1, 1, 0)}
    proven(source, given)


def lost_slot(source: Source) -> bool:
    """Whether the server has dropped log that the slot needs."""
    source.execute("CHECKPOINT")
    query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'bronze_test'"
    return source.execute(query) == [("lost",)]


def with_an_earlier_slot(source: Source, given: Settings) -> int:
    """Streams a change, and puts the slot back to its position before the change; returns the
    position that the lake has.
    """
    source.execute("SELECT pg_copy_logical_replication_slot('bronze_test', 'test_earlier')")
    source.execute("UPDATE t SET v = v || 'w' WHERE id = 1")
    reached = caught_up(given).position
    # The server may take a moment to notice that the stream has ended.
    until(lambda: not is_active(source))
    for name in ("bronze_test", "test_earlier"):
        if name == "test_earlier":
            copy = "SELECT pg_copy_logical_replication_slot('test_earlier', 'bronze_test')"
            source.execute(copy)
        source.execute("SELECT pg_drop_replication_slot(%s)", name)
    return reached


def move_position(source: Source, place: Place, name: str, change: int) -> None:
    """Adds ``change`` to one of a table's positions."""
    state = log.read(place)
    ((identity,),) = source.execute(
        "SELECT system_identifier || '/1/' || current_database() FROM pg_control_system()"
    )
    assert state is not None
    value = positions.read(state, f"{identity}/{name}")
    assert value is not None
    moved = positions.Position(f"{identity}/{name}", value + change)
    commit.commit(place, state, commit.Change("WRITE"), {}, reached=moved)


@pytest.mark.soak
def test_a_stream_has_caught_up_only_once_the_server_has_sent_what_it_has_to(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends nothing for a while is waited for: otherwise a source that was put back
    would look like one without changes.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    given = settings(source)
    caught_up(given)
    ((oid,),) = source.execute("SELECT 't'::regclass::oid::int8")
    reached = with_an_earlier_slot(source, given)
    move_position(source, given.place("bronze", "bz_t"), f"{oid}/last/committed", 1)
    receive = Receiver._receive

    def receive_late(receiver: Receiver) -> bool:
        time.sleep(0.3)
        return receive(receiver)

    monkeypatch.setattr(Receiver, "_receive", receive_late)
    monkeypatch.setattr(apply_loop, "_PATIENCE", 0.0)
    # As if nothing had been written since.
    monkeypatch.setattr(slot, "committed_position", lambda _: reached)
    assert [t.rows_read for t in caught_up(given).tables] == [10]


# After a comparison of all rows, positions belong to another history.
@pytest.mark.parametrize(
    "cases", [pytest.param(("nothing", "time"), marks=pytest.mark.soak), ("log",)]
)
def test_a_source_restored_from_a_backup_is_resynced(source: Source, cases: Sequence[str]) -> None:
    """Transactions that the server sends again are left out. If they are not the recorded ones, or
    the server's log ends before a position in the lake, all tables are resynced.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    given = settings(source)
    caught_up(given)
    ((oid,),) = source.execute("SELECT 't'::regclass::oid::int8")
    moves: Mapping[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "log": lambda: move_position(
            source, given.place("governance", "streams"), "bronze_test", 10**12
        ),
        "time": lambda: move_position(
            source, given.place("bronze", "bz_t"), f"{oid}/last/committed", 1
        ),
    }
    for another in cases:
        notes = list[str]()
        with_an_earlier_slot(source, given)
        moves[another]()
        before = table_state(source).version
        compared = another != "nothing"
        result = caught_up(given, notes)
        assert [t.rows_read for t in result.tables] == ([10] if compared else []), another
        assert any("put back to an earlier state" in note for note in notes) == compared, another
        assert table_state(source).version - before == compared, another
        source.execute("UPDATE t SET v = v || 'x' WHERE id = 2")
        assert [t.updated for t in caught_up(given).tables] == [1], another
    proven(source, given)


@pytest.mark.soak
def test_a_table_that_was_not_streamed_for_a_while_is_resynced(source: Source) -> None:
    """A table that the last stream did not follow, or that a run has loaded, is resynced first."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    both = settings(source, {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}})
    caught_up(both)
    source.execute("UPDATE t SET v = 'w' WHERE id = 1")
    caught_up(settings(source, {"u": {"pattern": "streaming"}}))
    source.execute("UPDATE t SET v = 'w' WHERE id = 2")
    found = {t.table: t for t in caught_up(both).tables}
    assert found["public.t"].updated == 2
    proven(source, both, "t", "u")
    assert pipeline.run(source.settings(tables={"t": {"pattern": "batch"}})).exit_code == 0
    source.execute("UPDATE t SET v = 'x' WHERE id = 3")
    found = {t.table: t for t in caught_up(both).tables}
    assert found["public.t"].updated == 1
    proven(source, both, "t", "u")


def test_a_bronze_table_restored_to_an_earlier_version_is_resynced(source: Source) -> None:
    """With an earlier position it lacks changes that the slot no longer has."""
    from deltalake import DeltaTable

    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (1)")
    given = settings(source)
    caught_up(given)
    source.execute("INSERT INTO t VALUES (2)")
    caught_up(given)
    folder = source.table("t") / "_delta_log"
    assert DeltaTable(str(source.table("t"))).version() == 1
    (folder / f"{1:020}.json").unlink()
    assert rows(source)["id"].to_list() == [1]
    (table,) = caught_up(given).tables
    assert table.inserted == 1
    proven(source, given)


def cut(source: Source) -> None:
    """Ends a stream's sessions, with that of its walsender."""
    query = """
        WITH mine AS (SELECT * FROM pg_stat_activity WHERE application_name ~ '^bronze stream')
        SELECT pg_terminate_backend(pid) FROM mine
        WHERE EXISTS (SELECT FROM mine WHERE backend_type = 'walsender')
    """
    until(lambda: source.execute(query))


def test_a_stream_connects_again_after_a_lost_connection(source: Source) -> None:
    """It goes on from its position, and reports the error."""
    source.execute(TABLE)
    given = settings(source, retry_delay=0)
    with streaming(given) as steps:
        for number in range(2):
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (%s)", number)
            cut(source)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
    assert any("Again" in step.message for step in steps)
    proven(source, given)


@pytest.mark.soak
def test_retries_are_counted_from_zero_after_a_batch(source: Source) -> None:
    """However often the connection is lost, the pause stays short if batches are applied."""
    source.execute(TABLE)
    given = settings(source, retry_delay=1)
    with streaming(given) as steps:
        until(lambda: steps)
        # The third pause in a row would be one of two seconds at least.
        for number in range(3):
            source.execute("INSERT INTO t VALUES (%s)", number)
            until(lambda number=number: rows(source).height == number + 1)  # type: ignore[misc]
            cut(source)
            count = number + 1
            until(lambda count=count: sum("Again" in s.message for s in steps) == count)  # type: ignore[misc]
        source.execute("INSERT INTO t VALUES (9)")
        until(lambda: rows(source).height == 4)
    notes = [step.message for step in steps if step.message]
    assert [note for note in notes if not note.endswith(("Again in 0 s.", "Again in 1 s."))] == []


def test_a_silent_server_is_disconnected(source: Source, server: Server) -> None:
    """The stream connects again if the server sends nothing, although the connection is open."""
    source.execute(TABLE)
    ((database,),) = source.execute("SELECT current_database()")
    source.execute(f"ALTER DATABASE {database} SET wal_sender_timeout = '500ms'")
    with proxied(server) as proxy:
        given = settings(Source(proxy.dsn(database), source.lake), retry_delay=0)
        with streaming(given) as steps:
            until(lambda: steps)
            source.execute("INSERT INTO t VALUES (1)")
            until(lambda: any(isinstance(step, BatchApplied) for step in steps))
            proxy.stall()
            source.execute("INSERT INTO t VALUES (2)")
            until(lambda: rows(source).height == 2)
    assert any("Again" in step.message for step in steps)
    proven(source, settings(source))


def test_a_full_lake_is_retried(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table fails because the lake cannot be written for a while."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(apply_loop, "_LONGEST_PAUSE", 0.2)
    source.execute(TABLE)
    given = settings(source, retry_delay=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with streaming(given) as steps:
        until(lambda: steps)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        try:
            # The stream's checkpoints are small enough to be written.
            source.execute("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 9999) g")
            until(lambda: any("no space left" in step.message for step in steps))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        until(lambda: rows(source).height == 9999)
    proven(source, given)


@pytest.mark.parametrize(
    "where", ["in a batch", pytest.param("after a reconnect", marks=pytest.mark.soak)]
)
def test_an_unreachable_lake_is_retried(
    source: Source, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whether its folder does not exist or is empty, as if unmounted: nothing is created in it."""
    monkeypatch.setattr(apply_loop, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(stream, "_LONGEST_PAUSE", 0.2)
    source.execute(TABLE)
    given, away = settings(source, retry_delay=1), source.lake.with_name("away")
    with streaming(given) as steps:
        until(lambda: steps)
        source.lake.rename(away)
        if where == "in a batch":
            source.execute("INSERT INTO t VALUES (1)")
        else:
            source.lake.mkdir()
            cut(source)
        until(lambda: any("is gone" in step.message for step in steps), told=lambda: steps)
        assert not list(source.lake.rglob("*"))
        if where != "in a batch":
            source.lake.rmdir()
            source.execute("INSERT INTO t VALUES (1)")
        away.rename(source.lake)
        until(lambda: rows(source).height == 1)
    proven(source, given)


def test_a_removed_bronze_table_fails_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not considered new, also after a reconnect. Once it is put back, it follows again."""
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.3)
    monkeypatch.setattr(resync, "_LONGEST_PAUSE", 0.3)
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given, away = settings(source, both, retry_delay=0), source.lake / "away"
    with streaming(given) as steps:
        until(lambda: steps)
        source.table("t").rename(away)
        source.execute("INSERT INTO t VALUES (1)")
        until(lambda: any("bz_t does not exist any more" in step.message for step in steps))
        source.execute("INSERT INTO u VALUES (1)")
        until(lambda: rows(source, "u").height == 1)
        cut(source)
        before = len(steps)
        until(lambda: any("tried again" in step.message for step in steps[before:]))
        assert not source.table("t").exists()
        away.rename(source.table("t"))
        until(lambda: any("t is followed again" in step.message for step in steps))
        source.execute("INSERT INTO t VALUES (2)")
        until(lambda: rows(source).height == 2)
    proven(source, given, "t", "u")


def test_a_failed_table_is_retried(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """At growing intervals, by a resync; then it follows."""
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.1)
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given = settings(source, both)
    with streaming(given) as steps:
        until(lambda: any(not step.message for step in steps))
        assert any("u is not followed" in step.message for step in steps)
        source.execute("ALTER TABLE t ALTER v TYPE int USING 7")
        source.execute("INSERT INTO t VALUES (1, 7)")
        until(lambda: any("public.t: tried again" in step.message for step in steps), 60)
        source.execute("ALTER TABLE t ALTER v TYPE text")
        source.execute("ALTER TABLE u ADD PRIMARY KEY (id)")
        source.execute("INSERT INTO u VALUES (1)")
        for name in ("t", "u"):
            said = f"public.{name} is followed again."
            until(lambda said=said: any(said in step.message for step in steps), 60)  # type: ignore[misc]
            source.execute(f"INSERT INTO {name} VALUES (2)")
            until(lambda name=name: rows(source, name).height == 2)  # type: ignore[misc]
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_a_change_larger_than_the_memory_resyncs_its_table(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that does not fit into the memory is reported, and its table is resynced. If the row
    does not fit either, this table alone fails; the others follow.
    """
    monkeypatch.setattr(budget, "COPIES", 10**6)
    monkeypatch.setattr(budget, "_LEAST_CHANGE", 2**20)
    source.execute(TABLE)
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    both = {"t": {"pattern": "streaming"}, "u": {"pattern": "streaming"}}
    given = settings(source, both)
    caught_up(given)
    notes: list[str] = []
    source.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    # The old row and the new one come together, and each alone fits.
    source.execute("UPDATE t SET v = repeat('0123', 150000) WHERE id = 1")
    source.execute("UPDATE t SET v = repeat('4567', 150000) WHERE id = 1")
    source.execute("INSERT INTO u VALUES (1)")
    caught_up(given, notes)
    (said,) = [note for note in notes if note.startswith("public.t: resyncing")]
    assert "a change of it has 1,200,1" in said
    assert "[run] memory allows 1,048,576" in said
    proven(source, given, "t", "u")
    source.execute("UPDATE t SET v = repeat('89ab', 400000) WHERE id = 2")
    source.execute("INSERT INTO u VALUES (2)")
    result = stream.stream(given, until_caught_up=True)
    failed = {table.table: table.error for table in result.tables}
    assert failed["public.u"] is None
    assert failed["public.t"] is not None
    assert 'The row {"id" : "2"} of table public.t has 1,600,0' in failed["public.t"].message
    assert rows(source, "u").height == 2
    source.execute("UPDATE t SET v = 'small' WHERE id = 2")
    caught_up(given)
    proven(source, given, "t", "u")


COMMAND = [sys.executable, "-m", "bronze", "stream"]


def config_file(source: Source, tmp_path: Path) -> Path:
    """A bronze.toml that streams the table."""
    path = tmp_path / "bronze.toml"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n'
        f'[lake]\nroot = "{source.lake}"\n[run]\nworkers = 2\n[stream]\ninterval = 0\n'
        '[tables.t]\npattern = "streaming"\n'
    )
    return path


@pytest.mark.soak
def test_sigterm_ends_the_stream_after_its_batch(source: Source, tmp_path: Path) -> None:
    """The command ends with exit code 0, after a checkpoint of what it has applied."""
    source.execute(TABLE)
    path = config_file(source, tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "-c", str(path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    until(lambda: (source.table("t") / "_delta_log").exists())
    source.execute("INSERT INTO t VALUES (1)")
    until(lambda: rows(source).height == 1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 0
    assert json.loads(out)["changes"] == 1
    assert [t.inserted for t in caught_up(settings(source)).tables] == []


@pytest.mark.soak
def test_a_killed_stream_applies_nothing_twice(source: Source, tmp_path: Path) -> None:
    """The server sends again what was applied without a checkpoint, or not confirmed; each table
    leaves it out.
    """
    source.execute(TABLE)
    source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
    path, given = config_file(source, tmp_path), settings(source)
    command = [*COMMAND, "--until-caught-up", "-c", str(path)]

    def killed(point: str) -> None:
        env = {**os.environ, "BRONZE_FAILPOINT": point}
        done = subprocess.run(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        assert done.returncode == -signal.SIGKILL, point

    killed("committed:1")
    source.execute("UPDATE t SET v = v || '+' WHERE id <= 20")
    source.execute("INSERT INTO t SELECT g, 'w' FROM generate_series(51, 60) g")
    killed("committed:2")
    source.execute("UPDATE t SET v = v || '-' WHERE id > 40")
    killed("recorded:2")
    source.execute("DELETE FROM t WHERE id > 55")
    caught_up(given)
    proven(source, given)
