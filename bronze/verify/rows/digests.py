"""Row digests: the 16 bytes per row by which source and Bronze are compared.

In most rows the digest is ``row_hash``: PostgreSQL computes it from the source's values, and this
module from the values stored in Bronze. Where the ``row_hash`` stored in a Bronze row is not the
hash of its values, the digest is a combined hash of both. The source has a combined hash only in
rows with rejected values, which are NULL in Bronze but part of ``row_hash``.

In a table with protected columns ``row_hash`` is keyed (HMAC), which PostgreSQL cannot compute.
Encrypted values are decrypted here, to be hashed. Values that cannot be revealed (tokens, hashes,
masks), and keys stored as text, are part of the digest in their stored form: the source's values
are protected here, as in a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import polars_hash as plh

from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.protection import TableProtection
from bronze.postgres.copy import row_hash
from bronze.postgres.copy.rows_reader import dtype
from bronze.protection import keyring, protect
from bronze.protection.protect import REVEALED
from bronze.rows import fingerprint, metadata
from bronze.rows.encoding import cast_exactly, encode

_DIGITS = 32
_NO_HASH = "0" * _DIGITS


@dataclass(frozen=True)
class Basis:
    """What the digests of a table's rows are computed from.

    ``columns`` are the source's columns; the table was created with the first ``base`` of them.
    ``readable`` are those with values that can be read in Bronze, ``stored`` the names of the
    Bronze columns that are compared in their stored form.
    """

    columns: tuple[Column, ...]
    base: int
    protection: TableProtection | None
    readable: tuple[Column, ...]
    stored: tuple[str, ...]

    @property
    def in_postgres(self) -> bool:
        """Whether PostgreSQL can compute the digests."""
        return not self.stored and self.key is None

    @property
    def key(self) -> bytes | None:
        """The key of the table's row hashes, None where they have none."""
        protection = self.protection
        if protection is None or protection.row_hash is None:
            return None
        return keyring.unwrap(protection.row_hash, protection.masters)

    @property
    def stored_columns(self) -> tuple[Column, ...]:
        """The source's columns that are compared in their stored form."""
        return tuple(column for column in self.columns if column.target in self.stored)


def basis_of(
    columns: Sequence[Column], base: int, key: RowKey, protection: TableProtection | None
) -> Basis:
    """What the digests of a table with these columns and this key are computed from."""
    unreadable = {c.target for c in columns if c.protect and c.protect.method not in REVEALED}
    readable = tuple(column for column in columns if column.target not in unreadable)
    stored = tuple(c.target for c in columns if c.target in unreadable and c.name)
    stored += (KEY_TEXT,) if key.has_text else ()
    return Basis(tuple(columns), base, protection, readable, stored)


def source_digests(rows: pl.DataFrame, basis: Basis, hashes: str, partial: str) -> pl.Series:
    """The digests of rows of the source, as 32 hexadecimal digits.

    Args:
        rows: the rows, with the ``stored`` columns of the basis as Bronze would store them.
        basis: what the digests are computed from.
        hashes: the name of the column with the unkeyed ``row_hash``.
        partial: the name of the column with the unkeyed hash of the ``readable`` columns alone.
    """
    key = basis.key
    row_hashes, partial_hashes = rows[hashes], rows[partial]
    if key is not None:
        row_hashes = protect.keyed_hashes(row_hashes, key)
        partial_hashes = protect.keyed_hashes(partial_hashes, key)
    return _with_stored_values(rows, basis, combine_hashes(partial_hashes, row_hashes))


def bronze_digests(rows: pl.DataFrame, basis: Basis, known: pl.Series | None = None) -> pl.Series:
    """The digests of Bronze rows, as 32 hexadecimal digits.

    Args:
        rows: the rows, with all columns.
        basis: what the digests are computed from.
        known: the unkeyed hashes of the rows' values, if they were computed before.
    """
    if not rows.height:
        return pl.Series(dtype=pl.String)
    hashes, unfit = (known, None) if known is not None else _hashes_of_values(rows, basis)
    key = basis.key
    if key is not None:
        hashes = protect.keyed_hashes(hashes, key)
    if unfit is not None:
        hashes = hashes.set(unfit, _NO_HASH)
    return _with_stored_values(rows, basis, combine_hashes(hashes, rows["row_hash"]))


def _hashes_of_values(rows: pl.DataFrame, basis: Basis) -> tuple[pl.Series, pl.Series | None]:
    """The unkeyed hashes of the readable values; and a mask of the rows with a value that no
    row of the source can have.
    """
    protected = {c.column: c for c in basis.protection.columns} if basis.protection else {}
    names = set(rows.columns)
    unfit: pl.Series | None = None
    values = []
    for column in basis.readable:
        kind = dtype(column.kind)
        if column.target not in names:
            values.append(pl.Series(column.target, [None], kind).new_from_index(0, rows.height))
            continue
        stored = rows[column.target]
        if column.target in protected and column.name:
            masters = basis.protection.masters if basis.protection else ()
            stored, wrong = protect.decrypt(stored, protected[column.target], masters, kind)
            unfit = wrong if unfit is None else unfit | wrong
        elif stored.dtype != kind:
            stored, exact = cast_exactly(stored, kind)
            unfit = ~exact if unfit is None else unfit | ~exact
        values.append(stored)
    none = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    base = row_hash.rest_base(basis.columns, basis.base, basis.readable)
    frame = pl.DataFrame(values) if values else pl.DataFrame(height=rows.height)
    return metadata.row_hashes_of(frame, none, base), unfit


def combine_hashes(partial: pl.Series, row_hashes: pl.Series) -> pl.Series:
    """The row hashes where the partial hash is the same, elsewhere the combined hash of both; see
    `bronze.postgres.copy.row_hash.packed_hashes_query`.
    """
    plain, _ = fingerprint.with_zeros(row_hashes)
    differs = partial.ne_missing(plain)
    if not differs.any():
        return plain
    both = (partial.filter(differs) + plain.filter(differs)).str.decode("hex")
    positions = (differs.cum_sum().cast(pl.Int64) - 1).clip(0)
    combined = _sha256(both).gather(positions)
    return pl.select(pl.when(differs).then(combined).otherwise(plain)).to_series()


def _sha256(values: pl.Series) -> pl.Series:
    """The first 128 bits of SHA-256, as hexadecimal digits."""
    digest = plh.col("v").chash.sha2_256().str.slice(0, _DIGITS)
    hashes: pl.Series = pl.DataFrame({"v": values}).select(digest).to_series()
    return hashes


def _with_stored_values(rows: pl.DataFrame, basis: Basis, hashes: pl.Series) -> pl.Series:
    """The hashes, with the values that are compared in their stored form hashed in."""
    if not basis.stored or not rows.height:
        return hashes
    names = set(rows.columns)
    # A new column of the source has no values in Bronze before the next load.
    none = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    values = [rows[name] if name in names else none.alias(name) for name in basis.stored]
    stored = pl.Series(encode(values, rows.height))
    joined = hashes.str.decode("hex").to_frame("h").with_columns(stored.alias("s"))
    return _sha256(joined.select(pl.col("h") + pl.col("s")).to_series())
