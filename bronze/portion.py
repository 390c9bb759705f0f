"""Portions of rows: so many at a time as take a bounded room, however long and however wide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import polars as pl
import pyarrow as pa

FEWEST = 1_000
"""What is done for a portion costs so much for each of its columns that wide rows are taken in
portions of at least so many, where their bytes allow it."""

HELD = "\0held"
"""The end of the names of what was joined."""

_ONE = "\0one"
_VIEW = 16


def rows(values: int, columns: int) -> int:
    """How many rows of so many columns have about so many values."""
    return max(1, FEWEST, values // max(1, columns))


def portions_of(table: pa.Table, most: int, size: int) -> Iterator[pa.Table]:
    """The rows in their order, at most ``most`` at a time and about ``size`` bytes, or one row."""
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
    """About how many bytes a frame takes, which counts a text's own and those that point to it."""
    pointing = sum(dtype in (pl.String, pl.Binary) for dtype in frame.dtypes)
    return int(frame.estimated_size()) + _VIEW * pointing * frame.height


def size_of(frames: Iterable[pl.DataFrame]) -> int:
    """The same for several."""
    return sum(map(size, frames))


def release() -> None:
    """Gives back what Arrow keeps of the room that large rows took."""
    pa.default_memory_pool().release_unused()


def join(
    left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], how: Literal["inner", "left"]
) -> pl.DataFrame:
    """Rows joined by keys, where NULL is equal to NULL, and NaN to NaN; columns of both that are no
    keys have `HELD` at their end in ``right``.
    """
    also: list[str] = []
    if len(on) == 1 and left[on[0]].dtype.is_float():
        # By one key that is sorted, as that of one row is, polars finds no NaN.
        one = pl.lit(0, pl.Int8).alias(_ONE)
        left, right, also = left.with_columns(one), right.with_columns(one), [_ONE]
    found = left.join(right, on=[*on, *also], how=how, suffix=HELD, nulls_equal=True)
    return found.drop(also)


def without_enums(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame with strings instead of enums; values of other columns are not copied for it."""
    return pl.DataFrame(
        [s.cast(pl.String) if isinstance(s.dtype, pl.Enum) else s for s in frame.get_columns()],
        height=frame.height,
    )


def with_columns(frame: pl.DataFrame, columns: Iterable[pl.Series]) -> pl.DataFrame:
    """A frame with columns behind its own, or in their places; no others are copied for it."""
    new = {series.name: series for series in columns}
    made = [new.pop(series.name, series) for series in frame.get_columns()]
    return pl.DataFrame([*made, *new.values()], height=frame.height)
