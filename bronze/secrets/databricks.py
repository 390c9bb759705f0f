"""Secrets of a Databricks scope, and tokens for Lakebase, from the workspace's REST API."""

from __future__ import annotations

import base64
import json
import os
import uuid
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from bronze.errors import BronzeError, ConfigError, SecretsUnreachable
from bronze.model.locations import Secret

_TIMEOUT = 30.0
_BUSY = (429, 500, 502, 503, 504)


def scope(secret: Secret) -> str:
    """A secret of the scope ``place``.

    Raises:
        ConfigError: the workspace denies it, or has no such secret.
        SecretsUnreachable: the workspace does not answer.
    """
    host = _host("secrets")
    query = urlencode({"scope": secret.place, "key": secret.name})
    where = (
        f"The secret {secret.name} of the scope {secret.place} cannot be read from Databricks at"
        f" {host}"
    )
    hint = "Check the name and the scope under [secrets]; the token needs READ on the scope."
    try:
        answer = _call(host, f"secrets/get?{query}")
        value = base64.b64decode(answer["value"], validate=True).decode()
    except (OSError, ValueError, KeyError) as error:
        raise _error(where, hint, error) from None
    if not value:
        raise ConfigError(f"{where}: it is empty.", hint=hint)
    return value


def database_token(database: str) -> tuple[str, float]:
    """A token for the Lakebase instance at a host, and when it ends, in seconds since 1970.

    The host's name has the instance's id: ``instance-<id>.database.…``.

    Raises:
        ConfigError: the workspace denies it, or the host is no instance of it.
        SecretsUnreachable: the workspace does not answer.
    """
    host = _host("tokens")
    uid = database.partition(".")[0].removeprefix("instance-")
    where = f"Databricks at {host} gives no token for the database {database}"
    hint = "Check that the host of dsn is a Lakebase instance of this workspace, and its rights."
    try:
        instance = _call(host, f"database/instances:findByUid?{urlencode({'uid': uid})}")
        request = {"instance_names": [instance["name"]], "request_id": str(uuid.uuid4())}
        answer = _call(host, "database/credentials", request)
        ends = datetime.fromisoformat(answer["expiration_time"])
        return str(answer["token"]), ends.timestamp()
    except (OSError, ValueError, KeyError) as error:
        raise _error(where, hint, error) from None


def _host(what: str) -> str:
    host = os.environ.get("DATABRICKS_HOST", "").removeprefix("https://").rstrip("/")
    if not host or not os.environ.get("DATABRICKS_TOKEN"):
        raise ConfigError(
            "The environment variables DATABRICKS_HOST and DATABRICKS_TOKEN are not set.",
            hint=f"Set them to the workspace's URL and to a token that may read {what}.",
        )
    return host


def _call(host: str, path: str, body: object = None) -> Any:
    # Other providers' users need not wait for its import.
    from urllib.request import Request, urlopen

    request = Request(
        f"https://{host}/api/2.0/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['DATABRICKS_TOKEN']}"},
    )
    with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        return json.load(answer)


def _error(where: str, hint: str, error: Exception) -> BronzeError:
    from urllib.error import HTTPError

    if isinstance(error, HTTPError):
        code = error.code
        error.close()
        if code in _BUSY:
            return SecretsUnreachable(
                f"{where}: it answers HTTP {code}.", hint="bronze retries by itself."
            )
        return ConfigError(f"{where}: HTTP {code}.", hint=hint)
    if isinstance(error, OSError):
        return SecretsUnreachable(
            f"{where}: {type(error).__name__}.", hint="Check DATABRICKS_HOST and the network."
        )
    return ConfigError(f"{where}: its answer is not understood.", hint=hint)
