"""Commits: each is a compare-and-swap against the version that was read.

One entry of the log makes a run visible: its files, the position that they reach, and the facts of
the run. A conflict is never resolved here: it raises, and the caller reads the table again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast
from urllib.parse import unquote

import tenacity

from bronze.delta import actions, audit_mark, file_names, positions, properties, schema, store
from bronze.delta.layout import file_groups
from bronze.delta.log import MARK, NAMED_FEATURES, Action, State, infos, read, write
from bronze.delta.partition import source_of
from bronze.delta.positions import Position
from bronze.delta.properties import AUDIT_LOGS, TABLE
from bronze.delta.read import clustering
from bronze.errors import CommitConflict, FileDamaged, LakeError, Overtaken
from bronze.model.columns import DeltaType
from bronze.model.files import DeletionVector, StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.stamp import AuditMark, RowStamp
from bronze.version import FORMAT, VERSION

FACTS = "bronze"
"""The key in a commit's info with the facts of the run, as JSON."""

# Files of a run that has not committed are kept for this long: the run may still be alive.
ORPHAN_AGE = 24 * 3600.0
# Entries of the log may be cleaned up after this time, so that a missing one proves nothing. Older
# files are left to vacuum.
_LOG_AGE = 25 * 24 * 3600.0


def overtaken_error(place: Place) -> Overtaken:
    """The error of a run that has to read the source again."""
    return Overtaken(
        f"Another run has committed to the table at {place.url} since this run read the source.",
        hint="Run again; this run has committed nothing to that table.",
    )


def is_retryable(error: BaseException) -> bool:
    """Whether the same change may be committed once the table has been read again."""
    return isinstance(error, CommitConflict) and not isinstance(error, Overtaken)


_ON_CONFLICT: dict[str, Any] = {
    "retry": tenacity.retry_if_exception(is_retryable),
    "stop": tenacity.stop_after_attempt(12),
    "wait": tenacity.wait_exponential_jitter(multiplier=0.05, max=2, jitter=0.1),
    "reraise": True,
}

Work = TypeVar("Work", bound=Callable[..., Any])


def retry_conflicts(work: Work) -> Work:
    """Decorates a function that reads a table and commits to it: repeats it after a conflict."""
    return cast("Work", tenacity.retry(**_ON_CONFLICT)(work))


def attempts() -> tenacity.Retrying:
    """The policy of `retry_conflicts` for a loop over attempts, as tenacity has them."""
    return tenacity.Retrying(**_ON_CONFLICT)


@dataclass(frozen=True)
class Shape:
    """The schema of a table: its columns, those with file statistics (``stats``), its partition
    column, and its ``bronze`` properties (``notes``).
    """

    columns: tuple[tuple[str, DeltaType], ...]
    stats: tuple[str, ...]
    partition: str | None = None
    notes: tuple[tuple[str, str], ...] = ()

    def destination(self, place: Place, key: tuple[str, ...], stamp: RowStamp) -> Destination:
        """The table of this shape at a place, as a batch writes into it."""
        dates_of = source_of(self.partition) if self.partition else None
        return Destination(place, self.columns, key, self.stats, stamp, dates_of)


@dataclass(frozen=True)
class Change:
    """What a commit does to the files of a table.

    ``feed`` are the files of the change data feed; without them, readers derive the feed from the
    data files. ``is_data`` is false if no row changes; ``quiet`` are pairs of an old and a new file
    with the same rows, beside files whose rows change. ``marked`` are those of the ``removed``
    files that stay in the table with another deletion vector.
    """

    operation: Literal["WRITE", "MERGE", "DELETE", "OPTIMIZE"]
    added: Sequence[WrittenFile] = ()
    removed: Sequence[StoredFile] = ()
    feed: Sequence[WrittenFile] = ()
    is_data: bool = True
    quiet: Sequence[tuple[StoredFile, WrittenFile]] = ()
    marked: Sequence[tuple[StoredFile, DeletionVector]] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


