"""Secrets of this machine: environment variables, files, and the config file itself."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from bronze.errors import ConfigError
from bronze.model.locations import Secret
from bronze.secrets import variables


def environment(secret: Secret) -> str:
    """An environment variable.

    Raises:
        ConfigError: it is not set, or empty.
    """
    value = os.environ.get(secret.name)
    if not value:
        state = "not set" if value is None else "empty"
        raise ConfigError(
            f"The environment variable {secret.name} is {state}.",
            hint="Set it, or name another secret provider under [secrets].",
        )
    return value


def file(secret: Secret) -> str:
    """A file: ``place`` is its folder, ``name`` its name.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    path = Path(secret.place, secret.name)
    try:
        value = path.read_text().rstrip("\n")
    except FileNotFoundError:
        raise ConfigError(
            f"The secret file {path} does not exist.",
            hint="Write the secret into it (`bronze keys new` prints a new master key), or correct"
            " the folder under [secrets].",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The secret file {path} cannot be read: {type(error).__name__}.",
            hint="Check that the file is mounted and readable, and the folder under [secrets].",
        ) from None
    if not value:
        raise ConfigError(
            f"The secret file {path} is empty.", hint="Write the secret into it, and run again."
        )
    return value


def config(secret: Secret) -> str:
    """A value of the config file: ``place`` is the file, ``name`` the JSON path of the key.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        value: Any = tomllib.loads(Path(secret.place).read_text(encoding="utf-8"))
        for part in json.loads(secret.name):
            value = value[part]
        return variables.expand(str(value))
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"The connection string or lake option in the config file {secret.place} can no longer"
            " be read.",
            hint="Workers read it from the file: keep the file unchanged, and available to all"
            " workers, until the command ends.",
        ) from None
