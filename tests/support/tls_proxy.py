"""A TLS proxy before a PostgreSQL that was built without TLS."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class TlsProxy:
    """A TLS proxy for a PostgreSQL that was built without TLS; it can also misbehave.

    It answers the request for TLS, or a direct handshake, and forwards the rest without TLS.
    """

    def __init__(
        self, backend: int, tls: ssl.SSLContext, family: socket.AddressFamily = socket.AF_INET
    ) -> None:
        self.backend = backend
        self.tls = tls
        self.answer = b"S"
        self.sessions: list[tuple[str | None, str | None]] = []
        self.clients: list[str] = []
        self._open: list[socket.socket] = []
        here = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self._listener = socket.create_server((here, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cuts every connection without a message."""
        for sock in self._open:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Cuts everything and waits for the threads."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            if sock.recv(1, socket.MSG_PEEK) == b"\0":
                assert sock.recv(8) == struct.pack("!II", 8, 80877103)
                sock.sendall(self.answer)
            if self.answer != b"S":
                sock.recv(1)
                return
            with self.tls.wrap_socket(sock, server_side=True) as client:
                self._open.append(client)
                self._forward(client)

    def log_in(self, client: ssl.SSLSocket, server: socket.socket) -> bool:
        """Whether to forward what comes; by default the server alone asks for passwords."""
        return True

    def _forward(self, client: ssl.SSLSocket) -> None:
        self.sessions.append((client.version(), client.selected_alpn_protocol()))
        certificate: Any = client.getpeercert()
        if certificate:
            self.clients.append(dict(part[0] for part in certificate["subject"])["commonName"])
        with socket.create_connection(("127.0.0.1", self.backend)) as server:
            if not self.log_in(client, server):
                return
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)


class TokenProxy(TlsProxy):
    """A TLS proxy that asks for the password itself, as clouds do that take tokens; the server
    trusts it. ``passwords`` are those that came, ``accepts`` says which are right.
    """

    def __init__(
        self, backend: int, tls: ssl.SSLContext, accepts: Callable[[str], object] = bool
    ) -> None:
        self.accepts = accepts
        self.passwords: list[str] = []
        super().__init__(backend, tls)

    def log_in(self, client: ssl.SSLSocket, server: socket.socket) -> bool:
        """Asks for a cleartext password (protocol 3, "Message Formats")."""
        startup = _message(client)
        if startup[4:8] == struct.pack("!I", 80877102):  # a request to cancel has no password
            server.sendall(startup)
            return True
        client.sendall(b"R" + struct.pack("!II", 8, 3))
        if _read(client, 1) != b"p":
            return False
        password = _message(client)[4:].rstrip(b"\0").decode()
        self.passwords.append(password)
        if not self.accepts(password):
            fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"
            client.sendall(b"E" + struct.pack("!I", 4 + len(fields)) + fields)
            return False
        server.sendall(startup)
        return True


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("the client has gone")
        data += more
    return data


def _message(sock: socket.socket) -> bytes:
    """A message without its kind: its length and the rest."""
    head = _read(sock, 4)
    return head + _read(sock, struct.unpack("!I", head)[0] - 4)
