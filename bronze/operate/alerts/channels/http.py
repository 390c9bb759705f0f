"""Posts JSON over HTTP or HTTPS, with verified certificates, without following redirects."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.printable import visible

_MOST = 64 * 1024
_QUOTED = 200
_RETRIED = (408, 425, 429)


@dataclass(frozen=True)
class Answer:
    """What the other side answered."""

    status: int
    body: str

    def document(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
    """Posts a body.

    Raises:
        ChannelError: the other side cannot be reached, or its answer is not 2xx. The address is
            named without its path, which may be a secret.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    own = {"Content-Type": "application/json", "User-Agent": "bronze", "Connection": "close"}
    try:
        connection.request("POST", target, body, {**own, **headers})
        response = connection.getresponse()
        answer = Answer(response.status, response.read(_MOST).decode(errors="replace"))
        after = response.getheader("Retry-After", "")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ChannelError(f"{host} cannot be reached: {why}", retry=True) from None
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return answer
    said = visible(" ".join(answer.body.split())[:_QUOTED])
    raise ChannelError(
        f"{host} answered {answer.status}{f': {said}' if said else ''}",
        retry=answer.status in _RETRIED or answer.status >= 500,
        after=float(after) if after.isdigit() else None,
    )
