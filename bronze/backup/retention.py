"""Deletes generations that are older than ``[backup] keep``, and what no other generation needs.

The manifest goes first: a generation that is half deleted does not exist. What the newest
generation needs is never deleted. The objects of a table that generations need follow each other,
as its versions do: so those of an expired one are compared with the oldest ones that stay, and with
the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from bronze import failpoint
from bronze.backup import manifest
from bronze.backup.manifest import Manifest, TableCopy
from bronze.config.sections.backup import BackupSettings
from bronze.delta import store
from bronze.errors import FileDamaged
from bronze.model.locations import Place

EXPIRING = f"{manifest.FOLDER}/expiring"
Delete = Callable[[Place, list[str]], None]

# The generations that stay with which the objects of an expired one are compared.
_COMPARED = 10
_LONGEST_PASS = 24 * 3600
# A pass deletes no more of them, so that it ends.
_AT_ONCE = 50


def expire(
    copy: Place,
    settings: BackupSettings,
    newest: Manifest,
    delete: Delete,
    now: datetime,
) -> int:
    """Deletes expired generations; returns how many.

    Args:
        copy: the root of the copy.
        settings: those of the copy.
        newest: the newest generation, which stays.
        delete: deletes objects of the copy.
        now: the time.

    Raises:
        FileDamaged: a list of objects cannot be read; generations without lists stay.
        LakeError, LakeUnreachable
    """
    # Objects are locked from when they were put, which may be hours after the generation's time.
    locked = settings.lock + _LONGEST_PASS if settings.lock else 0
    keep = timedelta(seconds=max(settings.keep, locked))
    numbers = [number for number in manifest.generations(copy) if number < newest.id]
    begun = _begun(copy)
    old: list[Manifest] = []
    last_expired = 0
    for number in numbers[:_AT_ONCE]:
        try:
            generation = manifest.read(copy, number)
        except FileDamaged:
            # `bronze backup --verify` reports it.
            break
        if generation.made >= now - keep:
            break
        old.append(generation)
        last_expired = number
    if not (begun or old):
        return 0
    staying = [number for number in numbers if number > last_expired][:_COMPARED]
    needed = [*(manifest.read(copy, number) for number in staying), newest]
    _take_away(copy, old, delete)
    failpoint.reach("expiring")
    _delete(copy, [*begun, *old], needed, delete)
    return len(begun) + len(old)


def _take_away(copy: Place, old: list[Manifest], delete: Delete) -> None:
    """Deletes manifests; they stay under another name until all that they alone need is deleted."""
    for generation in old:
        data = manifest.content(copy, manifest.name_of(generation.id))
        manifest.create(copy, f"{EXPIRING}/{generation.id:020}.json", data)
    delete(copy, [manifest.name_of(generation.id) for generation in old])


def _delete(copy: Place, old: list[Manifest], needed: list[Manifest], delete: Delete) -> None:
    kept = {table.list: table for generation in needed for table in generation.tables}
    dead = {table.list: table for generation in old for table in generation.tables}
    dead = {path: table for path, table in dead.items() if path not in kept}
    paths = [path for table in dead.values() for path in _unneeded(copy, table, kept.values())]
    delete(copy, list(dict.fromkeys(paths)))
    delete(copy, list(dead))
    store.delete(copy, [f"{EXPIRING}/{generation.id:020}.json" for generation in old])


def _unneeded(copy: Place, table: TableCopy, kept: Iterable[TableCopy]) -> list[str]:
    """The objects of a table that the tables of other generations do not need."""
    try:
        objects = manifest.objects_of(copy, table).select("path")
    except FileDamaged:
        # The list is deleted last: an expiry that was killed had deleted it already.
        return []
    for other in kept:
        if other.table == table.table:
            needed = manifest.objects_of(copy, other).select("path")
            objects = objects.join(needed, on="path", how="anti")
    return [f"{table.path}/{path}" for path in objects["path"]]


def _begun(copy: Place) -> list[Manifest]:
    """The generations whose expiry was killed."""
    return [
        manifest.parse(copy, int(PurePosixPath(path).stem), manifest.content(copy, path))
        for path in store.listing(copy, EXPIRING)
    ]
