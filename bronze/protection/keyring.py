"""Keys: a master key wraps data keys, and data keys are unwrapped where rows are worked on.

A data key is 64 random bytes. It is kept wrapped by AES-256-GCM, bound to its id and to what it is
for, so that no record of it can pass for another's. The master key is a secret that a provider
gives (see `bronze.secrets`): 32 bytes, as base64. What was unwrapped is kept in this process alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from secrets import token_hex

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bronze.errors import ConfigError
from bronze.model.locations import Secret
from bronze.model.protection import DataKey
from bronze.secrets import resolve

_MASTER = 32
_DATA = 64
_NONCE = 12
_ID = 8
_KEPT = 1024


def master(given: Secret) -> bytes:
    """A master key.

    Raises:
        ConfigError: there is none, or it is no base64 of 32 bytes.
    """
    text = resolve(given)
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _MASTER:
        raise ConfigError(
            f"The master key {given.name} is not the base64 of {_MASTER} bytes.",
            hint="`bronze keys new` makes one; what another one has encrypted needs that one.",
        )
    return key


def new_master() -> str:
    """A new master key, as a secret provider keeps it."""
    return base64.b64encode(os.urandom(_MASTER)).decode()


def fingerprint(key: bytes) -> str:
    """The id of a master key, which tells nothing about it: 16 hexadecimal digits."""
    return hmac.digest(key, b"bronze master key", hashlib.sha256).hex()[:16]


def new(wrapping: bytes, table: str, column: str, purpose: str) -> DataKey:
    """A new data key, wrapped by a master key."""
    blank = DataKey(token_hex(_ID), table, column, purpose, "", fingerprint(wrapping))
    return _wrapped(blank, os.urandom(_DATA), wrapping)


def rewrapped(key: DataKey, masters: Sequence[Secret], wrapping: bytes) -> DataKey:
    """The same data key, wrapped by another master key.

    Raises:
        ConfigError: none of the master keys opens it.
    """
    return _wrapped(key, unwrapped(key, tuple(masters)), wrapping)


def _wrapped(key: DataKey, data: bytes, wrapping: bytes) -> DataKey:
    nonce = os.urandom(_NONCE)
    sealed = nonce + AESGCM(wrapping).encrypt(nonce, data, _bound(key))
    return DataKey(
        key.id,
        key.table,
        key.column,
        key.purpose,
        base64.b64encode(sealed).decode(),
        fingerprint(wrapping),
    )


def _bound(key: DataKey) -> bytes:
    return json.dumps([key.id, key.table, key.column, key.purpose]).encode()


@lru_cache(_KEPT)
def unwrapped(key: DataKey, masters: tuple[Secret, ...]) -> bytes:
    """The 64 bytes of a data key.

    Raises:
        ConfigError: none of the master keys is the one that wrapped it, or its record was changed.
    """
    for given in masters:
        wrapping = master(given)
        if fingerprint(wrapping) != key.master:
            continue
        sealed = base64.b64decode(key.wrapped)
        try:
            return AESGCM(wrapping).decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound(key))
        except InvalidTag:
            raise ConfigError(
                f"The record of the key {key.id} in governance.keys was changed.",
                hint="Restore that table to an earlier version.",
            ) from None
    raise ConfigError(
        f"The key {key.id} was wrapped by the master key {key.master}, which is none of those that"
        " the config names.",
        hint="Name that one under [protection] key or previous.",
    )
