"""The content of a Delta log: the metadata, protocol, files and app transactions of a table.

`content_of` replays the log itself where that is simple: its entries since the last checkpoint are
read once, and have everything. deltalake takes several times as long, and reads the log again for
each app transaction. `opened` is the same by deltalake, for all other logs: long ones, damaged
ones, checkpoints in several parts, and features that bronze does not know.

The rules are those of the Delta transaction log protocol (PROTOCOL.md of delta-io/delta), "Action
Reconciliation": the newest action about a file, a table or an application counts.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Protocol

import obstore
import polars as pl
import pyarrow.parquet as pq
from deltalake import DeltaTable
from obstore.exceptions import BaseError

from bronze.delta import store
from bronze.delta.schema import NTZ, kinds
from bronze.delta.statistics import SAFE
from bronze.errors import BronzeError
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Actions = list[dict[str, Any]]

_LOG = "_delta_log"
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
# They repeat what is in entries, or check it.
_REDUNDANT = re.compile(r"_last_checkpoint|\d{20}(\.\d{20}\.compacted\.json|\.crc)")
# Bytes of the entries and of the checkpoint: with more, deltalake takes less time and memory.
_LONGEST, _LARGEST_CHECKPOINT = 2 * 2**20, 256 * 2**10
_CONCURRENT = 8
# The last version of readers with no other features than the named ones.
_NAMED_FEATURES = 3
_FROM_CHECKPOINT = ("txn", "metaData", "protocol", "add")
# Since when app transactions expire.
_EXPIRY = "delta.setTransactionRetentionDuration"
# Types of partition columns whose values are the same text in the log as everywhere.
_PLAIN = ("string", "date", "short", "int", "long")

_UNUSUAL = (
    BronzeError,
    BaseError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
)
"""The errors of logs that `content_of` leaves to deltalake."""


@dataclass(frozen=True)
class TableMetadata:
    """The metadata of a table; ``schema`` is Delta's JSON."""

    id: str
    name: str | None
    description: str | None
    schema: str
    partition_columns: tuple[str, ...]
    configuration: Mapping[str, str]
    created_time: int | None


@dataclass(frozen=True)
class TableProtocol:
    """The versions and features that readers and writers of a table have to support."""

    reader: int
    writer: int
    reader_features: frozenset[str]
    writer_features: frozenset[str]


class LogContent(Protocol):
    """What a log says about a table at a version."""

    @property
    def version(self) -> int:
        """The version."""

    @property
    def metadata(self) -> TableMetadata:
        """The metadata."""

    @property
    def protocol(self) -> TableProtocol:
        """The protocol."""

    def transaction(self, name: str) -> int | None:
        """The version of an app transaction, None if there is none."""

    def files(self) -> tuple[StoredFile, ...]:
        """All data files, those of the latest commit first."""

    def paths(self) -> Sequence[str]:
        """The paths of all data files, as `StoredFile` has them."""


# By replaying


@dataclass(frozen=True)
class Replayed:
    """The content of a log whose entries were replayed; ``adds`` are its ``add`` actions, ``last``
    identifies the object of the last entry, None if only a checkpoint was there.
    """

    place: Place
    version: int
    metadata: TableMetadata
    protocol: TableProtocol
    adds: Sequence[Mapping[str, Any]] = field(repr=False)
    transactions: Mapping[str, int] = field(repr=False)
    last: tuple[object, ...] | None = None

    def transaction(self, name: str) -> int | None:
        """The version of an app transaction, None if there is none."""
        return self.transactions.get(name)

    def files(self) -> tuple[StoredFile, ...]:
        """All data files, those of the latest commit first."""
        columns = dict(kinds(self.metadata.schema))
        try:
            return tuple(_file(add, self.metadata.partition_columns, columns) for add in self.adds)
        except _UNUSUAL:
            return opened(self.place, self.version).files()

    def paths(self) -> Sequence[str]:
        """The paths of all data files."""
        return [add["path"] for add in self.adds]

    def is_latest(self) -> bool:
        """Whether this is certain to be the present content, by one listing of the last entries."""
        if self.last is None or store.is_missing(self.place, _LOG):
            return False
        try:
            entries, _ = _listed(store.open_store(self.place), self.version)
        except _UNUSUAL:
            return False
        found = {version: _identity(entry) for version, entry in entries.items()}
        return found == {self.version: self.last}


