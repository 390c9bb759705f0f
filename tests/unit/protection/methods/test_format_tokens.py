"""Tokens that keep the format of texts, against a token made character by character."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.protection.methods import format_tokens
from bronze.protection.methods.format_tokens import tokens_with_format
from tests.support import format_preserving
from tests.support.effort import examples

_KEY = bytes(range(32))
_SPACED = " -+()./\0\x7f"
_TEXT = (
    st.text("0123456789" + _SPACED, max_size=30)
    | st.text("abcXYZ" + _SPACED, max_size=60)
    | st.text("09azAZ @", max_size=12)
    | st.text(max_size=12)
    | st.text("12345678é٣ß\U0001f600", max_size=12)
)


@settings(derandomize=True, database=None, deadline=None, max_examples=examples(60))
@given(st.lists(st.none() | _TEXT, max_size=30), st.sampled_from([1, 16, 2**20]))
def test_a_column_of_tokens_has_the_token_of_each_text(texts: list[str | None], part: int) -> None:
    """Of any alphabets, scripts, lengths and NULLs, however the column is cut."""
    expected = [None if text is None else format_preserving.token(text, _KEY) for text in texts]
    before = format_tokens._PART
    format_tokens._PART = part
    try:
        column = pl.Series("v", ["before", *texts], dtype=pl.String)[1:]
        tokens = tokens_with_format(column, _KEY)
    finally:
        format_tokens._PART = before
    assert tokens.dtype == pl.String
    assert tokens.to_list() == expected


def test_many_texts_of_one_length_have_the_token_of_each() -> None:
    """A thousand names and numbers, of which every twentieth is computed apart."""
    names = [f"{'abcdefghijklmnop'[n % 16]}{'qrstuvw'[n % 7]}xyZ O'Neil" for n in range(500)]
    texts = [*names, *(f"+49 ({n % 90:02d}) {n * 7919 % 10**6:06d}" for n in range(500))]
    tokens = tokens_with_format(pl.Series(texts), _KEY)
    for row in range(0, 1000, 20):
        assert tokens[row] == format_preserving.token(texts[row], _KEY)
