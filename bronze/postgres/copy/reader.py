"""The readers of splits: they return the same rows, as frames of the same content and types."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import polars as pl

from bronze.model.columns import Column
from bronze.model.locations import Origin
from bronze.postgres.copy import packed_reader, rows_reader


class SplitReader(Protocol):
    """Reads the rows of splits; see `bronze.postgres.copy.rows_reader.read_rows`."""

    def __call__(
        self,
        origin: Origin,
        session: Sequence[str],
        query: str,
        where: Sequence[str],
        columns: Sequence[Column],
        table: str,
        guarded: bool = False,
    ) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
        """Yields parts: the columns with target names, and the text of rejected values. Whoever
        does not read to the end closes it, and with it the connection.
        """


READERS: dict[str, SplitReader] = {
    "packed": packed_reader.read_rows,
    "connectorx": rows_reader.read_rows,
}
"""The readers by their name in the config."""


def reader_of(origin: Origin) -> SplitReader:
    """The reader that an origin asks for."""
    return READERS[origin.reader]
