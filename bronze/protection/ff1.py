"""FF1, format-preserving encryption: NIST SP 800-38G, revision 1, with AES.

Many strings of one length are encrypted at once. Domains of fewer than a million values are
refused, as the standard requires.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Numerals = npt.NDArray[np.uint8]

LEAST = 1_000_000
"""The fewest values that a domain may have."""

_ROUNDS = 10
_BLOCK = 16
# Up to this number of bytes the sum of two halves fits into 64 bits.
_SHORT = 8


def encrypt(key: bytes, radix: int, numerals: Numerals, tweak: bytes = b"") -> Numerals:
    """Encrypts strings of numerals, each below ``radix`` (at most 256), to strings of that length.

    Args:
        key: the AES key, of 16, 24 or 32 bytes.
        radix: how many different numerals there are.
        numerals: a row for each string, most significant first.
        tweak: what else the result depends on.

    Raises:
        ValueError: the domain is too small.
    """
    rows, length = numerals.shape
    if radix**length < LEAST:
        raise ValueError(f"{length} numerals of radix {radix} are too few")
    left = length // 2
    right = length - left
    size = ((radix**right - 1).bit_length() + 7) // 8
    wide = 4 * -(-size // 4) + 4
    header = bytes([1, 2, 1]) + radix.to_bytes(3, "big") + bytes([_ROUNDS, left % 256])
    header += length.to_bytes(4, "big") + len(tweak).to_bytes(4, "big")
    first = tweak + bytes(-(len(tweak) + size + 1) % _BLOCK)
    a, b = (_number(half, radix, wide) for half in (numerals[:, :left], numerals[:, left:]))
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - FF1 is built of it
    start = np.frombuffer(aes.update(header), np.uint8)
    for number in range(_ROUNDS):
        fixed = np.frombuffer(first + bytes([number]), np.uint8)
        message = np.hstack([np.broadcast_to(fixed, (rows, len(fixed))), _bytes(b, size)])
        addend = _number(_random_bytes(aes, start, message, wide), 256, wide)
        modulus = radix ** (right if number % 2 else left)
        a, b = b, (a + addend % modulus) % modulus
    return np.hstack([_numerals(a, radix, left), _numerals(b, radix, right)])


def _random_bytes(aes: Any, start: Numerals, message: Numerals, wide: int) -> Numerals:
    """``wide`` bytes for each message: its CBC-MAC after ``start``, and the blocks that follow."""
    state = np.broadcast_to(start, (len(message), _BLOCK))
    for at in range(0, message.shape[1], _BLOCK):
        state = _encrypt_blocks(aes, state ^ message[:, at : at + _BLOCK])
    blocks = [state]
    for number in range(1, -(-wide // _BLOCK)):
        counter = np.frombuffer(number.to_bytes(_BLOCK, "big"), np.uint8)
        blocks.append(_encrypt_blocks(aes, state ^ counter))
    return np.hstack(blocks)[:, :wide]


def _encrypt_blocks(aes: Any, blocks: Numerals) -> Numerals:
    encrypted = aes.update(np.ascontiguousarray(blocks).tobytes())
    return np.frombuffer(encrypted, np.uint8).reshape(-1, _BLOCK)


def _number(digits: Numerals, radix: int, wide: int) -> npt.NDArray[Any]:
    kind: Any = np.uint64 if wide <= _SHORT else object
    result = np.zeros(len(digits), kind)
    base = kind(radix) if kind is not object else radix
    for place in range(digits.shape[1]):
        result = result * base + digits[:, place].astype(kind)
    return result


def _numerals(numbers: npt.NDArray[Any], radix: int, length: int) -> Numerals:
    result = np.empty((len(numbers), length), np.uint8)
    rest = numbers
    for place in range(length - 1, -1, -1):
        result[:, place] = (rest % radix).astype(np.uint8)
        rest = rest // radix
    return result


def _bytes(numbers: npt.NDArray[Any], size: int) -> Numerals:
    return _numerals(numbers, 256, size)
