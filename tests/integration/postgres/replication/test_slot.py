"""Replication slots are created, found, lost and dropped; connections stream from them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bronze.demo.server import Server, running
from bronze.errors import ConfigError, SourceBusy, SourceRefused, SourceUnreachable
from bronze.model.locations import Origin
from bronze.postgres.connection import connect, session_settings
from bronze.postgres.replication import slot
from tests.conftest import FAST, Source
from tests.support.features import has
from tests.support.proxy import until


@pytest.fixture
def origin(source: Source) -> Iterator[Origin]:
    """The test's database; its slots are dropped before it is."""
    yield source.settings().origin("test")
    source.execute(
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
        " WHERE database = current_database() AND active"
    )
    source.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE database = current_database() AND NOT temporary"
    )


@pytest.fixture
def name(source: Source) -> str:
    """A slot name of this test only: slots belong to the whole server."""
    return f"{psycopg.conninfo.conninfo_to_dict(source.dsn)['dbname']}_slot"


@pytest.fixture
def login(source: Source) -> Iterator[str]:
    """A role with LOGIN and no other privileges."""
    role = f"{psycopg.conninfo.conninfo_to_dict(source.dsn)['dbname']}_role"
    source.execute(f"CREATE ROLE {role} LOGIN")
    yield role
    source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def as_role(origin: Origin, role: str) -> Origin:
    """The same database for another role."""
    conninfo = psycopg.conninfo.make_conninfo(origin.conninfo, user=role)
    return replace(origin, conninfo=conninfo)


def sending(origin: Origin) -> closing[connect.Connection]:
    """A walsender that is closed without the COMMIT that psycopg's own context sends."""
    return closing(slot.walsender(origin))


def streamed(sender: connect.Connection, name: str, publication: str) -> bytes:
    """The messages of pgoutput up to the first commit, concatenated."""
    options = f"proto_version '1', publication_names '{publication}'"
    sender.pgconn.exec_(f"START_REPLICATION SLOT {name} LOGICAL 0/0 ({options})".encode())
    found = b""
    while True:
        size, data = sender.pgconn.get_copy_data(0)
        assert size > 0
        message = bytes(data)
        if message[:1] != b"w":
            continue
        found += message[25:]
        if message[25:26] == b"C":
            return found


def test_a_position_is_the_integer_of_postgresqls_text(source: Source) -> None:
    """As PostgreSQL computes it, in both directions."""
    for text in ("0/0", "0/1", "16/B374D848", "FFFFFFFF/FFFFFFFF"):
        assert "{:X}/{:X}".format(*divmod(slot.lsn(text), 2**32)) == text
        ((number,),) = source.execute(f"SELECT '{text}'::pg_lsn - '0/0'::pg_lsn")
        assert slot.lsn(text) == number


@contextmanager
def writing(source: Source) -> Iterator[None]:
    """A thread inserts 1, 2, 3, … into t, each in its own transaction."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(source.dsn, autocommit=True) as writer:
            # What is not on the server's disk yet is not streamed.
            writer.execute("SET synchronous_commit = on")
            for number in itertools.count(1):
                writer.execute("INSERT INTO t VALUES (%s)", [number])
                if stop.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_the_exported_snapshot_is_consistent_with_the_stream(
    source: Source, origin: Origin, name: str
) -> None:
    """Commits before the position are in the snapshot, later ones in the stream, none in both.

    A writer commits all the time; another connection imports the snapshot later.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    with writing(source), sending(origin) as sender, psycopg.connect(source.dsn) as reader:
        until(lambda: source.execute("SELECT count(*) > 20 FROM t")[0][0])
        made = slot.create(sender, name, temporary=False, failover=False)
        after: Any = source.execute("SELECT max(id) FROM t")[0][0]
        until(lambda: source.execute(f"SELECT max(id) > {after} + 20 FROM t")[0][0])
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        reader.execute(sql.SQL(f"SET TRANSACTION SNAPSHOT '{made.snapshot}'"))
        seen = [row[0] for row in reader.execute("SELECT id FROM t ORDER BY id")]
    query = (
        "SELECT data FROM pg_logical_slot_peek_binary_changes("
        "%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')"
    )
    changes = [row[0] for row in source.execute(query, name)]
    commits = [int.from_bytes(data[2:10]) for data in changes if data[:1] == b"C"]
    later = [int(data[13:]) for data in changes if data[:1] == b"I"]
    last: Any = source.execute("SELECT max(id) FROM t")[0][0]
    assert seen + later == list(range(1, last + 1))
    assert seen
    assert later
    assert min(commits) >= made.position


