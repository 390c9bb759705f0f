"""Optimize: joins small files of a table, and clusters its rows.

Files are rewritten a few at a time, as in a log-structured merge tree (O'Neil et al., 1996): new
files are gathered until they are worth it, then rewritten together with older files that are not
much larger (`bronze.delta.layout.file_groups`). So a row is rewritten about as often as the table
has doubled since the row came.

With ``cluster_by``, each rewrite makes one cluster: its rows are in the order of a Hilbert curve
through these columns (`bronze.delta.layout.hilbert`), in files of equal size, whose names have the
clustering and the cluster. Files without such a name are new. Without ``cluster_by``, small files
are joined.

Rows never change, and the commit says so: the change data feed shows nothing.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from bronze.delta import commit
from bronze.delta.layout import choice, file_groups, liquid, rewrite
from bronze.delta.layout.choice import Choice, Queries
from bronze.delta.layout.rewrite import Made
from bronze.delta.log import State, read, recent
from bronze.delta.read.clustering import PROVIDER
from bronze.delta.schema import PROPERTIES, properties
from bronze.delta.statistics import SAFE
from bronze.errors import CommitConflict, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Runs a function of a module for all jobs, and yields the results in any order."""

Steps = Generator[tuple[Callable[[Any], Any], Sequence[Any]], list[Any], "OptimizeResult"]
"""Yields a function and its jobs, gets their results in any order, and returns the result."""

_MOST_COLUMNS = 4
SORTABLE = (*SAFE, "float", "double", "decimal")
"""The names of the types that a table can be clustered by."""
_STATS = "delta.dataSkippingStatsColumns"
_STATS_COUNT = "delta.dataSkippingNumIndexedCols"
_DEFAULT_STATS = 32
_NAME = re.compile(r"`(?:[^`]|``)*`|[^`,\s](?:[^`,]*[^`,\s])?")
_TRIES = 8
_PAUSE = 0.1


@dataclass(frozen=True)
class TableLayout:
    """The layout that a table should have.

    Attributes:
        cluster_by: up to four columns; without any, small files are joined. Floats and decimals
            are ordered too, but have no file statistics for data skipping.
        target: the size of a file, in bytes of Parquet.
        budget: the most bytes of Parquet that one call reads; a larger cluster is not rewritten.
        liquid: whether the log says what the table is clustered by, as Databricks' liquid
            clustering does (`bronze.delta.layout.liquid`).
        auto: the filters to choose the columns for, instead of ``cluster_by``
            (`bronze.delta.layout.choice`).
    """

    cluster_by: tuple[str, ...] = ()
    target: int = 128 * 2**20
    budget: int = 16 * 2**30
    liquid: bool = False
    auto: Queries | None = None


@dataclass(frozen=True)
class OptimizeResult:
    """The result of `optimize_table`; ``version`` is None if there was nothing to do.

    ``files`` and ``bytes`` are those of the table, ``rewritten`` (bytes) and ``rows`` were
    rewritten; ``choice`` is the choice of columns to cluster by, if this call made one.
    """

    version: int | None = None
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rewritten: int = 0
    rows: int = 0
    choice: Choice | None = None


def is_needed(state: State, wish: TableLayout) -> bool:
    """Whether `optimize_table` would do something; only the log is read.

    Raises:
        LakeError: the table has no such columns to cluster by.
    """
    return (
        (wish.auto is not None and choice.is_needed(state, wish.target, wish.auto))
        or _needs_liquid(state, wish)
        or bool(groups_to_rewrite(state, wish))
    )


def _needs_liquid(state: State, wish: TableLayout) -> bool:
    by = _cluster_columns(state, wish)
    return wish.liquid and bool(by) and liquid.is_needed(state, by)


def _needs_choice(state: State, wish: TableLayout) -> bool:
    return wish.auto is not None and choice.is_needed(state, wish.target, wish.auto)


def optimize_table(
    place: Place, wish: TableLayout, *, batch_id: str, memory: int, each: Each
) -> OptimizeResult:
    """Rewrites the files that are worth it, once, within the budget.

    Args:
        place: the table.
        wish: the layout that it should have.
        batch_id: a new batch id (UUIDv7), which is part of the names of the files.
        memory: the bytes that each job may take.
        each: runs the jobs. If it raises, jobs may still be writing: the files of the batch are
            left to `bronze.delta.commit.sweep`.

    Raises:
        CommitConflict: other writers committed in between, at every attempt.
        LakeError, LakeUnreachable: the table cannot be read or written.
        Mismatch: the rows that were written differ from those that were read; nothing was
            committed.
    """
    generator = steps(place, wish, batch_id=batch_id, memory=memory)
    try:
        work, jobs = next(generator)
        while True:
            try:
                results = list(each(work, jobs))
            except BaseException as error:
                work, jobs = generator.throw(error)
            else:
                work, jobs = generator.send(results)
    except StopIteration as end:
        result: OptimizeResult = end.value
        return result


