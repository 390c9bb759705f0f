"""Resolves secrets by name. Their values are never printed, stored or sent to workers.

A unit of work has a `bronze.model.locations.Secret`, which names a secret; the worker resolves it.

Secrets of this machine are read at each call. A provider in the network is asked again after the
secret's ``ttl``, and at once where a value was refused (`ask_again`). While it does not answer,
the last value serves for an hour.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bronze.errors import SecretsUnreachable
from bronze.model.locations import Secret
from bronze.secrets import aws, azure, databricks, google, local

_SERVES = 3600.0
"""Seconds for which a value serves while its provider does not answer."""

LOCAL: Mapping[str, Callable[[Secret], str]] = {
    "env": local.environment,
    "file": local.file,
    "config": local.config,
}
"""The providers of this machine, whose secrets are read at each call."""

REMOTE: Mapping[str, Callable[[Secret], str]] = {
    "azure-key-vault": azure.key_vault,
    "databricks": databricks.scope,
    "aws-secrets-manager": aws.secrets_manager,
    "google-secret-manager": google.secret_manager,
}
"""The providers in the network."""


@dataclass
class _Known:
    """A value of a provider in the network: when it was read, and whether it was refused since."""

    value: str | None = None
    read: float = 0.0
    is_refused: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: dict[Secret, _Known] = {}
_lock = threading.Lock()


def resolve(secret: Secret) -> str:
    """The value of a secret.

    Raises:
        ConfigError: there is no such secret, or it may not be read.
        SecretsUnreachable: the provider does not answer.
    """
    if secret.provider in LOCAL:
        return LOCAL[secret.provider](secret)
    known = _of(secret)
    # Workers that need it at the same time ask once.
    with known.lock:
        age = time.monotonic() - known.read
        if known.value is not None and age < secret.ttl and not known.is_refused:
            return known.value
        try:
            value = REMOTE[secret.provider](secret)
        except SecretsUnreachable:
            if known.value is None or age > _SERVES:
                raise
            return known.value
        known.value, known.read, known.is_refused = value, time.monotonic(), False
        return value


def ask_again(secrets: Iterable[Secret]) -> None:
    """Has the providers of secrets whose values were refused asked again by the next `resolve`."""
    for secret in secrets:
        if secret.provider in REMOTE:
            _of(secret).is_refused = True


def forget() -> None:
    """Forgets all values."""
    with _lock:
        _known.clear()


def _of(secret: Secret) -> _Known:
    with _lock:
        return _known.setdefault(secret, _Known())
