"""Libpq's parameters for the connections to a source, and its address for messages."""

from __future__ import annotations

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


def renew(origin: Origin) -> bool:
    """Whether another password may do, after the server has refused a login."""
    if origin.auth:
        tokens.forget(origin.auth)
        return True
    return secrets.has_changed(secret for secret in (origin.dsn, origin.password) if secret)


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
