"""Object stores on loopback, each behind a gateway that counts requests, delays, refuses and cuts.

S3 is moto, Azure is azurite, Google is moto too: the XML interface of Google is that of S3 but for
a few headers, which the gateway translates.
"""

from __future__ import annotations

import http.client
import http.server
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
# The order of the headers of XML API requests does not matter; their names do.
_OF_GOOGLE = {"x-goog-if-generation-match": ("if-none-match", "*")}
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host,"
    " Signature=0"
)
AZURE_ACCOUNT, AZURE_KEY = (
    "devstoreaccount1",
    ("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="),
)  # The key of every emulator, which its documentation has.


@dataclass
class Gateway:
    """A store behind its gateway.

    ``requests`` are the methods and paths that came, ``spans`` when each began and ended, by a
    monotonic clock; ``delay`` is in seconds, ``sent`` the bytes of all answers; ``failures`` are
    statuses that are answered first, with ``code`` (a usual one if it is ""); ``refuse`` says which
    requests are answered with 403, by their headers; ``immutable`` imitates a policy of Azure by
    which no object can be replaced; ``cut`` says which request is cut in its middle, after which
    the store is away for ``away`` seconds.
    """

    url: str = ""
    google: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    spans: list[tuple[float, float, str, str]] = field(default_factory=list)
    delay: float = 0.0
    failures: list[int] = field(default_factory=list)
    code: str = ""
    refuse: Callable[[Any], bool] = lambda _: False
    immutable: bool = False
    cut: Callable[[str, str, int], bool] | None = None
    away: float = 1.0
    back: float = 0.0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def round_trips(gateway: Gateway) -> int:
    """How many requests followed each other: the longest series in which each began after the one
    before had ended.
    """
    count, ended = 0, 0.0
    for began, end, *_ in sorted(gateway.spans, key=lambda span: span[1]):
        if began >= ended:
            count, ended = count + 1, end
    return count


@dataclass(frozen=True)
class Store:
    """A lake's root on a store, the options that reach it, and its gateway."""

    root: str
    options: dict[str, str]
    gateway: Gateway


