"""The imprint of a config: what it says, as hashes that tell what has changed and no secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from bronze.config.settings import Settings, is_secret_option
from bronze.dsn import parse_dsn

_DIGITS = 16
_HIDDEN = ("password", "sslpassword")
_STORES = (("lake", "options"), ("audit", "escrow_options"), ("backup", "options"))
"""The sections and keys with options of object stores."""


def imprint(settings: Settings) -> dict[str, str]:
    """A short hash of each value that the config gives, by its place (``tables.orders.pattern``).

    Passwords that stand in the config are left out; of others the name is part of it. The share of
    memory that a work has is no part of it.
    """
    document = settings.whole.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for source in document["source"].values():
        if isinstance(source.get("dsn"), str):
            source["dsn"] = _without_password(source["dsn"])
    for section, key in _STORES:
        options = document.get(section, {}).get(key, {})
        for name in [name for name, value in options.items() if isinstance(value, str)]:
            if is_secret_option(name):
                options[name] = ""
    return {place: _hash(value)[:_DIGITS] for place, value in sorted(_leaves("", document))}


def fingerprint_of(imprinted: Mapping[str, str]) -> str:
    """The hash of all of it, as 32 hexadecimal digits."""
    return _hash(imprinted)[:32]


def _without_password(dsn: str) -> Mapping[str, Any]:
    return {name: value for name, value in parse_dsn(dsn, "").items() if name not in _HIDDEN}


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield place, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{place}.{name}" if place else str(name), inner)


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


EMPTY_TEXT = _hash("")[:_DIGITS]
"""The hash of a value that is an empty text."""
