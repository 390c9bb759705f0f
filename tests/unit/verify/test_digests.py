"""Digests: what rows of both sides are held against each other by."""

from __future__ import annotations

import polars as pl
import pytest

from bronze.model.columns import NO_KEY, Column, DeltaType
from bronze.rows import metadata
from bronze.verify import buckets, digests

# Nothing that another writer may put where a hash is has a hash's form.
FOREIGN = ["z" * 32, "0" * 31 + "\n", "A" * 32, "0" * 31, "0" * 33, "é" * 16, "ä" * 32, "", None]


def column(kind: DeltaType) -> Column:
    """The column ``v`` of a source."""
    return Column("v", "v", kind.name, kind, "same", "v", "v", "", "")


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_hash_of_no_form_is_nobodys(foreign: str | None) -> None:
    """It is told from every row's, and breaks nothing."""
    mine = pl.Series(["0123456789abcdef" * 2] * 2)
    found = digests.combine_hashes(mine, pl.Series([mine[0], foreign], dtype=pl.String))
    assert found[0] == mine[0]
    assert found[1] != mine[0]
    numbers = buckets.digests_of_hashes(pl.Series([mine[0], foreign], dtype=pl.String))
    assert numbers.tolist() == [buckets.digests_of_hashes(mine)[0].tolist(), [0, 0]]


def test_a_value_that_the_sources_type_cannot_hold_is_not_taken_for_null() -> None:
    """Another writer may have widened a column: what is stored there has no row's digest."""
    given = digests.basis_of([column(DeltaType("int"))], 1, NO_KEY, None)
    source = pl.DataFrame({"v": pl.Series([None, 7], dtype=pl.Int32)})
    hashes = metadata.row_hashes_of(source, pl.Series([None, None], dtype=pl.String), 1)
    own = source.with_columns(hashes.alias("row_hash"))
    assert digests.bronze_digests(own, given).to_list() == hashes.to_list()
    wide = own.with_columns(pl.Series("v", [5_000_000_000, 7]))
    (altered, same) = digests.bronze_digests(wide, given).to_list()
    assert altered != hashes[0]
    assert same == hashes[1]
    texts = own.with_columns(pl.Series("v", ["x", "7"]))
    assert digests.bronze_digests(texts, given)[0] != hashes[0]
