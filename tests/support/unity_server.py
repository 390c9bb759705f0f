"""A Databricks workspace with Unity Catalog on loopback, which keeps what it is told.

It refuses what Databricks documents to refuse: missing privileges, values outside of enumerations,
overlapping locations, unknown fields, tokens that have ended. Where each rule comes from is said in
`tests.support.unity`. ``databricks-sdk`` reads from it what was put there, over REST and by SQL.
"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import trustme

from tests.support.unity import columns, open_source, routes
from tests.support.unity.lineage import Lineage
from tests.support.unity.locations import Vendor
from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.refusals import Refusal
from tests.support.unity.sql import Interpreter
from tests.support.unity.statements import Statements, Warehouse

ADMIN, BRONZE = "admin@example.com", "bronze@example.com"


@dataclass
class Unity:
    """A running workspace.

    ``tokens`` are the principals by token, ``ends`` the ends of tokens that end (in seconds since
    1970), ``clients`` the secrets and principals of OAuth clients by id. ``failures`` are answers
    that come first, by a part of the path: a status and headers. ``requests`` are the methods and
    paths that came. ``page`` is the length of pages. With ``is_open_source`` it is a server of the
    open-source Unity Catalog.
    """

    url: str = ""
    is_open_source: bool = False
    metastore: Metastore = field(default_factory=Metastore)
    lineage: Lineage = field(default_factory=Lineage)
    vendor: Vendor = field(default_factory=Vendor)
    mounts: dict[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    clients: dict[str, tuple[str, str]] = field(default_factory=dict)
    life: float = 3600.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, list[tuple[int, dict[str, str]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    page: int = 100
    lock: threading.RLock = field(default_factory=threading.RLock)

    statements: Statements = field(init=False)

    def __post_init__(self) -> None:
        self.statements = Statements(Interpreter(self.metastore, self.mounts))
        self.metastore.admins.add(ADMIN)
        self.metastore.principals |= {ADMIN, BRONZE}
        self.tokens |= {"admin-token": ADMIN, "bronze-token": BRONZE}
        self.clients["bronze-client"] = ("bronze-client-secret", BRONZE)

    # What tests prepare

    def principals(self, *names: str) -> None:
        """Adds users, groups or service principals."""
        self.metastore.principals |= set(names)

    def catalog(self, name: str = "workspace", owner: str = ADMIN) -> Securable:
        """Adds a catalog."""
        return self.metastore.add(
            "CATALOG", name, owner, isolation_mode="OPEN", catalog_type="MANAGED_CATALOG"
        )

    def schema(self, name: str, owner: str = ADMIN) -> Securable:
        """Adds a schema by its full name."""
        catalog = name.partition(".")[0]
        return self.metastore.add("SCHEMA", name, owner, catalog_name=catalog)

    def location(self, name: str, url: str, owner: str = ADMIN) -> Securable:
        """Adds an external location."""
        return self.metastore.add(
            "EXTERNAL_LOCATION", name, owner, url=url.rstrip("/"), credential_name="storage"
        )

    def grant(self, kind: str, name: str, *privileges: str, to: str = BRONZE) -> None:
        """Grants privileges; whose name is "" is the metastore."""
        securable = self.metastore.get(kind, name or self.metastore.id)
        securable.grants.setdefault(to, set()).update(privileges)

    def revoke(self, kind: str, name: str, *privileges: str, of: str = BRONZE) -> None:
        """Revokes privileges."""
        securable = self.metastore.get(kind, name or self.metastore.id)
        securable.grants.get(of, set()).difference_update(privileges)

    def warehouse(self, name: str = "0123456789abcdef", **fields: Any) -> Warehouse:
        """Adds a SQL warehouse."""
        made = Warehouse(name, **fields)
        self.statements.warehouses[name] = made
        return made

    def prepare(self, root: str, catalog: str = "workspace") -> None:
        """A catalog, an external location for a lake, and all that bronze needs to register in
        them, by REST or by SQL.
        """
        self.catalog(catalog, owner=ADMIN)
        self.location("lake", root)
        self.grant("CATALOG", catalog, "USE_CATALOG", "CREATE_SCHEMA")
        for privilege in ("USE_SCHEMA", "CREATE_TABLE", "EXTERNAL_USE_SCHEMA"):
            self.grant("CATALOG", catalog, privilege)
        self.grant(
            "EXTERNAL_LOCATION", "lake",
            "CREATE_EXTERNAL_TABLE", "EXTERNAL_USE_LOCATION", "READ_FILES", "WRITE_FILES",
        )  # fmt: skip
        self.grant("METASTORE", "", "CREATE_EXTERNAL_METADATA")

    # What tests ask

    def count(self, *methods: str, path: str = "") -> int:
        """How many requests came with one of these methods (all of them without), to a path."""
        return sum(
            (not methods or method in methods) and path in asked for method, asked in self.requests
        )

    def table(self, name: str) -> dict[str, Any]:
        """The document of a table."""
        return self.metastore.get("TABLE", name).document

    def problems(self, name: str) -> list[str]:
        """Why Databricks could not read a table, by its Delta log; nothing if it can."""
        known = self.table(name)
        actual = self.statements.interpreter.columns(known["storage_location"])
        if actual is None:
            return [f"there is no Delta table at {known['storage_location']}"]
        return columns.problems(known["columns"], actual)

    def caller(self, authorization: str) -> str:
        """The principal of a request.

        Raises:
            Refusal: there is no token, an unknown one, or one that has ended.
        """
        if self.is_open_source and not self.tokens:
            return ADMIN
        token = authorization.removeprefix("Bearer ")
        # The answers of Databricks, from databricks-sdk-go's issues 917 and 1061 and
        # splunk-integration's issue 55: the code may be a number.
        if not authorization:
            raise Refusal(
                401, 401, "Credential was not sent or was of an unsupported type for this API."
            )
        if token not in self.tokens:
            raise Refusal(403, 403, "Invalid access token.")
        if self.ends.get(token, time.time() + 1) <= time.time():
            raise Refusal(401, "UNAUTHENTICATED", "Token is expired")
        return self.tokens[token]

    def issue(self, principal: str) -> str:
        """A new access token, which ends after ``life`` seconds."""
        token = f"access-{len(self.tokens)}"
        self.tokens[token] = principal
        self.ends[token] = time.time() + self.life
        return token

    def oauth(self, headers: Any, form: dict[str, list[str]]) -> dict[str, Any]:
        """POST /oidc/v1/token, with the client's id and secret by HTTP Basic or in the form
        ("Authorize service principal access with OAuth").

        Raises:
            Refusal: another grant or scope, an unknown client, or a wrong secret.
        """
        given = ""
        with suppress(ValueError):
            given = base64.b64decode(headers.get("Authorization", "").partition(" ")[2]).decode()
        name, _, secret = given.partition(":")
        name = name or form.get("client_id", [""])[0]
        secret = secret or form.get("client_secret", [""])[0]
        if form.get("grant_type") != ["client_credentials"]:
            raise _OAuthRefusal(400, "unsupported_grant_type", "Unsupported grant type")
        if "all-apis" not in form.get("scope", [""])[0].split():
            raise _OAuthRefusal(400, "invalid_scope", "Scope all-apis is missing")
        if name not in self.clients or self.clients[name][0] != secret:
            raise _OAuthRefusal(401, "invalid_client", "Client authentication failed")
        token = self.issue(self.clients[name][1])
        return {
            "access_token": token, "token_type": "Bearer", "scope": "all-apis",
            "expires_in": int(self.life),
        }  # fmt: skip

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Any:
        """The document that answers a request.

        Raises:
            Refusal: it is refused.
        """
        parts = urlsplit(target)
        if parts.path == "/oidc/v1/token" and method == "POST":
            return self.oauth(headers, parse_qs(body.decode()))
        if parts.path.startswith("/.well-known/"):
            number = str(self.metastore.workspace)
            return {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": number, "cloud": "aws"}
        if parts.path.startswith("/oidc/.well-known/"):
            base = f"{self.url}/oidc/v1"
            return {
                "token_endpoint": f"{base}/token",
                "authorization_endpoint": f"{base}/authorize",
            }
        caller = self.caller(headers.get("Authorization", ""))
        query = dict(parse_qsl(parts.query))
        try:
            document = json.loads(body) if body else {}
        except ValueError:
            raise Refusal(400, "MALFORMED_REQUEST", "Could not parse request object") from None
        if parts.path.startswith("/api/2.0/sql/"):
            # A statement may take a while; others are answered meanwhile.
            return routes.handle(self, method, parts.path, caller, query, document)
        with self.lock:
            if self.is_open_source:
                return open_source.handle(self, method, parts.path, caller, query, document)
            return routes.handle(self, method, parts.path, caller, query, document)


class _OAuthRefusal(Refusal):
    """A refusal of the token endpoint (RFC 6749, 5.2)."""

    @property
    def document(self) -> dict[str, Any]:
        return {"error": self.code, "error_description": self.message}


@contextmanager
def unity(*, folder: Path | None = None, is_open_source: bool = False) -> Iterator[Unity]:
    """A workspace at http://127.0.0.1; with a folder over TLS, the certificate of whose CA is
    ``ca.pem`` in it.
    """
    running = Unity(is_open_source=is_open_source)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            running.requests.append((self.command, self.path))
            for part, failures in running.failures.items():
                if part in self.path and failures:
                    status, headers = failures.pop(0)
                    code = {429: "REQUEST_LIMIT_EXCEEDED"}.get(status, "TEMPORARILY_UNAVAILABLE")
                    return self._send(Refusal(status, code, "Try again later", headers))
            try:
                document = running.answer(self.command, self.path, self.headers, body)
            except Refusal as error:
                return self._send(error)
            return self._send(document)

        do_POST = do_PATCH = do_DELETE = do_PUT = do_GET  # noqa: N815 - the library's names

        def _send(self, answer: Any) -> None:
            refusal = answer if isinstance(answer, Refusal) else None
            data = json.dumps(refusal.document if refusal else answer).encode()
            self.send_response(refusal.status if refusal else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (refusal.headers if refusal else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(running.vendor.clock(), usegmt=True)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running.url = f"http://127.0.0.1:{server.server_port}"
    if folder is not None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        running.url = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