@contextmanager
def gateway(upstream: str, *, google: bool = False) -> Iterator[Gateway]:
    """A gateway before a store."""
    target = urlsplit(upstream)
    running = Gateway(google=google)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        upstream: http.client.HTTPConnection | None = None

        def do_GET(self) -> None:
            began = time.monotonic()
            try:
                self._answer()
            finally:
                span = (began, time.monotonic(), self.command, self.path)
                running.spans.append(span)

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            with running.lock:
                running.requests.append((self.command, self.path))
                status = running.failures.pop(0) if running.failures else 0
                cut = running.cut
                if cut is not None and cut(self.command, self.path, length):
                    running.cut = None
                    running.back = time.monotonic() + running.away
                    self.rfile.read(length // 2)
            if time.monotonic() < running.back:
                self.close_connection = True
                return
            body = self.rfile.read(length)
            time.sleep(running.delay)
            if not status and running.refuse(self.headers):
                status = 403
            if running.immutable and self.command == "PUT" and "If-None-Match" not in self.headers:
                status = 409
            if status:
                usual = {
                    403: "InvalidAccessKeyId",
                    409: "BlobImmutableDueToPolicy",
                    503: "SlowDown",
                }.get(status, "Error")
                code = running.code or usual
                text = f"<Error><Code>{code}</Code></Error>".encode()
                self._send(status, {}, text)
                return
            self._send(*self._forward(body))

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            path = self.path
            if running.google:
                # Moto knows no tokens, and deletes nothing for who has not signed.
                headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
                headers["Authorization"] = SIGNED
                for name, (other, value) in _OF_GOOGLE.items():
                    if headers.pop(name, None) is not None:
                        headers[other] = value
                plain, mark, query = path.partition("?")
                path = quote(unquote(plain)) + mark + query
            else:
                headers["Host"] = self.headers["Host"]
            for attempt in (0, 1):
                if self.upstream is None:
                    self.upstream = http.client.HTTPConnection(str(target.hostname), target.port)
                try:
                    self.upstream.request(self.command, path, body or None, headers)
                    answer = self.upstream.getresponse()
                    data = answer.read()
                    break
                except (http.client.HTTPException, OSError):
                    self.upstream.close()
                    self.upstream = None
                    if attempt:
                        raise
            back = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            if self.command == "HEAD":
                back["Content-Length"] = answer.getheader("Content-Length") or "0"
            return answer.status, back, data

        def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                with running.lock:
                    running.sent += len(data)
                self.wfile.write(data)

        def handle(self) -> None:
            # Clients close connections when they like.
            with suppress(OSError):
                super().handle()
            if self.upstream is not None:
                self.upstream.close()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def moto(bucket: str) -> Iterator[str]:
    """The address of an imitated S3 with one bucket. As with S3, of several writers of a new object
    one wins: moto looks whether there is one before it writes, but not both in one step.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    running: Any = server._server
    running.app = _one_after_another(running.app)
    connection = http.client.HTTPConnection(host, port)
    connection.request("PUT", f"/{bucket}")
    assert connection.getresponse().status == 200
    connection.close()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _one_after_another(app: Callable[..., Any]) -> Callable[..., Any]:
    """A WSGI application that handles conditional requests one after another."""
    lock = threading.Lock()

    def handle(environ: dict[str, Any], start: Any) -> Any:
        with lock if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return app(environ, start)

    return handle


@contextmanager
def s3() -> Iterator[Store]:
    """An S3 behind a gateway."""
    with moto("lake") as upstream, gateway(upstream) as gate:
        options = {
            "aws_access_key_id": "key",
            "aws_secret_access_key": "word",
            "aws_region": "us-east-1",
            "aws_endpoint_url": gate.url,
            "aws_allow_http": "true",
        }
        yield Store("s3://lake", options, gate)


@contextmanager
def google() -> Iterator[Store]:
    """A Google Cloud Storage behind a gateway."""
    with moto("lake-of-google") as upstream, gateway(upstream, google=True) as gate:
        options = {
            "google_skip_signature": "true",
            "google_base_url": gate.url,
            "google_allow_http": "true",
        }
        yield Store("gs://lake-of-google", options, gate)


def azurite() -> list[str] | None:
    """The command of azurite, None if it cannot be had: it is taken from npm."""
    home = Path(os.environ.get("BRONZE_AZURITE") or Path(tempfile.gettempdir(), "azurite"))
    program = home / "node_modules" / ".bin" / "azurite-blob"
    npm = shutil.which("npm")
    if not program.exists():
        if npm is None or shutil.which("node") is None:
            return None
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-fund", "--no-audit", "--prefix", str(home), "azurite@3"]
        if subprocess.run(command, capture_output=True, timeout=300).returncode:
            return None
    return [str(program), "--skipApiVersionCheck", "--disableTelemetry", "--silent"]


@contextmanager
def azure(folder: Path, command: list[str]) -> Iterator[Store]:
    """An Azure Blob Storage behind a gateway; its data is in the folder."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    process = subprocess.Popen([*command, *place], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, "azurite did not start"
            assert time.monotonic() < deadline, "azurite does not answer"
            time.sleep(0.05)
        with gateway(f"http://127.0.0.1:{port}") as gate:
            options = {
                "azure_storage_account_name": AZURE_ACCOUNT,
                "azure_storage_account_key": AZURE_KEY,
                "azure_storage_endpoint": f"{gate.url}/{AZURE_ACCOUNT}",
                "azure_allow_http": "true",
            }
            _create_container(f"http://127.0.0.1:{port}", "lake")
            yield Store("abfss://lake@devstoreaccount1.dfs.core.windows.net", options, gate)
    finally:
        process.terminate()
        process.wait(30)


def _create_container(url: str, name: str) -> None:
    """Creates a container, by a request signed with the account's key."""
    import base64
    import hashlib
    import hmac
    from email.utils import formatdate

    date, version = formatdate(usegmt=True), "2021-08-06"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    text = "PUT\n" + "\n" * 11 + headers + resource
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    target = urlsplit(url)
    connection = http.client.HTTPConnection(str(target.hostname), target.port)
    sent = {
        "x-ms-date": date, "x-ms-version": version,
        "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}",
    }  # fmt: skip
    connection.request("PUT", f"/{AZURE_ACCOUNT}/{name}?restype=container", headers=sent)
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()


def shared_access(ends: float, container: str = "lake") -> str:
    """A SAS for a container of azurite, which it takes until its end, in seconds since 1970.

    It is a service SAS (learn.microsoft.com, "Create a service SAS"): azurite takes those of user
    delegation only with tokens of Microsoft Entra ID.
    """
    import base64
    import hashlib
    import hmac
    from urllib.parse import urlencode

    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    parts = {"sv": "2018-11-09", "sr": "c", "sp": "racwdl", "se": end}
    resource = f"/blob/{AZURE_ACCOUNT}/{container}"
    fields = [parts["sp"], "", end, resource, "", "", "", parts["sv"], "c", "", *[""] * 5]
    digest = hmac.new(base64.b64decode(AZURE_KEY), "\n".join(fields).encode(), hashlib.sha256)
    return urlencode({**parts, "sig": base64.b64encode(digest.digest()).decode()})
