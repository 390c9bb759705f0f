"""What both sides of a proof are held against each other by: a digest of 16 bytes for each row.

For most rows it is ``row_hash``, which PostgreSQL computes from its values, and we compute from
those that the Bronze table has. A Bronze row has a digest of both hashes where the one that it has
is not that of its values. So it has one in the source where values were rejected, and in no other
row: what is rejected is NULL in Bronze, and yet a part of the hash.

In a table with protected columns hashes are keyed, which PostgreSQL cannot do. What can be
decrypted is, on this side. Other protected values, and the keys of rows that are kept as text,
become part of the digest as they are stored: the source's are protected here, as in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import polars_hash as plh

from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.protection import TableProtection
from bronze.postgres.copy import row_hash
from bronze.postgres.copy.read import dtype
from bronze.protection import keyring, protect
from bronze.protection.protect import REVEALED
from bronze.rows import fingerprint, metadata
from bronze.rows.encoding import encode, narrowed
from bronze.verify import buckets
from bronze.verify.buckets import Digests

_DIGITS = 32
_NO_HASH = "0" * _DIGITS


@dataclass(frozen=True)
class Basis:
    """What the digests of a table are made of.

    ``columns`` are those of the source, of which the table began with ``base``; ``rest`` are those
    whose values can be had of Bronze rows, ``beside`` the Bronze names of what is compared as it is
    stored.
    """

    columns: tuple[Column, ...]
    base: int
    protection: TableProtection | None
    rest: tuple[Column, ...]
    beside: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether PostgreSQL can compute all of it."""
        return not self.beside and self.key is None

    @property
    def key(self) -> bytes | None:
        """The key of the table's row hashes, None where they have none."""
        given = self.protection
        if given is None or given.row_hash is None:
            return None
        return keyring.unwrapped(given.row_hash, given.masters)

    @property
    def wanted(self) -> tuple[Column, ...]:
        """The columns of the source that are needed for what is beside."""
        return tuple(column for column in self.columns if column.target in self.beside)


def basis(
    columns: Sequence[Column], base: int, key: RowKey, protection: TableProtection | None
) -> Basis:
    """What digests are made of in a table with these columns."""
    shut = {c.target for c in columns if c.protect and c.protect.method not in REVEALED}
    rest = tuple(column for column in columns if column.target not in shut)
    beside = tuple(c.target for c in columns if c.target in shut and c.name)
    beside += (KEY_TEXT,) if key.has_text else ()
    return Basis(tuple(columns), base, protection, rest, beside)


def of_source(rows: pl.DataFrame, given: Basis, hashes: str, partial: str) -> pl.Series:
    """The digests of rows of the source, as 32 hexadecimal digits.

    Args:
        rows: with what is beside as it would be stored.
        given: what the digests are made of.
        hashes: the column of the unkeyed ``row_hash``.
        partial: that of the hash of the columns which Bronze has the values of.
    """
    key = given.key
    whole, part = rows[hashes], rows[partial]
    if key is not None:
        whole, part = protect.keyed_hashes(whole, key), protect.keyed_hashes(part, key)
    return _with(rows, given, combined(part, whole))


def of_bronze(rows: pl.DataFrame, given: Basis, known: pl.Series | None = None) -> pl.Series:
    """The digests of Bronze rows, as 32 hexadecimal digits.

    Args:
        rows: with all columns.
        given: what the digests are made of.
        known: the unkeyed hashes of their values, if they have been computed.
    """
    if not rows.height:
        return pl.Series(dtype=pl.String)
    part, bad = (known, None) if known is not None else _hashes(rows, given)
    key = given.key
    if key is not None:
        part = protect.keyed_hashes(part, key)
    if bad is not None:
        part = part.set(bad, _NO_HASH)
    return _with(rows, given, combined(part, rows["row_hash"]))


def _hashes(rows: pl.DataFrame, given: Basis) -> tuple[pl.Series, pl.Series | None]:
    """The hashes of the values that can be had; which rows have one that is nobody's."""
    held = {c.column: c for c in given.protection.columns} if given.protection else {}
    names = set(rows.columns)
    bad: pl.Series | None = None
    values = []
    for column in given.rest:
        kind = dtype(column.kind)
        if column.target not in names:
            values.append(pl.Series(column.target, [None], kind).new_from_index(0, rows.height))
            continue
        stored = rows[column.target]
        if column.target in held and column.name:
            masters = given.protection.masters if given.protection else ()
            stored, wrong = protect.decrypt(stored, held[column.target], masters, kind)
            bad = wrong if bad is None else bad | wrong
        elif stored.dtype != kind:
            stored, exact = narrowed(stored, kind)
            bad = ~exact if bad is None else bad | ~exact
        values.append(stored)
    none = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    base = row_hash.rest_base(given.columns, given.base, given.rest)
    frame = pl.DataFrame(values) if values else pl.DataFrame(height=rows.height)
    return metadata.row_hashes_of(frame, none, base), bad


def combined(part: pl.Series, whole: pl.Series) -> pl.Series:
    """``whole`` where ``part`` is the same, else a digest of both; see `digest.packed`."""
    plain, _ = fingerprint.plain(whole)
    other = part.ne_missing(plain)
    if not other.any():
        return plain
    both = (part.filter(other) + plain.filter(other)).str.decode("hex")
    places = (other.cum_sum().cast(pl.Int64) - 1).clip(0)
    made = _hashed(both).gather(places)
    return pl.select(pl.when(other).then(made).otherwise(plain)).to_series()


def _hashed(values: pl.Series) -> pl.Series:
    frame = pl.DataFrame({"v": values})
    made = plh.col("v").chash.sha2_256().str.slice(0, _DIGITS)
    found: pl.Series = frame.select(made).to_series()
    return found


def _with(rows: pl.DataFrame, given: Basis, hashes: pl.Series) -> pl.Series:
    """The hashes with what is beside."""
    if not given.beside or not rows.height:
        return hashes
    names = set(rows.columns)
    # A column that no run has taken in yet has no values in Bronze.
    none = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    values = [rows[name] if name in names else none.alias(name) for name in given.beside]
    beside = pl.Series(encode(values, rows.height))
    joined = hashes.str.decode("hex").to_frame("h").with_columns(beside.alias("b"))
    return _hashed(joined.select(pl.col("h") + pl.col("b")).to_series())


def numbers(hashes: pl.Series) -> Digests:
    """Digests as `bronze.verify.buckets` takes them."""
    return buckets.sums_of_hashes(hashes) if len(hashes) else np.empty((0, 2), np.uint64)
