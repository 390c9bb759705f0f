"""FF1, format-preserving encryption: NIST SP 800-38G, revision 1, with AES.

Many strings of one length are encrypted at once: each step of a round is one call for all of them.
Domains of fewer than a million values are refused, as the standard requires.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Numerals = npt.NDArray[np.uint8]
Limbs = list[npt.NDArray[np.uint64]]
"""Numbers in parts of up to 32 bits, the least significant first."""
Words = npt.NDArray[np.uint32]
"""Numbers as a row of big-endian words of 32 bits each, the most significant first."""

LEAST = 1_000_000
"""The fewest values that a domain may have."""

_ROUNDS = 10
_BLOCK = 16
_WORD = 4
_WORD_VALUES = 2**32
# Measured: fewer numbers, or numbers of more limbs, take less time as integers of Python.
_FEWEST_ROWS = 128
_MOST_LIMBS = 12


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
    # More numerals than this are enough with any radix.
    if radix ** min(length, LEAST.bit_length()) < LEAST:
        raise ValueError(f"{length} numerals of radix {radix} are too few")
    function = _RoundFunction(key, radix, length, tweak)
    left = length // 2
    halves = _Half(radix, left), _Half(radix, length - left)
    is_fast = rows >= _FEWEST_ROWS and len(halves[1].bases) <= _MOST_LIMBS
    rounds = _limb_rounds if is_fast else _integer_rounds
    a, b = (
        half.limbs(part) for half, part in zip(halves, np.hsplit(numerals, [left]), strict=True)
    )
    a, b = rounds(function, halves, a, b)
    return np.hstack([halves[0].numerals(a), halves[1].numerals(b)])


class _Half:
    """Numbers of ``length`` numerals. A limb is one of as many of them as fit into a word."""

    def __init__(self, radix: int, length: int) -> None:
        """The limbs of such numbers."""
        self._radix = np.uint64(radix)
        self._length = length
        self._digits = next(n for n in range(8 * _WORD, 0, -1) if radix**n <= _WORD_VALUES)
        whole, rest = divmod(length, self._digits)
        self.base = radix**self._digits
        self.bases = [self.base] * whole + [radix**rest] * (rest > 0)
        """How many values each limb has."""

    def limbs(self, numerals: Numerals) -> Limbs:
        """Numbers from their numerals."""
        limbs = []
        for end in range(self._length, 0, -self._digits):
            limb = np.zeros(len(numerals), np.uint64)
            for place in range(max(end - self._digits, 0), end):
                limb = limb * self._radix + numerals[:, place]
            limbs.append(limb)
        return limbs

    def integers(self, limbs: Limbs) -> list[int]:
        """Numbers as integers of Python."""
        integers: list[int] = limbs[-1].tolist()
        for limb in reversed(limbs[:-1]):
            parts = zip(integers, limb.tolist(), strict=True)
            integers = [number * self.base + part for number, part in parts]
        return integers

    def limbs_of(self, integers: list[int]) -> Limbs:
        """Numbers from integers of Python."""
        limbs = []
        for base in self.bases:
            pairs = [divmod(n, base) for n in integers]
            limbs.append(np.array([limb for _, limb in pairs], np.uint64))
            integers = [rest for rest, _ in pairs]
        return limbs

    def numerals(self, limbs: Limbs) -> Numerals:
        """The numerals of numbers."""
        numerals = np.empty((len(limbs[0]), self._length), np.uint8)
        for number, limb in enumerate(limbs):
            rest = limb
            end = self._length - number * self._digits
            for place in range(end - 1, max(end - self._digits, 0) - 1, -1):
                quotient = rest // self._radix
                # Several times as fast as the remainder.
                numerals[:, place] = rest - quotient * self._radix
                rest = quotient
        return numerals


class _RoundFunction:
    """The random bytes that a half is added to in each round, as they depend on the other half:
    CBC-MAC with AES, lengthened as far as it is needed.
    """

    def __init__(self, key: bytes, radix: int, length: int, tweak: bytes) -> None:
        """Encrypts the first block, which is the same for all strings of a length."""
        left = length // 2
        self._size = ((radix ** (length - left) - 1).bit_length() + 7) // 8
        self.words = -(-self._size // _WORD)
        """How many words the greatest number has; the result has one more."""
        self._aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - part of FF1
        header = bytes([1, 2, 1]) + radix.to_bytes(3, "big") + bytes([_ROUNDS, left % 256])
        header += length.to_bytes(4, "big") + len(tweak).to_bytes(4, "big")
        self._start = self._aes.update(header)
        self._tweak = tweak + bytes(-(len(tweak) + self._size + 1) % _BLOCK)

    def __call__(self, number: int, halves: Words) -> Words:
        """The result for each number in the round of that number."""
        fixed = self._tweak + bytes([number]) + bytes(self._size)
        words = np.zeros((len(halves), len(fixed) // _WORD), ">u4")
        words[:, -self.words :] = halves
        message = words.view(np.uint64) ^ np.frombuffer(fixed, np.uint64)
        state: npt.NDArray[np.uint64] = np.frombuffer(self._start, np.uint64)
        for at in range(0, message.shape[1], 2):
            state = self._encrypt(state ^ message[:, at : at + 2])
        blocks = [state]
        for counter in range(1, -(-(self.words + 1) * _WORD // _BLOCK)):
            block = np.frombuffer(counter.to_bytes(_BLOCK, "big"), np.uint64)
            blocks.append(self._encrypt(state ^ block))
        random: Words = np.hstack(blocks).view(">u4")[:, : self.words + 1]
        return random

    def _encrypt(self, blocks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._aes.update(blocks.data.cast("B")), np.uint64).reshape(-1, 2)


def _limb_rounds(
    function: _RoundFunction, halves: Sequence[_Half], a: Limbs, b: Limbs
) -> tuple[Limbs, Limbs]:
    words: Words = np.empty((len(a[0]), function.words), ">u4")
    for number in range(_ROUNDS):
        parts = _rebase(b[::-1], halves[0].base, [_WORD_VALUES] * function.words)
        for place, part in enumerate(reversed(parts)):
            words[:, place] = part
        random = function(number, words).T.astype(np.uint64)
        bases = halves[number % 2].bases
        a, b = b, _sum(a, _rebase(list(random), _WORD_VALUES, bases), bases)
    return a, b


def _rebase(parts: Limbs, base: int, bases: Sequence[int]) -> Limbs:
    """Numbers in limbs of other bases, without what is beyond the last of these.

    ``parts`` are the limbs of ``base``, the most significant first. No base is above 2**32, so that
    nothing exceeds 64 bits.
    """
    limbs = [np.zeros(len(parts[0]), np.uint64) for _ in bases]
    for part in parts:
        carry = part
        for place, values in enumerate(bases):
            total = limbs[place] * np.uint64(base) + carry
            carry = total // np.uint64(values)
            limbs[place] = total - carry * np.uint64(values)
    return limbs


def _sum(a: Limbs, b: Limbs, bases: Sequence[int]) -> Limbs:
    """The sums of numbers, without what is beyond the last limb."""
    sums = []
    carry: Any = np.uint64(0)
    for first, second, values in zip(a, b, bases, strict=True):
        total = first + second + carry
        carry = (total >= values).astype(np.uint64)
        sums.append(total - carry * np.uint64(values))
    return sums


def _integer_rounds(
    function: _RoundFunction, halves: Sequence[_Half], a: Limbs, b: Limbs
) -> tuple[Limbs, Limbs]:
    """What `_limb_rounds` returns, by way of integers of Python."""
    size = function.words * _WORD
    moduli = [math.prod(half.bases) for half in halves]
    first, second = (half.integers(limbs) for half, limbs in zip(halves, (a, b), strict=True))
    for number in range(_ROUNDS):
        words = np.frombuffer(b"".join(n.to_bytes(size, "big") for n in second), ">u4")
        random = function(number, words.reshape(-1, function.words))
        addends = [int.from_bytes(row.tobytes(), "big") for row in random]
        modulus = moduli[number % 2]
        sums = [(n + addend) % modulus for n, addend in zip(first, addends, strict=True)]
        first, second = second, sums
    return halves[0].limbs_of(first), halves[1].limbs_of(second)
