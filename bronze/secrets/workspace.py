"""Tokens for the REST API of a Databricks workspace, or of an open-source Unity Catalog.

A token is used again until shortly before its end, or until it is refused.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from urllib.parse import urlencode, urlsplit

from bronze import secrets
from bronze.errors import BronzeError, ConfigError, SecretsUnreachable
from bronze.model.locations import Workspace
from bronze.secrets import azure

_MARGIN = 300.0
"""Seconds before its end from which on a token is not used, or half of its life if that is less."""
_TIMEOUT = 30.0
_BUSY = (429, 500, 502, 503, 504)

_tokens: dict[Workspace, tuple[str, float]] = {}
_lock = threading.Lock()


def token(workspace: Workspace) -> str:
    """The token to call the API with, "" if it needs none.

    Raises:
        ConfigError: there is no identity or secret, or it gets no token.
        SecretsUnreachable: whoever makes tokens, or has the secret, does not answer.
    """
    if workspace.auth == "none" or (workspace.secret is None and workspace.auth != "azure"):
        return ""
    if workspace.auth == "token" and workspace.secret:
        return secrets.resolve(workspace.secret)
    with _lock:
        value, used_until = _tokens.get(workspace, ("", 0.0))
        if time.time() >= used_until:
            value, ends = _make(workspace)
            margin = min(_MARGIN, max(0.0, ends - time.time()) / 2)
            _tokens[workspace] = value, ends - margin
        return value


def forget(workspace: Workspace) -> None:
    """Has the next `token` be made anew: the last one was refused."""
    with _lock:
        _tokens.pop(workspace, None)
    if workspace.secret:
        secrets.ask_again([workspace.secret])


def _make(workspace: Workspace) -> tuple[str, float]:
    if workspace.auth == "azure":
        return azure.token(azure.DATABRICKS_SCOPE)
    return _oauth_token(workspace)


def _oauth_token(workspace: Workspace) -> tuple[str, float]:
    """A token of a service principal by the client credentials flow, and when it ends."""
    # Other users of secrets need not wait for its import.
    from urllib.request import Request, urlopen

    if workspace.secret is None:
        raise ValueError("a service principal has a secret")
    host = urlsplit(workspace.host).netloc
    pair = f"{workspace.client_id}:{secrets.resolve(workspace.secret)}".encode()
    request = Request(  # noqa: S310 - the config allows https, and http to this machine alone
        f"{workspace.host}/oidc/v1/token",
        data=urlencode({"grant_type": "client_credentials", "scope": "all-apis"}).encode(),
        headers={"Authorization": f"Basic {base64.b64encode(pair).decode()}"},
    )
    try:
        with urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
            answer = json.load(response)
        return str(answer["access_token"]), time.time() + float(answer["expires_in"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _error(f"{host} gives no token to the client {workspace.client_id}", error) from None


def _error(where: str, error: Exception) -> BronzeError:
    from urllib.error import HTTPError, URLError

    hint = "Check client_id and client_secret under auth; the principal is one of the workspace."
    if isinstance(error, HTTPError):
        code = error.code
        error.close()
        if code in _BUSY:
            return SecretsUnreachable(
                f"{where}: it answers HTTP {code}.", hint="bronze retries by itself."
            )
        return ConfigError(f"{where}: HTTP {code}.", hint=hint)
    if isinstance(error, OSError):
        reason = error.reason if isinstance(error, URLError) else error
        why = getattr(reason, "strerror", None) or type(reason).__name__
        return SecretsUnreachable(
            f"{where}: {why}.", hint="Check host under [catalog] and the network."
        )
    return ConfigError(
        f"{where}: its answer is not understood.", hint="Check that host is a Databricks workspace."
    )
