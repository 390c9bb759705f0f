"""Frames of records, as governance tables store them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl

from bronze.model.columns import DeltaType

_AT_ONCE = 500
_POLARS: dict[str, Any] = {
    "string": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "boolean": pl.Boolean(),
    "long": pl.Int64(),
    "double": pl.Float64(),
}
_PYTHON: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "timestamp": datetime,
    "boolean": bool,
    "long": int,
    "double": (float, int),
}


def schema_of(columns: Sequence[tuple[str, DeltaType]]) -> dict[str, Any]:
    """The types of columns in a frame."""
    return {name: _POLARS[kind.name] for name, kind in columns}


def frame_of(
    columns: Sequence[tuple[str, DeltaType]], records: Sequence[Sequence[Any]]
) -> pl.DataFrame:
    """The frame of records, each with the values of the columns in their order.

    Raises:
        TypeError: a value is not of its column's type.
    """
    # polars would turn them into values of the type.
    for record in records:
        for (name, kind), value in zip(columns, record, strict=True):
            if value is not None and not _is_of(kind.name, value):
                raise TypeError(f"Column {name} is of type {kind.name}, not {type(value).__name__}")
    # Polars keeps the interpreter until all rows of a call are read: 60 ms for the quality figures
    # of a thousand tables, in which no other thread answers anything.
    begins = range(0, max(len(records), 1), _AT_ONCE)
    schema = schema_of(columns)
    # By rows: by columns, polars takes several times as long for a few records.
    parts = [
        pl.DataFrame(records[begin : begin + _AT_ONCE], schema=schema, orient="row")
        for begin in begins
    ]
    return pl.concat(parts)


def _is_of(kind: str, value: Any) -> bool:
    # In Python, truth values are integers.
    return isinstance(value, _PYTHON[kind]) and (kind == "boolean" or not isinstance(value, bool))
