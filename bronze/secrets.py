"""Resolves secrets by name. Their values are never kept, printed or sent to workers.

A unit of work has a `bronze.model.locations.Secret`, which names a secret; the worker resolves it.
"""

from __future__ import annotations

import base64
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bronze.errors import ConfigError
from bronze.model.locations import Secret

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


def resolve(secret: Secret) -> str:
    """The secret's current value, read from its store at each call, so that rotation works.

    Raises:
        ConfigError: there is no such secret, or its store cannot be read.
    """
    return PROVIDERS[secret.provider](secret)


def _environment(secret: Secret) -> str:
    value = os.environ.get(secret.name)
    if value is None:
        raise ConfigError(
            f"The environment variable {secret.name} is not set.",
            hint="Set it, or name another secret provider under [secrets].",
        )
    return value


def _file(secret: Secret) -> str:
    path = Path(secret.place, secret.name)
    try:
        return path.read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The secret file {path} cannot be read: {type(error).__name__}.",
            hint="Check that the file is mounted and readable, and the folder under [secrets].",
        ) from None


def _config(secret: Secret) -> str:
    """A value of the config file: ``place`` is the file, ``name`` the JSON path of the key."""
    try:
        value: Any = tomllib.loads(Path(secret.place).read_text(encoding="utf-8"))
        for part in json.loads(secret.name):
            value = value[part]
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"The connection string or lake option in the config file {secret.place} can no longer"
            " be read.",
            hint="Workers read it from the file: keep the file unchanged, and available to all"
            " workers, until the command ends.",
        ) from None
    return str(value)


def _key_vault(secret: Secret) -> str:
    return key_vault(secret)


def key_vault(secret: Secret, credential: TokenCredential | None = None, **options: Any) -> str:
    """A secret's current version from Azure Key Vault.

    Args:
        secret: ``place`` is the vault's URL.
        credential: by default azure-identity's chain: environment, workload, managed identity,
            Azure CLI.
        options: arguments for azure-keyvault-secrets.

    Raises:
        ConfigError: the vault denies access, cannot be reached, or has no such secret.
    """
    from azure.core.exceptions import AzureError
    from azure.identity import DefaultAzureCredential
    from azure.keyvault.secrets import SecretClient

    try:
        with SecretClient(
            secret.place, credential or DefaultAzureCredential(), **options
        ) as client:
            return client.get_secret(secret.name).value or ""
    except (AzureError, ValueError) as error:
        raise ConfigError(
            f"The secret {secret.name} cannot be read from Key Vault {secret.place}:"
            f" {type(error).__name__}.",
            hint="Check the name and the vault under [secrets]; the identity needs the role Key"
            " Vault Secrets User on the vault.",
        ) from None


_DATABRICKS_TIMEOUT = 30.0


def _databricks(secret: Secret) -> str:
    """A secret of a Databricks scope, from the REST API. ``place`` is the scope."""
    from urllib.error import HTTPError
    from urllib.parse import urlencode
    from urllib.request import Request, urlopen

    host = os.environ.get("DATABRICKS_HOST", "").removeprefix("https://").rstrip("/")
    token = os.environ.get("DATABRICKS_TOKEN", "")
    if not host or not token:
        raise ConfigError(
            "The environment variables DATABRICKS_HOST and DATABRICKS_TOKEN are not set.",
            hint="Set them to the workspace's URL and to a token that may read the scope.",
        )
    query = urlencode({"scope": secret.place, "key": secret.name})
    request = Request(
        f"https://{host}/api/2.0/secrets/get?{query}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urlopen(request, timeout=_DATABRICKS_TIMEOUT) as answer:  # noqa: S310
            return base64.b64decode(json.load(answer)["value"], validate=True).decode()
    except (OSError, ValueError, KeyError) as error:
        reason = type(error).__name__
        if isinstance(error, HTTPError):
            reason = f"HTTP {error.code}"
            error.close()
        raise ConfigError(
            f"The secret {secret.name} of the scope {secret.place} cannot be read from Databricks"
            f" at {host}: {reason}.",
            hint="Check the name and the scope under [secrets]; the token needs READ on the scope.",
        ) from None


PROVIDERS: Mapping[str, Callable[[Secret], str]] = {
    "env": _environment,
    "file": _file,
    "config": _config,
    "azure-key-vault": _key_vault,
    "databricks": _databricks,
}