def test_the_state_of_a_slot_has_its_positions_and_its_process(
    source: Source, origin: Origin, name: str
) -> None:
    """With its positions and the process that streams from it; before it is created, it is None."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    with connect.connect(origin) as connection, sending(origin) as sender:
        assert slot.find(connection, name) is None
        made = slot.create(sender, name, temporary=False, failover=True)
        found = slot.find(connection, name)
        assert found
        assert (found.name, found.plugin, found.temporary) == (name, "pgoutput", False)
        assert found.confirmed == made.position
        assert found.restart
        assert found.restart <= made.position
        assert (found.active_pid, found.wal_status, found.reason) == (None, "reserved", "")
        assert not found.is_invalidated
        connection.execute("SET synchronous_commit = on")
        connection.execute("INSERT INTO public.t SELECT generate_series(1, 1000)")
        later = slot.find(connection, name)
        assert later
        assert later.retained > found.retained + 1000
        assert later.retained <= slot.flushed_position(connection) - found.restart
        assert b"1000" in streamed(sender, name, "p")
        busy = slot.find(connection, name)
        assert busy
        assert busy.active_pid == sender.info.backend_pid
        copied = (
            "SELECT (to_jsonb(s) ->> 'failover')::bool FROM pg_replication_slots s"
            " WHERE slot_name = %s"
        )
        assert source.execute(copied, name) == [(True if has("failover slots") else None,)]


def test_a_temporary_slot_ends_with_its_connection(origin: Origin, name: str) -> None:
    """Also with failover requested."""
    with connect.connect(origin) as connection:
        with sending(origin) as sender:
            slot.create(sender, name, temporary=True, failover=True)
            found = slot.find(connection, name)
            assert found
            assert found.temporary
            assert found.active_pid == sender.info.backend_pid
        until(lambda: slot.find(connection, name) is None)


def test_older_servers_get_statements_that_they_support(
    source: Source, origin: Origin, name: str
) -> None:
    """The statement for 14 exports a snapshot, too; that for 16 does not request failover."""
    old = slot._create_statement(name, 140022, temporary=True, failover=True)
    assert old == sql.SQL(
        f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT'
    )
    with sending(origin) as sender, psycopg.connect(source.dsn) as reader:
        row: Any = sender.execute(old).fetchone()
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute(sql.SQL(f"SET TRANSACTION SNAPSHOT '{row[2]}'"))
    assert "FAILOVER" not in repr(
        slot._create_statement(name, 160010, temporary=False, failover=True)
    )


def test_a_slot_of_another_database_or_plugin_is_refused(
    server: Server, source: Source, origin: Origin, name: str
) -> None:
    """The error says what it is; it is neither used nor dropped."""
    elsewhere, physical = f"{name}_elsewhere", f"{name}_standby"
    cases = {
        name: (source.dsn, f"pg_create_logical_replication_slot('{name}', 'test_decoding')"),
        elsewhere: (
            server.dsn("postgres"),
            f"pg_create_logical_replication_slot('{elsewhere}', 'pgoutput')",
        ),
        physical: (source.dsn, f"pg_create_physical_replication_slot('{physical}')"),
    }
    says = {
        name: "one of plugin test_decoding",
        elsewhere: "in database postgres",
        physical: "a physical slot",
    }
    for taken, (dsn, made) in cases.items():
        with psycopg.connect(dsn, autocommit=True) as other, connect.connect(origin) as connection:
            other.execute(sql.SQL(f"SELECT {made}"))
            try:
                with pytest.raises(ConfigError, match=says[taken]) as caught:
                    slot.find(connection, taken)
                with pytest.raises(ConfigError):
                    slot.drop(connection, taken)
                assert "another name" in caught.value.hint
            finally:
                other.execute("SELECT pg_drop_replication_slot(%s)", [taken])


def test_an_existing_or_invalid_name_is_refused(origin: Origin, name: str) -> None:
    """The error says which of the two."""
    with sending(origin) as sender:
        slot.create(sender, name, temporary=False, failover=False)
        with pytest.raises(ConfigError, match=f"{name} exists already"):
            slot.create(sender, name, temporary=False, failover=False)
        with pytest.raises(ConfigError, match="does not accept the name"):
            slot.create(sender, "Bronze Slot", temporary=False, failover=False)


def test_dropping_a_slot_twice_is_no_error(origin: Origin, name: str) -> None:
    """After the first time it does not exist."""
    with connect.connect(origin) as connection:
        with sending(origin) as sender:
            slot.create(sender, name, temporary=False, failover=False)
        slot.drop(connection, name)
        assert slot.find(connection, name) is None
        slot.drop(connection, name)


def test_a_walsender_that_is_ending_is_waited_for(origin: Origin, name: str) -> None:
    """A slot whose client has just gone is dropped as soon as the server knows it."""
    with connect.connect(origin) as connection, sending(origin) as sender:
        slot.create(sender, name, temporary=True, failover=False)
        ending = threading.Timer(0.3, sender.close)
        ending.start()
        slot.drop(connection, name)
        ending.join()
        assert slot.find(connection, name) is None


def test_a_slot_in_use_is_not_dropped(
    source: Source, origin: Origin, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the server process that streams from it; the slot stays."""
    monkeypatch.setattr(slot, "_LEAVING", 0.1)
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    with connect.connect(origin) as connection, sending(origin) as sender:
        slot.create(sender, name, temporary=False, failover=False)
        source.execute("INSERT INTO t VALUES (1)")
        streamed(sender, name, "p")
        pid = sender.info.backend_pid
        with pytest.raises(SourceBusy, match=f"{name} is in use by server process {pid}") as caught:
            slot.drop(connection, name)
        assert f"pg_terminate_backend({pid})" in caught.value.hint
        assert slot.find(connection, name)


