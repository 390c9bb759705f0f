"""Reads the records of governance tables as the service needs them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from bronze.delta import files, log
from bronze.model.columns import DeltaType
from bronze.model.locations import Place


def rows_of(place: Place, columns: Sequence[tuple[str, DeltaType]]) -> pl.DataFrame | None:
    """All rows of a governance table, with these columns; None if there is no such table.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    state = log.read(place)
    if state is None:
        return None
    parts = [
        pl.DataFrame(part)
        for file in state.files
        for _, part in files.parts(files.open_parquet(place, file), columns)
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=[name for name, _ in columns])
