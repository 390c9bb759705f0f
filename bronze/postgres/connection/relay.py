"""Verified TLS for clients that cannot verify: a relay inside this process.

connectorx refuses ``sslmode=verify-ca`` and ``verify-full``, and checks nothing under ``require``.
Here it connects without TLS to a Unix socket that only this user can open (to 127.0.0.1 where the
platform has no Unix sockets), and every such connection goes on to PostgreSQL through TLS that
is verified as libpq would have done::

    with relay(params) as near:
        read(near)  # host, port and sslmode of ``near`` lead through the relay

A client in this process must let go of the GIL while it waits, or both wait for ever. connectorx
does so while it reads; it does not for ``partition_on``, nor does psycopg's ``cancel()`` (its
``cancel_safe()`` does).

Where libpq and this relay differ:

- SCRAM runs without channel binding, because client and server do not share one TLS connection.
  libpq itself, seeing the server offer it without TLS, takes that for an attack and gives up: the
  relay is for clients that cannot verify.
- All connections go to the one address that answered at the start, even if the DSN names several
  hosts or a name has several addresses: a snapshot lives on one server.
- And where `bronze.postgres.connection.tls` does.
"""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from bronze.errors import ConfigError, SourceError, SourceRefused
from bronze.postgres.connection import libpq, scratch
from bronze.postgres.connection.tls import READ, WRITE, Server, Stopped, dial, explain, reach, wait

_log = logging.getLogger(__name__)

_REQUEST_BYTES: Final = 16 * 1024
_RESULT_BYTES: Final = 256 * 1024
# What leads to the server, not to the relay; so does all that begins with "ssl".
_CONSUMED: Final = {"hostaddr", "requirepeer", "channel_binding", "gssencmode"}


def needed(params: Mapping[str, str]) -> bool:
    """Says whether a client without TLS verification needs a relay for these parameters.

    Args:
        params: libpq's connection parameters; absent ones are taken from libpq's environment
            variables (``PGSSLMODE``, ``PGSSLROOTCERT``, …), as libpq does.

    Returns:
        True for ``require``, ``verify-ca`` and ``verify-full`` (which ``sslrootcert=system``
        implies), unless every host is a Unix socket, where PostgreSQL never uses TLS.
    """
    hosts = libpq.setting(params, "host").split(",")
    local = not libpq.setting(params, "hostaddr") and all(map(libpq.is_local, hosts))
    return libpq.mode(params) in libpq.VERIFYING and not local


