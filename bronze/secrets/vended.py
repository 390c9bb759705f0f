"""Credentials that Unity Catalog vends for a path of a store: POST temporary-path-credentials.

They are used again until five minutes before their end, or half of their life if that is less, and
asked for again at once where the store refused them (`ask_again`). Their end is by the server's
clock, and so is their life: that of this machine may be wrong. While the server does not answer,
they serve to their end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from bronze.errors import BronzeError, ConfigError, SecretsUnreachable
from bronze.model.locations import Vended
from bronze.secrets import workspace as tokens

_MARGIN = 300.0
"""Seconds before their end from which on new ones are asked for."""
_AGAIN = 10.0
"""Seconds after which a server that did not answer is asked again."""
_TIMEOUT = 30.0
_BUSY = (429, 500, 502, 503, 504)
_QUOTED = 300
_RIGHTS = (
    "The identity needs EXTERNAL USE LOCATION on the external location of [lake] root (its owner"
    " grants it), READ FILES and WRITE FILES; the metastore needs External data access enabled."
)


@dataclass
class _Known:
    """Credentials as options of the store, and by the monotonic clock when new ones are asked for
    and when they end.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    renewed: float = 0.0
    ends: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: dict[Vended, _Known] = {}
_lock = threading.Lock()


def credentials(vended: Vended) -> tuple[Mapping[str, str], float]:
    """Options of the store, and until when to use them, by the monotonic clock.

    Raises:
        ConfigError: Unity Catalog denies them, or the host is not that of a workspace.
        SecretsUnreachable: it does not answer.
    """
    known = _of(vended)
    with known.lock:
        now = time.monotonic()
        if now >= known.renewed:
            try:
                options, life = _request(vended)
            except SecretsUnreachable:
                if now >= known.ends:
                    raise
                known.renewed = min(now + _AGAIN, known.ends)
            else:
                known.options, known.ends = options, now + life
                known.renewed = known.ends - min(_MARGIN, life / 2)
        return known.options, known.renewed


def ask_again(vended: Vended) -> None:
    """Has the next `credentials` be new ones: the store refused the last."""
    known = _of(vended)
    with known.lock:
        known.renewed = known.ends = 0.0


def forget() -> None:
    """Forgets all credentials."""
    with _lock:
        _known.clear()


def _of(vended: Vended) -> _Known:
    with _lock:
        return _known.setdefault(vended, _Known())


def _request(vended: Vended) -> tuple[dict[str, str], float]:
    """Options of the store, and for how many seconds they hold."""
    from urllib.error import HTTPError

    try:
        try:
            answer, now = _send(vended)
        except HTTPError as error:
            # A token may end before it was to, or be revoked.
            if error.code != 401 or vended.workspace.auth == "none":
                raise
            error.close()
            tokens.forget(vended.workspace)
            answer, now = _send(vended)
        return _options(answer), max(0.0, float(answer["expiration_time"]) / 1000 - now)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _error(vended, error) from None


def _send(vended: Vended) -> tuple[Any, float]:
    """The answer, and the server's time, in seconds since 1970."""
    # Lakes with keys of their own need not wait for its import.
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirect(HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Has a redirect be an error: the token is for this host alone."""

    request = Request(  # noqa: S310 - the config allows https, and http to this machine alone
        f"{vended.workspace.host}/api/{vended.api}/unity-catalog/temporary-path-credentials",
        data=json.dumps({"url": vended.url, "operation": "PATH_READ_WRITE"}).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/json"},
    )
    token = tokens.token(vended.workspace)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with build_opener(NoRedirect).open(request, timeout=_TIMEOUT) as response:
        date = response.headers.get("Date")
        # Seconds in the header are whole ones.
        now = parsedate_to_datetime(date).timestamp() + 1 if date else time.time()
        return json.load(response), now


def _options(answer: Mapping[str, Any]) -> dict[str, str]:
    if keys := answer.get("aws_temp_credentials"):
        return {
            "aws_access_key_id": str(keys["access_key_id"]),
            "aws_secret_access_key": str(keys["secret_access_key"]),
            "aws_session_token": str(keys["session_token"]),
        }
    if sas := answer.get("azure_user_delegation_sas"):
        return {"azure_storage_sas_token": str(sas["sas_token"])}
    return {"google_bearer_token": str(answer["gcp_oauth_token"]["oauth_token"])}


def _error(vended: Vended, error: Exception) -> BronzeError:
    from urllib.error import HTTPError, URLError

    host = urlsplit(vended.workspace.host).netloc
    where = f"Unity Catalog at {host} gives no credentials for {vended.url}"
    if isinstance(error, HTTPError):
        return _refusal(where, error)
    if isinstance(error, OSError):
        reason = error.reason if isinstance(error, URLError) else error
        why = getattr(reason, "verify_message", None) or getattr(reason, "strerror", None)
        return SecretsUnreachable(
            f"{where}: {why or type(reason).__name__}.",
            hint="Check host under [catalog], the network, and this machine's clock.",
        )
    return ConfigError(
        f"{where}: its answer is not understood.", hint="Check that host is that of a workspace."
    )


def _refusal(where: str, error: Any) -> BronzeError:
    code = error.code
    try:
        message = json.loads(error.read())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        message = ""
    error.close()
    text = " ".join(str(message).split())[:_QUOTED].rstrip(".")
    if code in _BUSY:
        return SecretsUnreachable(
            f"{where}: it answers HTTP {code}.", hint="bronze retries by itself."
        )
    if not text:
        return ConfigError(
            f"{where}: its answer (HTTP {code}) is not that of a workspace.",
            hint="Check host under [catalog].",
        )
    hint = _RIGHTS
    if code == 401 or "token" in text.lower():
        hint = f"Check auth under [catalog]. {_RIGHTS}"
    elif "parent external location" in text:
        hint = "Create an external location for [lake] root in Unity Catalog."
    return ConfigError(f"{where}: {text}.", hint=hint)
