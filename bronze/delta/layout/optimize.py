"""Layout: which rows lie together in which files. Small files are joined, rows are clustered.

Files are rewritten a few at a time, as in a log-structured merge tree (O'Neil et al., 1996): new
files are gathered until they are worth it, then they are written anew together with those older
ones that are not much larger than they are. A row is so rewritten about as often as the table has
doubled since it came, however often rows are added.

With ``cluster_by``, what one rewrite makes is a cluster: its rows are in the order of a curve
through these columns (`bronze.delta.layout.hilbert`), cut into files of equal size, whose names
tell the clustering and the cluster. Files without such a name are new. Without ``cluster_by``,
small files are joined as they are.

Rows never change, and the commit says so, so that the change data feed shows nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from bronze.delta import commit, files
from bronze.delta.layout import rewrite
from bronze.delta.layout.rewrite import Made
from bronze.delta.log import State, read
from bronze.delta.schema import PROPERTIES, properties
from bronze.delta.statistics import SAFE
from bronze.errors import CommitConflict, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Does a function of a module for all jobs, anywhere, and yields the results in any order."""

Steps = Generator[tuple[Callable[[Any], Any], Sequence[Any]], list[Any], "Improved"]
"""Yields a function and its jobs, is sent their results in any order, and returns what came of
it."""

_MOST_COLUMNS = 4
_SORTABLE = (*SAFE, "float", "double", "decimal")
_STATS = "delta.dataSkippingStatsColumns"
_STATS_COUNT = "delta.dataSkippingNumIndexedCols"
_DEFAULT_STATS = 32
_NAME = re.compile(r"`(?:[^`]|``)*`|[^`,\s](?:[^`,]*[^`,\s])?")
# A file that has so much of the target size is not small.
_FULL = 0.7
# Older ones join the new ones while they are at most so many times as large.
_RATIO = 1.0
# So much of the target size, or so many files, are worth a rewrite.
_WORTH = 2.0
_MANY = 8
# Fewer small files than this are not joined.
_FEWEST = 4
_TRIES = 8
_PAUSE = 0.1


@dataclass(frozen=True)
class Wish:
    """How a table should lie.

    Attributes:
        cluster_by: up to four columns; none only joins small files. Floats and decimals are
            ordered too, but have no file statistics which a reader could skip by.
        target: the size of a file, in bytes of Parquet.
        budget: the most bytes of Parquet that one call reads, and the size beyond which a
            cluster is left alone.
    """

    cluster_by: tuple[str, ...] = ()
    target: int = 128 * 2**20
    budget: int = 16 * 2**30


@dataclass(frozen=True)
class Improved:
    """What an improvement did; ``version`` is None where there was nothing to do.

    ``files`` and ``bytes`` are the table's, ``rewritten`` and ``rows`` what was written anew.
    """

    version: int | None = None
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rewritten: int = 0
    rows: int = 0


def needed(state: State, wish: Wish) -> bool:
    """Whether `improve` would do something, from the log alone.

    Raises:
        LakeError: the table has no such columns to cluster by.
    """
    return bool(planned(state, wish))


def improve(place: Place, wish: Wish, *, batch_id: str, memory: int, each: Each) -> Improved:
    """Rewrites what is worth it, once, within the budget.

    Args:
        place: the table.
        wish: how it should lie.
        batch_id: a batch (UUIDv7) of its own, which names the files.
        memory: the bytes that each job may take.
        each: where the jobs run. When it raises, the files of the batch are left for
            `bronze.delta.commit.sweep`, as jobs may still be writing.

    Raises:
        CommitConflict: others committed in between, again and again.
        LakeError, LakeUnreachable: the table cannot be read or written.
        Mismatch: rows that were read are not those that were written; nothing was committed.
    """
    course = steps(place, wish, batch_id=batch_id, memory=memory)
    try:
        work, jobs = next(course)
        while True:
            try:
                results = list(each(work, jobs))
            except BaseException as error:
                work, jobs = course.throw(error)
            else:
                work, jobs = course.send(results)
    except StopIteration as end:
        done: Improved = end.value
        return done


def steps(place: Place, wish: Wish, *, batch_id: str, memory: int) -> Steps:
    """`improve` as a generator, for those who have their own way to run jobs."""
    for attempt in range(_TRIES):
        _pause(attempt)
        state = read(place)
        groups = planned(state, wish) if state else ()
        if state is None or not groups:
            return Improved()
        state.writable()
        made = yield from rewrite.steps(_orders(state, wish, groups, batch_id, memory))
        done = _is_landed(state, wish, made, batch_id)
        if done:
            return done
    raise _lost(place)


