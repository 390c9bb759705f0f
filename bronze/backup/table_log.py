"""The objects that a table needs at a version, as its Delta log names them.

They are the newest checkpoint at or below the version, the entries from there on, and the files
that are live at any version from there on, their deletion vectors and their change data feed.

The format is that of the Delta transaction log protocol (PROTOCOL.md of delta-io/delta).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError, NotFoundError

from bronze.backup import manifest
from bronze.delta import files, store
from bronze.delta.storage.store_errors import store_error
from bronze.errors import FileDamaged, LakeError
from bronze.model.locations import Place

LOG = "_delta_log"
LAST_CHECKPOINT = f"{LOG}/_last_checkpoint"
_ENTRY = re.compile(rf"{LOG}/(\d{{20}})\.json")
_CHECKPOINT = re.compile(rf"{LOG}/(\d{{20}})\.checkpoint(?:\.(\d{{10}})\.(\d{{10}}))?\.parquet")
# A checkpoint is written every 20 commits; older ones are looked for where it could not be.
_NEAR = 100
_COLUMNS = (
    "add.path",
    "add.deletionVector.storageType",
    "add.deletionVector.pathOrInlineDv",
    "txn.appId",
    "txn.version",
    "metaData.id",
    "sidecar.path",
)
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_UUID_DIGITS = 20


@dataclass(frozen=True)
class TableLog:
    """A table at a version.

    Attributes:
        table_id: the id in its metadata.
        version, checkpoint: the version, and that of the checkpoint before it; None without one.
        positions: its app transactions of bronze.
        checkpoints: the paths of the files of the checkpoint.
        entries: the paths of the entries, in their order.
        live: the files that the version needs.
        older: those that only the versions since the checkpoint need, and change-feed files.
        entry: the SHA-256 of the last entry, "" if there is only a checkpoint.
        last_checkpoint: the content of ``_last_checkpoint``, "" without a checkpoint.
    """

    table_id: str
    version: int
    checkpoint: int | None
    positions: Mapping[str, int] = field(repr=False)
    checkpoints: tuple[str, ...]
    entries: tuple[str, ...]
    live: frozenset[str] = field(repr=False)
    older: frozenset[str] = field(repr=False)
    entry: str = ""
    last_checkpoint: str = ""


def latest_version(place: Place, known: int = 0) -> int | None:
    """The newest version of a table, None if there is no table.

    Args:
        place: the table.
        known: a version that it had earlier.

    Raises:
        LakeError, LakeUnreachable: the log cannot be listed.
    """
    entries, checkpoints = _listed(place, known)
    versions = [*entries, *checkpoints]
    if not versions and known:
        return latest_version(place)
    return max(versions, default=None)


def entry_hash(place: Place, version: int) -> str:
    """The SHA-256 of an entry, "" if there is none.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    try:
        return manifest.sha256(manifest.content(place, f"{LOG}/{version:020}.json"))
    except FileNotFoundError:
        return ""


def read(place: Place, version: int) -> TableLog:
    """The objects that a table needs at a version.

    Raises:
        FileDamaged: the log has no such version any more, or cannot be read.
        LakeError: the table has files outside of its folder.
        LakeUnreachable: the lake does not answer.
    """
    checkpoint, parts, entries = _log_objects(place, version)
    reading = _Reading(place)
    size = sum(reading.add_checkpoint(path) for path in parts)
    digest = ""
    for number, path in sorted(entries.items()):
        digest = reading.add_entry(path, is_after=checkpoint is None or number > checkpoint)
    if version not in entries:
        digest = ""
    hint = ""
    if checkpoint is not None:
        several = {"parts": len(parts)} if len(parts) > 1 else {}
        hint = json.dumps({"version": checkpoint, "size": size, **several})
    return TableLog(
        table_id=reading.table_id,
        version=version,
        checkpoint=checkpoint,
        positions=reading.positions,
        checkpoints=tuple(parts),
        entries=tuple(path for _, path in sorted(entries.items())),
        live=frozenset(reading.live_objects()),
        older=frozenset(reading.named - set(reading.live_objects())),
        entry=digest,
        last_checkpoint=hint,
    )


def _log_objects(place: Place, version: int) -> tuple[int | None, list[str], dict[int, str]]:
    """The newest checkpoint at or below a version, its files, and the entries from it on."""
    hint = _hinted(place)
    starts = [hint] if 0 < hint <= version else []
    for start in (*starts, max(0, version - _NEAR), 0):
        entries, checkpoints = _listed(place, start)
        checkpoint = max((number for number in checkpoints if number <= version), default=None)
        first = 0 if checkpoint is None else checkpoint + 1
        needed = range(first, version + 1)
        if (checkpoint is not None or start == 0) and all(number in entries for number in needed):
            begin = 0 if checkpoint is None else checkpoint
            kept = {n: path for n, path in entries.items() if begin <= n <= version}
            return checkpoint, checkpoints.get(begin, []) if checkpoint is not None else [], kept
    raise FileDamaged(
        f"Version {version} of the table at {place.url} cannot be copied: its log does not have all"
        " entries since a checkpoint.",
        hint="If entries are missing, restore them from a backup; `bronze verify --repair` repairs"
        " tables.",
    )


