"""Looking up: the values that a table holds for some keys."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from bronze.model import Kind, Place, Stored
from bronze.table import files, merge


def values(
    place: Place,
    stored: Sequence[Stored],
    layout: Sequence[tuple[str, Kind]],
    keys: pl.DataFrame,
    columns: Sequence[str],
) -> pl.DataFrame:
    """Some columns of the rows with these keys, the keys' columns first.

    Args:
        place: the table.
        stored: its files.
        layout: its columns.
        keys: the keys, a column for each of the table's key.
        columns: those to look up.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read.
    """
    key = keys.columns
    found = [pl.DataFrame(files.conform(pa.table({}), _of(layout, key, columns), {}, 0))]
    for file in merge.candidates(stored, [keys], key, place):
        parquet = files.opened(place, file)
        wanted = [*key, *columns]
        for _, table in files.parts(parquet, layout, wanted, None, dict(file.partition)):
            rows = pl.DataFrame(table).join(keys, on=key, how="semi", nulls_equal=True)
            found.append(rows.select(wanted))
    return pl.concat(found)


def _of(
    layout: Sequence[tuple[str, Kind]], key: Sequence[str], columns: Sequence[str]
) -> list[tuple[str, Kind]]:
    kinds = dict(layout)
    return [(name, kinds[name]) for name in (*key, *columns)]