def _lost(place: Place) -> CommitConflict:
    return CommitConflict(
        f"Other writers committed to the table at {place.url} first, again and again.",
        hint="Improve its layout when fewer of them are at work.",
    )


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(_PAUSE * random.uniform(0.5, 1) * 2**attempt)  # noqa: S311


# What is to be done


def planned(state: State, wish: Wish) -> tuple[tuple[StoredFile, ...], ...]:
    """The groups of files that are worth being written anew, each one for itself.

    Raises:
        LakeError: the table has no such columns to cluster by.
    """
    by = _columns(state, wish)
    shares: dict[tuple[tuple[str, str | None], ...], list[StoredFile]] = {}
    for file in state.files:
        shares.setdefault(file.partition, []).append(file)
    groups: list[tuple[StoredFile, ...]] = []
    left = wish.budget
    for key in sorted(shares, key=str):
        found = (
            _clustering(shares[key], wish, by, left) if by else _joining(shares[key], wish, left)
        )
        groups += found
        left -= sum(_size(group) for group in found)
    return tuple(groups)


def _columns(state: State, wish: Wish) -> tuple[str, ...]:
    """Those to cluster by within a partition."""
    known = dict(state.columns)
    # A column keeps the table's spelling when the source changes the case of its name.
    spelled = {name.lower(): name for name in known}
    by = tuple(spelled.get(name.lower(), name) for name in wish.cluster_by)
    wrong = [n for n in by if n not in known or known[n].name not in _SORTABLE]
    if wrong or len(wish.cluster_by) > _MOST_COLUMNS:
        raise LakeError(
            f"The table at {state.place.url} cannot be clustered by {', '.join(wish.cluster_by)}.",
            hint=f"Name up to {_MOST_COLUMNS} of its columns that hold numbers, texts or times.",
        )
    return tuple(name for name in by if name != state.partition)


def _spec(by: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(by).encode()).hexdigest()[:8]


def _size(stored: Iterable[StoredFile]) -> int:
    return sum(file.size for file in stored)


def _clustering(
    stored: Sequence[StoredFile], wish: Wish, by: Sequence[str], budget: int
) -> list[tuple[StoredFile, ...]]:
    fresh: list[StoredFile] = []
    clusters: dict[str, list[StoredFile]] = {}
    for file in stored:
        spec, name = files.cluster_of(file.path) or ("", "")
        (clusters.setdefault(name, []) if spec == _spec(by) else fresh).append(file)
    if _size(fresh) < wish.target * _WORTH and len(fresh) < _MANY:
        return []
    fresh.sort(key=_near(fresh, by[0]))
    taken = _within(fresh, budget)
    if len(taken) == len(fresh):
        older = sorted(clusters.values(), key=_size)
        joining = _end_of_group([_size(cluster) for cluster in older], _size(taken), budget)
        taken += [file for cluster in older[:joining] for file in cluster]
    return [tuple(taken)] if len(taken) > 1 or _size(taken) > wish.target else []


def _within(stored: Sequence[StoredFile], budget: int) -> list[StoredFile]:
    """The first ones that fit in the budget."""
    taken: list[StoredFile] = []
    for file in stored:
        if file.size <= budget:
            taken.append(file)
            budget -= file.size
    return taken


def _end_of_group(sizes: Sequence[int], start: int, budget: int) -> int:
    """How many of some sizes, which ascend, may join what is gathered: the last one that joins
    must not be much larger than everything before it.
    """
    count, gathered = 0, start
    for number, size in enumerate(sizes, 1):
        if size <= _RATIO * gathered and gathered + size <= budget:
            count = number
        gathered += size
    return count


def _joining(stored: Sequence[StoredFile], wish: Wish, budget: int) -> list[tuple[StoredFile, ...]]:
    small = sorted((f for f in stored if f.size < wish.target * _FULL), key=lambda f: f.size)
    chosen = small[: _end_of_group([file.size for file in small], 0, budget)]
    if len(chosen) < _FEWEST:
        return []
    runs: list[list[StoredFile]] = [[]]
    for file in sorted(chosen, key=_near(chosen, "")):
        if _size(runs[-1]) >= wish.target:
            runs.append([])
        runs[-1].append(file)
    if len(runs) > 1 and _size(runs[-1]) < wish.target * _FULL:
        last = runs.pop()
        runs[-1] += last
    return [tuple(run) for run in runs] if len(runs) * 2 <= len(chosen) else []


def _near(stored: Sequence[StoredFile], column: str) -> Callable[[StoredFile], Any]:
    """A key which sorts files by their bounds of a column (of the first one that all have)."""
    all_have = set.intersection(*({name for name, _ in file.low} for file in stored))
    names = [column] if column in all_have else [n for n, _ in stored[0].low if n in all_have][:1]
    place = {id(file): number for number, file in enumerate(stored)}

    def key(file: StoredFile) -> Any:
        return ([dict(file.low)[name] for name in names], place[id(file)])

    return key