def content_of(place: Place) -> LogContent:
    """The present content of a log.

    Raises:
        deltalake.exceptions.TableNotFoundError: there is no table.
        deltalake.exceptions.DeltaError, OSError, ValueError: the log cannot be read.
    """
    try:
        return _replayed(place)
    except _UNUSUAL:
        return opened(place)


def _replayed(place: Place) -> Replayed:
    """Replays a log. Raises one of ``_UNUSUAL`` if deltalake has to read it."""
    if store.is_missing(place, _LOG):
        raise FileNotFoundError(_LOG)
    log = store.open_store(place)
    hint = _hinted_checkpoint(log)
    checkpoint, entries, last = _objects_to_read(log, hint)
    newest_first = [f"{_LOG}/{version:020}.json" for version in reversed(entries)]
    layers: list[Actions] = [_actions(data) for data in _contents(place, log, newest_first)]
    if checkpoint is not None:
        name = f"{_LOG}/{checkpoint:020}.checkpoint.parquet"
        layers.append(_checkpoint_actions(bytes(obstore.get(log, name).bytes())))
    version = entries[-1] if entries else checkpoint
    if version is None:
        raise FileNotFoundError(_LOG)
    return replace(_reconciled(place, version, layers), last=last)


def _hinted_checkpoint(log: Any) -> int:
    """The version of a checkpoint; 0 without a hint, as nothing is older."""
    try:
        return int(
            json.loads(bytes(obstore.get(log, f"{_LOG}/_last_checkpoint").bytes()))["version"]
        )
    except FileNotFoundError:
        return 0


def _listed(log: Any, oldest: int) -> tuple[dict[int, Any], dict[int, Any]]:
    """The objects of the entries and of the checkpoints from a version on, by their versions."""
    entries: dict[int, Any] = {}
    checkpoints: dict[int, Any] = {}
    # The offset is less than the name of the entry of that version.
    for chunk in obstore.list(log, _LOG, offset=f"{_LOG}/{oldest:020}", chunk_size=1000):
        for found in chunk:
            name = found["path"].removeprefix(f"{_LOG}/")
            if match := _ENTRY.fullmatch(name):
                entries[int(match[1])] = found
            elif match := _CHECKPOINT.fullmatch(name):
                checkpoints[int(match[1])] = found
            elif not _REDUNDANT.fullmatch(name):
                raise ValueError(f"unknown object {name}")
    return entries, checkpoints


def _identity(found: Mapping[str, Any]) -> tuple[object, ...]:
    """What changes when an object is replaced."""
    return found["e_tag"], found["last_modified"], found["size"]


def _objects_to_read(
    log: Any, oldest: int
) -> tuple[int | None, list[int], tuple[object, ...] | None]:
    """The version of the latest checkpoint, None without one; those of the entries after it; and
    the identity of the last entry, None without one.
    """
    entries, checkpoints = _listed(log, oldest)
    checkpoint = max(checkpoints, default=None)
    if checkpoint is None and oldest:
        raise ValueError("the checkpoint is missing")
    first = 0 if checkpoint is None else checkpoint + 1
    versions = sorted(version for version in entries if version >= first)
    if versions != list(range(first, first + len(versions))):
        raise ValueError("entries are missing")
    size = 0 if checkpoint is None else checkpoints[checkpoint]["size"]
    if sum(entries[v]["size"] for v in versions) > _LONGEST or size > _LARGEST_CHECKPOINT:
        raise ValueError("the log is long")
    return checkpoint, versions, _identity(entries[versions[-1]]) if versions else None


