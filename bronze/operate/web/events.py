"""Server-sent events: a pulse every two seconds, by which a page knows that the server is there and
whether anything of weight has changed.

A pulse is some forty bytes and is the same for all listeners. One who does not read costs a buffer
of the connection, and is ended when that is full; each is ended after a while, and its browser
connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

from bronze.operate.view import View
from bronze.operate.web.markup.words import stamp
from bronze.operate.web.site import Refused, Site

if TYPE_CHECKING:
    from starlette.types import Receive, Send

PULSE = 2.0
LISTENERS = 64
"""How many may listen at once; a page that may not asks for itself from time to time."""
LONGEST = 900.0
_SEND_SECONDS = 10.0


def digest(view: View) -> str:
    """Changes with what a page has to show at once: the sentence, states, progress, alerts."""
    tables = [
        (t.table, t.state, t.running and round(t.running.share or 0, 2), t.last and t.last.run_id)
        for t in view.tables
    ]
    alerts = [(*alert.key, alert.state) for alert in view.alerts]
    facts = repr((view.sentence, view.is_alive, tables, alerts))
    return sha256(facts.encode("utf-8", "replace")).hexdigest()[:16]


class Pulses:
    """The pulses of one server. All methods are called in its event loop."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.listeners = 0
        self._pulse = b""
        self._made = 0.0
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends all listeners."""
        self._stopping.set()

    async def listen(self, receive: Receive, send: Send, may_listen: Callable[[], bool]) -> None:
        """Sends pulses until the listener goes, may no longer listen, or has listened for long.

        Raises:
            Refused: there are too many listeners.
        """
        if self.listeners >= LISTENERS or self._stopping.is_set():
            raise Refused(503, "There are too many listeners.", headers={"retry-after": "30"})
        self.listeners += 1
        gone = asyncio.ensure_future(_disconnection(receive))
        try:
            await self._send_pulses(send, gone, may_listen)
        finally:
            self.listeners -= 1
            gone.cancel()

    async def _send_pulses(
        self, send: Send, gone: asyncio.Future[None], may_listen: Callable[[], bool]
    ) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        stopping = asyncio.ensure_future(self._stopping.wait())
        end = time.monotonic() + LONGEST
        try:
            while not gone.done() and not stopping.done() and time.monotonic() < end:
                if not may_listen():
                    break
                pulse = await self._current()
                body = {"type": "http.response.body", "body": pulse, "more_body": True}
                await asyncio.wait_for(send(body), _SEND_SECONDS)
                await asyncio.wait(
                    (gone, stopping), timeout=PULSE, return_when=asyncio.FIRST_COMPLETED
                )
            if not gone.done():
                await asyncio.wait_for(
                    send({"type": "http.response.body", "body": b""}), _SEND_SECONDS
                )
        finally:
            stopping.cancel()

    async def _current(self) -> bytes:
        """The pulse of now, made once for all listeners."""
        async with self._lock:
            if time.monotonic() - self._made >= PULSE / 2:
                # Where the service does not answer, there is no pulse, and pages turn grey.
                self._pulse = b": \n\n"
                with contextlib.suppress(Refused):
                    self._pulse = await self.site.work(self._make, PULSE * 2)
                self._made = time.monotonic()
            return self._pulse

    def _make(self) -> bytes:
        view = self.site.view()
        return f"data: {json.dumps([digest(view), stamp(view.now)])}\n\n".encode()


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
