"""What the active rows of a Bronze table are now: how many, their NULLs, their duplicates."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from bronze.api import frame
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import LakeError
from bronze.library_errors import error_text
from bronze.tables import row_format

SMALL_READ = 1000
"""Rows of the small read that is timed."""
# What a key takes while polars counts the distinct ones, in bytes.
_KEY_BYTES = 100


@dataclass(frozen=True)
class TableRows:
    """The active rows of a table: NULLs by column of the source, and how many rows share their key
    (without a key, all their values) with an earlier row.
    """

    rows: int
    nulls: dict[str, int]
    duplicates: int

    @property
    def null_share(self) -> float:
        """The share of the values that are NULL."""
        return sum(self.nulls.values()) / max(self.rows * len(self.nulls), 1)

    @property
    def duplicate_share(self) -> float:
        """The share of the rows that are duplicates."""
        return self.duplicates / max(self.rows, 1)

    @property
    def emptiest(self) -> str:
        """The column with the most NULLs, and their share of its values; "" without NULLs."""
        if not self.rows or not any(self.nulls.values()):
            return ""
        name = max(self.nulls, key=lambda column: self.nulls[column])
        return f"most in {name}, {self.nulls[name] / self.rows:.1%}"


def measure(settings: Settings, state: State, target: str) -> TableRows:
    """Reads all active rows of a table.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    form = row_format.row_format_of(state.columns, state.properties, state.partition)
    names = [name for name in form.values if name in dict(state.columns)]
    key = TableProperties.read(state.properties).key or ("row_hash",)
    rows = frame.active_rows(settings, target)
    with log.mapped_errors(state.place, "read"):
        try:
            counts = rows.select(
                pl.len().alias(""), *(pl.col(name).null_count() for name in names)
            ).collect(engine="streaming")
            (found,) = counts.to_dicts()
            total = int(found.pop(""))
            distinct = _distinct(rows, key, total, settings.run.memory)
        except pl.exceptions.PolarsError as error:
            raise LakeError(f"The rows of {target} cannot be read: {error_text(error)}") from None
    return TableRows(total, {name: int(found[name]) for name in names}, total - distinct)


def _distinct(rows: pl.LazyFrame, key: Sequence[str], total: int, memory: int) -> int:
    """How many keys there are: counted in so many passes that each fits into a quarter of the
    memory.
    """
    passes = max(math.ceil(total * _KEY_BYTES / (memory / 4)), 1)
    keys = rows.select(*key)
    bucket = pl.struct(*key).hash() % passes
    parts = (keys.filter(bucket == number) if passes > 1 else keys for number in range(passes))
    counts = (part.unique().select(pl.len()).collect(engine="streaming") for part in parts)
    return sum(int(count.item()) for count in counts)


def seconds_to_read(settings: Settings, target: str) -> float:
    """The seconds that a small read takes: from the log to `SMALL_READ` rows.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    began = time.monotonic()
    try:
        frame.active_rows(settings, target).head(SMALL_READ).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LakeError(f"The rows of {target} cannot be read: {error_text(error)}") from None
    return time.monotonic() - began