def _hinted(place: Place) -> int:
    try:
        return int(json.loads(manifest.content(place, LAST_CHECKPOINT))["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _listed(place: Place, start: int) -> tuple[dict[int, str], dict[int, list[str]]]:
    """The entries and the whole checkpoints from a version on, with their paths."""
    if store.is_missing(place, LOG):
        return {}, {}
    try:
        found = store.objects(place, LOG, f"{LOG}/{start:020}" if start else None)
    except (FileNotFoundError, NotFoundError):
        return {}, {}
    except (BaseError, OSError) as error:
        raise store_error(place, "read", error) from None
    entries: dict[int, str] = {}
    parts: dict[int, dict[int, list[str]]] = {}
    for path in (meta["path"] for meta in found):
        if match := _ENTRY.fullmatch(path):
            entries[int(match[1])] = path
        elif match := _CHECKPOINT.fullmatch(path):
            parts.setdefault(int(match[1]), {}).setdefault(int(match[3] or 1), []).append(path)
    whole = {
        version: sorted(next(paths for number, paths in sets.items() if len(paths) == number))
        for version, sets in parts.items()
        if any(len(paths) == number for number, paths in sets.items())
    }
    return entries, whole


class _Reading:
    """What a log says, read from a checkpoint on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._live: dict[str, str] = {}
        self.named: set[str] = set()
        self.positions: dict[str, int] = {}
        self.table_id = ""

    def live_objects(self) -> Iterator[str]:
        """The live files and their deletion vectors."""
        yield from self._live
        yield from filter(None, self._live.values())

    def add_checkpoint(self, path: str) -> int:
        """Reads a file of the checkpoint; how many actions it has."""
        try:
            parquet = pq.ParquetFile(store.reader(self._place, path), pre_buffer=False)
            leaves = {parquet.schema.column(i).path for i in range(len(parquet.schema))}
            columns = [name for name in _COLUMNS if name in leaves]
            for group in range(parquet.num_row_groups):
                self._add_rows(parquet.read_row_group(group, columns, use_threads=False))
            return int(parquet.metadata.num_rows)
        except (pa.ArrowException, BaseError, OSError) as error:
            raise store.damage_error(
                self._place, path, f"cannot be read: {type(error).__name__}"
            ) from None

    def _add_rows(self, rows: pa.Table) -> None:
        for name in rows.column_names:
            for value in rows[name].drop_null().to_pylist():
                if name == "add" and value["path"] is not None:
                    self._add_file(value)
                elif name == "txn" and value["appId"] is not None:
                    self._add_position(value)
                elif name == "metaData" and value["id"] is not None:
                    self.table_id = value["id"]
                elif name == "sidecar" and value["path"] is not None:
                    raise LakeError(
                        f"The table at {self._place.url} has checkpoints with sidecars, which"
                        " bronze does not copy.",
                        hint="Unset the table property delta.checkpointPolicy.",
                    )

    def add_entry(self, path: str, *, is_after: bool) -> str:
        """Reads an entry; its SHA-256. One that is not after the checkpoint is in it already."""
        try:
            data = manifest.content(self._place, path)
            actions = [json.loads(line) for line in data.splitlines() if line.strip()]
            self._add_actions(actions, is_after)
        except FileNotFoundError:
            raise store.damage_error(self._place, path, "is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise store.damage_error(self._place, path, "is not an entry of a log") from None
        return hashlib.sha256(data).hexdigest()

    def _add_actions(self, actions: Iterable[Mapping[str, Any]], is_after: bool) -> None:
        by_kind: dict[str, list[Any]] = {}
        for action in actions:
            for kind, value in action.items():
                by_kind.setdefault(kind, []).append(value)
        for feed in by_kind.get("cdc", ()):
            self.named.add(self._path(feed["path"]))
        if not is_after:
            return
        for removed in by_kind.get("remove", ()):
            self._live.pop(self._path(removed["path"]), None)
        for added in by_kind.get("add", ()):
            self._add_file(added)
        for position in by_kind.get("txn", ()):
            self._add_position(position)
        for metadata in by_kind.get("metaData", ()):
            self.table_id = metadata["id"]

    def _add_file(self, added: Mapping[str, Any]) -> None:
        path = self._path(added["path"])
        vector = _vector_path(added.get("deletionVector"))
        self._live[path] = vector
        self.named |= {path, vector} - {""}

    def _add_position(self, value: Mapping[str, Any]) -> None:
        if value["appId"].startswith("bronze/"):
            self.positions[value["appId"]] = int(value["version"])

    def _path(self, path: str) -> str:
        if files.is_outside(path):
            raise LakeError(
                f"The table at {self._place.url} has files outside of its folder, which bronze does"
                " not copy.",
                hint="Such a table is a shallow clone: make a deep one.",
            )
        return unquote(path)


def _vector_path(vector: Mapping[str, Any] | None) -> str:
    """The file of a deletion vector, "" if it is in the log itself.

    Raises:
        ValueError: it is not a deletion vector.
    """
    if not vector or vector.get("storageType") != "u":
        return ""
    text = vector["pathOrInlineDv"]
    prefix, digits = text[:-_UUID_DIGITS], text[-_UUID_DIGITS:]
    data = b"".join(
        struct.pack(">I", _number(digits[start : start + 5])) for start in range(0, len(digits), 5)
    )
    name = f"deletion_vector_{UUID(bytes=data)}.bin"
    return f"{prefix}/{name}" if prefix else name


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 85 + _Z85.index(digit)
    return number