@contextmanager
def relay(params: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Opens a relay to the first server that answers, and yields the parameters to use it by.

    Any number of threads and processes of this user may connect through it, until the block
    ends; then their connections are cut.

    Args:
        params: libpq's connection parameters, completed by libpq's environment variables.
            ``connect_timeout`` is in seconds, and 30 if absent.

    Yields:
        ``params`` without the keys that concern TLS, with ``host`` (a directory, to be
        percent-encoded in a URL, or 127.0.0.1), ``port`` and ``sslmode=disable``. A password
        file does not match this host: look passwords up before.

    Raises:
        ConfigError: the parameters contradict each other or cannot be honoured, or a
            certificate, key or CA file cannot be read.
        SourceRefused: the server has no TLS, or its certificate is not accepted.
        SourceUnreachable: no server of the DSN could be reached.
    """
    server = reach(params)
    with ExitStack() as stack:
        listener, near = _listen(stack, params)
        stop, bell = socket.socketpair()
        stack.enter_context(stop)
        stack.enter_context(bell)
        thread = threading.Thread(
            target=_accept, args=(listener, server, stop), name="bronze-relay", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(bell.close)
        kept = {k: v for k, v in params.items() if k not in _CONSUMED and not k.startswith("ssl")}
        yield {**kept, **near, "sslmode": "disable"}


def _listen(stack: ExitStack, params: Mapping[str, str]) -> tuple[socket.socket, dict[str, str]]:
    if hasattr(socket, "AF_UNIX"):
        # It is for this user alone, who thereby guards the socket as well.
        folder = stack.enter_context(scratch.folder("bronze-tunnel-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(f"{folder}/.s.PGSQL.5432")
        near = {"host": folder, "port": "5432"}
    elif libpq.client_certificate(params) is not None:
        raise ConfigError(
            "a client certificate cannot be used for parallel reads on this platform",
            hint="every user of this machine could use it; log in with a password",
        )
    else:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        near = {"host": "127.0.0.1", "port": str(listener.getsockname()[1])}
    listener.setblocking(False)
    listener.listen(128)
    return listener, near


def _accept(listener: socket.socket, server: Server, stop: socket.socket) -> None:
    threads: list[threading.Thread] = []
    with suppress(Stopped):
        while True:
            wait({listener: READ}, stop)
            try:
                threads.append(_take(listener, server, stop))
            except BlockingIOError:
                continue
            except (OSError, RuntimeError) as error:
                # Out of file descriptors or threads: who comes next stays in the queue meanwhile.
                _log.warning("the relay cannot take a connection: %s", error)
                wait({}, stop, 0.1)
            threads = [thread for thread in threads if thread.is_alive()]
    for thread in threads:
        thread.join()


def _take(listener: socket.socket, server: Server, stop: socket.socket) -> threading.Thread:
    client, _ = listener.accept()
    thread = threading.Thread(
        target=_serve, args=(client, server, stop), name="bronze-relay-client", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        client.close()
        raise
    return thread


def _serve(client: socket.socket, server: Server, stop: socket.socket) -> None:
    with client, suppress(Stopped):
        client.setblocking(False)
        try:
            far = dial(server, stop)
        except SourceError as error:
            return _tell(client, error, stop)
        with far:
            up = _Flow(client, far, _REQUEST_BYTES)
            down = _Flow(far, client, _RESULT_BYTES)
            try:
                _pump(up, down, stop)
            except OSError as error:
                # In TLS 1.3 the server judges our certificate only after the handshake.
                if isinstance(error, ssl.SSLError) and not down.begun:
                    return _tell(client, explain(error, server), stop)
                _log.debug("a relayed connection was cut: %s", type(error).__name__)


def _tell(client: socket.socket, error: SourceError, stop: socket.socket) -> None:
    """Answers the client as PostgreSQL would, so that it can say more than "closed"."""
    _log.warning("a relayed connection failed: %s", error)
    state = b"08004" if isinstance(error, SourceRefused) else b"08001"
    fields = b"SFATAL\0VFATAL\0C%b\0M%b\0\0" % (state, error.message.encode())
    with suppress(OSError):
        client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        # Closing with the client's request unread would discard the answer.
        while wait({client: READ}, stop, 5) and client.recv(4096):
            pass


class _Flow:
    """Bytes on their way from one socket to another, never more than ``size`` of them."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        self._source = source
        self._sink = sink
        self._buffer = memoryview(bytearray(size))
        self._rest = self._buffer[:0]
        self._closed = False
        self.begun = False

    @property
    def finished(self) -> bool:
        """Whether the source has closed and all it sent has been passed on."""
        return self._closed and not self._rest

    def step(self, waits: dict[socket.socket, int]) -> bool:
        """Fills the buffer, then empties it, as far as that goes without waiting.

        Returns:
            Whether it got through, so that there may be more to do at once; else ``waits`` has
            the events to wait for.
        """
        drained = bool(self._rest) or self._fill(waits)
        while self._rest:
            sent = _attempt(self._sink.send, self._rest, self._sink, WRITE, waits)
            if sent is None:
                return False
            self._rest = self._rest[sent:]
            self.begun = True
        return drained

    def _fill(self, waits: dict[socket.socket, int]) -> bool:
        end = 0
        while end < len(self._buffer) and not self._closed:
            room = self._buffer[end:]
            try:
                count = _attempt(self._source.recv_into, room, self._source, READ, waits)
            except OSError:
                if end == 0:
                    raise
                # What came before the failure, PostgreSQL's last words perhaps, goes first.
                return True
            if count is None:
                return False
            end += count
            self._rest = self._buffer[:end]
            self._closed = count == 0
        return True


def _attempt(
    operation: Callable[[memoryview], int],
    part: memoryview,
    sock: socket.socket,
    event: int,
    waits: dict[socket.socket, int],
) -> int | None:
    # TLS may have to write in order to read, and the other way round.
    try:
        return operation(part)
    except BlockingIOError:
        waits[sock] |= event
    except ssl.SSLWantReadError:
        waits[sock] |= READ
    except ssl.SSLWantWriteError:
        waits[sock] |= WRITE
    return None


def _pump(up: _Flow, down: _Flow, stop: socket.socket) -> None:
    while not (up.finished or down.finished):
        waits: dict[socket.socket, int] = defaultdict(int)
        more = down.step(waits)
        try:
            more = up.step(waits) or more
        except OSError:
            # A server that takes no more may have said why.
            down.step(waits)
            raise
        wait(waits, stop, 0 if more else None)
