"""Secrets of AWS Secrets Manager, and tokens for RDS and Aurora (``bronze[aws]``).

Credentials and the region are found as boto3 does: environment, profile, role of the machine.
"""

from __future__ import annotations

import os
import re
import time
from functools import cache
from typing import Any

from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Secret

_TIMEOUT = 10
_TOKEN_SECONDS = 15 * 60
_HOST = re.compile(r"\.([a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?$")
_BUSY = ("ThrottlingException", "InternalServiceError", "ServiceUnavailable")


def secrets_manager(secret: Secret) -> str:
    """The current version of a secret, by its name or ARN; ``place`` is the region, "" for that of
    the environment.

    Raises:
        ConfigError: it may not be read, or there is no such secret.
        SecretsUnreachable: AWS does not answer.
    """
    where = f"The secret {secret.name} cannot be read from AWS Secrets Manager"
    hint = "Check the name and the region under [secrets]; the identity needs GetSecretValue on it."
    answer: Any = _call(
        where, hint, lambda: _client("secretsmanager", secret.place).get_secret_value,
        SecretId=secret.name,
    )  # fmt: skip
    value = answer.get("SecretString") or ""
    if not value:
        raise ConfigError(f"{where}: it has no text.", hint=hint)
    return str(value)


def database_token(host: str, port: str, user: str) -> tuple[str, float]:
    """A token for a user of an RDS or Aurora database, and when it ends, in seconds since 1970.

    Raises:
        ConfigError: there are no credentials.
    """
    token = _call(
        f"AWS gives no token for {user} at {host}",
        "Set AWS_REGION and credentials, as for the AWS CLI; the identity needs rds-db:connect.",
        lambda: _client("rds", _region(host)).generate_db_auth_token,
        DBHostname=host, Port=int(port), DBUsername=user,
    )  # fmt: skip
    return str(token), time.time() + _TOKEN_SECONDS


def _region(host: str) -> str:
    """The region in the name of a database's host, "" if it has none."""
    match = _HOST.search(host)
    return match[1] if match else ""


@cache
def _client(service: str, region: str) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigError(
            "The package boto3 is not installed.", hint="pip install 'bronze[aws]'"
        ) from None
    config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"max_attempts": 3})
    # boto3 itself looks for AWS_DEFAULT_REGION only; AWS's other tools for both.
    region = region or os.environ.get("AWS_REGION", "")
    return boto3.client(service, region_name=region or None, config=config)


def _call(where: str, hint: str, method: Any, **arguments: object) -> Any:
    try:
        call = method()
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnection
    except ConfigError:
        raise
    except Exception as error:  # boto3 needs a region to make a client
        raise ConfigError(f"{where}: {type(error).__name__}.", hint=hint) from None
    try:
        return call(**arguments)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", type(error).__name__)
        if code in _BUSY:
            raise SecretsUnreachable(
                f"{where}: {code}.", hint="bronze retries by itself."
            ) from None
        raise ConfigError(f"{where}: {code}.", hint=hint) from None
    except (HTTPClientError, NoConnection) as error:
        raise SecretsUnreachable(
            f"{where}: {type(error).__name__}.", hint="Check the region and the network."
        ) from None
    except BotoCoreError as error:
        raise ConfigError(f"{where}: {type(error).__name__}.", hint=hint) from None
