"""Changed rows on their way into a table, few of them in memory, many in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from bronze import portion
from bronze.delta import files
from bronze.delta.files import CHANGE
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place
from bronze.model.stamp import RowStamp
from bronze.model.units import DELETED

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Changes = pl.DataFrame | WrittenFile
"""Changed rows as they are stored: in memory where they are few, else in a file."""

GROUP = 30_000
"""A good size for a row group that is put together."""
BYTES = 8 * 2**20
"""The bytes in memory that such a row group may have."""


def height(change: Changes) -> int:
    """How many rows there are."""
    return change.rows if isinstance(change, WrittenFile) else change.height


def read(place: Place, change: Changes, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of all rows of the changes."""
    if isinstance(change, pl.DataFrame):
        return change.select(columns)
    return pl.DataFrame(files.open_parquet(place, change).read(list(columns), use_threads=False))


def picked(
    place: Place,
    change: Changes,
    lines: Rows,
    layout: Sequence[tuple[str, DeltaType]],
) -> pl.DataFrame:
    """Some rows (their lines sorted) of the changes."""
    return join_frames(list(picks(place, change, lines, layout)))


def join_frames(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames as one; a single one as it is."""
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def picks(
    place: Place,
    change: Changes,
    lines: Rows,
    layout: Sequence[tuple[str, DeltaType]],
) -> Iterator[pl.DataFrame]:
    """The same a few at a time: those of a row group, or of a part of one."""
    names = [name for name, _ in layout]
    if isinstance(change, pl.DataFrame):
        rows = change.select(names)
        for start in range(0, max(len(lines), 1), GROUP):
            yield rows[lines[start : start + GROUP]]
        return
    parquet = files.open_parquet(place, change)
    ends = np.cumsum(_counts(parquet))
    groups = np.unique(np.searchsorted(ends, lines, side="right"))
    for start, table in files.parts(parquet, layout, names, [int(g) for g in groups]):
        inside = lines[(lines >= start) & (lines < start + table.num_rows)]
        rows = pl.DataFrame(table)
        yield rows if len(inside) == rows.height else rows[inside - start]
        del table, rows


def weights(place: Place, change: Changes) -> Weights:
    """About how many bytes each row of the changes takes."""
    if isinstance(change, pl.DataFrame):
        return np.full(change.height, portion.size(change) / max(change.height, 1))
    parquet = files.open_parquet(place, change)
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    means = [group.total_byte_size / max(group.num_rows, 1) for group in groups]
    return np.repeat(np.array(means, np.float64), _counts(parquet))


def _counts(parquet: pq.ParquetFile) -> list[int]:
    groups = range(parquet.num_row_groups)
    return [int(parquet.metadata.row_group(i).num_rows) for i in groups]


def mark_deleted(rows: pl.DataFrame, stamp: RowStamp) -> pl.DataFrame:
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
    return portion.with_columns(rows, [pl.Series(CHANGE, [kind]).new_from_index(0, rows.height)])


class Gathered:
    """Small frames on their way into a file, as row groups of a good size."""

    def __init__(self, add: Callable[[pl.DataFrame], None]) -> None:
        self._add = add
        self._frames: list[pl.DataFrame] = []

    def add(self, *frames: pl.DataFrame) -> None:
        """Keeps frames until they are enough."""
        self._frames += frames
        height = sum(frame.height for frame in self._frames)
        if height >= GROUP or portion.size_of(self._frames) >= BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is kept."""
        frames, self._frames = self._frames, []
        if frames:
            self._add(join_frames(frames))
