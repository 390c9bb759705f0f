"""The REST API of a Databricks workspace or of an open-source Unity Catalog: JSON over HTTPS.

Certificates are verified, and redirects are not followed. A request is sent again only after 429
and 503, when the server asks for it (``Retry-After``) or after some seconds, and once with a new
token after 401.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from bronze import stopping
from bronze.errors import CatalogUnreachable
from bronze.model.locations import Workspace
from bronze.secrets import workspace as tokens
from bronze.version import VERSION

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

CATALOG = "/api/2.1/unity-catalog"
LINEAGE = "/api/2.0/lineage-tracking"
SQL = "/api/2.0/sql"
CONCURRENT = 8
"""How many requests are sent at a time at most."""

_CONNECT_TIMEOUT, _READ_TIMEOUT = 10.0, 90.0
_BUSY = (429, 503)
_ATTEMPTS = 6
_LONGEST_WAIT = 60.0
_LONGEST_WAITS = 180.0
"""Seconds for which a request waits in all before it is sent again."""
_QUOTED = 400


class Refusal(Exception):
    """The server's answer is an error: its HTTP ``status``, ``code`` and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.status, self.code, self.message = status, code, message

    @property
    def is_of_token(self) -> bool:
        """Whether it is the token that is refused: 401, or 403 "Invalid access token"."""
        return self.status == 401 or (self.status == 403 and "token" in self.message.lower())


@dataclass(eq=False)
class Api:
    """The API of one server, for several threads. ``reads`` and ``writes`` count its requests."""

    workspace: Workspace
    sleep: Callable[[float], None] = stopping.sleep
    reads: int = 0
    writes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def host(self) -> str:
        """The server's name, for people."""
        return urlsplit(self.workspace.host).netloc

    def get(self, path: str, **query: str | int) -> Any:
        """The answer to GET. Raises as `call` does."""
        return self.call("GET", path, query=query)

    def find(self, path: str, **query: str | int) -> Any:
        """The answer to GET, None if there is no such object. Raises as `call` does."""
        try:
            return self.get(path, **query)
        except Refusal as refusal:
            if refusal.status == 404 and refusal.code:
                return None
            raise

    def pages(self, path: str, key: str, **query: str | int) -> Iterator[Any]:
        """The items under ``key`` of all pages of a listing. Raises as `call` does."""
        token = ""
        while True:
            page = self.get(path, **query, **({"page_token": token} if token else {}))
            # A page may be empty, and the next one not.
            yield from page.get(key) or ()
            token = page.get("next_page_token") or ""
            if not token:
                return

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str | int] | None = None,
    ) -> Any:
        """The answer to a request, as JSON.

        Raises:
            Refusal: the answer is an error, or not that of such a server.
            CatalogUnreachable: there is no answer, or after all attempts the server is busy.
            ConfigError, SecretsUnreachable: there is no token.
        """
        with self._lock:
            if method == "GET":
                self.reads += 1
            else:
                self.writes += 1
        url = f"{self.workspace.host}{path}{f'?{urlencode(query)}' if query else ''}"
        waited, refused_token = 0.0, False
        for attempt in range(1, _ATTEMPTS + 1):
            response = self._send(method, url, body)
            is_refused = response.status in (401, 403) and _refusal(response).is_of_token
            if is_refused and not refused_token and self.workspace.auth != "none":
                refused_token = True
                tokens.forget(self.workspace)
                continue
            if response.status not in _BUSY:
                return _answer(response)
            wait = _wait(response, attempt)
            if attempt == _ATTEMPTS or waited + wait > _LONGEST_WAITS:
                break
            waited += wait
            self.sleep(wait)
        raise CatalogUnreachable(
            f"{self.host} is busy: {_refusal(response)}.", hint="Run it again later."
        )

    def _send(self, method: str, url: str, body: object) -> BaseHTTPResponse:
        from urllib3.exceptions import HTTPError

        token = tokens.token(self.workspace)
        headers = {"Accept": "application/json", "User-Agent": f"bronze/{VERSION}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, ensure_ascii=False).encode()
        try:
            return self._pool.request(method, url, body=data, headers=headers, redirect=False)
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from None

    @cached_property
    def _pool(self) -> PoolManager:
        # Only those who register need its import.
        import urllib3

        parts = urlsplit(self.workspace.host)
        proxy = getproxies().get(parts.scheme)
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=_READ_TIMEOUT),
            "retries": False,
            "maxsize": CONCURRENT,
            "ssl_context": ssl.create_default_context(),
        }
        if proxy and not proxy_bypass(parts.hostname or ""):
            return urllib3.ProxyManager(proxy, **options)
        return urllib3.PoolManager(**options)

    def _unreachable(self, error: Exception) -> CatalogUnreachable:
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        hint = "Check host under [catalog] and the network."
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = "Check host, the clock of this machine, and SSL_CERT_FILE for a CA of your own."
            why = f"its certificate is not trusted: {cause.verify_message}"
        elif isinstance(cause, TimeoutError):
            why = f"no answer within {_CONNECT_TIMEOUT:.0f} s (or {_READ_TIMEOUT:.0f} s in all)"
        else:
            why = getattr(cause, "strerror", None) or type(cause).__name__
        return CatalogUnreachable(f"{self.host} cannot be reached: {why}.", hint=hint)


def segment(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _answer(response: BaseHTTPResponse) -> Any:
    if not 200 <= response.status < 300:
        raise _refusal(response)
    if not response.data:
        return {}
    try:
        return json.loads(response.data)
    except ValueError:
        raise _refusal(response) from None


def _refusal(response: BaseHTTPResponse) -> Refusal:
    try:
        document = json.loads(response.data)
        code, message = str(document.get("error_code") or ""), str(document.get("message") or "")
    except (ValueError, AttributeError):
        return Refusal(
            response.status,
            "",
            f"its answer (HTTP {response.status}) is not that of a Unity Catalog",
        )
    text = " ".join(message.split())[:_QUOTED].rstrip(".")
    return Refusal(response.status, code or f"HTTP {response.status}", text)


def _wait(response: BaseHTTPResponse, attempt: int) -> float:
    """The seconds until a request is sent again: as the server asks, or 1, 2, 4 and so on."""
    text = response.headers.get("Retry-After", "")
    wait = float(2 ** (attempt - 1))
    if text.isascii() and text.isdecimal():
        wait = float(text)
    elif text:
        with suppress(ValueError, TypeError):
            wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return min(max(wait, 0.0), _LONGEST_WAIT)