def commit(
    place: Place,
    state: State | None,
    change: Change,
    facts: Mapping[str, Any],
    *,
    shape: Shape | None = None,
    reached: Position | None = None,
    audited: AuditMark | None = None,
    compared: int | None = None,
) -> int:
    """Commits once, on top of ``state``; creates the table where that is None.

    Args:
        place: the table.
        state: the table that the change was made for.
        change: the files that are added and removed.
        facts: facts of the run, for the commit's info.
        shape: the new schema; None leaves it unchanged.
        reached: the new position.
        audited: the record of the audit log that the commit names; only with a ``shape``.
        compared: the version of the table that was compared with the source, all rows of it, for
            this change; None without a comparison.

    Returns:
        The new version.

    Raises:
        CommitConflict: another writer committed since ``state`` was read.
        LakeError: bronze cannot write the table.
        Overtaken: the table already has a later position.
    """
    now = int(time.time() * 1000)
    is_blind = change.operation == "WRITE" and not (change.removed or change.quiet)
    extra = {FACTS: json.dumps(facts)}
    info = actions.commit_info(change.operation, change.parameters, is_blind, extra, now)
    entry: list[Action] = [info]
    if state is None and shape is None:
        raise ValueError("a new table needs a shape")
    if state is not None:
        state.writable()
    if shape is not None:
        entry += _shape_actions(state, shape, audited, now)
    if reached is not None:
        if state is not None:
            _refuse_overtaken(state, reached)
        entry += actions.transactions(reached.transactions, now)
    if _is_bronze(state, shape) and (mark := _mark(state, compared)) is not None:
        entry += actions.transactions([(MARK, mark)], now)
    entry += [actions.remove(file, change.is_data, now) for file in change.removed]
    entry += [_add(state, shape, file, change.is_data, now) for file in change.added]
    if state is not None:
        add_of = state.content.add_of
        entry += [actions.add_again(add_of(file), vector, now) for file, vector in change.marked]
    for old, new in change.quiet:
        entry += [actions.remove(old, False, now), _add(state, shape, new, False, now)]
    entry += [actions.feed(file) for file in change.feed]
    version = 0 if state is None else state.version + 1
    write(place, version, entry)
    return version


def _add(
    state: State | None, shape: Shape | None, file: WrittenFile, is_data: bool, now: int
) -> Action:
    """The action that adds a file; where the table has liquid clustering, with statistics for its
    columns, whatever the file was written for, and with bronze as its provider if bronze has
    clustered it by them.
    """
    by = state.clustering if state else ()
    if not by or state is None:
        return actions.add(file, is_data, now)
    if clustering.lacks_statistics(file.stats, by):
        layout = shape.columns if shape else state.columns
        stats = clustering.with_statistics(state.place, file, file.stats, layout, by)
        file = dataclasses.replace(file, stats=stats)
    return actions.add(file, is_data, now, provider_of(file.path, by))


def provider_of(path: str, by: Sequence[str]) -> str:
    """The provider of liquid clustering to name for a file: bronze if it has clustered it by these
    columns, "" otherwise.
    """
    named = file_names.cluster_of(path)
    is_clustered = named is not None and named[0] == file_groups.clustering_id(by)
    return clustering.PROVIDER if is_clustered else ""


def _shape_actions(
    state: State | None, shape: Shape, audited: AuditMark | None, now: int
) -> list[Action]:
    """The actions that give a table its schema, and the name of a record of the audit log."""
    _refuse_names_that_differ_in_case(shape)
    writer = {properties.FORMAT: str(FORMAT), properties.WRITER: VERSION}
    wanted = {**schema.properties(shape.stats), **dict(shape.notes), **writer}
    if audited:
        wanted[AUDIT_LOGS] = audit_mark.logs(state, audited)
    marks = audit_mark.transactions(state, audited) if audited else ()
    return [
        *actions.table_actions(state, shape.columns, shape.partition, wanted, now),
        *actions.transactions(marks, now),
    ]


def _is_bronze(state: State | None, shape: Shape | None) -> bool:
    """Whether the table has rows of a source table: others are never compared with a source."""
    return TABLE in (state.properties if state else {}) or TABLE in dict(
        shape.notes if shape else ()
    )


def _mark(state: State | None, compared: int | None) -> int | None:
    """The new value of `MARK`, None if it does not change."""
    if state is None:
        return 0
    stored = state.position(MARK)
    known = max((v for v in (stored, compared) if v is not None), default=None)
    # `foreign` is cached: it is of the commits since the stored mark.
    if not (state.foreign if known == stored else state.foreign_since(known)):
        return state.version + 1
    return known if known != stored else None


def facts_of(info: Action) -> dict[str, Any]:
    """The facts in a commit's info; none if it has none that can be read."""
    try:
        return dict(json.loads(info.get(FACTS, "{}")))
    except (TypeError, ValueError, RecursionError):
        return {}


def _refuse_names_that_differ_in_case(shape: Shape) -> None:
    # Once such names are in the log, no reader can open the table.
    spelled: dict[str, str] = {}
    for name, _ in shape.columns:
        other = spelled.get(name.lower())
        if other is not None:
            raise LakeError(
                f"A table cannot have both columns {other!r} and {name!r}: Delta Lake does not"
                " distinguish them.",
                hint=f'Nothing was committed. Rename one: rename = {{ "{name}" = "{name}_2" }}',
            )
        spelled[name.lower()] = name


