"""FF1 of many strings at once: NIST's samples, and the standard's own steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.protection.methods import ff1
from tests.support import format_preserving
from tests.support.effort import examples

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
# NIST's samples for FF1 (csrc.nist.gov, "FF1samples.pdf"): key, radix, text, tweak, result.
_KEY = "2B7E151628AED2A6ABF7158809CF4F3C"
_MIDDLE = _KEY + "EF4359D8D580AA4F"
_LONG = _KEY + "EF4359D8D580AA4F7F036D6F04FC6A94"
_DIGITS, _MIXED = "0123456789", "0123456789abcdefghi"
_TWEAK, _OTHER = "39383736353433323130", "3737373770717273373737"
# More rows than this are encrypted by another path than fewer (`ff1._FEWEST_ROWS`).
_MANY = 130


@pytest.mark.parametrize("rows", [1, _MANY])
@pytest.mark.parametrize(
    ("secret", "radix", "text", "tweak", "result"),
    [
        (_KEY, 10, _DIGITS, "", "2433477484"),
        (_KEY, 10, _DIGITS, _TWEAK, "6124200773"),
        (_KEY, 36, _MIXED, _OTHER, "a9tv40mll9kdu509eum"),
        (_MIDDLE, 10, _DIGITS, "", "2830668132"),
        (_MIDDLE, 10, _DIGITS, _TWEAK, "2496655549"),
        (_MIDDLE, 36, _MIXED, _OTHER, "xbj3kv35jrawxv32ysr"),
        (_LONG, 10, _DIGITS, "", "6657667009"),
        (_LONG, 10, _DIGITS, _TWEAK, "1001623463"),
        (_LONG, 36, _MIXED, _OTHER, "xs8a0azh2avyalyzuwd"),
    ],
)
def test_ff1_matches_the_samples_of_nist(
    secret: str, radix: int, text: str, tweak: str, result: str, rows: int
) -> None:
    """Keys, texts and results are those that NIST has published."""
    numerals = np.array([[_ALPHABET.index(c) for c in text]] * rows, np.uint8)
    encrypted = ff1.encrypt(bytes.fromhex(secret), radix, numerals, bytes.fromhex(tweak))
    assert {"".join(_ALPHABET[i] for i in row) for row in encrypted} == {result}


@st.composite
def _strings(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    radix = draw(st.sampled_from([2, 10, 26, 36, 255, 256]) | st.integers(2, 256))
    least = next(n for n in range(2, 21) if radix**n >= ff1.LEAST)
    length = draw(st.integers(least, 40) | st.integers(least, 300))
    # The greatest numbers carry the furthest.
    numeral = st.sampled_from([0, radix - 1]) | st.integers(0, radix - 1)
    seed = draw(st.lists(numeral, min_size=length, max_size=length))
    constant = [[value] * length for value in (0, radix - 1)]
    return radix, [seed, seed[::-1], *constant]


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(60))
@given(_strings(), st.binary(max_size=40), st.sampled_from([16, 24, 32]), st.booleans())
def test_many_strings_are_encrypted_as_each_by_the_steps_of_the_standard(
    strings: tuple[int, list[list[int]]], tweak: bytes, size: int, many: bool
) -> None:
    """For all radixes, lengths, tweaks and keys; few strings are encrypted as many are."""
    radix, texts = strings
    key = bytes(range(size))
    numerals = np.array(texts, np.uint8)
    times = -(-_MANY // len(texts)) if many else 1
    encrypted = ff1.encrypt(key, radix, np.tile(numerals, (times, 1)), tweak).tolist()
    assert encrypted == [format_preserving.encrypt(key, radix, t, tweak) for t in texts] * times


@pytest.mark.parametrize("length", [6, 7, 18, 19, 40, 120])
def test_ff1_is_one_to_one_whatever_the_length(length: int) -> None:
    """Different strings stay different; small domains are refused."""
    drawn = np.random.default_rng(length).integers(0, 10, (500, length), dtype=np.uint8)
    rows = np.unique(drawn, axis=0)
    assert len(np.unique(ff1.encrypt(bytes(32), 10, rows), axis=0)) == len(rows)
    with pytest.raises(ValueError, match="too few"):
        ff1.encrypt(bytes(32), 10, rows[:, :5])
