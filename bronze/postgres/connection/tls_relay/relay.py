"""Verified TLS for clients that cannot verify it: a relay inside this process.

connectorx refuses ``sslmode=verify-ca`` and ``verify-full``, and verifies nothing with ``require``.
Through the relay it connects without TLS to a Unix socket that only this user can open (to
127.0.0.1 on platforms without Unix sockets). The relay forwards each connection to PostgreSQL over
TLS that is verified as libpq verifies it::

    with relay(params) as relay_params:
        read(relay_params)  # its host, port and sslmode lead to the relay

A client in this process must release the GIL while it waits, or both wait for ever. connectorx
does so while it reads, but not for ``partition_on``; psycopg's ``cancel_safe()`` does, but not its
``cancel()``.

Differences from libpq:

- SCRAM runs without channel binding, because client and server do not share one TLS connection.
  libpq as a client would give up: it considers an offer of channel binding without TLS an attack.
- All connections go to the one address that answered first, even if the DSN has several hosts or a
  name has several addresses, because a snapshot exists on one server only.
- Those that `bronze.postgres.connection.tls_relay.tls` lists.
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

from bronze import stopping
from bronze.errors import ConfigError, SourceError, SourceRefused
from bronze.postgres.connection.tls_relay import libpq, scratch
from bronze.postgres.connection.tls_relay.tls import (
    READ,
    WRITE,
    Server,
    Stopped,
    dial,
    explain,
    first_server,
    wait,
)

_log = logging.getLogger(__name__)

_REQUEST_BYTES: Final = 16 * 1024
_RESULT_BYTES: Final = 256 * 1024
# Parameters for the relay's own connection to the server, like all that begin with "ssl".
_SERVER_PARAMETERS: Final = {"hostaddr", "requirepeer", "channel_binding", "gssencmode"}


def is_needed(params: Mapping[str, str]) -> bool:
    """Whether a client without TLS verification needs a relay for these parameters.

    Args:
        params: libpq's connection parameters. As in libpq, environment variables (``PGSSLMODE``,
            ``PGSSLROOTCERT``, …) stand for absent ones.

    Returns:
        True for ``require``, ``verify-ca`` and ``verify-full`` (which ``sslrootcert=system``
        implies), unless every host is a Unix socket, over which PostgreSQL never uses TLS.
    """
    hosts = libpq.setting(params, "host").split(",")
    local = not libpq.setting(params, "hostaddr") and all(map(libpq.is_local, hosts))
    return libpq.sslmode(params) in libpq.VERIFYING and not local


@contextmanager
def relay(params: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Opens a relay to the first server that answers, and yields the parameters to connect to it.

    Any number of threads and processes of this user may connect to it until the block ends; then
    their connections are closed.

    Args:
        params: libpq's connection parameters, completed by libpq's environment variables.
            ``connect_timeout`` is in seconds, and 30 if absent.

    Yields:
        ``params`` without the keys about TLS, with ``host`` (a directory, to be percent-encoded in
        a URL, or 127.0.0.1), ``port`` and ``sslmode=disable``. A password file does not match this
        host: passwords must be looked up before.

    Raises:
        ConfigError: the parameters contradict each other or are not supported, or a certificate,
            key or CA file cannot be read.
        SourceRefused: the server has no TLS, or its certificate is refused.
        SourceUnreachable: no server of the DSN could be reached.
    """
    server = stopping.call(lambda: first_server(params))
    with ExitStack() as stack:
        listener, relay_params = _listen(stack, params)
        # Closing ``stopper`` wakes every thread that waits with ``stop``.
        stop, stopper = socket.socketpair()
        stack.enter_context(stop)
        stack.enter_context(stopper)
        thread = threading.Thread(
            target=_accept, args=(listener, server, stop), name="bronze-relay", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(stopper.close)
        other = {
            k: v
            for k, v in params.items()
            if k not in _SERVER_PARAMETERS and not k.startswith("ssl")
        }
        yield {**other, **relay_params, "sslmode": "disable"}


def _listen(stack: ExitStack, params: Mapping[str, str]) -> tuple[socket.socket, dict[str, str]]:
    if hasattr(socket, "AF_UNIX"):
        # Only this user can enter the folder, so only this user can open the socket.
        folder = stack.enter_context(scratch.temporary_folder("bronze-tunnel-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(f"{folder}/.s.PGSQL.5432")
        relay_params = {"host": folder, "port": "5432"}
    elif libpq.client_certificate(params) is not None:
        raise ConfigError(
            "A client certificate cannot be used for parallel reads on this platform: every user of"
            " this machine could connect with it.",
            hint="Log in with a password.",
        )
    else:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        relay_params = {"host": "127.0.0.1", "port": str(listener.getsockname()[1])}
    listener.setblocking(False)
    listener.listen(128)
    return listener, relay_params


def _accept(listener: socket.socket, server: Server, stop: socket.socket) -> None:
    threads: list[threading.Thread] = []
    with suppress(Stopped):
        while True:
            wait({listener: READ}, stop)
            try:
                threads.append(_start_thread(listener, server, stop))
            except BlockingIOError:
                continue
            except (OSError, RuntimeError) as error:
                # No file descriptors or threads are left: new connections wait in the queue.
                _log.warning("the TLS relay cannot accept a connection: %s", error)
                wait({}, stop, 0.1)
            threads = [thread for thread in threads if thread.is_alive()]
    for thread in threads:
        thread.join()


def _start_thread(listener: socket.socket, server: Server, stop: socket.socket) -> threading.Thread:
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
            upstream = dial(server, stop)
        except SourceError as error:
            return _send_error(client, error, stop)
        with upstream:
            requests = _Flow(client, upstream, _REQUEST_BYTES)
            results = _Flow(upstream, client, _RESULT_BYTES)
            try:
                _forward(requests, results, stop)
            except OSError as error:
                # In TLS 1.3 the server checks the client certificate only after the handshake.
                if isinstance(error, ssl.SSLError) and not results.has_sent:
                    return _send_error(client, explain(error, server), stop)
                _log.debug("a connection through the TLS relay was cut: %s", type(error).__name__)


def _send_error(client: socket.socket, error: SourceError, stop: socket.socket) -> None:
    """Sends an error as PostgreSQL does, so that the client can report its cause."""
    _log.warning("a connection through the TLS relay failed: %s", error)
    state = b"08004" if isinstance(error, SourceRefused) else b"08001"
    fields = b"SFATAL\0VFATAL\0C%b\0M%b\0\0" % (state, error.message.encode())
    with suppress(OSError):
        client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        # Closing while a request of the client is unread would discard the answer.
        while wait({client: READ}, stop, 5) and client.recv(4096):
            pass


class _Flow:
    """Bytes on their way from one socket to another, at most ``size`` at a time."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        self._source = source
        self._sink = sink
        self._buffer = memoryview(bytearray(size))
        self._unsent = self._buffer[:0]
        self._source_closed = False
        self.has_sent = False

    @property
    def is_finished(self) -> bool:
        """Whether the source has closed and all its bytes have been sent on."""
        return self._source_closed and not self._unsent

    def step(self, waits: dict[socket.socket, int]) -> bool:
        """Fills the buffer, then empties it, as far as possible without waiting.

        Returns:
            Whether there may be more to do at once; otherwise the events to wait for are added to
            ``waits``.
        """
        filled = bool(self._unsent) or self._fill(waits)
        while self._unsent:
            sent = _attempt(self._sink.send, self._unsent, self._sink, WRITE, waits)
            if sent is None:
                return False
            self._unsent = self._unsent[sent:]
            self.has_sent = True
        return filled

    def _fill(self, waits: dict[socket.socket, int]) -> bool:
        end = 0
        while end < len(self._buffer) and not self._source_closed:
            room = self._buffer[end:]
            try:
                count = _attempt(self._source.recv_into, room, self._source, READ, waits)
            except OSError:
                if end == 0:
                    raise
                # The bytes before the failure, perhaps an error message, are sent first.
                return True
            if count is None:
                return False
            end += count
            self._unsent = self._buffer[:end]
            self._source_closed = count == 0
        return True


def _attempt(
    operation: Callable[[memoryview], int],
    part: memoryview,
    sock: socket.socket,
    event: int,
    waits: dict[socket.socket, int],
) -> int | None:
    # TLS may have to write in order to read, and vice versa.
    try:
        return operation(part)
    except BlockingIOError:
        waits[sock] |= event
    except ssl.SSLWantReadError:
        waits[sock] |= READ
    except ssl.SSLWantWriteError:
        waits[sock] |= WRITE
    return None


def _forward(requests: _Flow, results: _Flow, stop: socket.socket) -> None:
    while not (requests.is_finished or results.is_finished):
        waits: dict[socket.socket, int] = defaultdict(int)
        more = results.step(waits)
        try:
            more = requests.step(waits) or more
        except OSError:
            # A server that reads no more requests may have sent the reason.
            results.step(waits)
            raise
        wait(waits, stop, 0 if more else None)
