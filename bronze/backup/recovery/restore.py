"""Restores a generation of the copy into an empty root.

The root is marked as unfinished until all is there (`bronze.backup.recovery.takeover`), so that no
command uses half a lake, and the same restore can be continued after it was killed. Each object is
hashed while it is copied, and has to be the one that the backup wrote.
"""

from __future__ import annotations

import contextvars
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import polars as pl
from obstore.exceptions import BaseError, NotFoundError

from bronze import failpoint, stopping
from bronze.backup import manifest, purges, transfer
from bronze.backup.manifest import Manifest, TableCopy
from bronze.backup.recovery import takeover
from bronze.backup.table_log import LAST_CHECKPOINT, LOG
from bronze.backup.transfer import copy_errors
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import ConfigError, FileDamaged
from bronze.governance.audit_proof import moment
from bronze.model.locations import Place
from bronze.model.results import Failure, Shown, exit_code
from bronze.printable import size
from bronze.stopping import Signal

_THREADS = 4
_SMALL = 4 * 2**20


@dataclass(frozen=True)
class RestoredTable:
    """A table of the generation: ``copied`` of its ``objects`` were written by this restore, the
    others by one before that was killed. ``error`` is why the table is not restored.
    """

    target: str
    version: int
    objects: int
    bytes: int
    copied: int = 0
    error: Failure | None = None


@dataclass(frozen=True, repr=False)
class RestoreResult(Shown):
    """What was restored: generation ``generation``, which was made at ``made``, into ``root``.
    ``is_dry`` says that nothing was written. ``notes`` are for the user.
    """

    generation: int
    made: datetime
    root: str
    tables: tuple[RestoredTable, ...]
    seconds: float
    is_dry: bool = False
    notes: tuple[str, ...] = ()

    @property
    def objects(self) -> int:
        """The objects of the tables."""
        return sum(table.objects for table in self.tables if not table.error)

    @property
    def bytes(self) -> int:
        """The size of these objects."""
        return sum(table.bytes for table in self.tables if not table.error)

    @property
    def exit_code(self) -> int:
        """0: all tables are restored; 1: some are not."""
        return exit_code(table.error for table in self.tables)

    def _summary(self) -> Iterable[str]:
        done = "would be restored into" if self.is_dry else "restored into"
        parts = [f"generation {self.generation} of {self.made:%Y-%m-%d %H:%M:%S} UTC"]
        return [*parts, f"{done} {self.root}", *super()._summary(), size(self.bytes)]


Notify = Callable[[RestoredTable], None]


def restore(
    settings: Settings,
    to: str,
    tables: Sequence[str] = (),
    *,
    at: str = "",
    dry_run: bool = False,
    notify: Notify = lambda _: None,
    stop: Signal | None = None,
) -> RestoreResult:
    """Restores a generation of the config's copy. The lake itself is not needed.

    Args:
        settings: the config; its [backup] names the copy.
        to: the root to restore into: a folder or an address. It has to be empty, or to have what a
            killed restore of the same tables and generation has left.
        tables: names of tables, ``bz_orders`` or ``bronze.bz_orders``; all if none. The governance
            tables always come with them, as they have the keys, the audit log and the checkpoints.
        at: the id of a generation, or a time: the newest generation before it counts. The newest
            of all if empty.
        dry_run: whether to say only what would be done.
        notify: is called with each table that is restored.
        stop: ends the restore when it is set; the next call continues it.

    Raises:
        ConfigError: there is no copy or no such generation or table, or the root is not empty.
        FileDamaged: an object of the copy is missing, or is not what the backup wrote.
        LakeError, LakeUnreachable: the copy cannot be read, or the root not be written.
        Stopped: it was stopped.
    """
    began = time.monotonic()
    target = settings.with_lake_at(to)
    copy = copy_of(settings)
    _check_apart(target.lake_root, copy)
    generation = generation_of(copy, at)
    chosen = _choose(copy, generation, tables)
    whole = [table for table in chosen if not table.error]
    mark = takeover.unfinished_mark(generation, [table.target for table in whole])
    is_continued = takeover.check_empty(target.lake_root, mark)
    notes = [
        f"{table.table.label} is at the version of an earlier generation: {table.error}"
        for table in generation.tables
        if table.error and table.table.label in {one.target for one in whole}
    ]
    if is_continued:
        notes = ["A restore of this generation was killed before: it is continued.", *notes]
    results = []
    if not dry_run:
        with stopping.scope(stop):
            takeover.put_mark(target.lake_root, mark)
            failpoint.reach("marked")
            for table in chosen:
                result = table
                if not table.error:
                    result = _table(copy, target.lake_root, generation, table)
                notify(result)
                results.append(result)
            takeover.finish(target.lake_root, generation)
    return RestoreResult(
        generation.id,
        generation.made,
        target.lake.root,
        tuple(results or chosen),
        time.monotonic() - began,
        dry_run,
        tuple(notes),
    )


def copy_of(settings: Settings) -> Place:
    """The root of the config's copy.

    Raises:
        ConfigError: there is none.
    """
    if settings.copy_root is None:
        raise ConfigError(
            "The config has no [backup]: there is no copy to restore from.",
            hint='Name it: [backup] root = "s3://another-bucket/lake"',
        )
    return settings.copy_root


