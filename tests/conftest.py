"""One PostgreSQL for the session, one database of its own for each test that wants one."""

from __future__ import annotations

import base64
import faulthandler
import functools
import gc
import importlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer.main
import typer.testing
from hypothesis import settings as hypothesis_settings
from psycopg import sql

from bronze.config import loading
from bronze.config.sections.protection import MASTER_KEY
from bronze.config.settings import Settings
from bronze.demo.server import Server, running
from tests.support.effort import examples
from tests.support.features import has
from tests.support.object_store import moto
from tests.support.session import Session, execute_once

FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # A vacuum in the middle holds up whoever creates a slot.
    "autovacuum": "off",
    # What commits is streamed at once.
    "wal_writer_delay": "10ms",
    # To create and to drop a database is to look through all buffers.
    "shared_buffers": "16MB",
}
ROOM = {"max_connections": "60", "max_prepared_transactions": "5"}
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of random name is made in it
_ENOUGH = 4 * 2**30
# The quickest way to make a database; before 15 it is the only one.
_COPYING = "STRATEGY file_copy" if has("strategies and locale providers of databases") else ""
_numbers = itertools.count()
# The seconds that a test has after its timeout, to clean up and to report.
_GRACE = 60.0
_STDERR = pytest.StashKey[int]()
# Waits for the end of its standard input, which is the end of the tests, whatever ends them.
_CLEANER = """
read -r _
read -r pid < "$1/data/postmaster.pid" || exit 0
kill -QUIT "$pid"
while kill -0 "$pid"; do sleep 0.1; done
rm -rf "$1"
"""
# Tables of tests are small: more threads to read their logs wait for each other more than they do.
os.environ.setdefault("TOKIO_WORKER_THREADS", "1")

# Of properties that set no number. The time of an example is that of a machine with other work.
hypothesis_settings.register_profile("effort", max_examples=examples(100), deadline=None)
hypothesis_settings.load_profile("effort")

# To build the command line, which is the same for each call, takes longer than most calls.
vars(typer.testing)["_get_command"] = functools.cache(typer.main.get_command)

# Imports make objects that stay, which a collection would look through again and again: as often
# as Python collects, it takes a sixth of the tests' time.
gc.disable()


def pytest_collection_finish() -> None:
    """Leaves what was imported out of collections, and lets these be rarer."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps standard error as it is before tests are captured."""
    config.stash[_STDERR] = os.dup(2)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Has each worker compile a share of the tests, of which the others find the bytecode: on a
    fresh clone each would compile all of them, which takes longer than to import them.
    """
    config = session.config
    worker = getattr(config, "workerinput", None)
    if worker is None or config.args != config.getini("testpaths"):
        return
    first, step = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    ignored = [config.rootpath / path for path in config.getoption("ignore") or ()]
    paths = sorted((config.rootpath / "tests").rglob("test_*.py"))
    paths = [path for path in paths if not any(map(path.is_relative_to, ignored))]
    for path in paths[first::step]:
        # What cannot be imported, or skips itself, is so when it is collected.
        with suppress(Exception, pytest.skip.Exception):
            module = path.relative_to(config.rootpath).with_suffix("").parts
            importlib.import_module(".".join(module))


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Ends the process, with the stacks of all threads, where a timeout does not end its test.

    A timeout is an exception in the main thread. Hypothesis catches it and tries the example again,
    without a timeout; other code waits for ever in a ``finally``.
    """
    stderr = item.config.stash[_STDERR]
    faulthandler.dump_traceback_later(settings.timeout + _GRACE, exit=True, file=stderr)


def pytest_timeout_cancel_timer() -> None:
    """The test has ended."""
    faulthandler.cancel_dump_traceback_later()


def _quick() -> Path | None:
    """A folder in memory with room for a server, None where there is none."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH:
        return _MEMORY
    return None


@contextmanager
def _cleaned_up(folder: str) -> Iterator[None]:
    """Stops the server in ``folder`` and removes it also where the tests are killed."""
    if os.name != "posix":
        yield
        return
    command = ["sh", "-c", _CLEANER, "sh", folder]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    ):
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The session's PostgreSQL."""
    # Under root PostgreSQL runs as another user, to whom another pytest would close its folders.
    # A database is three hundred files, which most disks make and remove slowly.
    with (
        tempfile.TemporaryDirectory(prefix="bronze-tests-", dir=_quick()) as folder,
        _cleaned_up(folder),
        running(Path(folder) / "data", settings={**FAST, **ROOM}) as started,
    ):
        # The first session in a database builds a cache of its catalog, which copies of it have.
        psycopg.connect(started.dsn("template1")).close()
        yield started


@pytest.fixture(autouse=True)
def master_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A master key of the test's own, in the environment."""
    key = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv(MASTER_KEY, key)
    return key


@dataclass(frozen=True)
class Source:
    """A database of a test's own, and a lake beside it."""

    dsn: str
    lake: Path
    session: Session | None = field(default=None, kw_only=True, compare=False)

    def execute(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Runs one statement, committed; returns its rows, if it has any."""
        if self.session:
            return self.session.execute(statement, arguments)
        return execute_once(self.dsn, statement, arguments)

    def settings(self, **sections: Mapping[str, Any]) -> Settings:
        """Settings for this database and lake; ``sections`` add to the config's sections."""
        document: dict[str, Any] = {
            "source": {"name": "test", "dsn": self.dsn, "schema": "public"},
            "lake": {"root": str(self.lake), "schema": "bronze"},
            "run": {"workers": 2, "max_retries": 0, "retry_delay": 0},
            # What comes is applied at once: a batch is not gathered for a second.
            "stream": {"interval": 0},
        }
        for name, values in sections.items():
            document[name] = {**document.get(name, {}), **values}
        return loading.parse(document)

    def table(self, name: str) -> Path:
        """The folder of a Bronze table."""
        return self.lake / "bronze" / f"bz_{name}"


@contextmanager
def database(server: Server, lake: Path) -> Iterator[Source]:
    """An empty database, which is dropped in the end."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        create = sql.SQL(f"CREATE DATABASE {{}} {_COPYING}")
        admin.execute(create.format(sql.Identifier(name)))
        with closing(Session(server.dsn(name))) as session:
            yield Source(server.dsn(name), lake, session=session)
        without_slots(admin, name)
        _drop(admin, name)


def _drop(admin: psycopg.Connection[Any], name: str) -> None:
    ending = "WITH (FORCE)"
    if not has("forced drops of databases"):
        ending = ""
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    admin.execute(sql.SQL(f"DROP DATABASE {{}} {ending}").format(sql.Identifier(name)))


@pytest.fixture
def source(server: Server, tmp_path: Path) -> Iterator[Source]:
    """A test's own database."""
    with database(server, tmp_path / "lake") as made:
        yield made


def without_slots(admin: psycopg.Connection[Any], database: str) -> None:
    """Drops the slots of a database, which cannot be dropped as long as it has any."""
    for _ in range(500):
        left = admin.execute(
            "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s",
            [database],
        ).fetchall()
        if not left:
            return
        for name, pid in left:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            with suppress(psycopg.errors.UndefinedObject):
                try:
                    admin.execute("SELECT pg_drop_replication_slot(%s)", [name])
                except psycopg.errors.ObjectInUse:
                    # The walsender is still ending.
                    admin.execute("SELECT pg_sleep(0.02)")


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """The options that reach the bucket ``lake`` of an imitated S3."""
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "word"}
    with moto("lake") as url:
        yield {"aws_endpoint_url": url, "aws_region": "us-east-1", "allow_http": "true", **login}
