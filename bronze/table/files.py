"""Data files: Parquet, written whole beside the table, visible to nobody until they are committed.

Measured on 2,000,000 rows of order details: zstd level 1 is a third faster than level 3 and no
larger; dictionaries help only columns with few values and make keys and hashes slower and larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bronze.model import DataFile, Place
from bronze.table import store
from bronze.table.statistics import Statistics

_LEVEL = 1
# A column whose values in the first row group repeat at least so often gets a dictionary.
_REPEATS = 8
_PREFIX = "part-"
_SUFFIX = ".zstd.parquet"


def write(
    frames: Iterable[pl.DataFrame], place: Place, batch_id: str, stats: tuple[str, ...]
) -> DataFile | None:
    """Writes the rows of all frames into one new file, a row group a frame.

    Args:
        frames: all with the same columns.
        place: the table.
        batch_id: names the file, so that a file of a dead run can be told.
        stats: the columns that get statistics.

    Returns:
        The file, or None where there were no rows.

    Raises:
        LakeUnreachable: it cannot be written.
    """
    path = f"{_PREFIX}{batch_id}-{uuid4().hex}{_SUFFIX}"
    filled = (frame for frame in frames if frame.height)
    frame = next(filled, None)
    if frame is None:
        return None
    statistics = Statistics(stats)
    with store.writer(place, path) as sink:
        with _parquet(sink, frame) as parquet:
            while frame is not None:
                statistics.add(frame)
                parquet.write_table(_arrow(frame), row_group_size=frame.height)
                del frame  # not kept while the next one is made
                frame = next(filled, None)
        size = sink.tell()
    return DataFile(path, size, statistics.rows, statistics.json())


def _parquet(sink: Any, first: pl.DataFrame) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        sink,
        _arrow(first.head(0)).schema,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=_repeating(first),
        write_statistics=_ordered(first),
        store_schema=False,
    )


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def batch_of(path: str) -> str | None:
    """The batch that a path names, None for a file that is not ours."""
    name = path.rpartition("/")[2]
    if not name.startswith(_PREFIX) or not name.endswith(_SUFFIX):
        return None
    return name[len(_PREFIX) : -len(_SUFFIX)].rpartition("-")[0]


def _repeating(frame: pl.DataFrame) -> list[str]:
    sample = frame.head(10_000)
    flat = [s for s in sample.get_columns() if not isinstance(s.dtype, pl.List)]
    return [s.name for s in flat if sample[s.name].n_unique() * _REPEATS <= sample.height]


def _ordered(frame: pl.DataFrame) -> list[str]:
    # Row group statistics of floats mislead readers about NaN.
    return [s.name for s in frame.get_columns() if s.dtype.is_integer() or s.dtype.is_temporal()]
