"""The base class of the sections of bronze.toml, and types of their fields (durations, sizes)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_DECIMAL = re.compile(r"^decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+)\s*(s|m|h|d|)\s*$", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_seconds(value: object) -> object:
    """Seconds, from a duration such as "30s", "5m" or "2h"; other values stay as they are."""
    if isinstance(value, str):
        match = _DURATION.match(value)
        if not match:
            raise ValueError('a duration looks like "30s", "5m" or "2h"')
        return int(match[1]) * _SECONDS[match[2].lower()]
    return value


def matching(pattern: str, what: str) -> AfterValidator:
    """Refuses a text that does not match a pattern, with the sentence that it is not ``what``. The
    text itself may be a secret.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it is not {what}")
        return text

    return AfterValidator(check)


def to_bytes(value: object) -> object:
    """Bytes, from a size such as "500MB" or "2GiB"; other values stay as they are."""
    if isinstance(value, str):
        match = _SIZE.match(value)
        if not match:
            raise ValueError('a size looks like "500MB" or "2GB", and "2GiB" is 2 * 2^30 bytes')
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** _POWERS[match[2].upper()])
    return value


def to_decimal(value: object) -> object:
    """Precision and scale, from a text such as "decimal(38,10)"."""
    match = _DECIMAL.match(str(value))
    if not match:
        raise ValueError('a decimal type looks like "decimal(38,10)"')
    precision, scale = int(match[1]), int(match[2])
    if not 1 <= precision <= 38 or scale > precision:
        raise ValueError("the precision is 1 to 38, and the scale at most the precision")
    return precision, scale


def _check_root(root: str) -> str:
    if "://" not in root and _ESCAPE.search(root):
        raise ValueError("Delta readers would decode a percent sign before two digits")
    return root


def to_list(value: object) -> object:
    """A list of one text; other values stay as they are."""
    return [value] if isinstance(value, str) else value


LakeRoot = Annotated[str, AfterValidator(_check_root)]
Seconds = Annotated[int, Field(ge=0), BeforeValidator(to_seconds)]
Bytes = Annotated[int, BeforeValidator(to_bytes)]
Decimal = Annotated[tuple[int, int], BeforeValidator(to_decimal)]
Provider = Literal[
    "env",
    "file",
    "azure-key-vault",
    "databricks",
    "aws-secrets-manager",
    "google-secret-manager",
]
NameList = Annotated[tuple[str, ...], BeforeValidator(to_list)]


class Section(BaseModel):
    """A section of bronze.toml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SecretName(Section):
    """``{ secret = "KConnectionString" }``: the name of a secret of the provider in [secrets], or
    of another ``provider``.
    """

    secret: str
    provider: Provider | None = None


def secrets_named(value: object) -> Iterator[SecretName]:
    """All secrets that a part of the config names."""
    if isinstance(value, SecretName):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_named(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from secrets_named(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from secrets_named(part)


_SECRET_OPTION = re.compile(r"key|secret|token|password|credential|sas", re.IGNORECASE)


def is_secret_option(option: str) -> bool:
    """Whether the name of an object store option says that its value is a secret."""
    return bool(_SECRET_OPTION.search(option))
