"""Soundness: rows that are not as bronze wrote them are detected without the source."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
import uuid_utils

from bronze import portion
from bronze.model.columns import DeltaType
from bronze.model.files import RowFormat
from bronze.model.stamp import RowStamp
from bronze.postgres.copy.rows_reader import dtype
from bronze.rows import metadata
from bronze.tables import soundness

# What a column was, what it is, a value of then, and others put in its place since.
WIDENED: list[tuple[DeltaType, DeltaType, Any, list[Any]]] = [
    (DeltaType("int"), DeltaType("long"), None, [5_000_000_000, 1]),
    (DeltaType("short"), DeltaType("int"), 7, [70_000, None, 8]),
    (DeltaType("float"), DeltaType("double"), 0.5, [0.1, 1e300, None]),
    (DeltaType("float"), DeltaType("double"), None, [1e300]),
    (
        DeltaType("decimal", 5, 2),
        DeltaType("decimal", 9, 4),
        Decimal("1.23"),
        [Decimal("1.2345"), None],
    ),
    (DeltaType("decimal", 5, 2), DeltaType("decimal", 9, 2), None, [Decimal("1234567.89")]),
]


def written(kind: DeltaType, value: Any) -> pl.DataFrame:
    """A row as bronze writes it, of an integer and a value."""
    rows = pl.DataFrame({"id": [1], "v": pl.Series([value], dtype=dtype(kind))})
    hashes, sums = metadata.digests(rows, pl.Series([None], dtype=pl.String))
    batch, now = str(uuid_utils.uuid7()), datetime.now(UTC)
    stamp = RowStamp(batch, now, "s", "batch", str(uuid_utils.uuid7()))
    return portion.without_enums(metadata.with_metadata(rows, hashes, sums, stamp))


@pytest.mark.parametrize(("before", "now", "value", "others"), WIDENED)
def test_a_value_that_the_narrower_column_did_not_hold_is_altered(
    before: DeltaType, now: DeltaType, value: Any, others: list[Any]
) -> None:
    """Rows of before a column was widened are as they were written only with their own value."""
    form = RowFormat(("id", "v"), 2, ((("v", before),),))
    rows = written(before, value).with_columns(pl.col("v").cast(dtype(now)))
    assert not soundness.check_rows(rows, form).wrong.any()
    for other in others:
        changed = rows.with_columns(pl.lit(other, dtype(now)).alias("v"))
        assert soundness.check_rows(changed, form).altered.tolist() == [True], other
    # A float's neighbour, of which the narrower one is the rounded value.
    if isinstance(value, float):
        nearly = rows.with_columns(pl.lit(value + 1e-12, pl.Float64).alias("v"))
        assert soundness.check_rows(nearly, form).altered.tolist() == [True]


def test_special_values_are_widened_exactly() -> None:
    """NaN, infinities and a negative zero are widened exactly."""
    form = RowFormat(("id", "v"), 2, ((("v", DeltaType("float")),),))
    for value in (float("nan"), float("inf"), -float("inf"), -0.0, 0.1, None):
        rows = written(DeltaType("float"), value).with_columns(pl.col("v").cast(pl.Float64))
        assert not soundness.check_rows(rows, form).wrong.any(), value
