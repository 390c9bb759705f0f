"""Values as they come from the source become those of Delta's types."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest

from bronze.model.columns import DeltaType
from bronze.portion import regroup_like
from bronze.postgres.copy.rows_reader import decode

PRICE = DeltaType("decimal", 12, 2)


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_parts_of_a_series_keep_their_missing_values(start: int) -> None:
    """Whatever bit a part of a longer series begins at: each missing value stays missing."""
    whole = pl.Series([None if i % 3 == 0 else i * 101 for i in range(40)])
    wanted = [None if i % 3 == 0 else Decimal(i * 101).scaleb(-2) for i in range(40)]
    assert decode(whole[start:], PRICE, "unscaled").to_list() == wanted[start:]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_parts_of_lists_keep_their_missing_values(start: int) -> None:
    """Lists that are missing, and empty ones, wherever the part of a longer series begins."""
    like = pl.Series([None if i % 3 == 0 else ["x"] * (i % 2) for i in range(40)])
    flat = like[start:].list.explode(empty_as_null=False, keep_nulls=False)
    assert regroup_like(flat, like[start:]).to_list() == like[start:].to_list()