def steps(place: Place, wish: TableLayout, *, batch_id: str, memory: int) -> Steps:
    """`optimize_table` as a generator, for callers that run the jobs themselves."""
    version, decided = None, None
    for attempt in range(_TRIES):
        _pause(attempt)
        state = recent(place)
        if state is not None and _needs_choice(state, wish):
            try:
                decided = yield from choice.steps(state, wish.target, wish.auto or Queries())
            except CommitConflict:
                continue
            state = recent(place)
        if state is not None and _needs_liquid(state, wish):
            try:
                version = yield from _liquid_steps(state, wish)
            except CommitConflict:
                continue
            state = recent(place)
        groups = groups_to_rewrite(state, wish) if state else ()
        if state is None or not groups:
            return _unchanged(state, version, decided)
        state.writable()
        made = yield from rewrite.steps(_orders(state, wish, groups, batch_id, memory))
        result = _commit_current(state, wish, made, batch_id)
        if result:
            return replace(result, choice=decided)
    raise _conflict(place)


def _liquid_steps(state: State, wish: TableLayout) -> liquid.Steps:
    shape = _shape(state, wish)
    notes = dict(shape.notes) if shape else {}
    return liquid.steps(state, _cluster_columns(state, wish), notes)


def _unchanged(state: State | None, version: int | None, decided: Choice | None) -> OptimizeResult:
    """The result where no file was rewritten."""
    if state is None or version is None:
        return OptimizeResult(choice=decided)
    count, size = len(state.files), file_groups.size_of(state.files)
    return OptimizeResult(version, count, count, size, size, choice=decided)


def _conflict(place: Place) -> CommitConflict:
    return CommitConflict(
        f"Other writers committed to the table at {place.url} first, {_TRIES} times in a row.",
        hint="Optimize it when fewer writers are active.",
    )


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(_PAUSE * random.uniform(0.5, 1) * 2**attempt)  # noqa: S311


# The plan


def groups_to_rewrite(state: State, wish: TableLayout) -> tuple[tuple[StoredFile, ...], ...]:
    """The groups of files that are worth a rewrite; each group becomes new files.

    Raises:
        LakeError: the table has no such columns to cluster by.
    """
    by = _cluster_columns(state, wish)
    groups: list[tuple[StoredFile, ...]] = []
    budget = wish.budget
    # Files that another implementation of liquid clustering has clustered are left to it.
    ours = [file for file in state.files if file.provider in ("", PROVIDER)]
    for stored in file_groups.by_partition(ours):
        if by:
            part = file_groups.to_cluster(stored, by, wish.target, budget)
        else:
            part = file_groups.to_join(stored, wish.target, budget)
        groups += part
        budget -= sum(map(file_groups.size_of, part))
    return tuple(groups)


def _cluster_columns(state: State, wish: TableLayout) -> tuple[str, ...]:
    """The columns to cluster by within a partition."""
    if wish.auto is not None:
        return tuple(name for name in choice.chosen(state) if name != state.partition)
    known = dict(state.columns)
    # A column keeps the table's spelling when the source changes the case of its name.
    spellings = {name.lower(): name for name in known}
    by = tuple(spellings.get(name.lower(), name) for name in wish.cluster_by)
    wrong = [n for n in by if n not in known or known[n].name not in SORTABLE]
    if wrong or len(wish.cluster_by) > _MOST_COLUMNS:
        raise LakeError(
            f"The table at {state.place.url} cannot be clustered by {', '.join(wish.cluster_by)}.",
            hint=f"Name up to {_MOST_COLUMNS} of its columns with numbers, texts, dates or times.",
        )
    return tuple(name for name in by if name != state.partition)