def _contents(place: Place, log: Any, paths: Sequence[str]) -> Iterable[bytes]:
    """The content of objects, several at a time where each takes a round trip."""

    def content(path: str) -> bytes:
        return bytes(obstore.get(log, path).bytes())

    if store.is_local(place) or len(paths) == 1:
        return map(content, paths)
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        return list(pool.map(content, paths))


def _actions(entry: bytes) -> Actions:
    actions = [json.loads(line) for line in entry.splitlines() if line.strip()]
    if not actions:
        raise ValueError("an entry is empty")
    return actions


def _checkpoint_actions(data: bytes) -> Actions:
    """The actions of a checkpoint in one file."""
    parquet = pq.ParquetFile(io.BytesIO(data))
    names = parquet.schema_arrow.names
    if "sidecar" in names and parquet.read(["sidecar"])["sidecar"].drop_null():
        raise ValueError("the checkpoint has several files")
    table = parquet.read([name for name in _FROM_CHECKPOINT if name in names], use_threads=False)
    actions: Actions = []
    for name in table.column_names:
        for value in table[name].drop_null().to_pylist():
            if name == "add" and value["stats"] is None:
                raise ValueError("statistics are in columns of their own")
            actions.append({name: value})
    return actions


def _reconciled(place: Place, version: int, layers: Iterable[Actions]) -> Replayed:
    """The content of actions; the latest layer comes first."""
    adds: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    transactions: dict[str, int] = {}
    metadata = protocol = None
    for actions in layers:
        paths: list[str] = []
        for action in actions:
            ((kind, value),) = action.items()
            if kind in ("add", "remove"):
                if value.get("deletionVector"):
                    raise ValueError("a file has deleted rows")
                paths.append(value["path"])
                if kind == "add" and value["path"] not in seen:
                    adds.append(value)
            elif kind == "txn":
                transactions.setdefault(value["appId"], int(value["version"]))
            elif kind == "metaData":
                metadata = metadata or _metadata(value)
            elif kind == "protocol":
                protocol = protocol or _protocol(value)
        if len(set(paths)) != len(paths):
            raise ValueError("an entry has two actions of a file")
        seen.update(paths)
    if metadata is None or protocol is None:
        raise ValueError("the log has no table")
    if not _is_plain(protocol) or _EXPIRY in metadata.configuration:
        raise ValueError("the table has other features")
    return Replayed(place, version, metadata, protocol, adds, transactions)


def _is_plain(protocol: TableProtocol) -> bool:
    """Whether the files and rows of a table are what its ``add`` actions say."""
    return protocol.reader == 1 or (
        protocol.reader == _NAMED_FEATURES and protocol.reader_features <= {NTZ}
    )


def _metadata(value: Mapping[str, Any]) -> TableMetadata:
    return TableMetadata(
        id=value["id"],
        name=value.get("name"),
        description=value.get("description"),
        schema=value["schemaString"],
        partition_columns=tuple(value["partitionColumns"] or ()),
        configuration=dict(value.get("configuration") or ()),
        created_time=value.get("createdTime"),
    )


def _protocol(value: Mapping[str, Any]) -> TableProtocol:
    return TableProtocol(
        reader=int(value["minReaderVersion"]),
        writer=int(value["minWriterVersion"]),
        reader_features=frozenset(value.get("readerFeatures") or ()),
        writer_features=frozenset(value.get("writerFeatures") or ()),
    )


def _file(
    add: Mapping[str, Any], partition_columns: Sequence[str], columns: Mapping[str, DeltaType]
) -> StoredFile:
    """The file of an ``add`` action."""
    stats = json.loads(add["stats"]) if add.get("stats") else {}
    low, high = (stats.get(side) or {} for side in ("minValues", "maxValues"))
    values = dict(add["partitionValues"])
    if any(columns[name].name not in _PLAIN for name in partition_columns):
        raise ValueError("partition values have to be read by their type")
    rows = stats.get("numRecords")
    return StoredFile(
        path=add["path"],
        size=int(add["size"]),
        rows=-1 if rows is None else int(rows),
        low=tuple(_bounds(low, columns)),
        high=tuple((name, widest(bound)) for name, bound in _bounds(high, columns)),
        partition=tuple((name, values.get(name) or None) for name in partition_columns),
    )