ODD = {
    "DateStyle": "'SQL, DMY'",
    "TimeZone": "'Asia/Kolkata'",
    "IntervalStyle": "'iso_8601'",
    "extra_float_digits": "-10",
    "bytea_output": "'escape'",
    "statement_timeout": "'1h'",
    "lock_timeout": "'1h'",
    "client_encoding": "'LATIN1'",
    **{
        setting: "'1h'"
        for setting in ("idle_session_timeout", "transaction_timeout")
        if has(setting)
    },
}

VALUES = """
CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamptz, i interval, f float8, b bytea, s text);
CREATE PUBLICATION p FOR TABLE t
"""
ROW = """
INSERT INTO t VALUES (1, '2026-12-31', '2026-12-31 23:59:58+00', '1 year 2 days 03:04:05',
                      0.1::float8 + 0.2::float8, '\\x00ff41', 'é€')
"""
TEXTS = (
    "2026-12-31",
    "2026-12-31 23:59:58+00",
    "1 year 2 days 03:04:05",
    "0.30000000000000004",
    "\\x00ff41",
    "é€",
)


@pytest.mark.parametrize("where", ["ROLE {role} IN DATABASE {database}", "DATABASE {database}"])
def test_values_of_pgoutput_do_not_depend_on_settings_of_role_or_database(
    source: Source, origin: Origin, name: str, login: str, where: str
) -> None:
    """They have the same texts as those of a SELECT in a pinned session."""
    source.execute(f"ALTER ROLE {login} REPLICATION")
    database = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    for setting, value in ODD.items():
        target = where.format(role=login, database=database)
        source.execute(f"ALTER {target} SET {setting} = {value}")
    limited = as_role(replace(origin, statement_timeout=7, lock_timeout=7), login)
    with sending(limited) as sender:
        assert sender.info.encoding == "utf-8"
        for setting, value in session_settings.PINNED.items():
            shown: Any = sender.execute(sql.SQL(f"SHOW {setting}")).fetchone()
            assert shown[0] == value, setting
        timeouts = (setting for setting in ODD if setting.endswith("_timeout"))
        for setting in timeouts:
            shown = sender.execute(sql.SQL(f"SHOW {setting}")).fetchone()
            assert shown[0] == "0", setting
        with psycopg.connect(source.dsn, client_encoding="UTF8") as writer:
            writer.execute(VALUES)
        slot.create(sender, name, temporary=False, failover=False)
        with psycopg.connect(source.dsn, client_encoding="UTF8") as writer:
            writer.execute(ROW)
        found = streamed(sender, name, "p")
    for text in map(str.encode, TEXTS):
        assert b"t" + len(text).to_bytes(4) + text in found, text


