"""Protected values: their stored forms, and what is decrypted with the key."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import os
import pickle
from dataclasses import replace
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_series_equal

from bronze.config.sections.protection import MASTER_KEY
from bronze.errors import ConfigError, Mismatch
from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.locations import Secret
from bronze.model.protection import DataKey, ProtectedColumn, TableProtection
from bronze.model.units import RejectedValue
from bronze.protection import keyring, protect
from tests.support.effort import examples

MASTERS = (Secret("env", MASTER_KEY),)


def key(purpose: str = "encrypt", table: str = "bronze.bz_t", column: str = "v") -> DataKey:
    """A new key."""
    return keyring.new(keyring.master(MASTERS[0]), table, column, purpose)


def column(method: Any, *keys: DataKey, **more: Any) -> ProtectedColumn:
    """A protected column."""
    how = ProtectionRule(method, **more)
    return ProtectedColumn("v", "v", DeltaType("string"), how, keys or (key(method),))


def stored(values: list[Any], one: ProtectedColumn, kind: Any = pl.String) -> pl.Series:
    """What is stored for values."""
    return protect.protect_texts(pl.Series("v", values, dtype=kind), one, MASTERS)


_MOMENT = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999))
_KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "short": (pl.Int16(), st.integers(-(2**15), 2**15 - 1)),
    "long": (pl.Int64(), st.integers(-(2**63), 2**63 - 1)),
    "float": (pl.Float32(), st.floats(width=32)),
    "double": (pl.Float64(), st.floats()),
    "boolean": (pl.Boolean(), st.booleans()),
    "decimal": (
        pl.Decimal(38, 9),
        st.integers(-(10**38) + 1, 10**38 - 1).map(lambda i: Decimal(i).scaleb(-9)),
    ),
    "whole": (pl.Decimal(20, 0), st.integers(-(10**20) + 1, 10**20 - 1).map(Decimal)),
    "string": (pl.String(), st.text()),
    "binary": (pl.Binary(), st.binary()),
    "date": (pl.Date(), st.dates()),
    "timestamp": (pl.Datetime("us", "UTC"), _MOMENT.map(lambda t: t.replace(tzinfo=dt.UTC))),
    "timestamp_ntz": (pl.Datetime("us"), _MOMENT),
    "strings": (pl.List(pl.String()), st.lists(st.none() | st.text(), max_size=4)),
    "dates": (pl.List(pl.Date()), st.lists(st.none() | st.dates(), max_size=4)),
    "bytes": (pl.List(pl.Binary()), st.lists(st.none() | st.binary(), max_size=4)),
}


@pytest.mark.parametrize("method", protect.REVEALED)
@pytest.mark.parametrize("kind", _KINDS)
def test_encrypted_values_are_decrypted_exactly(kind: str, method: str) -> None:
    """Values of each type, and NULL; equal values stay equal with a deterministic method alone."""
    dtype, values = _KINDS[kind]
    one = column(method)

    @settings(derandomize=True, database=None, deadline=None, max_examples=examples(3))
    @given(st.lists(st.none() | values, max_size=6))
    def comes_back(rows: list[Any]) -> None:
        clear = pl.Series("v", rows, dtype=dtype, strict=False)
        sealed = protect.protect_texts(clear, one, MASTERS)
        assert sealed.dtype == pl.String
        assert sealed.is_null().equals(clear.is_null())
        back = protect.reveal_values(sealed, one, MASTERS, dtype)
        assert_series_equal(back, clear, check_names=False, check_exact=True)
        again = protect.protect_texts(clear, one, MASTERS)
        same = sealed.drop_nulls().equals(again.drop_nulls())
        assert same == (method == "encrypt_deterministic" or not len(sealed.drop_nulls()))

    comes_back()


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "encrypt_deterministic"},
        {"method": "tokenize"},
        {"method": "tokenize", "format": True},
        {"method": "hash"},
        {"method": "mask", "keep": 2},
    ],
    ids=str,
)
def test_repeated_values_are_protected_like_each_alone(rule: dict[str, Any]) -> None:
    """However often a value occurs, and whether NULL is among them."""
    one = column(**rule)
    values = ["Anna Meyer", None, "+49 30 123456", "", "ünï"]
    alone = {value: stored([value], one)[0] for value in values}
    assert alone[None] is None
    for rows in (values, values * 20, values[2:] * 20):
        assert stored(rows, one).to_list() == [alone[value] for value in rows]


@pytest.mark.parametrize("method", protect.REVEALED)
def test_values_of_several_keys_are_decrypted_in_their_rows(method: str) -> None:
    """After a rotation, with NULLs; what no key has encrypted, or is not of the type, is told."""
    old, new, foreign = key(method), key(method), key(method)
    days = [f"2026-01-0{n}" for n in range(1, 8)]
    rows = pl.concat(
        stored(values, column(method, mine))
        for mine, values in (
            (old, days[:2]),
            (new, [*days[2:4], None]),
            (foreign, [days[4]]),
            (old, [*days[5:], "no day"]),
        )
    )
    both = column(method, new, old)
    texts, faulty = protect.decrypt(rows, both, MASTERS, pl.String)
    assert texts.to_list() == [*days[:4], None, None, *days[5:], "no day"]
    assert faulty.to_list() == [False] * 5 + [True] + [False] * 3
    dates, faulty = protect.decrypt(rows, both, MASTERS, pl.Date)
    expected = [dt.date(2026, 1, n) for n in range(1, 8)]
    assert dates.to_list() == [*expected[:4], None, None, *expected[5:], None]
    assert faulty.to_list() == [False] * 5 + [True, False, False, True]
    with pytest.raises(Mismatch, match="cannot be decrypted"):
        protect.reveal_values(rows, both, MASTERS, pl.String)


def test_equal_numbers_of_different_types_are_protected_alike() -> None:
    """An int equals a bigint, and 1.5 equals 1.50: widened columns stay comparable."""
    one = column("tokenize")
    assert stored([7], one, pl.Int16).equals(stored([7], one, pl.Int64))
    narrow, wide = pl.Decimal(5, 1), pl.Decimal(9, 3)
    assert stored([Decimal("1.5")], one, narrow).equals(stored([Decimal("1.500")], one, wide))
    assert stored([Decimal("100")], one, pl.Decimal(5, 0))[0] == stored([100], one, pl.Int32)[0]


@pytest.mark.parametrize(
    ("more", "text", "shape"),
    [
        ({}, "+49 30 1234567", "tok_"),
        ({"format": True}, "+49 (30) 1234-567", "+dd (dd) dddd-ddd"),
        ({"format": True}, "John Smith-Doe", "Ccccc... "),
        ({"format": True}, "12345", "tok_"),
        ({"format": True}, "Anna", "tok_"),
        ({"format": True}, "call 1234567 x2", "tok_"),
        ({"format": True}, "Jürgen Müller", "tok_"),
        ({"format": True}, "", "tok_"),
    ],
)
def test_tokens_keep_the_format_only_where_that_is_safe(
    more: dict[str, Any], text: str, shape: str
) -> None:
    """Enough digits alone, or letters alone, keep their format; all else becomes a usual token."""
    (token,) = stored([text], column("tokenize", **more))
    if shape == "tok_":
        assert token.startswith("tok_")
        assert len(token) == 36
        return
    assert token != text
    assert len(token) == len(text)
    for old, new in zip(text, token, strict=True):
        assert old.isdigit() == new.isdigit()
        assert old.isalpha() == new.isalpha()
        assert old.isupper() == new.isupper()
        assert old.isalnum() or old == new


def test_an_encrypted_boolean_does_not_show_which_it_is() -> None:
    """True is as long as false; values without the padding, of earlier releases, can be read."""
    one = column("encrypt")
    sealed = stored([True, False, None], one, pl.Boolean)
    assert len({len(text.rstrip("=")) for text in sealed.drop_nulls()}) == 1
    assert protect.reveal_values(sealed, one, MASTERS, pl.Boolean).to_list() == [True, False, None]
    before = stored(["true", "false"], one)
    assert protect.reveal_values(before, one, MASTERS, pl.Boolean).to_list() == [True, False]


def test_tokens_of_different_values_differ() -> None:
    """A token stands for one value alone, with the format or without."""
    values = [f"{i:07d}" for i in range(3000)]
    for shaped in (True, False):
        assert stored(values, column("tokenize", format=shaped)).n_unique() == 3000


def test_masks_show_only_the_end_of_long_values() -> None:
    """At most the last characters are shown, and none of a value that is not twice as long."""
    values = ["4242424242424242", "12345678", "", None]
    assert stored(values, column("mask", keep=4)).to_list() == ["***4242", "***", "***", None]
    assert stored(values, column("mask")).to_list() == ["***", "***", "***", None]


def test_hashes_and_tokens_are_hmac_as_python_has_it() -> None:
    """Polars computes HMAC-SHA-256 with the key that the docstring describes."""
    mine = key("hash")
    secret = keyring.unwrap(mine, MASTERS)[:32].hex().encode()
    wanted = hmac.digest(secret, "ünï".encode(), hashlib.sha256).hex()
    assert stored(["ünï", None], column("hash", mine)).to_list() == [wanted, None]
    assert stored(["ünï"], column("tokenize", mine))[0] == f"tok_{wanted[:32]}"
    row = hashlib.sha256(b"row").hexdigest()[:32]
    data = os.urandom(64)
    wanted = hmac.digest(data[:32].hex().encode(), bytes.fromhex(row), hashlib.sha256).hex()
    assert protect.keyed_hashes(pl.Series([row, None]), data).to_list() == [wanted[:32], None]


def test_stored_values_have_the_documented_form() -> None:
    """They are bound to table and column, and any implementation of AES decrypts them."""
    for method, cipher in (("encrypt", AESGCM), ("encrypt_deterministic", AESSIV)):
        mine = key(method)
        data = keyring.unwrap(mine, MASTERS)
        (sealed,) = stored(["plant"], column(method, mine))
        version, name, text = sealed.split(":")
        raw = base64.b64decode(text)
        assert (version, name) == ("v1" if cipher is AESGCM else "s1", mine.id)
        where = b"bronze.bz_t\0v"
        if cipher is AESGCM:
            assert AESGCM(data[:32]).decrypt(raw[:12], raw[12:], where) == b"plant"
        else:
            assert AESSIV(data).decrypt(raw, [where]) == b"\0plant"


def test_a_moved_or_changed_value_is_not_decrypted() -> None:
    """A value of another column, table or key, or a changed one, is refused without showing it."""
    mine, other = key(), key(column="w")
    sealed = stored(["plant"], column("encrypt", mine))[0]
    head, data = sealed.rsplit(":", 1)
    raw = bytearray(base64.b64decode(data))
    raw[-1] ^= 1
    wrong = [
        (sealed, column("encrypt", other)),
        (sealed, column("encrypt", replace(other, id=mine.id))),
        (f"{head}:{base64.b64encode(bytes(raw)).decode()}", column("encrypt", mine)),
        (f"s1{sealed[2:]}", column("encrypt", mine)),
        ("plant", column("encrypt", mine)),
        (f"{head}:!", column("encrypt", mine)),
        (f"{head}:", column("encrypt", mine)),
    ]
    for text, one in wrong:
        with pytest.raises((Mismatch, ConfigError)) as caught:
            protect.reveal_values(pl.Series([text]), one, MASTERS, pl.String)
        assert "plant" not in caught.value.message
    with pytest.raises(Mismatch, match="cannot be undone"):
        protect.reveal_values(pl.Series(["x"]), column("hash"), MASTERS, pl.String)


def test_data_keys_are_unwrapped_by_their_master_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another master key, or a changed record, unwraps nothing; the right one among several is
    found; and no key is in a repr.
    """
    mine = key()
    data = keyring.unwrap(mine, MASTERS)
    assert len(data) == 64
    assert mine.wrapped not in repr(mine)
    sent = pickle.dumps(TableProtection((column("encrypt", mine),), mine, MASTERS))
    assert not any(secret in sent for secret in (data, keyring.master(MASTERS[0])))
    with pytest.raises(ConfigError, match="was changed"):
        keyring.unwrap(replace(mine, column="other"), MASTERS)
    old = os.environ[MASTER_KEY]
    monkeypatch.setenv("OLD", old)
    monkeypatch.setenv(MASTER_KEY, base64.b64encode(bytes(32)).decode())
    keyring.unwrap.cache_clear()
    with pytest.raises(ConfigError, match="not one of those"):
        keyring.unwrap(mine, MASTERS)
    both = (*MASTERS, Secret("env", "OLD"))
    assert keyring.unwrap(mine, both) == data
    again = keyring.rewrap(mine, both, bytes(32))
    assert again.master == keyring.fingerprint(bytes(32)) != mine.master
    assert keyring.unwrap(again, MASTERS) == data


@pytest.mark.parametrize("text", ["short", "!" * 44, base64.b64encode(bytes(31)).decode()])
def test_a_malformed_master_key_is_refused_without_its_text(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master key is 32 bytes in base64; the message does not repeat other text."""
    monkeypatch.setenv(MASTER_KEY, text)
    with pytest.raises(ConfigError, match="not the base64 of 32 bytes") as caught:
        keyring.master(MASTERS[0])
    assert text not in caught.value.message + caught.value.hint


def test_rejected_values_are_protected_like_others() -> None:
    """The text of a rejected value of a protected column is protected; others are unchanged."""
    one = replace(column("encrypt"), name="source name")
    protection = TableProtection((one,), key("row_hash"), MASTERS)
    records = [RejectedValue("source name", "{}", "plant"), RejectedValue("v", "{}", "open")]
    first, second = protect.protect_rejected(records, protection)
    assert protect.reveal_values(pl.Series([first.text]), one, MASTERS, pl.String)[0] == "plant"
    assert second == records[1]
    assert protect.protect_rejected(records, None) == records