def _orders(
    state: State, wish: Wish, groups: Sequence[tuple[StoredFile, ...]], batch_id: str, memory: int
) -> list[rewrite.Order]:
    by = _columns(state, wish)
    layout = tuple((name, kind) for name, kind in state.columns if name != state.partition)
    stats = tuple(n for n in _stats(state, wish) if n in dict(layout))
    return [
        rewrite.Order(
            number=number,
            place=state.place,
            files=group,
            layout=layout,
            by=by,
            stats=stats,
            batch_id=batch_id,
            cluster=(_spec(by), uuid4().hex[:8]) if by else None,
            count=max(1, round(_size(group) / wish.target)),
            memory=memory,
        )
        for number, group in enumerate(groups)
    ]


# The commit


def _is_landed(state: State, wish: Wish, made: Sequence[Made], batch_id: str) -> Improved | None:
    """Commits what was made of the files that are still there; None where none are."""
    columns = state.columns
    for attempt in range(_TRIES):
        if not made:
            return None
        try:
            # After any other error nobody knows whether the entry is there: the files have to stay.
            version = _commit(state, wish, made, batch_id)
        except CommitConflict:
            _pause(attempt + 1)
            now = read(state.place)
            made = _valid(now, columns, made)
            state = now or state
            continue
        return _summary(state, made, version)
    _discard(state.place, made)
    raise _lost(state.place)


def _commit(state: State, wish: Wish, made: Sequence[Made], batch_id: str) -> int:
    added = [file for one in made for file in one.files]
    removed = [file for one in made for file in one.order.files]
    parameters = {"clusterBy": json.dumps(wish.cluster_by), "targetSize": str(wish.target)}
    change = commit.Change("OPTIMIZE", added, removed, is_data=False, parameters=parameters)
    return commit.commit(
        state.place, state, change, {"batch_id": batch_id}, shape=_shape(state, wish)
    )


def _shape(state: State, wish: Wish) -> commit.Shape | None:
    """The table with statistics for the columns to cluster by, None where it stays as it is.

    Only a table of ours is changed: of another one we know no reason for its properties.
    """
    stats = _stats(state, wish)
    held = state.properties.get(_STATS)
    if (
        held is None
        or set(stats) <= set(_names(held))
        or not set(PROPERTIES) <= {*state.properties}
    ):
        return None
    named = dict.fromkeys((*_names(held), *stats))
    notes = {**state.properties, _STATS: properties(named)[_STATS]}
    return commit.Shape(state.columns, stats, state.partition, tuple(notes.items()))


def _valid(
    state: State | None, columns: tuple[tuple[str, DeltaType], ...], made: Sequence[Made]
) -> list[Made]:
    """What may still be committed; the files of the others are deleted."""
    live = {(file.path, file.size) for file in state.files} if state else set()
    same = state is not None and state.columns == columns
    valid = [one for one in made if same and {(f.path, f.size) for f in one.order.files} <= live]
    _discard(made[0].order.place, [one for one in made if one not in valid])
    return valid


def _discard(place: Place, made: Iterable[Made]) -> None:
    rewrite.discard(place, [file for one in made for file in one.files])


def _summary(state: State, made: Sequence[Made], version: int) -> Improved:
    added = [file for one in made for file in one.files]
    removed = [file for one in made for file in one.order.files]
    written = sum(file.size for file in added)
    before = _size(state.files)
    return Improved(
        version=version,
        files_before=len(state.files),
        files_after=len(state.files) - len(removed) + len(added),
        bytes_before=before,
        bytes_after=before - _size(removed) + written,
        rewritten=written,
        rows=sum(one.rows for one in made),
    )


# The columns with file statistics


def statistics(state: State) -> tuple[str, ...]:
    """The columns that a table has file statistics of."""
    return _stats(state, Wish((), 0))


def _stats(state: State, wish: Wish) -> tuple[str, ...]:
    """Those of the table, and those to cluster by."""
    safe = [name for name, kind in state.columns if kind.name in SAFE]
    given = state.properties.get(_STATS)
    if given is not None:
        named = _names(given)
    else:
        most = int(state.properties.get(_STATS_COUNT, _DEFAULT_STATS))
        named = [name for name, _ in state.columns[: most if most >= 0 else None]]
    return tuple(dict.fromkeys(n for n in (*named, *_columns(state, wish)) if n in safe))


def _names(given: str) -> list[str]:
    """The columns of the property: separated by commas, in backticks where they are odd."""
    found = _NAME.findall(given)
    return [n[1:-1].replace("``", "`") if n.startswith("`") else n for n in found]
