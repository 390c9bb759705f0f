"""Wraps data keys with a master key, and unwraps them in the process that protects rows.

A data key is 64 random bytes. It is wrapped with AES-256-GCM, which binds it to its id, table,
column and purpose, so that its record cannot replace that of another key. The master key is a
secret of a provider (see `bronze.secrets`): 32 bytes, as base64. Unwrapped keys stay in memory.
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
_CACHED_KEYS = 1024


def master(secret: Secret) -> bytes:
    """A master key.

    Raises:
        ConfigError: there is none, or it is not the base64 of 32 bytes.
    """
    text = resolve(secret)
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _MASTER:
        raise ConfigError(
            f"The master key {secret.name} is not the base64 of {_MASTER} bytes.",
            hint="`bronze keys new` makes one; values that another master key protects need that"
            " one.",
        )
    return key


def new_master() -> str:
    """A new master key, as base64 of 32 bytes."""
    return base64.b64encode(os.urandom(_MASTER)).decode()


def fingerprint(key: bytes) -> str:
    """The id of a master key, which reveals nothing about it: 16 hexadecimal digits."""
    return hmac.digest(key, b"bronze master key", hashlib.sha256).hex()[:16]


def new(wrapping: bytes, table: str, column: str, purpose: str) -> DataKey:
    """A new data key, wrapped with a master key."""
    blank = DataKey(token_hex(_ID), table, column, purpose, "", fingerprint(wrapping))
    return _wrap(blank, os.urandom(_DATA), wrapping)


def rewrap(key: DataKey, masters: Sequence[Secret], wrapping: bytes) -> DataKey:
    """The same data key, wrapped with another master key.

    Raises:
        ConfigError: none of the master keys unwraps it.
    """
    return _wrap(key, unwrap(key, tuple(masters)), wrapping)


def _wrap(key: DataKey, data: bytes, wrapping: bytes) -> DataKey:
    nonce = os.urandom(_NONCE)
    sealed = nonce + AESGCM(wrapping).encrypt(nonce, data, _binding(key))
    return DataKey(
        key.id,
        key.table,
        key.column,
        key.purpose,
        base64.b64encode(sealed).decode(),
        fingerprint(wrapping),
    )


def _binding(key: DataKey) -> bytes:
    return json.dumps([key.id, key.table, key.column, key.purpose]).encode()


@lru_cache(_CACHED_KEYS)
def unwrap(key: DataKey, masters: tuple[Secret, ...]) -> bytes:
    """The 64 bytes of a data key.

    Raises:
        ConfigError: none of the master keys has wrapped it, or its record was changed.
    """
    for secret in masters:
        wrapping = master(secret)
        if fingerprint(wrapping) != key.master:
            continue
        sealed = base64.b64decode(key.wrapped)
        try:
            return AESGCM(wrapping).decrypt(sealed[:_NONCE], sealed[_NONCE:], _binding(key))
        except InvalidTag:
            raise ConfigError(
                f"The record of the key {key.id} in governance.keys was changed.",
                hint="Restore that table to an earlier version.",
            ) from None
    raise ConfigError(
        f"The key {key.id} was wrapped with the master key {key.master}, which is not one of those"
        " that the config names.",
        hint="Name it under [protection] key or previous.",
    )