def _orders(
    state: State,
    wish: TableLayout,
    groups: Sequence[tuple[StoredFile, ...]],
    batch_id: str,
    memory: int,
) -> list[rewrite.Order]:
    by = _cluster_columns(state, wish)
    layout = tuple((name, kind) for name, kind in state.columns if name != state.partition)
    stats = tuple(n for n in _statistics(state, wish) if n in dict(layout))
    return [
        rewrite.Order(
            number=number,
            place=state.place,
            files=group,
            layout=layout,
            by=by,
            stats=stats,
            batch_id=batch_id,
            cluster=(file_groups.clustering_id(by), uuid4().hex[:8]) if by else None,
            count=max(1, round(file_groups.size_of(group) / wish.target)),
            memory=memory,
        )
        for number, group in enumerate(groups)
    ]


# The commit


def _commit_current(
    state: State, wish: TableLayout, made: Sequence[Made], batch_id: str
) -> OptimizeResult | None:
    """Commits the rewrites of files that are still in the table; None if there are none."""
    columns = state.columns
    for attempt in range(_TRIES):
        if not made:
            return None
        try:
            # After any other error the entry may be there: the files have to stay.
            version = _commit(state, wish, made, batch_id)
        except CommitConflict:
            _pause(attempt + 1)
            now = read(state.place)
            made = _valid(now, columns, made)
            state = now or state
            continue
        return _summary(state, made, version)
    _discard(state.place, made)
    raise _conflict(state.place)


def _commit(state: State, wish: TableLayout, made: Sequence[Made], batch_id: str) -> int:
    added = [file for one in made for file in one.files]
    removed = [file for one in made for file in one.order.files]
    by = wish.cluster_by if wish.auto is None else choice.chosen(state)
    parameters = {"clusterBy": json.dumps(by), "targetSize": str(wish.target)}
    change = commit.Change("OPTIMIZE", added, removed, is_data=False, parameters=parameters)
    return commit.commit(
        state.place, state, change, {"batch_id": batch_id}, shape=_shape(state, wish)
    )


def _shape(state: State, wish: TableLayout) -> commit.Shape | None:
    """The schema with statistics for the columns to cluster by, None if it does not change. The
    properties of tables that bronze has not made are not changed.
    """
    stats = _statistics(state, wish)
    text = state.properties.get(_STATS)
    if (
        text is None
        or set(stats) <= set(_names(text))
        or not set(PROPERTIES) <= {*state.properties}
    ):
        return None
    named = dict.fromkeys((*_names(text), *stats))
    notes = {**state.properties, _STATS: properties(named)[_STATS]}
    return commit.Shape(state.columns, stats, state.partition, tuple(notes.items()))


def _valid(
    state: State | None, columns: tuple[tuple[str, DeltaType], ...], made: Sequence[Made]
) -> list[Made]:
    """The rewrites that may still be committed; the files of the others are deleted."""
    live = {file.identity for file in state.files} if state else set()
    is_same = state is not None and state.columns == columns
    valid = [one for one in made if is_same and {f.identity for f in one.order.files} <= live]
    _discard(made[0].order.place, [one for one in made if one not in valid])
    return valid


def _discard(place: Place, made: Iterable[Made]) -> None:
    rewrite.discard(place, [file for one in made for file in one.files])


def _summary(state: State, made: Sequence[Made], version: int) -> OptimizeResult:
    added = [file for one in made for file in one.files]
    removed = [file for one in made for file in one.order.files]
    written = sum(file.size for file in added)
    before = file_groups.size_of(state.files)
    return OptimizeResult(
        version=version,
        files_before=len(state.files),
        files_after=len(state.files) - len(removed) + len(added),
        bytes_before=before,
        bytes_after=before - file_groups.size_of(removed) + written,
        rewritten=written,
        rows=sum(one.rows for one in made),
    )


# The columns with file statistics


def statistics(state: State) -> tuple[str, ...]:
    """The columns of a table that have file statistics."""
    return _statistics(state, TableLayout((), 0))


def _statistics(state: State, wish: TableLayout) -> tuple[str, ...]:
    """The columns with file statistics: those of the table, and those to cluster by."""
    safe = [name for name, kind in state.columns if kind.name in SAFE]
    text = state.properties.get(_STATS)
    if text is not None:
        named = _names(text)
    else:
        most = int(state.properties.get(_STATS_COUNT, _DEFAULT_STATS))
        named = [name for name, _ in state.columns[: most if most >= 0 else None]]
    by = (*_cluster_columns(state, wish), *state.clustering)
    return tuple(dict.fromkeys(n for n in (*named, *by) if n in safe))


def _names(text: str) -> list[str]:
    """The columns of the property, separated by commas, some of them in backticks."""
    return [
        name[1:-1].replace("``", "`") if name.startswith("`") else name
        for name in _NAME.findall(text)
    ]
