"""Puts heads of the audit log into escrow, and reads them from there.

A head is the number and the hash of the log's last record. Both are in the object's name,
``<log>/<number>-<hash>.json``, so that listing the escrow is enough to verify the log, two writers
of one head write the same object, and no head replaces another. A head proves all records up to its
own, as each record has the hash of the one before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from obstore.exceptions import AlreadyExistsError, BaseError

from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.storage import object_lock
from bronze.delta.storage.store_errors import store_error
from bronze.errors import LakeError
from bronze.governance import audit_state
from bronze.governance.tables.audit_log import Head
from bronze.model import object_store
from bronze.model.locations import Place
from bronze.version import VERSION

_OBJECT = re.compile(r"([0-9a-f]{32})/([0-9]{20})-([0-9a-f]{64})\.json")
# The keys of the config that hints of the lake's store name, and those of the escrow's.
_KEYS = (
    ("[lake.options]", "[audit] escrow_options"),
    ("[lake] root", "[audit] escrow"),
    ("root and the endpoint under [lake]", "escrow and its endpoint under [audit]"),
    ("root and options under [lake]", "escrow and escrow_options under [audit]"),
)


@dataclass(frozen=True)
class StoredHead(Head):
    """A head in escrow, and when it was ``put`` there by the store's clock."""

    put: datetime = datetime.min


@dataclass(frozen=True)
class StoredHeads:
    """The heads in an escrow, by the ids of their logs, each log's by their numbers; ``deleted``
    are those that were deleted, but that their lock keeps.
    """

    where: str
    logs: Mapping[str, Sequence[StoredHead]] = field(default_factory=dict)
    deleted: int = 0

    def last(self, log_id: str) -> int:
        """The number of the newest record of a log that has a head here, 0 without any."""
        return max((head.sequence for head in self.logs.get(log_id, ())), default=0)


def put(settings: Settings, log_id: str, head: Head) -> None:
    """Puts a head into escrow, if the config has one; locked, if the config says so.

    Raises:
        ConfigError, SecretsUnreachable: a secret of the escrow's store cannot be read.
        LakeError, LakeUnreachable: it cannot be put or locked there.
    """
    place = settings.escrow
    if place is None or not head.sequence:
        return
    now = datetime.now(UTC)
    path = f"{log_id}/{head.sequence:020}-{head.hash}.json"
    document = {
        "format": 1,
        "log": log_id,
        "sequence": head.sequence,
        "hash": head.hash,
        "lake": settings.lake.root,
        "put_timestamp": now.isoformat(timespec="seconds"),
        "bronze_version": VERSION,
    }
    data = json.dumps(document, ensure_ascii=False).encode()
    lock = settings.audit.escrow_lock
    with _escrow_errors(place, "written"), suppress(AlreadyExistsError):
        if lock:
            object_lock.create_locked(place, path, data, now + timedelta(seconds=lock))
        else:
            store.create(place, path, data)


@contextmanager
def _escrow_errors(place: Place, what: str) -> Iterator[None]:
    """Errors of the store as those of the escrow; ``what`` was being done, such as "written"."""
    try:
        try:
            yield
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise store_error(place, what, error) from None
    except LakeError as error:
        message, hint = error.message, error.hint
        for before, after in (("The lake at", "The escrow at"), ("The store at", "The escrow at")):
            message = message.replace(f"{before} {place.url}", f"{after} {place.url}")
        for before, after in _KEYS:
            hint = hint.replace(before, after)
        raise type(error)(
            f"The audit log has no proof outside of the lake. {message}", hint=hint
        ) from None


def put_newest(settings: Settings) -> Head | None:
    """Puts the present head into escrow, and returns it; None without an escrow, or without a log.

    Raises:
        ConfigError, SecretsUnreachable, LakeError, LakeUnreachable: as `put` does, and if the log
            cannot be read.
    """
    if settings.escrow is None:
        return None
    state = log.read(audit_state.place(settings))
    head, log_id = audit_state.end(state), audit_state.log_id(state)
    if not head.sequence or not log_id:
        return None
    put(settings, log_id, head)
    return head


def stored_heads(settings: Settings) -> StoredHeads | None:
    """All heads in escrow; None if the config has none.

    Raises:
        ConfigError, SecretsUnreachable, LakeError, LakeUnreachable: they cannot be listed.
    """
    place = settings.escrow
    return _read(settings, place, "", "") if place else None


def heads_after(settings: Settings, log_id: str, sequence: int) -> Sequence[StoredHead]:
    """The heads in escrow of a log's records after one. Raises as `stored_heads` does."""
    place = settings.escrow
    if place is None:
        return ()
    # "." is before any letter that continues the number, and behind the "-" of this number's heads.
    after = f"{log_id}/{sequence:020}."
    return _read(settings, place, log_id, after).logs.get(log_id, ())


def _read(settings: Settings, place: Place, under: str, after: str) -> StoredHeads:
    logs: dict[str, list[StoredHead]] = {}
    deleted = 0
    with _escrow_errors(place, "listed"):
        objects = sorted(_objects(settings, place, under, after))
    for path, put_at, is_hidden in objects:
        match = _OBJECT.fullmatch(path)
        if match:
            logs.setdefault(match[1], []).append(StoredHead(int(match[2]), match[3], put_at))
            deleted += is_hidden
    return StoredHeads(place.url, logs, deleted)


def _objects(
    settings: Settings, place: Place, under: str, after: str
) -> Iterator[tuple[str, datetime, bool]]:
    """The paths of the objects in escrow, when each was put there, and whether it was deleted."""
    if settings.audit.escrow_lock and object_store.cloud_of(place.url) == "aws":
        for version in object_lock.versions(place, under, after):
            yield version.path, version.put, version.is_hidden
        return
    if not store.is_missing(place):
        with suppress(FileNotFoundError):
            for meta in store.objects(place, under, after or None):
                yield meta["path"], meta["last_modified"], False
