"""Protects values of personal columns, before they are written anywhere.

The text of a value is protected (`bronze.protection.plaintext`), whatever its type; a string is
stored, and NULL for NULL. By method it is

- ``encrypt``: ``v1:<key id>:<base64>`` of a nonce of 12 bytes, the text encrypted with AES-256-GCM,
  and a tag of 16 bytes. Every value has a random nonce of its own, so equal values differ. The text
  of true ends with a blank, so that it is as long as that of false; the length of all other texts
  shows.
- ``encrypt_deterministic``: ``s1:<key id>:<base64>`` of the text after a byte 0 (SIV does not
  encrypt an empty text), encrypted with AES-256-SIV: equal values stay equal.
- ``tokenize``: ``tok_`` and the first 128 bits of HMAC-SHA-256. With ``format``, a text of ASCII
  digits, or letters, and anything else but other letters and digits keeps its length, its
  punctuation and its case, and gets other digits (at least 6) or letters (at least 5), by FF1;
  any other text becomes a usual token.
- ``hash``: HMAC-SHA-256, as 64 hexadecimal digits.
- ``mask``: ``***``, and the last ``keep`` characters of texts that are more than twice as long.

Encryption is bound to the key's table and column: a value that was moved to another column cannot
be decrypted there. Keys of HMAC are the hexadecimal digits of 32 bytes of a data key, as ASCII;
AES-GCM and FF1 take these 32 bytes, AES-SIV all 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import polars_hash as plh
import pyarrow as pa

from bronze.errors import Mismatch
from bronze.model.locations import Secret
from bronze.model.protection import ProtectedColumn, TableProtection
from bronze.model.units import RejectedValue
from bronze.protection import plaintext
from bronze.protection.keyring import unwrap
from bronze.protection.methods import encryption
from bronze.protection.methods.format_tokens import tokens_with_format

REVEALED = ("encrypt", "encrypt_deterministic")
"""The methods that can be undone."""

MASK = "***"

_HALF = 32
_HASH_DIGITS = 32
_LONGEST_BOOLEAN = len("false")
_TOKEN = "tok_"  # noqa: S105 - a prefix
# Finding equal texts takes half as long as the fastest method: it has to save more than that.
_REPEATED = 2


def protected_hashes(hashes: pl.Series, protection: TableProtection) -> pl.Series:
    """The ``row_hash`` of rows as a protected table has it, from the unkeyed ones.

    Raises:
        ConfigError: a key cannot be unwrapped.
    """
    if protection.row_hash is None:
        return hashes
    return keyed_hashes(hashes, unwrap(protection.row_hash, protection.masters))


def protect_rows(rows: pl.DataFrame, protection: TableProtection | None) -> pl.DataFrame:
    """The rows with their protected columns as they are stored."""
    columns = protection.columns if protection else ()
    present = [column for column in columns if column.column in rows.columns]
    masters = protection.masters if protection else ()
    return rows.with_columns(
        protect_texts(rows[column.column], column, masters).alias(column.column)
        for column in present
    )


def keyed_hashes(hashes: pl.Series, key: bytes) -> pl.Series:
    """The row hashes of a table with protected columns: the first 128 bits of HMAC-SHA-256 over the
    16 bytes of each hash, as 32 hexadecimal digits. PostgreSQL can compute the unkeyed hashes
    without the key.
    """
    return _hmac(hashes.str.decode("hex"), key, _HASH_DIGITS).alias(hashes.name)


def protect_rejected(
    records: Iterable[RejectedValue], protection: TableProtection | None
) -> list[RejectedValue]:
    """Records of rejected values, with the texts of protected columns protected like values."""
    columns = {c.name: c for c in protection.columns} if protection else {}
    if not columns or protection is None:
        return list(records)
    protected_records = []
    for record in records:
        column = columns.get(record.column)
        if column:
            text = protect_texts(pl.Series([record.text]), column, protection.masters)[0]
            record = replace(record, text=text)
        protected_records.append(record)
    return protected_records


def protect_texts(
    clear: pl.Series, column: ProtectedColumn, masters: Sequence[Secret]
) -> pl.Series:
    """The values of a column as they are stored.

    Raises:
        ConfigError: the key cannot be unwrapped.
    """
    texts, rule = plaintext.texts(clear), column.protect
    if texts.null_count() == len(texts):
        return pl.Series([None] * len(texts), dtype=pl.String)
    if rule.method == "mask":
        return _mask(texts, rule.keep)
    key = column.keys[0]
    data = unwrap(key, tuple(masters))
    if rule.method == "encrypt":
        # Without the blank the length would show which one is true.
        padded = texts.str.pad_end(_LONGEST_BOOLEAN) if clear.dtype == pl.Boolean else texts
        return encryption.encrypt(padded, key, data)
    methods: Mapping[str, Callable[[pl.Series], pl.Series]] = {
        "hash": lambda unique: _hmac(unique, data),
        "encrypt_deterministic": lambda unique: encryption.encrypt_deterministic(unique, key, data),
        "tokenize": lambda unique: _tokens(unique, data, rule.format),
    }
    return _apply_to_unique(texts, methods[rule.method])


def _apply_to_unique(texts: pl.Series, method: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """What a method makes of the texts. If few differ, it is applied once to equal texts."""
    count: Any = texts.approx_n_unique()
    if count * _REPEATED > len(texts):
        return method(texts)
    encoded = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    unique, positions = pl.Series(encoded.dictionary), pl.Series(encoded.indices)
    return method(unique).gather(positions)


def _hmac(values: pl.Series, key: bytes, digits: int = 64) -> pl.Series:
    frame = pl.DataFrame({"v": values.cast(pl.Binary)})
    digest = plh.col("v").chash.hmac_sha256(key=key[:_HALF].hex()).str.slice(0, digits)
    digests: pl.Series = frame.select(digest).to_series()
    return digests


def _mask(texts: pl.Series, keep: int) -> pl.Series:
    text = pl.col("text")
    shown = MASK + text.str.tail(keep) if keep else pl.lit(MASK)
    long = text.str.len_chars() > 2 * keep
    masked = pl.when(long).then(shown).when(text.is_not_null()).then(pl.lit(MASK))
    return pl.DataFrame({"text": texts}).select(masked).to_series()


def _tokens(texts: pl.Series, key: bytes, keeps_format: bool) -> pl.Series:
    if not keeps_format:
        return _TOKEN + _hmac(texts, key, _HASH_DIGITS)
    tokens = tokens_with_format(texts, key[:_HALF])
    others = texts.set(tokens.is_not_null(), None)
    if others.null_count() == len(others):
        return tokens
    return tokens.fill_null(_TOKEN + _hmac(others, key, _HASH_DIGITS))


def reveal_values(
    stored: pl.Series, column: ProtectedColumn, masters: Sequence[Secret], kind: Any
) -> pl.Series:
    """The values from which `protect_texts` made the stored ones, in the polars type ``kind``.

    Raises:
        ConfigError: a key cannot be unwrapped.
        Mismatch: the method cannot be undone, or no key of this column has encrypted a value.
    """
    if column.protect.method not in REVEALED:
        raise Mismatch(
            f"Column {column.column} is protected by {column.protect.method}, which"
            " cannot be undone."
        )
    texts = _decrypted_texts(stored, column, masters)
    if texts.null_count() > stored.null_count():
        raise Mismatch(
            f"A value of column {column.column} cannot be decrypted by any key of this column.",
            hint="It was changed, or moved here from another column; or its key is missing in"
            " governance.keys.",
        )
    return plaintext.values(texts, kind)


def decrypt(
    stored: pl.Series, column: ProtectedColumn, masters: Sequence[Secret], kind: Any
) -> tuple[pl.Series, pl.Series]:
    """What `reveal_values` returns, with NULL for a value that no key of this column has encrypted,
    or that is not of the type; and which values these are.

    Raises:
        ConfigError: a key cannot be unwrapped.
    """
    values = _values_of_type(_decrypted_texts(stored, column, masters), kind)
    return values, values.is_null() & stored.is_not_null()


def _decrypted_texts(
    stored: pl.Series, column: ProtectedColumn, masters: Sequence[Secret]
) -> pl.Series:
    return _apply_to_unique(
        stored, lambda unique: encryption.decrypt(unique, column.keys, masters)
    ).alias(stored.name)


def _values_of_type(texts: pl.Series, kind: Any) -> pl.Series:
    """The values of texts; NULL for texts that are not of the type."""
    try:
        return plaintext.values(texts, kind)
    except (pl.exceptions.PolarsError, pa.ArrowException, ValueError):
        if len(texts) == 1:
            return pl.Series(texts.name, [None], dtype=kind)
    half = len(texts) // 2
    return pl.concat([_values_of_type(part, kind) for part in (texts[:half], texts[half:])])