def _check_apart(root: Place, copy: Place) -> None:
    """Checks that neither is inside the other."""
    first, second = (
        str(Path(place.url).resolve()) if client.is_local(place) else place.url
        for place in (root, copy)
    )
    if first == second or first.startswith(f"{second}/") or second.startswith(f"{first}/"):
        raise ConfigError(
            f"{root.url} and the copy at {copy.url} are one inside the other.",
            hint="Restore into a root of its own; or name the copy itself as [lake] root, without"
            " a restore: bronze goes on from it.",
        )


def generation_of(copy: Place, at: str = "") -> Manifest:
    """The generation with an id, the newest one before a time, or the newest one of all.

    Raises:
        ConfigError: there is none.
        FileDamaged, LakeError, LakeUnreachable: its manifest cannot be read.
    """
    with copy_errors():
        if at.strip().isdecimal():
            return manifest.read(copy, int(at))
        if at:
            return manifest.at(copy, moment(at))
        newest = manifest.latest(copy)
    if newest is None:
        raise ConfigError(
            f"The copy at {copy.url} has no generation.",
            hint="`bronze backup` makes one; check [backup] root.",
        )
    return newest


def _choose(copy: Place, generation: Manifest, names: Sequence[str]) -> list[RestoredTable]:
    """The tables of a generation with these names, and the governance tables."""
    known = {name for t in generation.tables for name in (t.name, t.table.label)}
    unknown = [name for name in names if name not in known]
    if unknown:
        there = ", ".join(sorted(t.name for t in generation.tables if t.schema != GOVERNANCE))
        raise ConfigError(
            f"Generation {generation.id} of the copy at {copy.url} has no table {unknown[0]}.",
            hint=f"It has {there or 'none'}.",
        )
    with copy_errors():
        purged = purges.purged_versions(copy)
    return [
        _planned(copy, table, purges.is_purged(table, purged))
        for table in generation.tables
        if not names or table.schema == GOVERNANCE or {table.name, table.table.label} & {*names}
    ]


def _planned(copy: Place, table: TableCopy, is_purged: bool) -> RestoredTable:
    planned = RestoredTable(table.table.label, table.version, table.objects, table.bytes)
    if is_purged:
        return replace(planned, error=purges.damaged_error(copy, table).failure())
    return planned


def _table(copy: Place, root: Place, generation: Manifest, planned: RestoredTable) -> RestoredTable:
    """Restores a table: its data first, then its log in order, so that it appears whole."""
    table = next(t for t in generation.tables if t.table.label == planned.target)
    with copy_errors():
        listed = manifest.objects_of(copy, table)
    there = _sizes(root, table.path)
    logged = pl.col("path").str.starts_with(f"{LOG}/")
    data, entries = listed.filter(~logged), listed.filter(logged).sort("path")
    work = partial(_object, copy, root, table.path, there)
    copied = _each(data.iter_rows(), work) + sum(work(row) for row in entries.iter_rows())
    if table.last_checkpoint:
        pointer = f"{table.path}/{LAST_CHECKPOINT}"
        store.put(root, pointer, table.last_checkpoint.encode())
    return replace(planned, copied=copied)


def _each(rows: Iterable[tuple[str, int, str]], work: Callable[..., bool]) -> int:
    """How many objects were copied, several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        context = contextvars.copy_context
        try:
            return sum(pool.map(lambda row: context().run(work, row), rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _sizes(root: Place, folder: str) -> dict[str, int]:
    """The sizes of the objects that a killed restore has left of a table."""
    place = manifest.in_folder(root, folder)
    if store.is_missing(place):
        return {}
    with suppress(FileNotFoundError):
        return {meta["path"]: meta["size"] for meta in store.objects(place)}
    return {}


def _object(
    copy: Place, root: Place, folder: str, there: dict[str, int], row: tuple[str, int, str]
) -> bool:
    """Copies an object, unless it is there; whether it was copied."""
    path, size, digest = row
    stopping.check()
    name = f"{folder}/{path}"
    if there.get(path) == size:
        known = transfer.hash_of(root, name, lambda _: stopping.check())
        if known is not None and known.sha256 == digest:
            return False
    found = copy_object(copy, root, name, size)
    if found != digest:
        raise FileDamaged(
            f"The file {name} of the copy at {copy.url} is not what the backup wrote: its hash is"
            " not that of the manifest.",
            hint="Restore another generation (--at), or without this table; `bronze backup"
            " --verify` lists all that is wrong with the copy.",
        )
    failpoint.reach("restored")
    return True


def copy_object(source: Place, root: Place, name: str, size: int) -> str:
    """Copies an object under the same path to another root, replacing what is there; its SHA-256.

    Raises:
        FileDamaged: the source does not have it.
        LakeError, LakeUnreachable: it cannot be read or written.
    """
    digest = hashlib.sha256()
    with _source(source, name) as chunks:
        if size <= _SMALL:
            data = b"".join(chunks)
            store.put(root, name, data)
            return hashlib.sha256(data).hexdigest()
        # What a killed restore has left of it.
        store.delete(root, [name])
        with store.writer(root, name) as sink:
            for chunk in chunks:
                stopping.check()
                digest.update(chunk)
                sink.write(chunk)
    return digest.hexdigest()


@contextmanager
def _source(place: Place, name: str) -> Iterator[Iterator[bytes]]:
    """The parts of an object."""
    try:
        with transfer.opened(place, name) as reading:
            yield reading.chunks
    except (FileNotFoundError, NotFoundError):
        raise manifest.damage_error(place, name, "is missing") from None
    except (BaseError, OSError) as error:
        with copy_errors():
            raise store_error(place, "read", error) from None
