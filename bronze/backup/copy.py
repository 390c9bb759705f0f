"""Copies the lake: makes one generation, and deletes what no generation needs any more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from bronze import failpoint, stopping
from bronze.backup import manifest, purges, retention, table_log, versions
from bronze.backup.manifest import Manifest, Moment, TableCopy
from bronze.backup.object_lock import ObjectLock
from bronze.backup.purges import OutstandingErasure
from bronze.backup.recovery import metadata, takeover
from bronze.backup.results import BackedUpTable, BackupResult
from bronze.backup.table_log import LAST_CHECKPOINT, TableLog
from bronze.backup.transfer import MissingError, Transfer, copy_errors
from bronze.backup.versions import Chosen
from bronze.config import fingerprint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log, store
from bronze.delta.layout.purge_entries import PurgeEntry
from bronze.delta.log import State
from bronze.delta.read import content
from bronze.delta.storage import client
from bronze.errors import ConfigError, FileDamaged, LakeError, LakeUnreachable
from bronze.governance import audit_state
from bronze.governance.tables.audit_log import Head
from bronze.model.locations import Place
from bronze.stopping import Signal
from bronze.version import VERSION

Notify = Callable[[BackedUpTable], None]

# A clock that is behind the last generation by no more is waited for.
_CLOCK = timedelta(seconds=5)
# How often a table's version is chosen again, as its files were vacuumed meanwhile.
_ATTEMPTS = 3


def back_up(
    settings: Settings,
    *,
    notify: Notify = lambda _: None,
    stop: Signal | None = None,
) -> BackupResult:
    """Copies what has changed in the lake since the last generation, and makes a new one.

    A table that cannot be copied stays at the version of the last generation, and the result names
    it. A generation without a manifest does not exist: after an error the next call continues.

    Args:
        settings: the config.
        notify: is called with each table when it has been copied.
        stop: ends the copy when it is set, within a second or two.

    Raises:
        ConfigError: there is no [backup], or its root cannot be that of this lake's copy.
        FileDamaged: another object is where one is to be put.
        LakeError, LakeUnreachable: the lake or the copy cannot be read or written.
        Stopped: it was stopped.
    """
    with stopping.scope(stop):
        return _Backup(settings, notify).run()


def roots_of(settings: Settings) -> tuple[Place, Place]:
    """The roots of the lake and of its copy.

    Raises:
        ConfigError: there is no [backup], or one is inside the other.
    """
    lake, copy = settings.lake_root, settings.copy_root
    if copy is None:
        raise ConfigError(
            "The config has no [backup]: there is no place for a copy.",
            hint='Add it: [backup] root = "s3://another-bucket/lake"',
        )
    ours, theirs = _comparable(lake), _comparable(copy)
    if ours == theirs or theirs.startswith(f"{ours}/"):
        raise ConfigError(
            f"The copy at {copy.url} is inside the lake at {lake.url}: it would be lost with it.",
            hint="Choose a [backup] root outside of [lake] root: another disk, bucket or account.",
        )
    if ours.startswith(f"{theirs}/"):
        raise ConfigError(
            f"The lake at {lake.url} is inside its copy at {copy.url}.",
            hint="Choose a [backup] root that has nothing else in it.",
        )
    return lake, copy


def _comparable(place: Place) -> str:
    if client.is_local(place):
        return str(Path(place.url.removeprefix("file://")).resolve())
    return place.url.rstrip("/")


def check_copy(settings: Settings) -> None:
    """Checks that the copy can be written, refuses a second writer of an object, and can lock
    objects if it is to.

    Raises:
        ConfigError: the root is wrong, or its store cannot lock objects.
        LakeError, LakeUnreachable: the copy cannot be written, or has no put-if-absent.
    """
    _, copy = roots_of(settings)
    with copy_errors():
        store.prove_exclusive(copy)
    if lock := _lock_of(settings, copy):
        lock.check()


def _lock_of(settings: Settings, copy: Place) -> ObjectLock | None:
    seconds = settings.backup.lock
    return ObjectLock(copy, seconds) if seconds else None


@dataclass
class _Pass:
    """What a pass has copied so far."""

    tables: list[TableCopy] = field(default_factory=list)
    results: list[BackedUpTable] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def moment(self, moment: Moment) -> int:
        """The index of a moment."""
        if moment not in self.moments:
            self.moments.append(moment)
        return self.moments.index(moment)


class _Backup:
    """One pass."""

    def __init__(self, settings: Settings, notify: Notify) -> None:
        self._settings, self._notify = settings, notify
        self._lake, self._copy = roots_of(settings)
        self._began = time.monotonic()
        self._done = _Pass()
        self._objects: dict[str, pl.DataFrame] = {}
        self._lock = _lock_of(settings, self._copy)

    def run(self) -> BackupResult:
        lake_id = self._identity()
        with copy_errors():
            last = manifest.latest(self._copy)
            if last is None:
                check_copy(self._settings)
            self._check_lake(lake_id, last)
            erasures = purges.outstanding(self._lake, self._copy)
        self._check_clock(last)
        choice = versions.choose(self._settings, self._lake, last)
        purged: dict[object, list[PurgeEntry]] = {}
        for entry in erasures:
            purged.setdefault(entry.table, []).append(entry)
        lock = self._lock.lock if self._lock else None
        with Transfer(self._lake, self._copy, self._settings.backup.rate, lock) as moving:
            for chosen in choice.tables:
                self._table(moving, chosen, last, purged.get(chosen.table, []))
            sealed = self._seal(lake_id, choice.made, last)
            self._delete_strays(moving)
            with copy_errors():
                moving.finish()
        open_erasures = list(self._purge(erasures, sealed))
        with copy_errors():
            metadata.put_daily(self._settings, self._copy, sealed, self._put, self._delete)
            expired = retention.expire(
                self._copy, self._settings.backup, sealed, self._delete, datetime.now(UTC)
            )
        figures = moving.figures
        return BackupResult(
            generation=sealed.id,
            made=sealed.made,
            tables=tuple(self._done.results),
            objects=figures.objects,
            bytes=figures.bytes,
            requests=figures.requests,
            total_objects=sealed.objects,
            total_bytes=sealed.bytes,
            behind=(sealed.made - last.made).total_seconds() if last else None,
            expired=expired,
            erasures=tuple(open_erasures),
            excluded=dict(choice.excluded),
            seconds=time.monotonic() - self._began,
        )

    # Checks

    def _identity(self) -> str:
        state = log.read(audit_state.place(self._settings))
        identity = audit_state.log_id(state)
        if not identity:
            raise LakeError(
                f"The lake at {self._lake.url} has no audit log: nothing was loaded into it yet.",
                hint="`bronze run` loads it. If the lake was lost, `bronze restore` restores it.",
            )
        return identity

    def _check_lake(self, lake_id: str, last: Manifest | None) -> None:
        """Checks that the copy is of this lake, or is new, and is not in use as a lake."""
        takeover.check_not_in_use(self._copy)
        try:
            known = json.loads(manifest.content(self._copy, manifest.IDENTITY))["lake"]
        except FileNotFoundError:
            known = last.lake if last else ""
        except (ValueError, KeyError, TypeError):
            raise manifest.damage_error(
                self._copy, manifest.IDENTITY, "is not the identity of a lake"
            ) from None
        if known and known != lake_id:
            raise ConfigError(
                f"The copy at {self._copy.url} has generations of another lake (audit log"
                f" {known[:8]}…, and this lake has {lake_id[:8]}…).",
                hint="Choose another [backup] root. If the lake was deleted and began anew, restore"
                " it from the copy.",
            )
        if known:
            return
        if others := [name for name in store.folders(self._copy) if name != manifest.FOLDER]:
            raise ConfigError(
                f"The folder of the copy at {self._copy.url} is not empty: it has {others[0]}.",
                hint="Choose a [backup] root that has nothing in it.",
            )
        identity = {"format": manifest.FORMAT, "lake": lake_id, "root": self._lake.url}
        self._put(manifest.IDENTITY, json.dumps(identity).encode())

    def _check_clock(self, last: Manifest | None) -> None:
        if last is None:
            return
        behind = last.made - datetime.now(UTC)
        if behind > _CLOCK:
            raise LakeError(
                f"The clock of this machine is {behind.total_seconds():.0f} s behind generation"
                f" {last.id} of the copy at {self._copy.url}, which was made"
                f" {last.made:%Y-%m-%d %H:%M:%S} UTC.",
                hint="Set the clock (NTP): generations are found by their times.",
            )
        if behind >= timedelta():
            stopping.sleep(behind.total_seconds() + 0.01)

    # One table

    def _table(
        self, moving: Transfer, chosen: Chosen, last: Manifest | None, erased: list[PurgeEntry]
    ) -> None:
        """Copies a table; its error does not end the pass, unless it is of the copy."""
        before = last.table(chosen.table) if last else None
        error = chosen.error
        if isinstance(error, LakeUnreachable):
            raise error
        if error is None:
            try:
                table = self._current_table(moving, chosen, before, erased)
            except LakeError as caught:
                if not _is_of_table(caught, chosen):
                    raise
                error = caught
        if error is not None:
            text = error.message
            result = BackedUpTable(chosen.table.label, "failed", error=error.failure())
            if before is not None:
                moment = replace(last.moments[before.moment], note=text) if last else chosen.moment
                table = replace(before, moment=self._done.moment(moment), error=text)
                self._done.tables.append(table)
                result = replace(result, version=table.version)
        else:
            self._done.tables.append(table)
            is_known = before is not None and table.list == before.list
            result = BackedUpTable(
                chosen.table.label,
                "unchanged" if is_known else "copied",
                table.version,
                table.objects,
                table.bytes,
            )
        self._done.results.append(result)
        self._notify(result)

    def _current_table(
        self,
        moving: Transfer,
        chosen: Chosen,
        before: TableCopy | None,
        erased: list[PurgeEntry],
    ) -> TableCopy:
        first = max((entry.version for entry in erased), default=0)
        if chosen.version < first:
            chosen = versions.at_newest(chosen, "rows of it were erased")
        if chosen.same is not None and not erased and not chosen.same.error:
            return replace(chosen.same, moment=self._done.moment(chosen.moment))
        for attempt in range(_ATTEMPTS):
            try:
                return self._copied_table(moving, chosen, before)
            except (MissingError, FileDamaged) as error:
                newer = versions.at_newest(chosen, "files of its version were vacuumed")
                if newer is chosen or attempt == _ATTEMPTS - 1:
                    raise _missing_error(chosen, error) from None
                chosen = newer
        raise AssertionError("unreachable")

    def _copied_table(
        self, moving: Transfer, chosen: Chosen, before: TableCopy | None
    ) -> TableCopy:
        needs = table_log.read(chosen.place, chosen.version)
        folder = f"{chosen.table.schema}/{chosen.table.name}"
        known = self._known(moving, folder, before)
        data = _paths([*needs.live, *needs.older])
        missing = data.join(known, on="path", how="anti")["path"].to_list()
        new = [astuple(c) for c in moving.copy_all(folder, missing, optional=needs.older)]
        logged = _paths([*needs.checkpoints, *needs.entries])
        there = set(known.join(logged, on="path", how="semi")["path"])
        in_order = (path for path in logged["path"] if path not in there)
        new += [astuple(c) for c in moving.copy_in_order(folder, in_order)]
        rows = pl.concat([known, pl.DataFrame(new, schema=dict(manifest.OBJECTS), orient="row")])
        objects = rows.join(pl.concat([data, logged]), on="path", how="semi").sort("path")
        self._objects[folder] = objects.select("path")
        return self._listed(chosen, needs, objects)

    def _known(self, moving: Transfer, folder: str, before: TableCopy | None) -> pl.DataFrame:
        """The objects of a table that the copy has already."""
        continued = moving.continued.filter(pl.col("table") == folder).drop("table")
        if before is None:
            return continued
        with copy_errors():
            return pl.concat([manifest.objects_of(self._copy, before), continued]).unique("path")

    def _listed(self, chosen: Chosen, needs: TableLog, objects: pl.DataFrame) -> TableCopy:
        """Puts the list of the objects, and names the checkpoint."""
        data = manifest.list_bytes(objects)
        digest = manifest.sha256(data)
        path = manifest.list_path(chosen.table, chosen.version, digest)
        with copy_errors():
            self._put(path, data)
            failpoint.reach("listed")
            if needs.last_checkpoint:
                name = f"{chosen.table.schema}/{chosen.table.name}/{LAST_CHECKPOINT}"
                store.put(self._copy, name, needs.last_checkpoint.encode())
        return TableCopy(
            schema=chosen.table.schema,
            name=chosen.table.name,
            table_id=needs.table_id,
            version=needs.version,
            checkpoint=needs.checkpoint,
            moment=self._done.moment(chosen.moment),
            positions=needs.positions,
            list=path,
            sha256=digest,
            objects=objects.height,
            bytes=int(objects["size"].sum()),
            entry=needs.entry,
            last_checkpoint=needs.last_checkpoint,
        )

    # The generation

    def _seal(self, lake_id: str, made: datetime, last: Manifest | None) -> Manifest:
        """Puts the manifest."""
        tables = sorted(self._done.tables, key=lambda t: (t.schema == GOVERNANCE, t.schema, t.name))
        head = self._audit_head()
        sealed = Manifest(
            id=last.id + 1 if last else 1,
            made=made,
            bronze=VERSION,
            lake=lake_id,
            root=self._lake.url,
            config=fingerprint.fingerprint_of(fingerprint.imprint(self._settings)),
            audit=(head.sequence, head.hash),
            moments=tuple(self._done.moments),
            tables=tuple(tables),
            previous=last.hash if last else "",
        )
        data = manifest.serialise(sealed)
        failpoint.reach("sealing")
        with copy_errors():
            if not self._put(manifest.name_of(sealed.id), data):
                raise LakeError(
                    f"Another process has made generation {sealed.id} of the copy at"
                    f" {self._copy.url} meanwhile.",
                    hint="Have one service or command at a time make copies; nothing is lost.",
                )
        failpoint.reach("sealed")
        return replace(sealed, hash=manifest.sha256(data))

    def _audit_head(self) -> Head:
        """The last record of the audit log in this generation."""
        place = audit_state.place(self._settings)
        state = log.read(place)
        found = next((t for t in self._done.tables if t.path == _folder_of(place)), None)
        if state is not None and found is not None and found.version != state.version:
            state = State(place, found.version, content.opened(place, found.version))
        return audit_state.end(state)

    def _delete_strays(self, moving: Transfer) -> None:
        """Deletes what passes that were killed have copied, and no generation needs."""
        continued = moving.continued
        for (folder,), rows in continued.group_by("table"):
            needed = self._objects.get(str(folder))
            if needed is None:
                continue
            strays = rows.join(needed, on="path", how="anti")["path"].to_list()
            self._delete_unneeded(str(folder), strays)

    def _delete_unneeded(self, folder: str, paths: Sequence[str]) -> None:
        """Deletes strays that the generation before does not have either."""
        if not paths:
            return
        numbers = manifest.generations(self._copy)[-2:-1]
        for number in numbers:
            schema, _, name = folder.partition("/")
            for table in manifest.read(self._copy, number).tables:
                if (table.schema, table.name) == (schema, name):
                    known = set(manifest.objects_of(self._copy, table)["path"])
                    paths = [path for path in paths if path not in known]
        self._delete(self._copy, [f"{folder}/{path}" for path in paths])

    def _purge(
        self, erasures: Sequence[PurgeEntry], sealed: Manifest
    ) -> Iterator[OutstandingErasure]:
        """Does the purges of the lake in the copy; those that cannot be done yet."""
        lock = self._settings.backup.lock
        for entry in erasures:
            table = sealed.table(entry.table)
            reason = purges.why_not(table, entry)
            if not reason:
                with copy_errors():
                    until = purges.purge(self._copy, entry, table, lock, self._delete)
                if until is not None:
                    reason = f"objects of the copy are locked until {until:%Y-%m-%d %H:%M:%S} UTC"
            if reason:
                yield OutstandingErasure(entry.table.label, entry.at, reason)

    def _put(self, path: str, data: bytes) -> bool:
        """Puts a new object, and locks it; whether it was absent."""
        is_new = manifest.create(self._copy, path, data)
        if self._lock and is_new:
            self._lock.lock(path)
        return is_new

    def _delete(self, copy: Place, paths: list[str]) -> None:
        if self._lock:
            self._lock.delete(paths)
        else:
            store.delete(copy, paths)


def _paths(paths: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"path": paths}, schema={"path": pl.String})


def _folder_of(place: Place) -> str:
    return "/".join(place.url.rsplit("/", 2)[1:])


def _missing_error(chosen: Chosen, error: MissingError | FileDamaged) -> FileDamaged:
    if isinstance(error, FileDamaged):
        return error
    path = str(error).removeprefix(f"{chosen.table.schema}/{chosen.table.name}/")
    return store.damage_error(chosen.place, path, "is missing")


def _is_of_table(error: LakeError, chosen: Chosen) -> bool:
    """Whether an error is of one table of the lake. Others end the pass: those of the copy, and of
    a lake that cannot be reached.
    """
    names = (f"at {chosen.place.url} ", f"Table {chosen.table.label} ")
    is_named = any(name in f"{error.message} " for name in names)
    return is_named and not isinstance(error, LakeUnreachable)
