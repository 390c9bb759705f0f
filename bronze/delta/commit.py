"""Commits: each one a compare-and-swap against the version that was read.

A table's run becomes visible by one entry of the log, which holds its files, the position that
they stand for, and the run's facts. A lost race is never resolved here: it raises, and the caller
reads again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast
from urllib.parse import quote, unquote
from uuid import uuid4

import tenacity

from bronze.delta import audit_mark, files, positions, store
from bronze.delta.log import ENGINE, MARK, Action, State, infos, read, write
from bronze.delta.positions import Position
from bronze.delta.properties import AUDIT_LOGS, TABLE
from bronze.delta.schema import NTZ, delta_schema, properties, protocol
from bronze.errors import CommitConflict, FileDamaged, LakeError, Overtaken
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place
from bronze.model.stamp import AuditMark

FACTS = "bronze"
"""The key in a commit's info under which the run's facts are, as JSON."""

# Of a path in the log what is not percent-encoded, beside letters and digits.
_PLAIN = "/=-_.~"
# A file of a run that has not committed is left alone for so long: the run may still be alive.
ORPHAN_AGE = 24 * 3600.0
# Once the log that says which batches have committed may be cleaned up, a missing entry proves
# nothing; an older orphan is left to the expiry of old files.
_LOG_AGE = 25 * 24 * 3600.0


def overtaken(place: Place) -> Overtaken:
    """The error of a run that has to read the source again."""
    return Overtaken(
        f"Another run has landed the table at {place.url} since this one read the source.",
        hint="Run again; nothing of this run is in that table.",
    )


def lost_race(error: BaseException) -> bool:
    """Whether the same change may be committed after all, once the table is read again."""
    return isinstance(error, CommitConflict) and not isinstance(error, Overtaken)


_ON_CONFLICT: dict[str, Any] = {
    "retry": tenacity.retry_if_exception(lost_race),
    "stop": tenacity.stop_after_attempt(12),
    "wait": tenacity.wait_exponential_jitter(multiplier=0.05, max=2, jitter=0.1),
    "reraise": True,
}

Work = TypeVar("Work", bound=Callable[..., Any])


def retried(work: Work) -> Work:
    """Decorates what reads a table and commits to it: repeated when another writer was first."""
    return cast("Work", tenacity.retry(**_ON_CONFLICT)(work))


def attempts() -> tenacity.Retrying:
    """The same policy for a loop over attempts, as tenacity has them."""
    return tenacity.Retrying(**_ON_CONFLICT)


@dataclass(frozen=True)
class Shape:
    """What a table looks like: its columns, those with file statistics, its partition column, and
    properties of ours beside Delta's.
    """

    columns: tuple[tuple[str, DeltaType], ...]
    stats: tuple[str, ...]
    partition: str | None = None
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Change:
    """What a commit does to the files of a table.

    ``feed`` are the files of the change data feed; where there are none, readers derive it from
    the others. ``is_data`` is false for a rewrite that leaves every row as it was; ``quiet`` are
    such rewrites, old and new, beside others that do not.
    """

    operation: Literal["WRITE", "MERGE", "DELETE", "OPTIMIZE"]
    added: Sequence[WrittenFile] = ()
    removed: Sequence[StoredFile] = ()
    feed: Sequence[WrittenFile] = ()
    is_data: bool = True
    quiet: Sequence[tuple[StoredFile, WrittenFile]] = ()
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
        state: what the change was made for.
        change: the files that come and go.
        facts: what the run has to say of itself.
        shape: what the table looks like from now on; None leaves it as it is.
        reached: the position that the table holds from now on.
        audited: the record of the audit log that the commit names; takes effect with a ``shape``.
        compared: the version all of whose rows were held against the source for this change, if so.

    Returns:
        The new version.

    Raises:
        CommitConflict: somebody else committed since ``state`` was read.
        LakeError: the table cannot be written by us.
        Overtaken: the table holds a later position already.
    """
    now = int(time.time() * 1000)
    actions: list[Action] = [_info(change, facts, now)]
    if state is None and shape is None:
        raise ValueError("a new table needs a shape")
    if state is not None:
        state.writable()
    if shape is not None:
        known = {AUDIT_LOGS: audit_mark.logs(state, audited)} if audited else {}
        actions += _shaped(state, shape, known, now)
        marks = audit_mark.transactions(state, audited) if audited else ()
        actions += _transactions(marks, now)
    if reached is not None:
        if state is not None:
            _not_overtaken(state, reached)
        actions += _transactions(reached.transactions, now)
    if _is_bronze(state, shape) and (mark := _mark(state, compared)) is not None:
        actions.append({"txn": {"appId": MARK, "version": mark, "lastUpdated": now}})
    actions += [_remove(file, change.is_data, now) for file in change.removed]
    actions += [_add(file, change.is_data, now) for file in change.added]
    for old, new in change.quiet:
        actions += [_remove(old, False, now), _add(new, False, now)]
    actions += [_feed(file) for file in change.feed]
    version = 0 if state is None else state.version + 1
    write(place, version, actions)
    return version


