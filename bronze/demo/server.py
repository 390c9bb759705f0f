"""An embedded PostgreSQL server, with the programs of `bronze.demo.installation`.

The server listens on 127.0.0.1 only and trusts every login from there: it is for demos and tests
with generated data. PostgreSQL does not run as root: for root, the server runs as an unprivileged
user, who owns the data directory.
"""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bronze.demo.installation import binary, environment, folder, version
from bronze.errors import ConfigError, SourceUnreachable

HOST = "127.0.0.1"
LOG = "server.log"

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "wal_level": "logical",
        "max_connections": "50",
        "shared_buffers": "128MB",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        "maintenance_work_mem": "128MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)
_START_SECONDS = 120
_PORT_ATTEMPTS = 5
_ORPHAN_SECONDS = 15.0
_LEFTOVER_SECONDS = 3600.0
_DYING_SECONDS = 2.0
# The first version with a built-in UTF-8 locale.
_BUILTIN_LOCALE = 17


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that `start` has started.

    Attributes:
        data: the data directory, absolute.
        host: the address on which it listens, always 127.0.0.1.
        port: its TCP port.
    """

    data: Path
    host: str
    port: int

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """The connection URL, ``postgresql://user@127.0.0.1:port/database``."""
        return f"postgresql://{user}@{self.host}:{self.port}/{database}"

    def stop(self, mode: Literal["fast", "immediate", "smart"] = "fast") -> None:
        """Stops the server and waits until it has stopped; does nothing if it is not running.

        Raises:
            SourceUnreachable: it did not stop (with ``smart``, while clients are connected).
        """
        done = _pg_ctl(self.data, "stop", "--mode", mode)
        if done.returncode and _is_running(self.data):
            raise SourceUnreachable(
                f"PostgreSQL in {self.data} did not stop: {_last_lines(done.stdout)}",
                hint="Disconnect its clients, or stop it with mode 'immediate'.",
            )


