"""What every request and every connection has to keep to, and what every response has.

- A Host header that names this server (against DNS rebinding); ``/live`` has nothing to protect.
- GET, HEAD and POST alone, bodies that are short and arrive in time.
- Headers of the response that leave a browser no choice: nothing from other hosts, no frames.
- A connection that sends no request in time, or does not take its response, is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from bronze.operate.web.access import Access
from bronze.operate.web.site import Refused

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_BODY = 32_768
LONGEST_HEAD = 16_384
CONNECTIONS = 256
"""At how many connections requests are refused; at twice as many connections are."""
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
RESPONSE_SECONDS = 90.0
LIVE, EVENTS = "/live", "/events"

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # With "no-referrer" browsers would send forms with Origin: null.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "x-robots-tag": "noindex",
}
_log = logging.getLogger(__name__)

Answer = Callable[["Scope", Refused], "Response"]


class Guard:
    """The outermost layer of the application; ``answer`` makes the response to what is refused."""

    def __init__(self, app: ASGIApp, access: Access, answer: Answer) -> None:
        self.app = app
        self.access = access
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_headers(message)
            await send(message)

        try:
            self._check(scope)
            # A stream of events has limits of its own.
            limit = None if scope["path"] == EVENTS else RESPONSE_SECONDS
            async with asyncio.timeout(limit):
                await self.app(scope, receive, guarded_send)
        except Refused as refused:
            if not started:
                await self.answer(scope, refused)(scope, receive, guarded_send)
        except TimeoutError:
            if not started:
                late = Refused(503, "The page was not made in time.")
                await self.answer(scope, late)(scope, receive, guarded_send)
        except Exception:
            _log.exception("the page %r failed", scope["path"])
            if not started:
                failure = Refused(500, "The page could not be made.", "The service's log says why.")
                await self.answer(scope, failure)(scope, receive, guarded_send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refused(405, "This method is not possible.", headers={"allow": "GET, HEAD, POST"})
        if scope["path"] == LIVE:
            return
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows_host(hosts[0]):
            raise Refused(
                421,
                "This server does not have the name by which it was asked.",
                'Set host = "…" under [web] to the name in the address bar of the browser.',
            )

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")
        if self.access.is_secure:
            headers.setdefault("strict-transport-security", "max-age=31536000")


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is too long, or does not arrive in time.
    """
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_BODY or int(declared) > LONGEST_BODY:
                    close = {"connection": "close"}
                    raise Refused(
                        413, f"More than {LONGEST_BODY:,} bytes are not taken.", "", close
                    )
    except TimeoutError:
        raise Refused(
            408, "The request did not arrive in time.", "", {"connection": "close"}
        ) from None
    return bytes(body)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP, which closes connections that send no request in time, and ends those whose
    client does not take what was sent.
    """

    def connection_made(self, transport: Any) -> None:
        """Begins to watch a connection; refuses it if there are far too many."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._watch = self.loop.call_later(HEAD_SECONDS / 2, self._look)
        if len(self.connections) > 2 * CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now = time.monotonic()
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete and not cycle.disconnected
        if answering and not self.transport.is_closing():
            self._idle_since = now
        elif now - self._idle_since >= HEAD_SECONDS:
            # What was written and is not taken would be kept as long as the client likes.
            self.transport.abort()
            return
        self._watch = self.loop.call_later(HEAD_SECONDS / 2, self._look)
