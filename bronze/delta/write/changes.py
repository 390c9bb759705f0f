"""Changed rows to be written into a table: a few in memory, many in files."""

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
"""Changed rows: in memory if they are few, else in a file."""

GROUP = 30_000
"""The number of rows from which a `RowGroupBuffer` writes a row group."""
BYTES = 8 * 2**20
"""The bytes in memory from which a `RowGroupBuffer` writes a row group."""


def height(change: Changes) -> int:
    """The number of changed rows."""
    return change.rows if isinstance(change, WrittenFile) else change.height


def read(place: Place, change: Changes, columns: Sequence[str]) -> pl.DataFrame:
    """Reads some columns of all changed rows."""
    if isinstance(change, pl.DataFrame):
        return change.select(columns)
    return pl.DataFrame(files.open_parquet(place, change).read(list(columns), use_threads=False))


def select_rows(
    place: Place,
    change: Changes,
    lines: Rows,
    layout: Sequence[tuple[str, DeltaType]],
) -> pl.DataFrame:
    """The changed rows at some lines (sorted)."""
    return join_frames(list(iterate_rows(place, change, lines, layout)))


def join_frames(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Concatenates frames; a single frame is returned as it is."""
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def iterate_rows(
    place: Place,
    change: Changes,
    lines: Rows,
    layout: Sequence[tuple[str, DeltaType]],
) -> Iterator[pl.DataFrame]:
    """The rows of `select_rows` in portions: those of a row group, or of a part of one."""
    names = [name for name, _ in layout]
    if isinstance(change, pl.DataFrame):
        rows = change.select(names)
        for start in range(0, max(len(lines), 1), GROUP):
            yield rows[lines[start : start + GROUP]]
        return
    parquet = files.open_parquet(place, change)
    ends = np.cumsum(_row_counts(parquet))
    groups = np.unique(np.searchsorted(ends, lines, side="right"))
    for start, table in files.parts(parquet, layout, names, [int(g) for g in groups]):
        inside = lines[(lines >= start) & (lines < start + table.num_rows)]
        rows = pl.DataFrame(table)
        yield rows if len(inside) == rows.height else rows[inside - start]
        del table, rows


def weights(place: Place, change: Changes) -> Weights:
    """The approximate size of each changed row, in bytes."""
    if isinstance(change, pl.DataFrame):
        return np.full(change.height, portion.size(change) / max(change.height, 1))
    parquet = files.open_parquet(place, change)
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    means = [group.total_byte_size / max(group.num_rows, 1) for group in groups]
    return np.repeat(np.array(means, np.float64), _row_counts(parquet))


def _row_counts(parquet: pq.ParquetFile) -> list[int]:
    groups = range(parquet.num_row_groups)
    return [int(parquet.metadata.row_group(i).num_rows) for i in groups]


def mark_deleted(rows: pl.DataFrame, stamp: RowStamp) -> pl.DataFrame:
    """Marks rows as deleted by a batch."""
    return rows.with_columns(
        pl.lit(DELETED).alias("record_status"),
        pl.lit(stamp.loaded_at).cast(pl.Datetime("us", "UTC")).alias("update_timestamp"),
        pl.lit(stamp.batch_id).alias("batch_id"),
        pl.lit(stamp.method).alias("ingestion_method"),
        pl.lit(stamp.lineage).alias("data_lineage"),
    )


def feed_rows(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The rows as they are written to the change data feed, with the kind of change."""
    return portion.with_columns(rows, [pl.Series(CHANGE, [kind]).new_from_index(0, rows.height)])


class RowGroupBuffer:
    """Collects small frames, and writes them into a file as row groups of a good size."""

    def __init__(self, add: Callable[[pl.DataFrame], None]) -> None:
        self._add = add
        self._frames: list[pl.DataFrame] = []

    def add(self, *frames: pl.DataFrame) -> None:
        """Adds frames; writes a row group when they reach `GROUP` rows or `BYTES` bytes."""
        self._frames += frames
        height = sum(frame.height for frame in self._frames)
        if height >= GROUP or portion.size_of(self._frames) >= BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the frames that are left as a row group."""
        frames, self._frames = self._frames, []
        if frames:
            self._add(join_frames(frames))
