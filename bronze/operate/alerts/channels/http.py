"""Posts JSON over HTTP or HTTPS, with verified certificates, without following redirects."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

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
    connection, target = _connection(url, timeout)
    own = {"Content-Type": "application/json", "User-Agent": "bronze", "Connection": "close"}
    connected = False
    try:
        connection.connect()
        connected = True
        connection.request("POST", target, body, {**own, **headers})
        response = connection.getresponse()
        answer = Answer(response.status, response.read(_MOST).decode(errors="replace"))
        after = response.getheader("Retry-After", "")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ChannelError(
            f"{connection.host} cannot be reached: {why}", retry=True, uncertain=connected
        ) from None
    except ValueError:
        # The message of the error has the path or the header.
        raise ChannelError(
            f"the path of {connection.host}, or a header, has characters that HTTP does not allow",
            retry=False,
        ) from None
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return answer
    text = visible(" ".join(answer.body.split())[:_QUOTED])
    raise ChannelError(
        f"{connection.host} answered {answer.status}{f': {text}' if text else ''}",
        retry=answer.status in _RETRIED or answer.status >= 500,
        after=float(after) if after.isascii() and after.isdecimal() else None,
    )


def reach(url: str, timeout: float) -> str:
    """Connects to an address, over verified TLS if it is one of HTTPS, and asks for nothing.

    Returns:
        The host and port.

    Raises:
        ChannelError: it cannot be reached.
    """
    connection, _ = _connection(url, timeout)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        raise ChannelError(
            f"{connection.host} has no TLS that can be trusted: {why}", retry=True
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ChannelError(f"{connection.host} cannot be reached: {why}", retry=True) from None
    finally:
        connection.close()
    return f"{connection.host}:{connection.port}"


def _connection(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not opened yet, and what to ask it for."""
    parts = _split(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=context), (
            target
        )
    return http.client.HTTPConnection(host, parts.port, timeout=timeout), target


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ChannelError(
            "the address is not an URL that begins with https:// or http://", retry=False
        )
    return parts