def test_the_stream_is_utf8_for_a_database_in_another_encoding(server: Server, name: str) -> None:
    """For example LATIN1."""
    database = f"{name}_latin1"
    made = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    if has("strategies and locale providers of databases"):
        made += " LOCALE_PROVIDER libc"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL(f"CREATE DATABASE {database} {made}"))
        try:
            origin = Origin("test", server.dsn(database))
            with connect.connect(origin) as writer, sending(origin) as sender:
                writer.execute("CREATE TABLE public.t (id int PRIMARY KEY, s text)")
                writer.execute("CREATE PUBLICATION p FOR TABLE public.t")
                slot.create(sender, name, temporary=True, failover=False)
                writer.execute("INSERT INTO public.t VALUES (1, 'é')")
                assert "é".encode() in streamed(sender, name, "p")
        finally:
            there = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
            until(lambda: admin.execute(there, [name]).fetchone() == (0,))
            admin.execute(sql.SQL(f"DROP DATABASE {database} WITH (FORCE)"))


def test_a_role_without_replication_is_refused(origin: Origin, login: str) -> None:
    """The hint names the missing attribute."""
    with pytest.raises(SourceRefused, match="refused a replication connection") as caught:
        slot.walsender(as_role(origin, login))
    assert "REPLICATION" in caught.value.hint


def test_a_server_that_does_not_run_is_unreachable(server: Server) -> None:
    """The errors of a walsender are those of every connection."""
    away = Origin("test", f"postgresql://postgres@{server.host}:1/postgres")
    with pytest.raises(SourceUnreachable):
        slot.walsender(away)


