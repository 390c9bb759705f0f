"""Partitions by date: a column of dates, derived from a timestamp of the row. The log has its value
for each file; the files do not have the column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import polars as pl

from bronze import portion
from bronze.delta.file_names import Partition
from bronze.delta.files import Output
from bronze.model.files import WrittenFile

# This many files are open at once. Before another one is opened, all of them are completed.
_OPEN = 64
_SUFFIX = "_date"


def column_of(source: str) -> str:
    """The partition column for the dates of a column."""
    return f"{source}{_SUFFIX}"


def source_of(column: str) -> str:
    """The column whose dates are in a partition column."""
    return column.removesuffix(_SUFFIX)


def dated(rows: pl.DataFrame, source: str) -> pl.DataFrame:
    """The rows with their dates (in UTC) in the partition column."""
    return portion.with_columns(rows, [rows[source].cast(pl.Date).alias(column_of(source))])


class Outputs:
    """Files being written, one for each partition, or a single one without partitions.

    ``files`` are complete when the context has ended; after an error there are none.
    """

    def __init__(self, new: Callable[[Partition], Output], column: str | None) -> None:
        self._new = new
        self._column = column
        self._open: dict[Any, Output] = {}
        self._stack = ExitStack()
        self.files: list[WrittenFile] = []

    def __enter__(self) -> Outputs:
        return self

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows, each to the file of its partition."""
        if self._column is None:
            self._of(None).add(rows)
            return
        for (value,), part in rows.partition_by(
            self._column, as_dict=True, maintain_order=True
        ).items():
            self._of(value).add(part)

    def _of(self, value: Any) -> Output:
        if value not in self._open:
            if len(self._open) >= _OPEN:
                self._finish()
            text = None if value is None else str(value)
            values: Partition = ((self._column, text),) if self._column else ()
            self._open[value] = self._stack.enter_context(self._new(values))
        return self._open[value]

    def _finish(self) -> None:
        self._stack.close()
        self.files += [output.file for output in self._open.values() if output.file]
        self._open = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
        else:
            self._finish()


def write(
    frames: Iterable[pl.DataFrame], new: Callable[[Partition], Output], column: str | None
) -> tuple[WrittenFile, ...]:
    """Writes the rows of all frames, a row group a frame and partition.

    Raises:
        LakeUnreachable: they cannot be written.
    """
    with Outputs(new, column) as outputs:
        # Unlike a loop, map keeps no frame while the next one is made.
        for _ in map(outputs.add, frames):
            pass
    return tuple(outputs.files)
