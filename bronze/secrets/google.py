"""Secrets of Google Secret Manager, from its REST API (``bronze[google]``).

The identity is that of Application Default Credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud, the
machine's service account.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any
from urllib.parse import quote

from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Secret

ENDPOINT = "https://secretmanager.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT = 10
_BUSY = (429, 500, 502, 503, 504)


def secret_manager(secret: Secret) -> str:
    """The latest version of a secret of the project ``place``.

    Raises:
        ConfigError: it may not be read, or there is no such secret.
        SecretsUnreachable: Google does not answer.
    """
    where = f"The secret {secret.name} of the project {secret.place} cannot be read from Google"
    hint = (
        "Check the name and the project under [secrets]; the identity needs the role Secret Manager"
        " Secret Accessor on it."
    )
    project, name = quote(secret.place, safe=""), quote(secret.name, safe="")
    url = f"{ENDPOINT}/v1/projects/{project}/secrets/{name}/versions/latest:access"
    session = _session()
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import RequestException

    try:
        answer = session.get(url, timeout=_TIMEOUT)
    except (RequestException, TransportError) as error:
        raise SecretsUnreachable(
            f"{where}: {type(error).__name__}.", hint="Check the network."
        ) from None
    except GoogleAuthError as error:
        raise ConfigError(f"{where}: {type(error).__name__}.", hint=hint) from None
    if answer.status_code in _BUSY:
        raise SecretsUnreachable(
            f"{where}: it answers HTTP {answer.status_code}.", hint="bronze retries by itself."
        )
    if not answer.ok:
        raise ConfigError(f"{where}: HTTP {answer.status_code}.", hint=hint)
    try:
        value = base64.b64decode(answer.json()["payload"]["data"], validate=True).decode()
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}: it is empty, or no text.", hint=hint) from None
    return value


@cache
def _session() -> Any:
    try:
        import google.auth
        from google.auth.transport.requests import AuthorizedSession
    except ImportError:
        raise ConfigError(
            "The package google-auth is not installed.", hint="pip install 'bronze[google]'"
        ) from None
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.DefaultCredentialsError:
        raise ConfigError(
            "There are no Google credentials.",
            hint="Run `gcloud auth application-default login`, or set"
            " GOOGLE_APPLICATION_CREDENTIALS.",
        ) from None
    return AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
