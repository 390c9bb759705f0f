"""Secrets of Azure Key Vault, and tokens of Microsoft Entra ID.

The identity is found by azure-identity's chain: environment, workload identity, managed identity,
Azure CLI. It is one per process, and one client per vault, so that tokens and connections are used
again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Secret

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.keyvault.secrets import SecretClient

DATABASE_SCOPE = "https://ossrdbms-aad.database.windows.net/.default"
"""The scope of tokens for Azure Database for PostgreSQL."""
DATABRICKS_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"
"""The scope of tokens for workspaces of Azure Databricks."""
_TIMEOUT = 10
_RETRIES = 3


def key_vault(secret: Secret) -> str:
    """A secret's current version in the vault whose URL is ``place``.

    Raises:
        ConfigError: the vault denies access, or has no such secret.
        SecretsUnreachable: the vault, or the provider of the identity, does not answer.
    """
    from azure.core.exceptions import (
        AzureError,
        ClientAuthenticationError,
        HttpResponseError,
        ResourceNotFoundError,
        ServiceRequestError,
        ServiceResponseError,
    )

    where = f"The secret {secret.name} cannot be read from Key Vault {secret.place}"
    hint = (
        "Check the name and the vault under [secrets]; the identity needs the role Key Vault"
        " Secrets User on the vault."
    )
    try:
        value = client(secret.place).get_secret(secret.name).value
    except (ServiceRequestError, ServiceResponseError) as error:
        raise SecretsUnreachable(
            f"{where}: {_reason(error)}.", hint="Check the vault's URL and the network."
        ) from None
    except ResourceNotFoundError:
        raise ConfigError(f"{where}: there is no such secret.", hint=hint) from None
    except ClientAuthenticationError as error:
        raise ConfigError(f"{where}: {_reason(error)}.", hint=hint) from None
    except HttpResponseError as error:
        if error.status_code == 429 or (error.status_code or 0) >= 500:
            raise SecretsUnreachable(
                f"{where}: it answers HTTP {error.status_code}.", hint="bronze retries by itself."
            ) from None
        reason = f"HTTP {error.status_code}" if error.status_code else _reason(error)
        raise ConfigError(f"{where}: {reason}.", hint=hint) from None
    except (AzureError, ValueError) as error:
        raise ConfigError(f"{where}: {_reason(error)}.", hint=hint) from None
    if not value:
        raise ConfigError(f"{where}: it is empty.", hint=hint)
    return value


@cache
def credential() -> TokenCredential:
    """The identity of this process."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


@cache
def client(vault: str) -> SecretClient:
    """The client of a vault."""
    from azure.keyvault.secrets import SecretClient

    return SecretClient(
        vault,
        credential(),
        connection_timeout=_TIMEOUT,
        read_timeout=_TIMEOUT,
        retry_total=_RETRIES,
    )


def _reason(error: Exception) -> str:
    """The kind of an error; messages of the library may quote what was sent."""
    return type(error).__name__


def database_token() -> tuple[str, float]:
    """A token for Azure Database for PostgreSQL, and when it ends, in seconds since 1970.

    Raises:
        SecretsUnreachable, ConfigError: as `token`.
    """
    return token(DATABASE_SCOPE)


def token(scope: str) -> tuple[str, float]:
    """A token of this process's identity for a scope, and when it ends, in seconds since 1970.

    Raises:
        SecretsUnreachable: the provider of the identity does not answer.
        ConfigError: there is no identity, or it gets no token.
    """
    from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError

    try:
        access = credential().get_token(scope)
    except (ServiceRequestError, ServiceResponseError) as error:
        raise SecretsUnreachable(
            f"Microsoft Entra ID gives no token: {_reason(error)}.", hint="Check the network."
        ) from None
    except (AzureError, ValueError) as error:
        raise ConfigError(
            f"Microsoft Entra ID gives no token: {_reason(error)}.",
            hint="Log in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and"
            " AZURE_CLIENT_SECRET, or give the machine a managed identity.",
        ) from None
    return access.token, float(access.expires_on)
