"""Poolers: one that shares sessions among clients is refused before any setting is changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from bronze.api import check
from bronze.cdc import stream
from bronze.demo.server import Server
from bronze.errors import SourceBusy, SourceRefused
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.postgres.connection import connect, session_settings
from tests.conftest import Source
from tests.support.content import differences
from tests.support.pooler import PGBOUNCER, Mode, Pooler, pgbouncer
from tests.support.proxy import proxied

needs_pgbouncer = pytest.mark.skipif(not PGBOUNCER, reason="pgbouncer is not installed")


@contextmanager
def pooled(server: Server, source: Source, mode: Mode, **options: Any) -> Iterator[Source]:
    """The same database behind a simulated pooler."""
    database = str(conninfo_to_dict(source.dsn)["dbname"])
    with Pooler(server, database, mode, **options).accepting() as pooler:
        yield Source(pooler.dsn, source.lake)


def refusal(source: Source) -> str:
    """The message of the error that refuses a connection."""
    with pytest.raises(SourceRefused) as caught:
        connect.connect(Origin("test", source.dsn)).close()
    assert "session mode" in caught.value.hint
    return caught.value.message


def check_unpinned(source: Source) -> None:
    """Checks that no server connection of the pooler has a setting of bronze."""
    with ExitStack() as stack:
        sessions = set()
        for _ in range(5):
            client = stack.enter_context(psycopg.connect(source.dsn))
            session = client.execute("SELECT pg_backend_pid(), current_setting('search_path')")
            sessions.update(session.fetchall())
            pinned = client.execute(
                "SELECT count(*) FROM pg_settings WHERE source = 'session'"
                " AND name = ANY(%s) AND name <> 'client_encoding'",
                [list(session_settings.PINNED)],
            ).fetchone()
            assert pinned == (0,)
        assert len(sessions) == 5
        assert {path for _, path in sessions} == {'"$user", public'}


@contextmanager
def busy(source: Source, clients: int) -> Iterator[None]:
    """Other clients of the pooler, which run one short query after another."""
    stop = threading.Event()

    def query() -> None:
        with psycopg.connect(source.dsn, autocommit=True, prepare_threshold=None) as client:
            while not stop.is_set():
                client.execute("SELECT 1")

    threads = [threading.Thread(target=query) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("oldest", [False, True], ids=["last", "oldest"])
def test_transaction_mode_is_refused(server: Server, source: Source, oldest: bool) -> None:
    """Whichever server connection the pooler chooses, even always the same one, and whether other
    clients use it or not: no setting is left behind.
    """
    with pooled(server, source, "transaction", oldest=oldest) as behind:
        for _ in range(3):
            assert "changes the server connection between transactions" in refusal(behind)
        check_unpinned(behind)
        for clients in (1, 3):
            with busy(behind, clients):
                for _ in range(3):
                    refusal(behind)
        check_unpinned(behind)


def test_every_command_refuses_transaction_mode(server: Server, source: Source) -> None:
    """A run, a check and a stream raise the same error and read nothing."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    with pooled(server, source, "transaction") as behind:
        streaming = behind.settings(tables={"t": {"pattern": "streaming"}})
        for command in (pipeline.run, check.check, stream.stream):
            with pytest.raises(SourceRefused, match="go through a pooler"):
                command(behind.settings() if command is pipeline.run else streaming)
        check_unpinned(behind)


def test_session_mode_works(server: Server, source: Source) -> None:
    """A session that is not shared is pinned, and all rows are read through it."""
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, '10.0.0.1'::inet AS ip FROM generate_series(1, 1000) i"
    )
    with pooled(server, source, "session") as behind:
        result = pipeline.run(behind.settings())
        assert [(t.error, t.rows_read) for t in result.tables] == [(None, 1000)]
        assert differences(behind.settings()) == {}
        with connect.connect(behind.settings().origin("test")) as connection:
            assert connection.execute("SHOW search_path").fetchone() == ("",)


def test_a_pooler_with_one_server_connection_raises_a_timeout(
    server: Server, source: Source
) -> None:
    """The test for shared sessions does not wait for ever for a second server connection."""
    with pooled(server, source, "session", size=1) as behind:
        with pytest.raises(SourceBusy, match="gave no server connection within 1 s") as caught:
            connect.connect(Origin("test", behind.dsn, connect_timeout=1))
        assert "three server connections" in caught.value.hint


def test_a_port_forwarding_proxy_is_accepted(server: Server, source: Source) -> None:
    """Behind a translation of addresses and ports, sessions are not shared and can be used."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    with proxied(server) as proxy:
        behind = Source(proxy.dsn(str(conninfo_to_dict(source.dsn)["dbname"])), source.lake)
        assert [t.error for t in pipeline.run(behind.settings()).tables] == [None]


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pgbouncer_is_accepted_in_session_mode_only(
    server: Server, source: Source, tmp_path: Path, mode: Mode
) -> None:
    """The real pgbouncer is accepted in session mode and refused in transaction mode."""
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 1000) i")
    database = str(conninfo_to_dict(source.dsn)["dbname"])
    with pgbouncer(server, database, mode) as dsn:
        behind = Source(dsn, tmp_path / "lake")
        if mode == "session":
            result = pipeline.run(behind.settings())
            assert [t.error for t in result.tables] == [None]
            assert differences(behind.settings()) == {}
        else:
            refusal(behind)
            with busy(behind, 3):
                for _ in range(3):
                    refusal(behind)
            check_unpinned(behind)


def test_settings_that_hide_damaged_pages_are_refused(source: Source) -> None:
    """Where damaged pages would be read as empty or valid, nothing is read."""
    role = f"{conninfo_to_dict(source.dsn)['dbname']}_damage"
    source.execute(f"CREATE ROLE {role} LOGIN")
    try:
        for name in session_settings.HIDING_DAMAGE:
            source.execute(f"ALTER ROLE {role} SET {name} = on")
            with pytest.raises(SourceRefused, match=name) as caught:
                connect.connect(Origin("test", source.dsn.replace("postgres@", f"{role}@")))
            assert f"RESET {name}" in caught.value.hint
            source.execute(f"ALTER ROLE {role} RESET {name}")
    finally:
        source.execute(f"DROP ROLE {role}")
