"""FF1 and the tokens made with it, value by value and character by character, as the standard and
`bronze.protection.protect` describe them: slow, and without numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_ALPHABETS = (("0123456789", 6), ("abcdefghijklmnopqrstuvwxyz", 5))


def encrypt(key: bytes, radix: int, text: Sequence[int], tweak: bytes = b"") -> list[int]:
    """FF1.Encrypt of SP 800-38G, with the names and the numbers of its steps."""
    n, t = len(text), len(tweak)
    u = n // 2  # 1
    v = n - u
    a, b = list(text[:u]), list(text[u:])  # 2
    size = -(-(radix**v - 1).bit_length() // 8)  # 3
    d = 4 * -(-size // 4) + 4  # 4
    p = bytes([1, 2, 1, *radix.to_bytes(3, "big"), 10, u % 256])  # 5
    p += n.to_bytes(4, "big") + t.to_bytes(4, "big")
    for i in range(10):  # 6
        q = tweak + bytes((-t - size - 1) % 16) + bytes([i])
        q += _number(b, radix).to_bytes(size, "big")  # 6i
        r = bytes(16)
        for at in range(0, len(p + q), 16):  # 6ii
            r = _aes(key, _xor(r, (p + q)[at : at + 16]))
        s = r  # 6iii
        for j in range(1, -(-d // 16)):
            s += _aes(key, _xor(r, j.to_bytes(16, "big")))
        y = int.from_bytes(s[:d], "big")  # 6iv
        m = v if i % 2 else u  # 6v
        c = (_number(a, radix) + y) % radix**m  # 6vi
        a, b = b, [c // radix**place % radix for place in reversed(range(m))]  # 6vii to 6ix
    return a + b  # 7


def token(text: str, key: bytes) -> str | None:
    """The token of a text that keeps its format; None if the format is not kept."""
    word = [c for c in text.lower() if c.isalnum()]
    for alphabet, least in _ALPHABETS:
        if text.isascii() and len(word) >= least and set(word) <= set(alphabet):
            numerals = encrypt(key, len(alphabet), [alphabet.index(c) for c in word])
            others = (alphabet[numeral] for numeral in numerals)
            return "".join(_like(c, others) if c.isalnum() else c for c in text)
    return None


def _like(character: str, others: Iterator[str]) -> str:
    other = next(others)
    return other.upper() if character.isupper() else other


def _number(numerals: Sequence[int], radix: int) -> int:
    number = 0
    for numeral in numerals:
        number = number * radix + numeral
    return number


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305
