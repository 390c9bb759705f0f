"""Libpq's parameters for the connections to a source, and its address for messages."""

from __future__ import annotations

from collections.abc import Mapping

from bronze import secrets
from bronze.dsn import parse_dsn
from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Origin
from bronze.postgres.connection import session_settings, tokens


def parameters(origin: Origin) -> dict[str, str]:
    """Libpq's connection parameters, including the password.

    Raises:
        ConfigError: a secret cannot be found, or the connection string is not valid.
        SecretsUnreachable: the provider of a secret does not answer.
    """
    params = _given(origin)
    if origin.password:
        params["password"] = secrets.resolve(origin.password)
    elif origin.auth:
        params["password"] = tokens.password(origin, origin.auth, params)
    params.setdefault("application_name", origin.application_name)
    params.setdefault("connect_timeout", str(origin.connect_timeout))
    params.setdefault("keepalives_idle", "30")
    # Needed from the first message: psycopg does not know every encoding of a database.
    params["client_encoding"] = session_settings.PINNED["client_encoding"]
    return params


def renewed_parameters(origin: Origin, used: Mapping[str, str]) -> dict[str, str]:
    """The parameters after the server has refused a login with those that were ``used``: the same
    ones, unless there is another password now.
    """
    # Another thread may have been refused before, and have asked.
    if (known := parameters(origin)) != used:
        return known
    if origin.auth:
        tokens.forget(origin.auth)
    secrets.ask_again(secret for secret in (origin.dsn, origin.password) if secret)
    return parameters(origin)


def _given(origin: Origin) -> dict[str, str]:
    """The parameters of the connection string."""
    conninfo = secrets.resolve(origin.dsn) if origin.dsn else origin.conninfo
    return parse_dsn(conninfo, origin.name)


def address(origin: Origin) -> str:
    """The address of the source for messages: ``host:port/database``, without secrets."""
    try:
        params = _given(origin)
    except (ConfigError, SecretsUnreachable):
        return origin.name
    host = params.get("host", "localhost")
    return f"{host}:{params.get('port', '5432')}/{params.get('dbname', params.get('user', ''))}"
