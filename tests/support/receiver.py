"""The other side of channels: HTTP and SMTP servers that record what they get, and answer as a test
wants.
"""

from __future__ import annotations

import base64
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Request:
    """What was posted."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """An HTTP server: its URL, the requests, and the answers (status, body, headers) in order; the
    last one is repeated.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[int, str, dict[str, str]]] = field(
        default_factory=lambda: [(202, '{"status": "success", "message": "Event processed"}', {})]
    )
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, count: int, seconds: float = 20) -> list[Request]:
        """The requests, when there are so many."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, seconds), (
                f"{len(self.requests)} of {count} requests came"
            )
            return list(self.requests)

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        """Answers so from now on."""
        self.answers = [(status, body, headers)]

    def _take(self, request: Request) -> tuple[int, str, dict[str, str]]:
        with self.arrived:
            self.requests.append(request)
            self.arrived.notify_all()
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def receiver(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """An HTTP server, over TLS with a context."""
    made = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text, headers = made._take(
                Request(self.path, dict(self.headers), body, time.time())
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST  # noqa: N815 - the name is the library's

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    made.url = f"{'https' if context else 'http'}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS for a server named localhost; the certificate of its CA is ``ca.pem`` in the folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return context


@dataclass
class PostOffice:
    """An SMTP server: its port, the mails, and the answers to commands that are not 250."""

    port: int = 0
    mails: list[bytes] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    speak: Callable[[socket.socket], None] | None = None
    """Speaks in place of the server, such as nothing, or too slowly."""


@contextmanager
def post_office(
    context: ssl.SSLContext | None = None, *, implicit: bool = False
) -> Iterator[PostOffice]:
    """An SMTP server that has STARTTLS with a context, or begins with TLS."""
    office, listening = PostOffice(), socket.create_server(("127.0.0.1", 0))
    office.port = listening.getsockname()[1]
    open_ones: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection: socket.socket) -> None:
        with suppress(OSError, ValueError), ExitStack() as stack:
            stack.enter_context(connection)
            if office.speak:
                office.speak(connection)
                return
            if implicit and context:
                connection = stack.enter_context(context.wrap_socket(connection, server_side=True))
            _converse(office, connection, None if implicit else context, stack)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield office
    finally:
        for connection in [listening, *open_ones]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        thread.join()


def _converse(
    office: PostOffice,
    connection: socket.socket,
    context: ssl.SSLContext | None,
    stack: ExitStack,
) -> None:
    def say(text: str) -> None:
        connection.sendall(f"{text}\r\n".encode())

    lines = stack.enter_context(connection.makefile("rb"))
    say("220 localhost")
    while line := lines.readline().decode().rstrip("\r\n"):
        verb = line.split(maxsplit=1)[0].upper()
        if verb in office.answers and verb != "MESSAGE":
            say(office.answers[verb])
        elif verb == "EHLO":
            is_tls = isinstance(connection, ssl.SSLSocket)
            say("250-localhost")
            if context and not is_tls:
                say("250-STARTTLS")
            say("250 AUTH PLAIN")
        elif verb == "STARTTLS" and context:
            say("220 go on")
            connection = stack.enter_context(context.wrap_socket(connection, server_side=True))
            lines = stack.enter_context(connection.makefile("rb"))
        elif verb == "AUTH":
            office.logins.append(base64.b64decode(line.split()[-1]).decode())
            say("235 welcome")
        elif verb == "RCPT":
            office.recipients.append(line)
            say("250 known")
        elif verb == "DATA":
            say("354 go on")
            text = b""
            while (part := lines.readline()) != b".\r\n":
                text += part
            office.mails.append(text)
            office.encrypted.append(isinstance(connection, ssl.SSLSocket))
            if "MESSAGE" in office.answers and not office.answers["MESSAGE"]:
                return
            say(office.answers.get("MESSAGE", "250 accepted"))
        elif verb == "QUIT":
            say("221 bye")
            return
        else:
            say("250 fine")
