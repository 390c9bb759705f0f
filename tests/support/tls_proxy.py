"""A TLS proxy before a PostgreSQL that was built without TLS."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
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

    def _forward(self, client: ssl.SSLSocket) -> None:
        self.sessions.append((client.version(), client.selected_alpn_protocol()))
        certificate: Any = client.getpeercert()
        if certificate:
            self.clients.append(dict(part[0] for part in certificate["subject"])["commonName"])
        with socket.create_connection(("127.0.0.1", self.backend)) as server:
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
