"""Passwords that are made at a login and live for minutes: tokens of clouds, or of a command.

A token is used again while it lives, and for no login that might come after its end.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Auth, Origin

_ENCRYPTED = ("require", "verify-ca", "verify-full")
_MARGIN = 30.0
"""Seconds before its end from which on a token is not used, or half of its life if that is less."""
_COMMAND_TIMEOUT = 30


class _Token(NamedTuple):
    """A token, and the time until which it is used, in seconds since 1970."""

    value: str
    used_until: float


_tokens: dict[tuple[Auth, str, str, str], _Token] = {}
_lock = threading.Lock()


def password(origin: Origin, auth: Auth, params: Mapping[str, str]) -> str:
    """The token to log in with.

    Args:
        origin: the source, for errors.
        auth: how tokens are made.
        params: libpq's parameters of the connection.

    Raises:
        ConfigError: the connection is not encrypted, or there is no token.
        SecretsUnreachable: whoever makes tokens does not answer.
    """
    if params.get("sslmode", "prefer") not in _ENCRYPTED:
        raise ConfigError(
            f"Source {origin.name} logs in with a token, which only an encrypted connection may"
            f" carry; sslmode is {params.get('sslmode', 'prefer')}.",
            hint="Set sslmode=verify-full in its dsn (and sslrootcert, if the system does not know"
            " the server's CA).",
        )
    host, port = params.get("host", ""), params.get("port", "5432")
    key = auth, host, port, params.get("user", "")
    with _lock:
        token = _tokens.get(key)
        if token is None or time.time() >= token.used_until:
            token = _tokens[key] = _lasting(*_make(origin, auth, *key[1:]))
        return token.value


def forget(auth: Auth) -> None:
    """Forgets the tokens that were made so: one was refused."""
    with _lock:
        for key in [key for key in _tokens if key[0] == auth]:
            del _tokens[key]


def _lasting(value: str, ends: float) -> _Token:
    return _Token(value, ends - min(_MARGIN, max(0.0, ends - time.time()) / 2))


def _make(origin: Origin, auth: Auth, host: str, port: str, user: str) -> tuple[str, float]:
    """A new token, and when it ends."""
    if auth.method == "entra":
        from bronze.secrets import azure

        return azure.database_token()
    if auth.method == "rds-iam":
        from bronze.secrets import aws

        return aws.database_token(host, port, user)
    if auth.method == "databricks":
        from bronze.secrets import databricks

        return databricks.database_token(host)
    return _of_command(origin, auth.command)


def _of_command(origin: Origin, command: Sequence[str]) -> tuple[str, float]:
    """The token that a command prints: JSON with ``token`` and ``expires_at`` (ISO 8601)."""
    where = f"The command {command[0]} of source {origin.name}"
    try:
        done = subprocess.run(  # noqa: S603 - the config's own command, without a shell
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT
        )
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be started: {error.strerror}.", hint="Check [source] auth."
        ) from None
    except subprocess.TimeoutExpired:
        raise SecretsUnreachable(
            f"{where} has given no token within {_COMMAND_TIMEOUT} s.",
            hint="Run it by hand; bronze retries by itself.",
        ) from None
    if done.returncode:
        raise SecretsUnreachable(
            f"{where} ended with exit code {done.returncode}.",
            hint="Run it by hand: its output may contain a secret, and is not shown.",
        )
    try:
        answer: Any = json.loads(done.stdout)
        ends = datetime.fromisoformat(answer["expires_at"])
        if ends.tzinfo is None:
            raise ValueError("without a time zone")
        token = answer["token"]
        if not isinstance(token, str) or not token:
            raise ValueError("no token")
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{where} does not print a token as it has to.",
            hint='It prints {"token": "…", "expires_at": "2026-01-31T12:00:00Z"}.',
        ) from None
    return token, ends.timestamp()
