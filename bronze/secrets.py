"""Secrets: found by name, used at once, never kept, printed or sent.

Work units carry a `bronze.model.locations.Secret`, which names a secret; whoever needs its value
resolves it where the work is done.
"""

from __future__ import annotations

import base64
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from bronze.errors import ConfigError
from bronze.model.locations import Secret

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


def resolve(secret: Secret) -> str:
    """The secret's value, asked for anew at each call, so that a rotated one is seen.

    Raises:
        ConfigError: there is no such secret, or its store cannot be asked.
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
            hint="Check that it is mounted and readable, and the folder under [secrets].",
        ) from None


def _config(secret: Secret) -> str:
    # A password written into the config file: the file is where it is found again.
    try:
        value: Any = tomllib.loads(Path(secret.place).read_text(encoding="utf-8"))
        for part in json.loads(secret.name):
            value = value[part]
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"The config file {secret.place} no longer has what a run needs of it.",
            hint="It has to stay as it is, and be where the workers are, while a run goes on.",
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
        options: passed on to azure-keyvault-secrets.

    Raises:
        ConfigError: the vault refuses, cannot be reached, or has no such secret.
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
            f"Key Vault {secret.place} did not give the secret {secret.name}:"
            f" {type(error).__name__}.",
            hint="The identity needs the role Key Vault Secrets User on the vault.",
        ) from None


_DATABRICKS_TIMEOUT = 30.0


def _databricks(secret: Secret) -> str:
    """A secret of a Databricks scope, by its REST API. ``place`` is the scope."""
    host = os.environ.get("DATABRICKS_HOST", "").removeprefix("https://").rstrip("/")
    token = os.environ.get("DATABRICKS_TOKEN", "")
    if not host or not token:
        raise ConfigError(
            "The environment variables DATABRICKS_HOST and DATABRICKS_TOKEN are not set.",
            hint="Set them to the workspace's address and to a token that may read the scope.",
        )
    query = urlencode({"scope": secret.place, "key": secret.name})
    request = Request(
        f"https://{host}/api/2.0/secrets/get?{query}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urlopen(request, timeout=_DATABRICKS_TIMEOUT) as answer:  # noqa: S310
            return base64.b64decode(json.load(answer)["value"], validate=True).decode()
    except (OSError, ValueError, KeyError) as error:
        said = type(error).__name__
        if isinstance(error, HTTPError):
            said = f"HTTP {error.code}"
            error.close()
        raise ConfigError(
            f"Databricks at {host} did not give the secret {secret.name} of the scope"
            f" {secret.place}: {said}.",
            hint="The token needs READ on the scope.",
        ) from None


PROVIDERS: Mapping[str, Callable[[Secret], str]] = {
    "env": _environment,
    "file": _file,
    "config": _config,
    "azure-key-vault": _key_vault,
    "databricks": _databricks,
}
