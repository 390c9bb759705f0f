"""Files of a Bronze table that a test writes row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import polars as pl

from bronze.delta import files
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.postgres.copy.rows_reader import dtype

_BATCH = "018df7a0-0000-7000-8000-000000000000"
_METADATA = (
    ("update_timestamp", DeltaType("timestamp")),
    ("record_status", DeltaType("string")),
    ("row_hash", DeltaType("string")),
)

Row = tuple[Any, ...]


def digest(values: Any) -> str:
    """A row's hash."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def layout_of(kinds: Sequence[DeltaType]) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a table whose key columns k0, k1, ... have these types."""
    return (*((f"k{i}", kind) for i, kind in enumerate(kinds)), *_METADATA)


def table_of(
    place: Place,
    layout: Sequence[tuple[str, DeltaType]],
    contents: Sequence[Sequence[Sequence[Row]]],
) -> tuple[StoredFile, ...]:
    """Writes files, each of some row groups of rows."""
    stored = []
    schema = {name: dtype(kind) for name, kind in layout}
    for groups in contents:
        frames = [pl.DataFrame(list(rows), schema=schema, orient="row") for rows in groups]
        file = files.write(frames, place, _BATCH, ())
        assert file is not None
        stored.append(StoredFile(file.path, file.size, file.rows))
    return tuple(stored)
