"""Vacuum: deletes the files and log entries that no version within the retention needs.

Which files are needed is computed here from the log, entry by entry, not by deltalake's ``vacuum``.
Measured with deltalake 1.6.6: its ``vacuum(full=True)`` deletes all files of the change data feed
and all files that the log does not name once they are older than the retention, even those of
versions in ``keep_versions`` or of a run in progress.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from obstore.exceptions import BaseError

from bronze import failpoint
from bronze.delta import log, store
from bronze.delta.commit import ORPHAN_AGE
from bronze.delta.layout import purge_entries
from bronze.delta.log import ENTRY, State, mapped_errors, read
from bronze.delta.read import content
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.model.locations import Place

# Entries are kept this long whatever the retention: `bronze.delta.commit.sweep` reads in the log
# whether a batch has committed.
_LOG_AGE = 30 * 24 * 3600.0
_LOG = "_delta_log/"
_OF_LOG = re.compile(rf"{_LOG}(\d{{20}})\.(?:json|crc|checkpoint\..*parquet)")
_CHECKPOINT = re.compile(rf"{_LOG}(\d{{20}})\.checkpoint\..*parquet")
_FEED = "_change_data/"


@dataclass(frozen=True)
class VacuumResult:
    """What was deleted: files of rows and of the change data feed, their bytes, and log files."""

    files: int = 0
    bytes: int = 0
    entries: int = 0

    def __add__(self, other: VacuumResult) -> VacuumResult:
        return VacuumResult(
            self.files + other.files, self.bytes + other.bytes, self.entries + other.entries
        )


@dataclass(frozen=True)
class Object:
    """An object in the folder of a table, written ``at`` (seconds since 1970)."""

    path: str
    size: int
    at: float


@dataclass(frozen=True)
class _Entry:
    """An entry of the log, committed ``at``, and the paths that it names."""

    version: int
    at: float
    paths: frozenset[str] = field(repr=False)


def expire(place: Place, retention: float, keep: Sequence[int], now: float) -> VacuumResult:
    """Deletes all files but those of versions that were current less than ``retention`` ago.

    Args:
        place: the table.
        retention: seconds.
        keep: versions that stay readable however old they are.
        now: seconds since 1970. A file that the log does not name is kept for the retention, and
            for a day at least, because a run may be about to commit it.

    Raises:
        LakeError: a version to keep or an entry of the log cannot be read, or the table has a
            feature that bronze does not support; nothing was deleted.
        LakeUnreachable: the table cannot be read or cleaned.
    """
    if retention < 0:
        raise ValueError("a retention is not negative")
    state = read(place)
    if state is None:
        return VacuumResult()
    state.writable()
    objects = list(objects_of(place))
    entries = _entries(place, objects)
    oldest = _current(entries, now - retention, state.version)
    kept = sorted({version for version in keep if version < oldest} | {oldest})
    # The changes of a young entry can be read: the files that it removed are needed too.
    young = [e for e in entries if e.version > oldest or e.at > now - retention]
    needed = {path for entry in young for path in entry.paths}
    needed |= {unquote(path) for version in kept for path in _live(state, version)}
    known = {path for entry in entries for path in entry.paths}
    spared = now - max(retention, ORPHAN_AGE)
    dead = [
        found
        for found in objects
        if is_data(found.path)
        and not {found.path, unquote(found.path)} & needed
        and (found.path in known or found.at < spared)
    ]
    floor = min(kept[0], _current(entries, now - max(retention, _LOG_AGE), state.version))
    logs = _expired_log(place, objects, floor, state.version)
    failpoint.reach("expiring")
    store.delete(place, [found.path for found in dead])
    failpoint.reach("expired")
    store.delete(place, logs)
    return VacuumResult(len(dead), sum(found.size for found in dead), len(logs))


def purge(place: Place, now: float) -> VacuumResult:
    """Deletes all files that the current version does not need, however young they are: older
    versions and their change data feed cannot be read any more. Copies of the lake are asked by an
    entry (`bronze.delta.layout.purge_entries`) to do the same.

    Args:
        place: the table.
        now: seconds since 1970. A file that the log does not name is kept for a day, because a run
            may be about to commit it.

    Raises:
        LakeError: an entry of the log cannot be read, or the table has a feature that bronze does
            not support; nothing was deleted.
        LakeUnreachable: the table cannot be read or cleaned.
    """
    state = read(place)
    if state is None:
        return VacuumResult()
    state.writable()
    objects = list(objects_of(place))
    entries = _entries(place, objects)
    known = {path for entry in entries for path in entry.paths}
    needed = {unquote(path) for path in _live(state, state.version)}
    # Other writers may have committed since.
    needed |= {path for e in entries if e.version > state.version for path in e.paths}
    dead = [
        found
        for found in objects
        if is_data(found.path)
        and not {found.path, unquote(found.path)} & needed
        and (found.path in known or found.at < now - ORPHAN_AGE)
    ]
    logs = _expired_log(place, objects, state.version, state.version)
    # A copy may have objects that the table no longer has: it learns of each purge.
    purge_entries.add(place, state.content.metadata.id, state.version, now)
    failpoint.reach("expiring")
    store.delete(place, [found.path for found in dead])
    store.delete(place, logs)
    return VacuumResult(len(dead), sum(found.size for found in dead), len(logs))


def unnamed_files(state: State, objects: Sequence[Object]) -> list[Object]:
    """The data files in a table's folder that no entry of the log names.

    Raises:
        LakeError, LakeUnreachable
    """
    known = {unquote(file.path) for file in state.listed_files}
    others = [o for o in objects if is_data(o.path) and not {o.path, unquote(o.path)} & known]
    if not others:
        return []
    known = {path for entry in _entries(state.place, objects) for path in entry.paths}
    return [found for found in others if not {found.path, unquote(found.path)} & known]


def objects_of(place: Place) -> Iterator[Object]:
    """All objects in the folder of a table.

    Raises:
        LakeError, LakeUnreachable
    """
    try:
        for meta in store.objects(place):
            yield Object(meta["path"], meta["size"], meta["last_modified"].timestamp())
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None


def _entries(place: Place, objects: Iterable[Object]) -> list[_Entry]:
    """All entries of the log, in their order."""
    written = {int(name[1]): o.at for o in objects if (name := ENTRY.fullmatch(o.path))}
    return [
        _Entry(version, _time(actions, written[version]), _paths(actions))
        for version, actions in log.entries(place, sorted(written))
        if actions is not None
    ]


def _time(actions: Iterable[Mapping[str, Any]], written: float) -> float:
    """When an entry was committed: the later one of its own time and that of its file."""
    stated = [action.get("commitInfo", {}).get("timestamp") for action in actions]
    return max([written, *(one / 1000 for one in stated if isinstance(one, int))])


def _paths(actions: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    named = (action.get(kind) for action in actions for kind in ("add", "remove", "cdc"))
    return frozenset(unquote(action["path"]) for action in named if action)


def _current(entries: Sequence[_Entry], moment: float, latest: int) -> int:
    """The version that was current at a time; the oldest one of the log if it is younger."""
    before = [entry.version for entry in entries if entry.at <= moment]
    return max(before, default=entries[0].version if entries else latest)


def _live(state: State, version: int) -> Sequence[str]:
    with mapped_errors(state.place, "read"):
        if version == state.version:
            return state.content.paths()
        return content.opened(state.place, version).paths()


def is_data(path: str) -> bool:
    """Whether a path is a Parquet file of rows or of the change data feed, and not hidden."""
    folders = path.removeprefix(_FEED).split("/")
    hidden = any(name.startswith(("_", ".")) and "=" not in name for name in folders)
    return path.endswith(".parquet") and not hidden


def _expired_log(place: Place, objects: Iterable[Object], floor: int, latest: int) -> list[str]:
    """The log files below the version ``floor``; creates the checkpoint that replaces them."""
    named = [(found.path, _OF_LOG.fullmatch(found.path)) for found in objects]
    old = [path for path, name in named if name and int(name[1]) < floor]
    if not old:
        return []
    has = {int(name[1]) for path, name in named if name and _CHECKPOINT.fullmatch(path)}
    # Readers begin at the checkpoint that was created last.
    for version in sorted({floor, latest} - has):
        with mapped_errors(place, "checkpointed"):
            client.with_table(place, version, lambda table: table.create_checkpoint())
    return old
