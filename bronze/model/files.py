"""Files of a Bronze table, and the format of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bronze.model.columns import DeltaType


@dataclass(frozen=True)
class WrittenFile:
    """One Parquet file that was written and is not committed yet.

    ``path`` is relative to the table, ``stats`` are its statistics as JSON in Delta's format,
    ``partition`` is the value of the partition column, if the table has one.
    """

    path: str
    size: int
    rows: int
    stats: str
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class DeletionVector:
    """Where the log says that the numbers of a file's deleted rows are.

    ``storage`` is "u" (a file in the table's folder), "p" (a path) or "i" (inline); ``location`` is
    the log's text for it; ``size`` is in bytes, ``cardinality`` the number of deleted rows.
    """

    storage: str
    location: str
    offset: int | None
    size: int
    cardinality: int


@dataclass(frozen=True)
class StoredFile:
    """One Parquet file of a table, as its Delta log describes it.

    ``path`` is percent-encoded, as in the log; ``rows`` is the number of rows that are not deleted,
    -1 if the log has no row count; ``low`` and ``high`` are the minimum and maximum of columns
    whose statistics can be trusted; ``vector`` has the rows of it that are deleted; ``provider`` is
    the clustering implementation that the log names for it, "" without one.
    """

    path: str
    size: int
    rows: int
    low: tuple[tuple[str, Any], ...] = ()
    high: tuple[tuple[str, Any], ...] = ()
    partition: tuple[tuple[str, str | None], ...] = ()
    vector: DeletionVector | None = None
    provider: str = ""

    @property
    def identity(self) -> tuple[str, int, DeletionVector | None]:
        """What rows of the file are identified by, beside their numbers: with another deletion
        vector it has other rows.
        """
        return self.path, self.size, self.vector


@dataclass(frozen=True)
class RowFormat:
    """The format of the rows of a Bronze table, needed to check each row against its hashes.

    ``values`` are the columns of the source, the first ``base`` of which the table was created
    with; ``earlier`` are the types that columns had before they were widened. With ``hashed``,
    row_hash is computed from the values as they are stored, without a secret key. ``partition`` is
    the column with the partitions' dates, "" if there is none; ``thresholds`` are all scores below
    which rows have been quarantined, none if they are not known.
    """

    values: tuple[str, ...]
    base: int
    earlier: tuple[tuple[tuple[str, DeltaType], ...], ...] = ()
    hashed: bool = True
    partition: str = ""
    thresholds: tuple[int, ...] = ()
    history: bool = False
