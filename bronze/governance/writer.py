"""Appends rows to governance tables: by many processes at once, each row once.

`append_rows` appends given rows; `append` appends rows that depend on the table's state;
`commit_rows` commits on top of a state that the caller has read. A file that was written but not
committed is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import uuid_utils

from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change, Shape
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError, CommitConflict
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Columns = Sequence[tuple[str, DeltaType]]


@dataclass(frozen=True)
class Page:
    """Rows to append, the position of the table with them, its properties, and the facts of the
    commit.
    """

    rows: pl.DataFrame = field(repr=False)
    reached: Position
    notes: Mapping[str, str]
    facts: Mapping[str, Any]


@commit.retry_conflicts
def append_rows(
    place: Place, columns: Columns, rows: pl.DataFrame, batch_id: str, stats: Sequence[str] = ()
) -> None:
    """Appends rows, creating the table if there is none.

    Args:
        place: the table.
        columns: its columns.
        rows: with these columns; no commit is made without any.
        batch_id: the run that they are of.
        stats: the columns with file statistics.

    Raises:
        CommitConflict: other writers committed first each time.
        LakeError, LakeUnreachable: the table cannot be read or written.
    """
    state = log.recent(place)
    facts = {"batch_id": batch_id}
    commit_rows(place, state, columns, rows, facts, batch_id=batch_id, stats=stats)


@commit.retry_conflicts
def append(place: Place, columns: Columns, page_for: Callable[[State | None], Page | None]) -> None:
    """Appends the page that ``page_for`` returns for the present state of the table.

    Raises:
        CommitConflict: other writers committed first each time.
        LakeError, LakeUnreachable: the table cannot be read or written.
    """
    state = log.recent(place)
    page = page_for(state)
    if page is not None:
        commit_rows(
            place, state, columns, page.rows, page.facts, reached=page.reached, notes=page.notes
        )


def commit_rows(
    place: Place,
    state: State | None,
    columns: Columns,
    rows: pl.DataFrame,
    facts: Mapping[str, Any],
    *,
    batch_id: str = "",
    stats: Sequence[str] = (),
    reached: Position | None = None,
    notes: Mapping[str, str] | None = None,
    removed: Sequence[StoredFile] = (),
) -> None:
    """Commits rows to a table on top of a state that was read; without rows it does nothing.

    Args:
        place: the table.
        state: the state that was read; None to create the table.
        columns: its columns.
        rows: with these columns.
        facts: the facts of the commit.
        batch_id: the run that they are of; a new id if empty.
        stats: the columns with file statistics.
        reached: the position of the table with them.
        notes: properties to set; other properties stay.
        removed: files that the rows replace.

    Raises:
        CommitConflict: another writer committed first.
        LakeError, LakeUnreachable: the table cannot be written.
    """
    batch_id = batch_id or str(uuid_utils.uuid7())
    file = files.write([rows], place, batch_id, stats)
    if file is None:
        return
    change = Change("WRITE", [file], removed, parameters={"mode": "Append"})
    shape = None
    if state is None or notes is not None:
        properties = {**(state.properties if state else {}), **(notes or {})}
        shape = Shape(tuple(columns), tuple(stats), notes=tuple(properties.items()))
    try:
        commit.commit(place, state, change, facts, shape=shape, reached=reached)
    except CommitConflict:
        with suppress(BronzeError):
            store.delete(place, [file.path])
        raise
    except BronzeError:
        # Without an answer from the store the commit may have succeeded.
        with suppress(BronzeError):
            commit.discard(place, batch_id)
        raise
