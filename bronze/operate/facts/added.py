"""Reads what was added to a governance table since it was read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from bronze.delta import files, log
from bronze.delta.log import State
from bronze.errors import FileDamaged
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Columns = Sequence[tuple[str, DeltaType]]


@dataclass(frozen=True)
class Added:
    """What a table has more than at an earlier state: the rows of ``files``, the newest first.

    With ``is_whole`` they are all its files: earlier rows are among them once more. ``state`` is
    None where there is no table.
    """

    state: State | None
    files: tuple[StoredFile, ...]
    is_whole: bool


def parts_of(place: Place, file: StoredFile, columns: Columns) -> Iterator[pl.DataFrame]:
    """The rows of a file with these columns, a row group at a time.

    Raises:
        FileDamaged, LakeUnreachable: it cannot be read.
    """
    opened = files.open_parquet(place, file)
    return (pl.DataFrame(part) for _, part in files.parts(opened, columns))


def added_since(place: Place, since: State | None) -> Added:
    """What a governance table has more than at the state ``since``; None is an empty one.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    state = log.read(place) if since is None else log.refresh(since)
    if state is None:
        return Added(None, (), is_whole=True)
    if since is not None and state.is_same(since):
        return Added(state, (), is_whole=False)
    paths = _paths_between(place, since, state)
    new = tuple(file for file in state.files if paths and file.path in paths)
    # Where a file of these commits was rewritten since, its rows are in one with earlier rows.
    if paths is None or len(new) != len(paths):
        return Added(state, state.files, is_whole=True)
    return Added(state, new, is_whole=False)


def _paths_between(place: Place, since: State | None, state: State) -> set[str] | None:
    """The files with new rows of the commits between two states, None if that is not known."""
    if since is None or since.content.metadata.id != state.content.metadata.id:
        return None
    if since.version > state.version:
        return None
    paths = set()
    try:
        for _, actions in log.entries(place, range(since.version + 1, state.version + 1)):
            if actions is None:
                return None
            adds = [action["add"] for action in actions if "add" in action]
            paths |= {add["path"] for add in adds if add.get("dataChange", True)}
            removes = [action["remove"] for action in actions if "remove" in action]
            if any(remove.get("dataChange", True) for remove in removes):
                return None
    except FileDamaged:
        return None
    return paths
