"""Changed rows on their way into a table, few of them in memory, many in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.model import DELETED, DataFile, Kind, Place, Stamp
from bronze.table import files
from bronze.table.files import CHANGE

Rows = npt.NDArray[np.int64]
Changes = pl.DataFrame | DataFile
"""Changed rows as they are stored: in memory where they are few, else in a file."""

GROUP = 30_000
"""A good size for a row group that is put together."""


def height(change: Changes) -> int:
    """How many rows there are."""
    return change.rows if isinstance(change, DataFile) else change.height


def read(place: Place, change: Changes, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of all rows of the changes."""
    if isinstance(change, pl.DataFrame):
        return change.select(columns)
    return pl.DataFrame(files.opened(place, change).read(list(columns), use_threads=False))


def picked(
    place: Place,
    change: Changes,
    lines: Rows,
    layout: Sequence[tuple[str, Kind]],
) -> pl.DataFrame:
    """Some rows (their lines sorted) of the changes."""
    names = [name for name, _ in layout]
    if isinstance(change, pl.DataFrame):
        return change.select(names)[lines]
    parquet = files.opened(place, change)
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    ends = np.cumsum(counts)
    groups = np.unique(np.searchsorted(ends, lines, side="right"))
    found = []
    for start, table in files.parts(parquet, layout, names, [int(g) for g in groups]):
        inside = lines[(lines >= start) & (lines < start + table.num_rows)]
        found.append(pl.DataFrame(table)[inside - start])
    gathered: pl.DataFrame = pl.concat(found)
    return gathered


def marked(rows: pl.DataFrame, stamp: Stamp) -> pl.DataFrame:
    """The rows as what they are when the source has them no more."""
    return rows.with_columns(
        pl.lit(DELETED).alias("record_status"),
        pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC")).alias("update_timestamp"),
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(stamp.method).alias("ingestion_method"),
        pl.lit(stamp.lineage).alias("data_lineage"),
    )


def image(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The rows as the change data feed tells of them."""
    return rows.with_columns(pl.lit(kind).alias(CHANGE))


class Gathered:
    """Small frames on their way into a file, as row groups of a good size."""

    def __init__(self, add: Callable[[pl.DataFrame], None]) -> None:
        self._add = add
        self._frames: list[pl.DataFrame] = []

    def add(self, *frames: pl.DataFrame) -> None:
        """Keeps frames until they are enough."""
        self._frames += frames
        if sum(frame.height for frame in self._frames) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes what is kept."""
        if self._frames:
            self._add(pl.concat(self._frames))
        self._frames = []
