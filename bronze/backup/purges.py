"""Erasures in a copy: what was purged in the lake is deleted in all generations of the copy.

The lake says by an entry (`bronze.delta.layout.purge_entries`) that a table was purged up to a
version. The copy begins the table from the checkpoint that the purge left: the next generation has
it, and then all other objects of the table are deleted from the copy, whatever generation needs
them, and objects that no generation knows. The entry is put under ``_backup/purging`` of the copy
before, which says that earlier generations do not have the table any more, and under
``_backup/purges`` when all is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from obstore.exceptions import BaseError

from bronze import failpoint
from bronze.backup import manifest
from bronze.backup.manifest import TableCopy
from bronze.backup.table_log import LAST_CHECKPOINT
from bronze.delta import store
from bronze.delta.layout import purge_entries
from bronze.delta.layout.purge_entries import PurgeEntry
from bronze.delta.storage.store_errors import store_error
from bronze.errors import FileDamaged
from bronze.model.locations import Place, TableName

FOLDER = f"{manifest.FOLDER}/purges"
BEGUN = f"{manifest.FOLDER}/purging"
# A version that no table has.
_NEVER = 2**62
Delete = Callable[[Place, list[str]], None]


@dataclass(frozen=True)
class OutstandingErasure:
    """An erasure that has not reached the copy, and why."""

    table: str
    at: datetime
    reason: str


def outstanding(lake: Place, copy: Place) -> list[PurgeEntry]:
    """The purges of the lake that have not reached the copy. Costs one listing where there is none.

    Raises:
        FileDamaged, LakeError, LakeUnreachable
    """
    entries = list(purge_entries.entries(lake))
    if not entries:
        return []
    done = {path.rpartition("/")[2] for path in store.listing(copy, FOLDER)}
    return [entry for entry in entries if entry.name not in done]


Purged = Mapping[tuple[TableName, str], int]
"""The version that each purged table begins with, by its name and id."""


def purged_versions(copy: Place) -> Purged:
    """The version that each purged table begins with: a generation in which it begins earlier does
    not have the table any more (`is_purged`).

    Raises:
        FileDamaged, LakeError, LakeUnreachable
    """
    versions: dict[tuple[TableName, str], int] = {}
    for path in (*store.listing(copy, FOLDER), *store.listing(copy, BEGUN)):
        try:
            entry = purge_entries.parse(path.rpartition("/")[2], manifest.content(copy, path))
        except (ValueError, KeyError, TypeError):
            raise manifest.damage_error(copy, path, "is not the entry of a purge") from None
        except FileNotFoundError:
            continue
        key = (entry.table, entry.table_id)
        versions[key] = max(entry.version, versions.get(key, 0))
    return versions


def is_purged(table: TableCopy, versions: Purged) -> bool:
    """Whether a purge has deleted objects of a table of a generation."""
    return _start(table) < versions.get((table.table, table.table_id), 0)


def _start(table: TableCopy) -> int:
    return table.checkpoint or 0


def why_not(table: TableCopy | None, entry: PurgeEntry) -> str:
    """Why a purge cannot be done with the newest generation of its table; "" if it can."""
    if table is not None and table.error:
        return f"the table could not be copied: {table.error}"
    if table is not None and table.table_id == entry.table_id and _start(table) < entry.version:
        return (
            "the erasure has not ended in the lake: run the same command again, or `bronze forget"
            f" {entry.table.label} --old-versions`"
        )
    return ""


def purge(
    copy: Place,
    entry: PurgeEntry,
    table: TableCopy | None,
    lock: int,
    delete: Delete,
) -> datetime | None:
    """Deletes all objects of a table in the copy but some.

    Args:
        copy: the root of the copy.
        entry: the purge.
        table: the table in the newest generation, which keeps its objects; None if it has none.
        lock: for how many seconds an object cannot be deleted.
        delete: deletes objects of the copy for good.

    Returns:
        When the last lock of the objects ends, None if all are deleted.

    Raises:
        LakeError, LakeUnreachable
    """
    folder = f"{entry.table.schema}/{entry.table.name}"
    found = _objects(copy, folder)
    needed = manifest.objects_of(copy, table)["path"] if table else ()
    kept = {f"{folder}/{path}" for path in (*needed, LAST_CHECKPOINT)}
    dead = [meta for meta in found if meta["path"] not in kept]
    now = time.time()
    ends = {meta["path"]: meta["last_modified"].timestamp() + lock for meta in dead}
    free = [path for path, end in ends.items() if not lock or end < now]
    data = _as_done(entry, table).document()
    # One of a pass that was killed may be there: the table begins later by now.
    store.put(copy, f"{BEGUN}/{entry.name}", data)
    failpoint.reach("purging")
    delete(copy, free)
    failpoint.reach("purged")
    if len(free) < len(dead):
        return datetime.fromtimestamp(max(ends.values()), UTC)
    manifest.create(copy, f"{FOLDER}/{entry.name}", data)
    store.delete(copy, [f"{BEGUN}/{entry.name}"])
    return None


def _as_done(entry: PurgeEntry, table: TableCopy | None) -> PurgeEntry:
    """The purge as it is done: the table may begin later by now, or may have been dropped."""
    if table is None or table.table_id != entry.table_id:
        return replace(entry, version=_NEVER)
    return replace(entry, version=max(entry.version, _start(table)))


def _objects(copy: Place, folder: str) -> Sequence[Mapping[str, Any]]:
    if store.is_missing(copy, folder):
        return []
    try:
        return store.objects(copy, folder)
    except FileNotFoundError:
        return []
    except (BaseError, OSError) as error:
        raise store_error(copy, "listed", error) from None


def damaged_error(copy: Place, table: TableCopy) -> FileDamaged:
    """The error for a table of a generation that a purge has reached since."""
    return FileDamaged(
        f"Table {table.table.label} of this generation of the copy at {copy.url} was erased since:"
        " rows of it were forgotten.",
        hint="A later generation has the table.",
    )