def _refuse_overtaken(state: State, reached: Position) -> None:
    stored = positions.read(state, reached.name)
    if stored is not None and stored > reached.value:
        raise Overtaken(
            f"The table at {state.place.url} already has a later state of the source"
            f" (position {stored}) than this run read ({reached.value}).",
            hint="Another run was faster. Nothing is lost; run again if you like.",
        )


@retry_conflicts
def replace(
    place: Place,
    shape: Shape,
    data: Sequence[WrittenFile],
    reached: Position,
    facts: Mapping[str, Any],
    outdated: Callable[[State | None], bool] = lambda _: False,
    audited: AuditMark | None = None,
) -> int:
    """Replaces all files of a table by ``data``; creates the table if there is none.

    Args:
        place: the table.
        shape: its new schema.
        data: its new files.
        reached: its new position.
        facts: facts of the run, for the commit's info.
        outdated: whether the table, as it is now, is not the one that the data was made for.
        audited: the record of the audit log that the commit names.

    Returns:
        The new version.

    Raises:
        CommitConflict: other writers committed in between, at every attempt.
        LakeError: bronze cannot write the table.
        Overtaken: the table already has a later position, or the data is outdated.
    """
    state = read(place)
    if outdated(state):
        raise overtaken_error(place)
    removed = state.files if state else ()
    change = Change("WRITE", data, removed, parameters={"mode": "Overwrite"})
    compared = state.version if state else None
    return commit(
        place,
        state,
        change,
        facts,
        shape=shape,
        reached=reached,
        audited=audited,
        compared=compared,
    )


@retry_conflicts
def upgrade_protocol(place: Place) -> int | None:
    """Names the features of a table that has a protocol of numbers, so that writers without check
    constraints, as DuckDB, write it. Readers need nothing else than before.

    Returns:
        The new version; None if there is no table, or its features are named already.

    Raises:
        CommitConflict: other writers committed in between, at every attempt.
        LakeError, LakeUnreachable
    """
    state = read(place)
    if state is None or state.content.protocol.writer >= NAMED_FEATURES:
        return None
    now = int(time.time() * 1000)
    protocol = schema.protocol(state.columns, {})
    parameters = {"newProtocol": json.dumps(protocol)}
    info = actions.commit_info("UPGRADE PROTOCOL", parameters, False, {}, now)
    return commit_actions(state, [info, {"protocol": protocol}], now)


def commit_actions(state: State, described: Sequence[Action], now: int) -> int:
    """Commits actions that change no row; returns the new version.

    Raises:
        CommitConflict: another writer committed since ``state`` was read.
        LakeError: bronze cannot write the table.
    """
    state.writable()
    place, entry = state.place, [*described]
    if _is_bronze(state, None) and (mark := _mark(state, None)) is not None:
        entry += actions.transactions([(MARK, mark)], now)
    write(place, state.version + 1, entry)
    return state.version + 1


def discard(place: Place, batch_id: str) -> None:
    """Deletes the files of a batch, unless it has committed.

    Args:
        place: the table.
        batch_id: a batch that writes no more files.
    """
    paths = [path for path in store.listing(place) if file_names.batch_of(path) == batch_id]
    state = read(place) if paths else None
    # The entry of a batch may have been cleaned up, but then its files are in the table.
    live = {file_names.batch_of(unquote(file.path)) for file in state.files} if state else set()
    if state is None or batch_id not in live | _committed_batches(state):
        store.delete(place, paths)


def sweep(state: State, now: float) -> int:
    """Deletes the files of runs that ended before their commit; returns how many.

    Args:
        state: the table, as of any time in the last hours.
        now: seconds since 1970. Files of runs that began less than a day before are kept, and
            those of runs so old that the log may not have their entries any more.
    """
    place = state.place
    live = {file_names.batch_of(file.path) for file in state.files}
    suspects = [
        path
        for path in store.listing(place)
        if (batch := file_names.batch_of(path))
        and batch not in live
        and ORPHAN_AGE < _age(batch, now) < _LOG_AGE
    ]
    if not suspects:
        return 0
    try:
        landed = _committed_batches(state)
    except FileDamaged:
        # An entry that cannot be read may be that of any batch.
        return 0
    dead = [path for path in suspects if file_names.batch_of(path) not in landed]
    store.delete(place, dead)
    return len(dead)


def _committed_batches(state: State) -> set[str]:
    """The ids of the batches that committed, as far as the log goes back."""
    return {str(facts_of(info).get("batch_id", "")) for info in infos(state.place)}


def _age(batch: str, now: float) -> float:
    # The first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562).
    return now - int(batch.replace("-", "")[:12], 16) / 1000