def _is_bronze(state: State | None, shape: Shape | None) -> bool:
    """Whether it is a table of rows of the source: nothing is ever compared in the others."""
    return TABLE in (state.properties if state else {}) or TABLE in dict(
        shape.notes if shape else ()
    )


def _mark(state: State | None, compared: int | None) -> int | None:
    """The new value of `MARK`, None where it stays: see there."""
    if state is None:
        return 0
    held = state.position(MARK)
    known = max((v for v in (held, compared) if v is not None), default=None)
    # What the state has found out already is not looked for again.
    if not (state.foreign if known == held else state.foreign_since(known)):
        return state.version + 1
    return known if known != held else None


def facts_of(info: Action) -> dict[str, Any]:
    """The facts in a commit's info; none where it has none, or none that can be read."""
    try:
        return dict(json.loads(info.get(FACTS, "{}")))
    except (TypeError, ValueError):
        return {}


def _info(change: Change, facts: Mapping[str, Any], now: int) -> Action:
    return {
        "commitInfo": {
            "timestamp": now,
            "operation": change.operation,
            "operationParameters": dict(change.parameters),
            "isBlindAppend": not (change.removed or change.quiet) and change.operation == "WRITE",
            "engineInfo": ENGINE,
            # No two entries are alike, so that one's own can be told.
            "txnId": str(uuid4()),
            FACTS: json.dumps(facts),
        }
    }


def _transactions(named: Sequence[tuple[str, int]], now: int) -> list[Action]:
    return [{"txn": {"appId": name, "version": value, "lastUpdated": now}} for name, value in named]


def _shaped(state: State | None, shape: Shape, own: Mapping[str, str], now: int) -> list[Action]:
    _prove_readable(shape)
    wanted = {**properties(shape.stats), **dict(shape.notes), **own}
    if state is None:
        metadata = {
            "id": str(uuid4()),
            "format": {"provider": "parquet", "options": {}},
            "schemaString": delta_schema(shape.columns),
            "partitionColumns": [shape.partition] if shape.partition else [],
            "configuration": wanted,
            "createdTime": now,
        }
        return [{"protocol": protocol(shape.columns)}, {"metaData": metadata}]
    configuration = {**state.properties, **wanted}
    if shape.columns == state.columns and configuration == state.properties:
        return []
    held = state.table.metadata()
    metadata = {
        "id": held.id,
        "name": held.name,
        "description": held.description,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": delta_schema(shape.columns),
        "partitionColumns": held.partition_columns,
        "configuration": configuration,
        "createdTime": held.created_time,
    }
    needed = protocol(shape.columns)
    known = state.table.protocol().reader_features or ()
    upgrade = NTZ in needed.get("readerFeatures", ()) and NTZ not in known
    return [*([{"protocol": needed}] if upgrade else []), {"metaData": metadata}]


def _prove_readable(shape: Shape) -> None:
    # Once in the log, such names keep every reader from opening the table, for good.
    spelled: dict[str, str] = {}
    for name, _ in shape.columns:
        other = spelled.get(name.lower())
        if other is not None:
            raise LakeError(
                f"A table with the columns {other!r} and {name!r} could not be read: Delta takes"
                " them for the same one.",
                hint=f'Nothing was committed. Rename one: rename = {{ "{name}" = "{name}_2" }}',
            )
        spelled[name.lower()] = name


