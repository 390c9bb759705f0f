"""Lookup: reads the stored rows of some keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from bronze.delta import files
from bronze.delta.write import merge
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place


def find_rows(
    place: Place,
    stored: Sequence[StoredFile],
    layout: Sequence[tuple[str, DeltaType]],
    keys: pl.DataFrame,
    columns: Sequence[str],
) -> Iterator[pl.DataFrame]:
    """Reads some columns of the rows with these keys, in portions; the key columns come first.

    Args:
        place: the table.
        stored: its files.
        layout: its columns.
        keys: the keys, with the key columns of the table.
        columns: the columns to read beside the key.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read.
    """
    key = keys.columns
    names = [*key, *columns]
    for file in merge.candidate_files(stored, [keys], key, place):
        parquet = files.open_parquet(place, file)
        constants = dict(file.partition)
        groups = _groups(parquet, layout, keys, constants)
        for _, table in files.parts(parquet, layout, names, groups, constants):
            rows = (
                pl.DataFrame(table).join(keys, on=key, how="semi", nulls_equal=True).select(names)
            )
            del table
            if rows.height:
                yield rows


def _groups(
    parquet: pq.ParquetFile,
    layout: Sequence[tuple[str, DeltaType]],
    keys: pl.DataFrame,
    constants: dict[str, str | None],
) -> list[int]:
    """The row groups with one of the keys; no others are read, as their values may be large."""
    ends = np.cumsum(files.row_counts(parquet))
    hits: set[int] = set()
    for start, table in files.parts(parquet, layout, keys.columns, None, constants):
        rows = pl.DataFrame(table)
        if rows.join(keys, on=keys.columns, how="semi", nulls_equal=True).height:
            hits.add(int(np.searchsorted(ends, start, side="right")))
    return sorted(hits)
