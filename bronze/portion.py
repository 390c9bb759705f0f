"""Portions of rows that take a bounded memory, however long and wide the rows are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

FEWEST = 1_000
"""The least number of rows of a portion, where their bytes allow it: each portion has a cost for
each of its columns."""

JOINED = "\0joined"
"""The suffix of the columns of the right side of a `join`, where the left one has the same name."""

_ONE = "\0one"
_VIEW = 16


def rows(values: int, columns: int) -> int:
    """The number of rows with this many columns that have about this many values."""
    return max(1, FEWEST, values // max(1, columns))


def portions_of(table: pa.Table, most: int, size: int) -> Iterator[pa.Table]:
    """Portions of the rows, in their order, of at most ``most`` rows and about ``size`` bytes."""
    if table.num_rows <= most and _fits(table, size):
        yield table
        return
    step = max(1, min(most, table.num_rows * size // max(table.nbytes, 1)))
    for start in range(0, table.num_rows, step):
        yield from _halves(table.slice(start, step), size)


def _fits(table: pa.Table, size: int) -> bool:
    # A little more is allowed, as rows are not all alike.
    return bool(table.num_rows <= 1 or table.nbytes <= size * 5 // 4)


def _halves(table: pa.Table, size: int) -> Iterator[pa.Table]:
    # Rows may be of very different sizes.
    if _fits(table, size):
        yield table
        return
    middle = table.num_rows // 2
    yield from _halves(table.slice(0, middle), size)
    yield from _halves(table.slice(middle), size)


def size(frame: pl.DataFrame) -> int:
    """The approximate memory of a frame in bytes, with the views of its texts."""
    pointing = sum(dtype in (pl.String, pl.Binary) for dtype in frame.dtypes)
    return int(frame.estimated_size()) + _VIEW * pointing * frame.height


def size_of(frames: Iterable[pl.DataFrame]) -> int:
    """The approximate memory of several frames, in bytes."""
    return sum(map(size, frames))


def release() -> None:
    """Returns the memory that Arrow keeps after large rows to the operating system."""
    pa.default_memory_pool().release_unused()


def join(
    left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], how: Literal["inner", "left"]
) -> pl.DataFrame:
    """Joins rows by keys, where NULL equals NULL and NaN equals NaN.

    Other columns that both have end with `JOINED` if they come from ``right``.
    """
    also: list[str] = []
    if len(on) == 1 and left[on[0]].dtype.is_float():
        # polars does not match NaN in a single sorted key; a single row is sorted.
        constant = pl.lit(0, pl.Int8).alias(_ONE)
        left, right, also = left.with_columns(constant), right.with_columns(constant), [_ONE]
    joined = left.join(right, on=[*on, *also], how=how, suffix=JOINED, nulls_equal=True)
    return joined.drop(also)


def without_enums(frame: pl.DataFrame) -> pl.DataFrame:
    """Casts enum columns to strings; other columns are not copied."""
    return pl.DataFrame(
        [s.cast(pl.String) if isinstance(s.dtype, pl.Enum) else s for s in frame.get_columns()],
        height=frame.height,
    )


def with_columns(frame: pl.DataFrame, columns: Iterable[pl.Series]) -> pl.DataFrame:
    """Adds columns to a frame, or replaces those of the same name; no others are copied."""
    new = {series.name: series for series in columns}
    columns_in_order = [new.pop(series.name, series) for series in frame.get_columns()]
    return pl.DataFrame([*columns_in_order, *new.values()], height=frame.height)


def regroup_like(flat: pl.Series, like: pl.Series) -> pl.Series:
    """Groups elements into lists with the lengths of those of ``like``; null where it is null."""
    lengths = like.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    values = flat.to_arrow(compat_level=pl.CompatLevel.oldest())
    missing = like.is_null().to_arrow() if like.null_count() else None
    lists = pa.LargeListArray.from_arrays(pl.Series(offsets).to_arrow(), values, mask=missing)
    return pl.Series(lists, dtype=pl.List(flat.dtype))