def _not_overtaken(state: State, reached: Position) -> None:
    held = positions.read(state, reached.name)
    if held is not None and held > reached.value:
        raise Overtaken(
            f"The table at {state.place.url} already holds a later state of the source"
            f" (position {held}) than this run read ({reached.value}).",
            hint="Another run has overtaken this one: run again, or leave it at that.",
        )


def _add(file: WrittenFile, is_data: bool, now: int) -> Action:
    return {
        "add": {
            "path": quote(file.path, safe=_PLAIN),
            "partitionValues": dict(file.partition),
            "size": file.size,
            "modificationTime": now,
            "dataChange": is_data,
            "stats": file.stats,
        }
    }


def _remove(file: StoredFile, is_data: bool, now: int) -> Action:
    return {
        "remove": {
            "path": file.path,
            "deletionTimestamp": now,
            "dataChange": is_data,
            "extendedFileMetadata": True,
            "partitionValues": dict(file.partition),
            "size": file.size,
        }
    }


def _feed(file: WrittenFile) -> Action:
    return {
        "cdc": {
            "path": quote(file.path, safe=_PLAIN),
            "partitionValues": dict(file.partition),
            "size": file.size,
            "dataChange": False,
        }
    }


@retried
def replace(
    place: Place,
    shape: Shape,
    data: Sequence[WrittenFile],
    reached: Position,
    facts: Mapping[str, Any],
    outdated: Callable[[State | None], bool] = lambda _: False,
    audited: AuditMark | None = None,
) -> int:
    """Makes ``data`` the table's whole content, creating the table if there is none.

    Args:
        place: the table.
        shape: what it looks like from now on.
        data: its files.
        reached: the position that it holds from now on.
        facts: what the run has to say of itself.
        outdated: whether the table, as it is now, is no more what the data was made for.
        audited: the record of the audit log that the commit names.

    Returns:
        The new version.

    Raises:
        CommitConflict: somebody else committed in between, again and again.
        LakeError: the table cannot be written by us.
        Overtaken: the table holds a later position already, or the data is outdated.
    """
    state = read(place)
    if outdated(state):
        raise overtaken(place)
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


def discard(place: Place, batch_id: str) -> None:
    """Deletes the files of a batch that did not land; those of one that did are kept.

    Args:
        place: the table.
        batch_id: a batch that will write no more.
    """
    paths = [path for path in store.listing(place) if files.batch_of(path) == batch_id]
    state = read(place) if paths else None
    # What has landed may have lost its entry in the log, but not its place in the table.
    live = {files.batch_of(unquote(file.path)) for file in state.files} if state else set()
    if state is None or batch_id not in live | _committed_batches(state):
        store.delete(place, paths)


def sweep(state: State, now: float) -> int:
    """Deletes the files of runs that died before their commit; returns how many.

    Args:
        state: the table, as it was at any time of the last hours.
        now: seconds since 1970; files of runs that began less than a day before it are spared,
            and those of runs so old that the log may have forgotten them.
    """
    place = state.place
    live = {files.batch_of(file.path) for file in state.files}
    suspects = [
        path
        for path in store.listing(place)
        if (batch := files.batch_of(path))
        and batch not in live
        and ORPHAN_AGE < _age(batch, now) < _LOG_AGE
    ]
    if not suspects:
        return 0
    try:
        landed = _committed_batches(state)
    except FileDamaged:
        # An entry that nobody can read may be that of any batch.
        return 0
    dead = [path for path in suspects if files.batch_of(path) not in landed]
    store.delete(place, dead)
    return len(dead)


def _committed_batches(state: State) -> set[str]:
    """The batches that the log knows to have committed."""
    return {str(facts_of(info).get("batch_id", "")) for info in infos(state.place)}


def _age(batch: str, now: float) -> float:
    # The first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562).
    return now - int(batch.replace("-", "")[:12], 16) / 1000
