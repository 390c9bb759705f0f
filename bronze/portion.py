"""Portions of rows: so many at a time as take a bounded room, however long and however wide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl
import pyarrow as pa

FEWEST = 1_000
"""What is done for a portion costs so much for each of its columns that wide rows are taken in
portions of at least so many, where their bytes allow it."""

_VIEW = 16


def rows(values: int, columns: int) -> int:
    """How many rows of so many columns have about so many values."""
    return max(1, FEWEST, values // max(1, columns))


def of(table: pa.Table, most: int, size: int) -> Iterator[pa.Table]:
    """The rows in their order, at most ``most`` at a time and about ``size`` bytes, or one row."""
    fitting = table.num_rows * size // max(table.nbytes, 1)
    step = max(1, min(most, fitting))
    if step >= table.num_rows:
        yield table
        return
    for start in range(0, table.num_rows, step):
        yield from _halves(table.slice(start, step), size)


def _halves(table: pa.Table, size: int) -> Iterator[pa.Table]:
    # Rows may be of very different sizes.
    if table.num_rows == 1 or table.nbytes <= 2 * size:
        yield table
        return
    middle = table.num_rows // 2
    yield from _halves(table.slice(0, middle), size)
    yield from _halves(table.slice(middle), size)


def size(frame: pl.DataFrame) -> int:
    """About how many bytes a frame takes, which counts a text's own and those that point to it."""
    pointing = sum(dtype in (pl.String, pl.Binary) for dtype in frame.dtypes)
    return int(frame.estimated_size()) + _VIEW * pointing * frame.height


def size_of(frames: Iterable[pl.DataFrame]) -> int:
    """The same for several."""
    return sum(map(size, frames))
