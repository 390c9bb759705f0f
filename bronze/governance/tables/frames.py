"""Frames of records, as governance tables store them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from bronze.model.columns import DeltaType

_POLARS: dict[str, Any] = {
    "string": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "boolean": pl.Boolean(),
    "long": pl.Int64(),
    "double": pl.Float64(),
}


def schema_of(columns: Sequence[tuple[str, DeltaType]]) -> dict[str, Any]:
    """The types of columns in a frame."""
    return {name: _POLARS[kind.name] for name, kind in columns}


def frame_of(
    columns: Sequence[tuple[str, DeltaType]], records: Sequence[Sequence[Any]]
) -> pl.DataFrame:
    """The frame of records, each with the values of the columns in their order."""
    # By rows: by columns, polars takes several times as long for a few records.
    return pl.DataFrame(records, schema=schema_of(columns), orient="row")
