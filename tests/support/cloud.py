"""A server on loopback that speaks the protocols of clouds: Microsoft Entra ID, Azure Key Vault,
the metadata service of machines, Databricks, Google.
"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import trustme

TENANT = "11111111-2222-3333-4444-555555555555"


@dataclass
class Cloud:
    """A running server.

    ``secrets`` are by name; each ``issue`` is another token, or always ``token``. ``failures`` are
    answers that come first, by a part of the path: a status and headers. ``requests`` are the paths
    that were asked.
    """

    port: int
    ca: Path
    secrets: dict[str, str] = field(default_factory=dict)
    life: int = 3600
    requests: list[str] = field(default_factory=list)
    failures: dict[str, list[tuple[int, dict[str, str]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    issued: int = 0
    token: str = ""

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://localhost:{self.port}"

    def asked(self, part: str) -> int:
        """How many requests had this part in their path."""
        return sum(part in path for path in self.requests)

    def issue(self) -> str:
        """A new access token."""
        self.issued += 1
        return self.token or f"token-{self.issued}"

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """The status and the document that answer a request; a text is a challenge."""
        plain, _, query = path.partition("?")
        bearer = str(headers.get("Authorization", "")).removeprefix("Bearer ")
        if plain.endswith("/openid-configuration"):
            base = f"{self.url}/{TENANT}/oauth2/v2.0"
            return 200, {
                "token_endpoint": f"{base}/token",
                "authorization_endpoint": f"{base}/authorize",
                "issuer": f"{self.url}/{TENANT}/v2.0",
            }
        if plain.endswith(("/token", "/oauth2/token")):
            given = {**parse_qs(query), **parse_qs(body.decode())}
            if given.get("client_secret", ["right"]) != ["right"]:
                return 401, {"error": "invalid_client", "error_description": "AADSTS7000215: no"}
            ends = {"expires_in": self.life, "expires_on": int(time.time()) + self.life}
            return 200, {"access_token": self.issue(), "token_type": "Bearer", **ends}
        issued = {f"token-{number}" for number in range(1, self.issued + 1)}
        if bearer not in issued | ({self.token} - {""}):
            challenge = f'Bearer authorization="{self.url}/{TENANT}", resource="{self.url}"'
            return 401, challenge
        return self._document(plain, parse_qs(query), body)

    def _document(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        name = path.strip("/").split("/")
        if name[0] == "secrets":
            value = self.secrets.get(name[1])
            if value is None:
                return 404, {"error": {"code": "SecretNotFound", "message": "no"}}
            return 200, {"value": value, "id": f"{self.url}/secrets/{name[1]}/1", "attributes": {}}
        if path == "/api/2.0/secrets/get":
            value = self.secrets.get(query["key"][0])
            encoded = base64.b64encode((value or "").encode()).decode()
            return (404, {}) if value is None else (200, {"value": encoded})
        if path == "/api/2.0/database/instances:findByUid":
            return (200, {"name": "shop"}) if query["uid"] == ["localhost"] else (404, {})
        if path == "/api/2.0/database/credentials":
            assert json.loads(body)["instance_names"] == ["shop"]
            ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.life))
            return 200, {"token": self.issue(), "expiration_time": ends}
        if name[:2] == ["v1", "projects"]:
            value = self.secrets.get(name[4])
            encoded = base64.b64encode((value or "").encode()).decode()
            return (404, {}) if value is None else (200, {"payload": {"data": encoded}})
        return 404, {}


@contextmanager
def cloud(folder: Path, *, tls: bool = True) -> Iterator[Cloud]:
    """A server; the certificate of its CA is ``ca.pem`` in the folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            running.requests.append(self.path)
            for part, failures in running.failures.items():
                if part in self.path and failures:
                    status, headers = failures.pop(0)
                    return self._send(status, {}, headers)
            status, document = running.answer(self.command, self.path, self.headers, body)
            if isinstance(document, str):
                return self._send(status, {}, {"WWW-Authenticate": document})
            return self._send(status, document, {})

        do_POST = do_GET  # noqa: N815 - the name is the library's

        def _send(self, status: int, document: Any, headers: dict[str, str]) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    running = Cloud(server.server_port, folder / "ca.pem")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