def start(
    data: Path, *, port: int | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> Server:
    """Starts the server in ``data`` and waits until it accepts connections.

    Args:
        data: the data directory. If it is missing or empty, it is initialised (UTF-8, locale
            C.UTF-8, superuser ``postgres``); after a crash, the server recovers it.
        port: the TCP port; a free one if None.
        settings: PostgreSQL settings; they override the defaults here and the config files.

    Raises:
        ConfigError: the package is not installed, ``data`` contains something else, or there is no
            unprivileged user to run as.
        SourceUnreachable: the server did not start; the message ends with the last lines of its
            log.
    """
    data = data.absolute()
    binary("postgres")
    _initialise(data, durable=settings.get("fsync", "on") != "off")
    _refuse_running(data)
    failure = ""
    for _ in range(_PORT_ATTEMPTS if port is None else 1):
        chosen = _free_port() if port is None else port
        failure = _launch(data, {**_DEFAULTS, **settings, "port": str(chosen)})
        if not failure:
            return Server(data, HOST, chosen)
        if "could not bind" not in failure:
            break
    raise SourceUnreachable(
        f"PostgreSQL in {data} did not start: {_last_lines(failure)}",
        hint=f"The complete log is in {data / LOG}.",
    )


@contextmanager
def running(
    data: Path, *, port: int | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> Iterator[Server]:
    """Starts a server as `start` does, and stops it at the end of the block."""
    server = start(data, port=port, settings=settings)
    try:
        yield server
    finally:
        server.stop()


def _initialise(data: Path, *, durable: bool) -> None:
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        if not (data / "PG_VERSION").exists():
            raise ConfigError(
                f"{data} is not a PostgreSQL data directory, and it is not empty.",
                hint="Choose a directory that is new or empty.",
            )
        _give_to_unprivileged_user(data)
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    for leftover in data.parent.glob(f".{glob.escape(data.name)}.*"):
        # Left by a process that was killed: the initialisation takes seconds.
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    # Initialised under another name, then renamed: an interrupted initdb leaves no ``data``.
    fresh = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
    try:
        _give_to_unprivileged_user(fresh)
        _initdb(fresh, durable=durable)
        if data.exists():
            data.rmdir()
        fresh.rename(data)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _initdb(data: Path, *, durable: bool) -> None:
    arguments = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    if version() >= _BUILTIN_LOCALE:
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    else:
        arguments += ["--lc-ctype=C.UTF-8"]
    arguments += [] if durable else ["--no-sync"]
    done = _run(data, "initdb", *arguments, "-D", ".")
    if done.returncode:
        raise SourceUnreachable(
            f"PostgreSQL could not initialise {data}: {_last_lines(done.stdout)}"
        )


def _launch(data: Path, settings: Mapping[str, str]) -> str:
    """Starts the server; returns its log if it failed, '' if it runs."""
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    line = subprocess.list2cmdline(options) if sys.platform == "win32" else shlex.join(options)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        log_start = _size(data / LOG)
        try:
            done = _pg_ctl(data, "start", "-l", LOG, "-t", str(_START_SECONDS), "-o", line)
        except BaseException:
            _pg_ctl(data, "stop", "--mode", "immediate")
            raise
        if done.returncode == 0:
            return ""
        if "did not start in time" in done.stdout:
            _pg_ctl(data, "stop", "--mode", "immediate")
        log = _read_from(data / LOG, log_start) or done.stdout or "pg_ctl failed"
        # Backends of a killed postmaster live for a moment longer, and keep its shared memory.
        if "pre-existing shared memory" not in log or time.monotonic() > deadline:
            return log
        time.sleep(0.1)


def _refuse_running(data: Path) -> None:
    # A postmaster that was just killed still counts as running for a moment.
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        _remove_dead_lock(data)
        if not _is_running(data):
            return
        if time.monotonic() > deadline:
            raise SourceUnreachable(
                f"A PostgreSQL server is already running in {data}.",
                hint="Stop it first, or use another directory.",
            )
        time.sleep(0.05)


def _is_running(data: Path) -> bool:
    return _pg_ctl(data, "status").returncode == 0


def _remove_dead_lock(data: Path) -> None:
    # In a container without an init process a killed postmaster stays a zombie, which PostgreSQL
    # takes for a running server.
    lock = data / "postmaster.pid"
    with suppress(OSError, ValueError, IndexError):
        pid = int(lock.read_text().split("\n", 1)[0])
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in ("Z", "X"):
            lock.unlink()


def _pg_ctl(data: Path, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(data, "pg_ctl", action, "-w", "-D", ".", *arguments)


def _run(data: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The directory is always ".": pg_ctl and initdb paste its path into a shell command.
    # Output goes to a file: the server could inherit a pipe, and keep it open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(  # noqa: S603
                [str(binary(program)), *arguments],
                cwd=data,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                **_identity(data),
            )
        except FileNotFoundError:
            return subprocess.CompletedProcess([program], 4, f"{data} does not exist")
        except OSError as error:
            raise SourceUnreachable(f"{program} could not run: {error}") from error
        output.seek(0)
        text = output.read().decode(errors="replace")
    return subprocess.CompletedProcess(done.args, done.returncode, text)


def _identity(data: Path) -> dict[str, Any]:
    """The arguments with which :func:`subprocess.run` runs as the owner of ``data``."""
    if sys.platform == "win32" or os.geteuid() != 0 or not data.exists():
        return {}
    owner = data.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _give_to_unprivileged_user(data: Path) -> None:
    """For root: makes an unprivileged user the owner of ``data``, and gives it access."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    if data.stat().st_uid == 0:
        uid, gid = _unprivileged_user()
        for path in (data, *data.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    _make_parents_accessible(data)
    server = binary("postgres").resolve()
    _make_parents_accessible(server)
    if not server.stat().st_mode & stat.S_IXOTH:
        top = folder()
        _make_tree_readable(top)
        _make_tree_readable(top.with_name(f"{top.name}.libs"))


def _unprivileged_user() -> tuple[int, int]:
    import pwd

    with suppress(KeyError):
        return pwd.getpwnam("postgres")[2:4]
    with suppress(OSError):
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", "postgres"]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)[2:4]
    raise ConfigError(
        "PostgreSQL does not run as root, and there is no other user to run it as.",
        hint="Run as another user, or add one: useradd --system postgres",
    )


def _make_parents_accessible(path: Path) -> None:
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            with suppress(OSError):
                parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _make_tree_readable(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        mode = path.stat().st_mode
        executable = stat.S_IXOTH if mode & stat.S_IXUSR else 0
        path.chmod(stat.S_IMODE(mode) | stat.S_IROTH | executable)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_from(path: Path, offset: int) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")
    return ""


def _last_lines(text: str, count: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
