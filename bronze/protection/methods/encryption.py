"""Encrypts texts of a column, and decrypts them; `bronze.protection.protect` has the stored form.

A key encrypts with the method of its column, and the stored form says which one it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from bronze.model.locations import Secret
from bronze.model.protection import DataKey
from bronze.protection.keyring import unwrap

_HALF = 32
_NONCE = 12
_RANDOM, _DETERMINISTIC = "v1", "s1"


def encrypt(texts: pl.Series, key: DataKey, data: bytes) -> pl.Series:
    """The texts encrypted with AES-256-GCM; ``data`` are the 64 bytes of the key."""
    binding, cipher = associated_data(key), AESGCM(data[:_HALF])
    clear = texts.cast(pl.Binary).to_list()
    nonces = np.frombuffer(os.urandom(_NONCE * len(clear)), f"V{_NONCE}").tolist()
    pairs = zip(nonces, clear, strict=True)
    sealed = [None if v is None else n + cipher.encrypt(n, v, binding) for n, v in pairs]
    return _stored_form(sealed, _prefix(_RANDOM, key))


def encrypt_deterministic(texts: pl.Series, key: DataKey, data: bytes) -> pl.Series:
    """The texts encrypted with AES-256-SIV; ``data`` are the 64 bytes of the key."""
    binding, cipher = [associated_data(key)], AESSIV(data)
    clear = texts.cast(pl.Binary).to_list()
    sealed = [None if v is None else cipher.encrypt(b"\0" + v, binding) for v in clear]
    return _stored_form(sealed, _prefix(_DETERMINISTIC, key))


def decrypt(stored: pl.Series, keys: Sequence[DataKey], masters: Sequence[Secret]) -> pl.Series:
    """The texts that were encrypted by one of the keys; NULL for what none of them encrypted.

    Raises:
        ConfigError: a key that is needed cannot be unwrapped.
    """
    texts = pl.Series(stored.name, [None], dtype=pl.String).new_from_index(0, len(stored))
    for key in keys:
        for version in (_RANDOM, _DETERMINISTIC):
            prefix = _prefix(version, key)
            positions = stored.str.starts_with(prefix).fill_null(False).arg_true()
            if len(positions):
                sealed = stored.gather(positions).str.slice(len(prefix))
                opened = _open(sealed, _opener(version, key, unwrap(key, tuple(masters))))
                texts = opened if len(opened) == len(texts) else texts.scatter(positions, opened)
    return texts.alias(stored.name)


def associated_data(key: DataKey) -> bytes:
    """The associated data of the values that a key encrypts: its table and column."""
    return f"{key.table}\0{key.column}".encode()


def _prefix(version: str, key: DataKey) -> str:
    return f"{version}:{key.id}:"


def _stored_form(sealed: Sequence[bytes | None], prefix: str) -> pl.Series:
    return prefix + pl.Series(sealed, dtype=pl.Binary).bin.encode("base64")


def _opener(version: str, key: DataKey, data: bytes) -> Callable[[bytes], bytes]:
    """Decrypts a value; it raises InvalidTag, or ValueError if the value is too short."""
    binding = associated_data(key)
    if version == _RANDOM:
        gcm = AESGCM(data[:_HALF])
        return lambda sealed: gcm.decrypt(sealed[:_NONCE], sealed[_NONCE:], binding)
    siv = AESSIV(data)
    return lambda sealed: siv.decrypt(sealed, [binding])[1:]


def _open(sealed: pl.Series, opener: Callable[[bytes], bytes]) -> pl.Series:
    opened: list[bytes | None] = []
    for value in sealed.str.decode("base64", strict=False).to_list():
        try:
            opened.append(None if value is None else opener(value))
        except (InvalidTag, ValueError):
            opened.append(None)
    return pl.Series(opened, dtype=pl.Binary).cast(pl.String)
