"""Reads the records of governance tables: all of them, or those since a version of the table.

Records are only ever appended. Commits that rewrite files, because they join them (OPTIMIZE) or
delete old records (DELETE), bring none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from bronze.delta import files, log
from bronze.delta.log import State
from bronze.governance.frames import schema_of
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Columns = Sequence[tuple[str, DeltaType]]

_REWRITING = ("OPTIMIZE", "DELETE")
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Records:
    """Records, in any order; and the ``version`` of the table up to which they were read, which
    `records_since` takes the next time.
    """

    rows: pl.DataFrame
    version: int


def rows_of(place: Place, columns: Columns) -> pl.DataFrame | None:
    """All rows of a governance table, with these columns; None if there is no such table.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    state = log.read(place)
    return _frame(state.place, state.files, columns) if state else None


def records_since(place: Place, columns: Columns, version: int | None = None) -> Records | None:
    """The records that were appended after a version of a table; None if there is no such table.

    If nothing was appended, that takes two small requests to the store.

    Args:
        place: the table.
        columns: those of its columns that are wanted.
        version: as of the last call; None for all records. If the log does not have it any more,
            they are all read again.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    if version is None or log.entry(place, version) is None:
        state = log.read(place)
        return Records(_frame(place, state.files, columns), state.version) if state else None
    added: list[StoredFile] = []
    while (actions := log.entry(place, version + 1)) is not None:
        version += 1
        added += _appended(actions)
    return Records(_frame(place, added, columns), version)


def _appended(actions: Sequence[log.Action]) -> Iterator[StoredFile]:
    info: dict[str, Any] = next((dict(a["commitInfo"]) for a in actions if "commitInfo" in a), {})
    if info.get("operation") not in _REWRITING:
        for added in (action["add"] for action in actions if "add" in action):
            if added.get("dataChange", True):
                yield StoredFile(added["path"], int(added.get("size", 0)), -1)


def _frame(place: Place, stored: Sequence[StoredFile], columns: Columns) -> pl.DataFrame:
    parts = [
        pl.DataFrame(part)
        for file in stored
        for _, part in files.parts(
            files.open_parquet(place, file), columns, [name for name, _ in columns]
        )
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema_of(columns))


def newest_first(state: State, time: str) -> list[tuple[datetime, StoredFile]]:
    """The files of a table with the latest time that they may have in a column, the latest first;
    files without statistics may have any.
    """
    bounded = [(bound(file.high, time) or _LAST, file) for file in state.files]
    return sorted(bounded, key=lambda pair: pair[0], reverse=True)


def bound(bounds: Sequence[tuple[str, Any]], time: str) -> datetime | None:
    """The bound of a column of times in the statistics of a file, None if it has none."""
    value = dict(bounds).get(time)
    return value if isinstance(value, datetime) else None


def newest_groups_first(parquet: Any, time: str, latest: datetime) -> list[tuple[datetime, int]]:
    """The row groups of an open file with the latest time that they may have in a column, the
    latest first; those without statistics may have that of the file, ``latest``.
    """
    column = parquet.schema_arrow.names.index(time)
    bounds = []
    for group in range(parquet.num_row_groups):
        statistics = parquet.metadata.row_group(group).column(column).statistics
        value = statistics.max if statistics and statistics.has_min_max else None
        bounds.append((value if isinstance(value, datetime) else latest, group))
    return sorted(bounds, reverse=True)
