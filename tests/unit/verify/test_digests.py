"""Row digests, by which source and Bronze are compared."""

from __future__ import annotations

import polars as pl
import pytest

from bronze.model.columns import NO_KEY, Column, DeltaType
from bronze.rows import metadata
from bronze.verify.rows import buckets, digests

# Texts that another writer may have written as row_hash; none is one.
FOREIGN = ["z" * 32, "0" * 31 + "\n", "A" * 32, "0" * 31, "0" * 33, "é" * 16, "ä" * 32, "", None]


def column(kind: DeltaType) -> Column:
    """The column ``v`` of a source."""
    return Column("v", "v", kind.name, kind, "same", "v", "v", "", "")


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_malformed_row_hash_equals_no_digest(foreign: str | None) -> None:
    """It differs from the digest of any row, and raises no error."""
    hashes = pl.Series(["0123456789abcdef" * 2] * 2)
    combined = digests.combine_hashes(hashes, pl.Series([hashes[0], foreign], dtype=pl.String))
    assert combined[0] == hashes[0]
    assert combined[1] != hashes[0]
    numbers = buckets.digests_of_hashes(pl.Series([hashes[0], foreign], dtype=pl.String))
    assert numbers.tolist() == [buckets.digests_of_hashes(hashes)[0].tolist(), [0, 0]]


def test_a_value_beyond_the_sources_type_is_not_null() -> None:
    """Another writer may have widened a column: a row with such a value equals no row."""
    basis = digests.basis_of([column(DeltaType("int"))], 1, NO_KEY, None)
    source = pl.DataFrame({"v": pl.Series([None, 7], dtype=pl.Int32)})
    hashes = metadata.row_hashes_of(source, pl.Series([None, None], dtype=pl.String), 1)
    stored = source.with_columns(hashes.alias("row_hash"))
    assert digests.bronze_digests(stored, basis).to_list() == hashes.to_list()
    wide = stored.with_columns(pl.Series("v", [5_000_000_000, 7]))
    (altered, same) = digests.bronze_digests(wide, basis).to_list()
    assert altered != hashes[0]
    assert same == hashes[1]
    texts = stored.with_columns(pl.Series("v", ["x", "7"]))
    assert digests.bronze_digests(texts, basis)[0] != hashes[0]
