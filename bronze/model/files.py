"""Files of a Bronze table, and what their rows are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bronze.model.columns import Kind


@dataclass(frozen=True)
class DataFile:
    """One Parquet file that was written. ``path`` is relative to the table, ``stats`` is Delta's
    JSON, ``partition`` the value of the partition column, if the table has one.
    """

    path: str
    size: int
    rows: int
    stats: str
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Stored:
    """One Parquet file that is part of a table, as the log has it.

    ``path`` is percent-encoded, as in the log; ``rows`` is -1 where its writer did not say;
    ``low`` and ``high`` are the bounds that the log knows of columns of safe kinds.
    """

    path: str
    size: int
    rows: int
    low: tuple[tuple[str, Any], ...] = ()
    high: tuple[tuple[str, Any], ...] = ()
    partition: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Form:
    """What the rows of a Bronze table are made of, by which each can be proven to be as written.

    ``values`` are the columns of the source, of which the table began with ``base``; ``earlier``
    are kinds that columns had before they were widened, at one time or another. With ``hashed``,
    row_hash is of the values as they are stored, without a key. ``partition`` is the column with
    the partitions' dates, "" where there is none, ``thresholds`` are the scores below which rows
    were quarantined at one time or another, none where that is not remembered.
    """

    values: tuple[str, ...]
    base: int
    earlier: tuple[tuple[tuple[str, Kind], ...], ...] = ()
    hashed: bool = True
    partition: str = ""
    thresholds: tuple[int, ...] = ()
    history: bool = False
