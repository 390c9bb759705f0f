"""Reads the records of governance tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl

from bronze.delta import files, log
from bronze.governance.frames import schema_of
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Columns = Sequence[tuple[str, DeltaType]]


def rows_of(place: Place, columns: Columns) -> pl.DataFrame | None:
    """All rows of a governance table, with these columns; None if there is no such table.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    state = log.read(place)
    return _frame(state.place, state.files, columns) if state else None


def _frame(place: Place, stored: Sequence[StoredFile], columns: Columns) -> pl.DataFrame:
    parts = [
        pl.DataFrame(part)
        for file in stored
        for _, part in files.parts(
            files.open_parquet(place, file), columns, [name for name, _ in columns]
        )
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema_of(columns))


def bound(bounds: Sequence[tuple[str, Any]], time: str) -> datetime | None:
    """The bound of a column of times in the statistics of a file, None if it has none."""
    value = dict(bounds).get(time)
    return value if isinstance(value, datetime) else None