def test_the_flushed_position_is_the_end_of_the_log(source: Source, origin: Origin) -> None:
    """An integer that grows with every commit."""
    source.execute("CREATE TABLE t (id int)")
    with connect.connect(origin) as connection:
        before = slot.flushed_position(connection)
        ((flushed,),) = source.execute("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
        assert before <= flushed
        connection.execute("SET synchronous_commit = on")
        connection.execute("INSERT INTO public.t SELECT generate_series(1, 1000)")
        assert slot.flushed_position(connection) > before + 1000


def test_asynchronous_commits_are_before_the_flushed_position(
    source: Source, origin: Origin
) -> None:
    """It waits until they are flushed."""
    source.execute("CREATE TABLE t (id int)")
    with connect.connect(origin) as connection:
        connection.execute("SET synchronous_commit = off")
        for _ in range(20):
            row = connection.execute(
                "INSERT INTO public.t VALUES (1)"
                " RETURNING pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
            ).fetchone()
            assert row is not None
            position = slot.committed_position(connection)
            assert int(str(row[0])) <= position <= slot.flushed_position(connection)


def test_the_wal_sender_timeout_is_in_seconds(source: Source, origin: Origin) -> None:
    """That of the database, on a walsender as on any other connection."""
    database = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    with connect.connect(origin) as connection:
        assert slot.sender_timeout(connection) == 60.0
    source.execute(f"ALTER DATABASE {database} SET wal_sender_timeout = '1500ms'")
    with connect.connect(origin) as connection, sending(origin) as sender:
        assert slot.sender_timeout(connection) == slot.sender_timeout(sender) == 1.5


def test_only_one_session_can_claim_a_slot(origin: Origin, name: str) -> None:
    """A second one cannot until the first ends; it can claim other slots."""
    with connect.connect(origin) as second:
        with connect.connect(origin) as first:
            assert slot.claim(first, name)
            assert not slot.claim(second, name)
            assert slot.claim(second, f"{name}_other")
        until(lambda: slot.claim(second, name))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one slot, one WAL sender and a small limit for retained log."""
    settings = {
        **FAST,
        "max_replication_slots": "1",
        "max_wal_senders": "1",
        "max_slot_wal_keep_size": "1MB",
        "shared_buffers": "16MB",
        "max_wal_size": "32MB",
        "min_wal_size": "32MB",
    }
    folder: Path = tmp_path_factory.mktemp("narrow")
    with running(folder / "data", settings=settings) as started:
        yield started


@pytest.mark.soak
def test_a_slot_beyond_the_size_limit_is_lost(narrow: Server) -> None:
    """After more log than max_slot_wal_keep_size and a checkpoint."""
    origin = Origin("test", narrow.dsn())
    with connect.connect(origin) as connection:
        with closing(_patiently(origin)) as sender:
            slot.create(sender, "one", temporary=False, failover=False)
        found = slot.find(connection, "one")
        assert found
        assert found.safe_wal_size
        assert not found.is_invalidated
        for _ in range(4):
            connection.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
            connection.execute("SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")
        lost = slot.find(connection, "one")
        assert lost
        reason = "wal_removed" if has("invalidation_reason") else ""
        assert (lost.wal_status, lost.reason) == ("lost", reason)
        assert lost.is_invalidated
        assert lost.safe_wal_size is None
        assert (lost.restart, lost.retained) == (None, 0)
        slot.drop(connection, "one")


def test_errors_name_the_limit_when_all_slots_or_wal_senders_are_in_use(narrow: Server) -> None:
    """The hint says how to raise it."""
    origin = Origin("test", narrow.dsn())
    with closing(_patiently(origin)) as sender:
        slot.create(sender, "one", temporary=True, failover=False)
        with pytest.raises(SourceBusy, match="no free WAL sender") as caught:
            slot.walsender(origin)
        assert "max_wal_senders" in caught.value.hint
    with connect.connect(origin) as connection:
        until(lambda: slot.find(connection, "one") is None)
        connection.execute("SELECT pg_create_physical_replication_slot('taken')")
        try:
            with (
                closing(_patiently(origin)) as sender,
                pytest.raises(SourceRefused, match="slots of the server are in use") as refused,
            ):
                slot.create(sender, "one", temporary=False, failover=False)
            assert "max_replication_slots" in refused.value.hint
        finally:
            connection.execute("SELECT pg_drop_replication_slot('taken')")


def _patiently(origin: Origin) -> connect.Connection:
    # A closed WAL sender still counts for a moment.
    for _ in range(100):
        try:
            return slot.walsender(origin)
        except SourceBusy:
            time.sleep(0.05)
    return slot.walsender(origin)


@pytest.mark.soak
def test_a_slot_needs_wal_level_logical(tmp_path: Path) -> None:
    """The hint names the setting."""
    settings = {**FAST, "wal_level": "replica", "shared_buffers": "16MB"}
    with running(tmp_path / "data", settings=settings) as started:
        origin = Origin("test", started.dsn())
        with sending(origin) as sender:
            with pytest.raises(SourceRefused, match="has no row changes") as caught:
                slot.create(sender, "one", temporary=True, failover=False)
            assert "wal_level = logical" in caught.value.hint
