"""Copies the lake: makes one generation, and deletes what no generation needs any more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bronze import failpoint, stopping
from bronze.backup import manifest, purges, retention, versions
from bronze.backup.copied_tables import CopiedTables
from bronze.backup.manifest import Manifest
from bronze.backup.object_lock import ObjectLock
from bronze.backup.purges import OutstandingErasure
from bronze.backup.recovery import metadata, takeover
from bronze.backup.results import BackedUpTable, BackupResult
from bronze.backup.transfer import Transfer, copy_errors
from bronze.config import fingerprint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log, store
from bronze.delta.layout.purge_entries import PurgeEntry
from bronze.delta.log import State
from bronze.delta.read import content
from bronze.delta.storage import client
from bronze.errors import ConfigError, LakeError
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


class _Backup:
    """One pass."""

    def __init__(self, settings: Settings, notify: Notify) -> None:
        self._settings, self._notify = settings, notify
        self._lake, self._copy = roots_of(settings)
        self._began = time.monotonic()
        self._lock = _lock_of(settings, self._copy)
        self._done = CopiedTables(self._copy, self._put)

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
                self._notify(self._done.add(moving, chosen, last, purged.get(chosen.table, [])))
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

    # The generation

    def _seal(self, lake_id: str, made: datetime, last: Manifest | None) -> Manifest:
        """Puts the manifest."""
        tables = sorted(self._done.tables, key=lambda t: (t.schema == GOVERNANCE, t.schema, t.name))
        head = self._audit_head(last)
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

    def _audit_head(self, last: Manifest | None) -> Head:
        """The last record of the audit log in this generation."""
        place = audit_state.place(self._settings)
        state = log.read(place)
        found = next((t for t in self._done.tables if t.path == _folder_of(place)), None)
        if last is not None and found is not None and found.error:
            # The log of the copy is of an earlier generation: the lake may not have its version.
            return Head(*last.audit)
        if state is not None and found is not None and found.version != state.version:
            state = State(place, found.version, content.opened(place, found.version))
        return audit_state.end(state)

    def _delete_strays(self, moving: Transfer) -> None:
        """Deletes what passes that were killed have copied, and no generation needs. With a lock
        they stay until the table is purged.
        """
        if self._lock:
            return
        continued = moving.continued
        for (folder,), rows in continued.group_by("table"):
            needed = self._done.objects.get(str(folder))
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


def _folder_of(place: Place) -> str:
    return "/".join(place.url.rsplit("/", 2)[1:])