def _bounds(
    bounds: Mapping[str, Any], columns: Mapping[str, DeltaType]
) -> Iterable[tuple[str, Any]]:
    """The bounds of columns whose statistics can be trusted, in the order of the columns."""
    for name, kind in columns.items():
        if kind.name in SAFE and bounds.get(name) is not None:
            yield name, _bound(kind.name, bounds[name])


def _bound(kind: str, value: Any) -> Any:
    """A value of JSON as one of a type.

    Raises:
        ValueError, TypeError: it is none.
    """
    if kind == "date":
        return date.fromisoformat(value)
    if kind in ("timestamp", "timestamp_ntz"):
        moment = datetime.fromisoformat(value)
        if (moment.tzinfo is None) != (kind == "timestamp_ntz"):
            raise ValueError("the time zone is missing, or too much")
        return moment.astimezone(UTC) if moment.tzinfo else moment
    expected = {"string": str, "boolean": bool}.get(kind, int)
    if type(value) is not expected:
        raise TypeError(f"{kind} is not {expected}")
    return value


def widest(bound: Any) -> Any:
    """An upper bound that other writers may have cut to milliseconds."""
    if not isinstance(bound, datetime) or bound.microsecond % 1000:
        return bound
    return bound.replace(microsecond=bound.microsecond + 999)


# By deltalake


@dataclass(frozen=True)
class Opened:
    """The content of a log that deltalake has read."""

    table: DeltaTable

    @cached_property
    def version(self) -> int:
        """The version."""
        return self.table.version()

    @cached_property
    def metadata(self) -> TableMetadata:
        """The metadata."""
        metadata = self.table.metadata()
        return TableMetadata(
            id=str(metadata.id),
            name=metadata.name,
            description=metadata.description,
            schema=self.table.schema().to_json(),
            partition_columns=tuple(metadata.partition_columns),
            configuration=dict(metadata.configuration),
            created_time=metadata.created_time,
        )

    @cached_property
    def protocol(self) -> TableProtocol:
        """The protocol."""
        protocol = self.table.protocol()
        return TableProtocol(
            protocol.min_reader_version,
            protocol.min_writer_version,
            frozenset(protocol.reader_features or ()),
            frozenset(protocol.writer_features or ()),
        )

    def transaction(self, name: str) -> int | None:
        """The version of an app transaction, None if there is none."""
        found: int | None = self.table.transaction_version(name)
        return found

    def files(self) -> tuple[StoredFile, ...]:
        """All data files, those of the latest commit first."""
        safe = [name for name, kind in kinds(self.metadata.schema) if kind.name in SAFE]
        adds: Any = pl.DataFrame(self.table.get_add_actions(flatten=False))
        return tuple(_opened_file(row, safe) for row in adds.iter_rows(named=True))

    def paths(self) -> Sequence[str]:
        """The paths of all data files."""
        adds: Any = self.table.get_add_actions(flatten=False)
        return [str(path) for path in adds["path"].to_pylist()]


def opened(place: Place, version: int | None = None) -> Opened:
    """The content of a log as deltalake reads it. Raises as `content_of` does."""
    options = store.options(place) or None
    return Opened(DeltaTable(place.url, version=version, storage_options=options))


def _opened_file(row: Mapping[str, Any], safe: Sequence[str]) -> StoredFile:
    low, high = (row.get(side) or {} for side in ("min", "max"))
    partition = row.get("partition") or {}
    return StoredFile(
        path=row["path"],
        size=row["size_bytes"],
        rows=-1 if row["num_records"] is None else row["num_records"],
        low=tuple((n, low[n]) for n in safe if low.get(n) is not None),
        high=tuple((n, widest(high[n])) for n in safe if high.get(n) is not None),
        partition=tuple((n, None if v is None else str(v)) for n, v in partition.items()),
    )
