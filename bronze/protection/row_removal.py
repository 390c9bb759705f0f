"""Removes rows from the current version of a Delta table, in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from urllib.parse import unquote

import polars as pl
import uuid_utils

from bronze.delta import commit, file_names, files, log
from bronze.delta.commit import Change
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.vacuum import VacuumResult
from bronze.delta.log import State
from bronze.errors import BronzeError
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place

RowFilter = Callable[[pl.DataFrame], pl.Series]
"""Says which rows of a frame are meant."""


def remove_records(
    place: Place, matches: RowFilter, columns: Sequence[str]
) -> tuple[int, VacuumResult]:
    """Removes rows of a governance table, and the versions that had them.

    Args:
        place: the table.
        matches: which rows.
        columns: the columns that ``matches`` needs.

    Returns:
        How many rows were removed, and what was deleted with the older versions.

    Raises:
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    for attempt in commit.attempts():
        with attempt:
            state = log.read(place)
            rows = remove_rows(state, matches, columns)[1] if state else 0
    return rows, vacuum.purge(place, time.time()) if rows else VacuumResult()


def remove_rows(state: State, matches: RowFilter, columns: Sequence[str]) -> tuple[int, int]:
    """Rewrites the files that have some rows without them, and commits that; also files that have
    them as deleted rows, which a deletion vector only hides.

    Args:
        state: the table as it was read.
        matches: which rows.
        columns: the columns that ``matches`` needs.

    Returns:
        The version of the table, and how many rows were removed.

    Raises:
        CommitConflict: somebody else committed since ``state`` was read.
        LakeError, LakeUnreachable
    """
    counts = [(file, _count_in_file(state, file, matches, columns)) for file in state.files]
    chosen = [file for file, count in counts if count]
    rows = sum(count for _, count in counts)
    return rewrite_files(state, chosen, matches, rows) if rows else state.version, rows


def rewrite_files(
    state: State, old: Sequence[StoredFile], matches: RowFilter | None = None, erased: int = 0
) -> int:
    """Rewrites files without some rows, and without those that deletion vectors delete, in one
    commit.

    Args:
        state: the table as it was read.
        old: the files.
        matches: which rows are left out; None is none of those that are not deleted.
        erased: how many rows that are, for the commit's facts.

    Returns:
        The version of the table.

    Raises:
        CommitConflict: somebody else committed since ``state`` was read.
        LakeError, LakeUnreachable
    """
    batch = str(uuid_utils.uuid7())
    try:
        rests = [_file_without(state, file, matches, batch) for file in old]
        change = Change("DELETE", [rest for rest in rests if rest], old, is_data=False)
        return commit.commit(state.place, state, change, {"batch_id": batch, "erased": erased})
    except BaseException:
        # Where no answer came, the commit may stand all the same: that is looked up.
        with suppress(BronzeError):
            commit.discard(state.place, batch)
        raise


def _count_in_file(
    state: State, file: StoredFile, matches: RowFilter, columns: Sequence[str]
) -> int:
    parquet = files.open_parquet(state.place, replace(file, vector=None))
    parts = files.parts(parquet, state.columns, list(columns), None, dict(file.partition))
    return sum(int(matches(pl.DataFrame(part)).sum()) for _, part in parts)


def _file_without(
    state: State, file: StoredFile, matches: RowFilter | None, batch: str
) -> WrittenFile | None:
    """Writes a file's other rows; None where it has no others."""
    parquet = files.open_parquet(state.place, file)
    cluster = file_names.cluster_of(unquote(file.path))
    name = file_names.cluster_name(batch, *cluster) if cluster else batch
    stats = [column for column in optimize.statistics(state) if column in dict(state.columns)]
    parts = files.parts(parquet, state.columns, None, None, dict(file.partition))
    frames = (pl.DataFrame(part) for _, part in parts)
    others = (frame.filter(~matches(frame)) if matches else frame for frame in frames)
    return files.write(others, state.place, name, stats, file.partition)
