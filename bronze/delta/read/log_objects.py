"""The objects of a Delta log in its store: which of them tell the content, and their bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from obstore.exceptions import BaseError, NotFoundError

from bronze.delta import store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.model.locations import Place

LOG = "_delta_log"
"""The folder of a log, in that of its table."""

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
# They repeat what is in entries, or check it.
_REDUNDANT = re.compile(r"_last_checkpoint|\d{20}(\.\d{20}\.compacted\.json|\.crc)")
# Bytes of the entries and of the checkpoint: with more, deltalake takes less time and memory.
_LONGEST, _LARGEST_CHECKPOINT = 2 * 2**20, 256 * 2**10
_CONCURRENT = 8


class NotSimpleError(Exception):
    """A log that has to be read by deltalake."""


class LogObjects:
    """Reads the objects of a log.

    Raises:
        FileNotFoundError, obstore.exceptions.NotFoundError: there is no such object.
        LakeError, LakeUnreachable: the store does not answer.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotFoundError):
            raise
        except (BaseError, OSError) as error:
            raise store_error(self._place, "read", error) from None

    def listing(self, offset: str) -> Iterator[Mapping[str, Any]]:
        """The objects after an offset."""
        with self._store_errors():
            yield from store.objects(self._place, LOG, offset)

    def content(self, path: str) -> bytes:
        """The content of an object."""
        with self._store_errors():
            return store.get(self._place, path)

    def contents(self, paths: Sequence[str]) -> Iterable[bytes]:
        """The content of objects, several at a time where each takes a round trip."""
        if client.is_local(self._place) or len(paths) == 1:
            return map(self.content, paths)
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            return list(pool.map(self.content, paths))


def hinted_checkpoint(log: LogObjects) -> int:
    """The version of a checkpoint; 0 without a hint, as nothing is older."""
    try:
        return int(json.loads(log.content(f"{LOG}/_last_checkpoint"))["version"])
    except (FileNotFoundError, NotFoundError):
        return 0


def listed(log: LogObjects, oldest: int) -> tuple[dict[int, Any], dict[int, Any]]:
    """The objects of the entries and of the checkpoints from a version on, by their versions."""
    entries: dict[int, Any] = {}
    checkpoints: dict[int, Any] = {}
    # The offset is less than the name of the entry of that version.
    for found in log.listing(f"{LOG}/{oldest:020}"):
        name = found["path"].removeprefix(f"{LOG}/")
        if match := _ENTRY.fullmatch(name):
            entries[int(match[1])] = found
        elif match := _CHECKPOINT.fullmatch(name):
            checkpoints[int(match[1])] = found
        elif not _REDUNDANT.fullmatch(name):
            raise NotSimpleError(f"unknown object {name}")
    # Not every store lists from an offset.
    return _since(entries, oldest), _since(checkpoints, oldest)


def _since(objects: Mapping[int, Any], oldest: int) -> dict[int, Any]:
    return {version: found for version, found in objects.items() if version >= oldest}


def identity(found: Mapping[str, Any]) -> tuple[object, ...]:
    """What changes when an object is replaced."""
    if found["e_tag"]:
        return (tag(found["e_tag"]),)
    return found["last_modified"], found["size"]


def tag(e_tag: str) -> str:
    """The tag of an object's content, whoever says it."""
    # Azure's listings have it without quotation marks.
    return e_tag.strip('"')


def objects_to_read(
    log: LogObjects, oldest: int, latest: int | None, is_long: bool
) -> tuple[int | None, list[int], tuple[object, ...] | None]:
    """The version of the latest checkpoint, None without one; those of the entries after it; and
    the identity of the last entry, None without one.
    """
    entries, checkpoints = listed(log, oldest)
    if latest is not None:
        entries = {version: found for version, found in entries.items() if version <= latest}
        checkpoints = {version: o for version, o in checkpoints.items() if version <= latest}
    checkpoint = max(checkpoints, default=None)
    if checkpoint is None and oldest:
        raise NotSimpleError("the checkpoint is missing")
    first = 0 if checkpoint is None else checkpoint + 1
    versions = sorted(version for version in entries if version >= first)
    if versions != list(range(first, first + len(versions))):
        raise NotSimpleError("entries are missing")
    size = 0 if checkpoint is None else checkpoints[checkpoint]["size"]
    weight = sum(entries[v]["size"] for v in versions)
    if not is_long and (weight > _LONGEST or size > _LARGEST_CHECKPOINT):
        raise NotSimpleError("the log is long")
    return checkpoint, versions, identity(entries[versions[-1]]) if versions else None
