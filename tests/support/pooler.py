"""Poolers between bronze and its source: an imitation of one, and pgbouncer itself."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg

from bronze.demo.server import Server
from tests.support.proxy import until

Mode = Literal["session", "transaction"]

PGBOUNCER = shutil.which("pgbouncer") or (
    "/usr/sbin/pgbouncer" if Path("/usr/sbin/pgbouncer").exists() else None
)
_SSL_REQUEST, _GSS_REQUEST, _CANCEL = 80877103, 80877104, 80877102


@dataclass
class _Stream:
    """A socket that gives whole messages."""

    sock: socket.socket
    data: bytes = b""

    def messages(self) -> list[bytes]:
        """Those that have come; none where the other side has gone."""
        more = self.sock.recv(1 << 16)
        self.data += more
        found = []
        while len(self.data) >= 5:
            end = 1 + struct.unpack("!I", self.data[1:5])[0]
            if len(self.data) < end:
                break
            found.append(self.data[:end])
            self.data = self.data[end:]
        return found if more else [b""]


@dataclass
class Pooler:
    """A pooler on a port of its own, which gives a server connection to a session or a transaction.

    ``oldest`` has it take the server connection that has rested longest, not the last one.
    """

    server: Server
    database: str
    mode: Mode
    size: int = 20
    oldest: bool = False
    port: int = 0
    _free: deque[_Stream] = field(default_factory=deque)
    _made: int = 0
    _over: bool = False
    _change: threading.Condition = field(default_factory=threading.Condition)

    @property
    def dsn(self) -> str:
        """The URL of the database behind the pooler."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self.database}"

    @contextmanager
    def accepting(self) -> Iterator[Pooler]:
        """Accepts connections for as long as the context lasts."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            thread.start()
            yield self
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        with self._change:
            self._over = True
            for stream in self._free:
                stream.sock.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            # Messages are sent one by one: each would wait for the answer to the one before.
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            while True:
                (length,) = struct.unpack("!I", _exactly(near, 4))
                body = _exactly(near, length - 4)
                (code,) = struct.unpack("!I", body[:4])
                if code == _CANCEL:
                    return
                if code not in (_SSL_REQUEST, _GSS_REQUEST):
                    break
                near.sendall(b"N")
            known = b"".join(
                _message(b"S", name + b"\0" + value + b"\0")
                for name, value in ((b"server_version", b"18.0"), (b"client_encoding", b"UTF8"))
            )
            # Its own number for cancelling, as every pooler has to give out.
            own = _message(b"K", struct.pack("!II", 1, secrets.randbits(31)))
            near.sendall(_message(b"R", struct.pack("!I", 0)) + known + own + _message(b"Z", b"I"))
            self._pass(_Stream(near))

    def _pass(self, near: _Stream) -> None:
        far: _Stream | None = None
        waiting, clean = 0, True
        try:
            while True:
                both = [near.sock] if far is None else [near.sock, far.sock]
                for ready in select.select(both, [], [])[0]:
                    if ready is near.sock:
                        for message in near.messages():
                            if message[:1] in (b"", b"X"):
                                return
                            far = far or self._taken()
                            waiting += message[:1] in (b"Q", b"S")
                            clean = False
                            far.sock.sendall(message)
                    elif far is not None and ready is far.sock:
                        for message in far.messages():
                            near.sock.sendall(message)
                            waiting -= message[:1] == b"Z"
                            clean = message[:1] == b"Z" and message[5:] == b"I" and not waiting
                        if clean and self.mode == "transaction":
                            self._give_back(far)
                            far = None
        finally:
            if far is not None:
                with self._change:
                    far.sock.close()
                    self._made -= 1
                    self._change.notify()

    def _taken(self) -> _Stream:
        with self._change:
            while not self._free and self._made >= self.size:
                self._change.wait()
            if self._free:
                return self._free.popleft() if self.oldest else self._free.pop()
            self._made += 1
        far = socket.create_connection((self.server.host, self.server.port))
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        given = b"user\0postgres\0database\0" + self.database.encode() + b"\0\0"
        stream = _Stream(far)
        try:
            far.sendall(struct.pack("!II", 8 + len(given), 3 << 16) + given)
            kinds: set[bytes] = set()
            while b"Z" not in kinds:
                kinds = {message[:1] for message in stream.messages()}
                if b"" in kinds:
                    raise OSError("the server has gone")
        except OSError:
            far.close()
            raise
        return stream

    def _give_back(self, far: _Stream) -> None:
        with self._change:
            if self._over:
                far.sock.close()
                return
            self._free.append(far)
            self._change.notify()


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("gone")
        data += more
    return data


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


_CONFIG = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 20
"""


@contextmanager
def pgbouncer(server: Server, database: str, mode: Mode) -> Iterator[str]:
    """The URL of a database behind pgbouncer."""
    assert PGBOUNCER
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bronze-tests-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            _CONFIG.format(host=server.host, port=server.port, own=own, mode=mode), "utf-8"
        )
        # It does not run as root.
        user = "nobody" if sys.platform != "win32" and os.geteuid() == 0 else None
        running = subprocess.Popen([PGBOUNCER, "-q", str(config)], user=user)
        dsn = f"postgresql://postgres@127.0.0.1:{own}/{database}"

        def there() -> bool:
            with suppress(psycopg.OperationalError):
                psycopg.connect(dsn).close()
                return True
            return False

        try:
            until(there)
            yield dsn
        finally:
            running.terminate()
            running.wait()
