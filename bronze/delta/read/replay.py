"""Reads the content of a Delta log by replaying its entries.

`content_of` replays the log itself where that is simple: its entries since the last checkpoint are
read once, and have everything. deltalake takes several times as long, and reads the log again for
each app transaction. deltalake reads all other logs: long ones, damaged ones, checkpoints in
several parts, and features that bronze does not know. Of a log in an object store that this process
has read before, only new entries are read (`bronze.delta.read.remembered`).

The rules are those of the Delta transaction log protocol (PROTOCOL.md of delta-io/delta), "Action
Reconciliation": the newest action about a file, a table or an application counts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import TableNotFoundError
from obstore.exceptions import NotFoundError

from bronze.delta import store
from bronze.delta.read import deletion_vectors, log_objects, remembered
from bronze.delta.read.added_files import added_file
from bronze.delta.read.content import LogContent, TableMetadata, TableProtocol, opened
from bronze.delta.read.log_objects import LOG, LogObjects, NotSimpleError
from bronze.delta.schema import DOMAINS, NTZ, VECTORS, kinds
from bronze.delta.storage import client
from bronze.model.files import DeletionVector, StoredFile
from bronze.model.locations import Place

Actions = list[dict[str, Any]]
_FileKey = tuple[str, DeletionVector | None]

# The last version of readers with no other features than the named ones.
_NAMED_FEATURES = 3
_FROM_CHECKPOINT = ("txn", "metaData", "protocol", "domainMetadata", "add")
# Since when app transactions expire.
_EXPIRY = "delta.setTransactionRetentionDuration"

_UNUSUAL = (
    NotSimpleError,
    NotFoundError,
    pa.ArrowException,
    # Of objects that are missing, or of pyarrow.
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    NotImplementedError,
)
"""The errors of logs that `content_of` leaves to deltalake. Errors of the store are not among them:
deltalake would wait for it once more."""


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
    domains: Mapping[str, str] = field(default_factory=dict, repr=False)

    def transaction(self, name: str) -> int | None:
        """The version of an app transaction, None if there is none."""
        return self.transactions.get(name)

    def files(self) -> tuple[StoredFile, ...]:
        """All data files, those of the latest commit first.

        Raises:
            LakeError: a column is of a type that bronze never writes.
            ValueError: statistics are nested too deeply.
        """
        columns = dict(kinds(self.metadata.schema))
        try:
            return tuple(
                added_file(add, self.metadata.partition_columns, columns) for add in self.adds
            )
        except RecursionError:
            # They make deltalake overflow the stack, which ends the process.
            raise ValueError("the statistics of a file are nested too deeply") from None
        except _UNUSUAL:
            if VECTORS in self.protocol.reader_features:
                raise
            # deltalake does not have the providers of clustering.
            providers = {add["path"]: add.get("clusteringProvider") or "" for add in self.adds}
            return tuple(
                replace(file, provider=providers.get(file.path, ""))
                for file in opened(self.place, self.version).files()
            )

    def paths(self) -> Sequence[str]:
        """The paths of all data files and deletion vectors."""
        vectors = filter(None, map(deletion_vectors.vector_of, self.adds))
        files = filter(None, map(deletion_vectors.path_of, vectors))
        return [*(add["path"] for add in self.adds), *files]

    def add_of(self, file: StoredFile) -> Mapping[str, Any]:
        """The ``add`` action of one of the files.

        Raises:
            LookupError: there is no such file.
        """
        return self._adds_by_key[file.path, file.vector]

    @cached_property
    def _adds_by_key(self) -> Mapping[_FileKey, Mapping[str, Any]]:
        return {_key(add): add for add in self.adds}

    def is_latest(self) -> bool:
        """Whether this is certain to be the present content, by one listing of the last entries.

        Raises:
            LakeError, LakeUnreachable: the store does not answer.
        """
        if self.last is None or store.is_missing(self.place, LOG):
            return False
        try:
            entries, _ = log_objects.listed(LogObjects(self.place), self.version)
        except _UNUSUAL:
            return False
        found = {version: log_objects.identity(entry) for version, entry in entries.items()}
        return found == {self.version: self.last}


def content_of(place: Place, version: int | None = None) -> LogContent:
    """The content of a log, as of a version or the latest one.

    Raises:
        deltalake.exceptions.TableNotFoundError: there is no table.
        deltalake.exceptions.DeltaError, OSError, ValueError: the log cannot be read.
        LakeError, LakeUnreachable: the store does not answer.
    """
    if version is not None:
        return _content_at(place, version)
    content = _continued(place) or _content_at(place)
    remembered.put(place, content if isinstance(content, Replayed) else None)
    return content


def _content_at(place: Place, version: int | None = None) -> LogContent:
    """The content as it is read from the log alone."""
    try:
        return _replayed(place, version)
    except _UNUSUAL:
        return _opened(place, version)


def _opened(place: Place, version: int | None) -> LogContent:
    """The content of a log that is not simple."""
    content = opened(place, version)
    return replayed(place, version) if _is_beyond_deltalake(content.protocol) else content


def _is_beyond_deltalake(protocol: TableProtocol) -> bool:
    """Whether a log has what deltalake does not tell: which rows of a file are deleted, or domains
    in a table that bronze may write.
    """
    has_domains = DOMAINS in protocol.writer_features and _is_plain(protocol)
    return VECTORS in protocol.reader_features or has_domains


def replayed(place: Place, version: int | None = None) -> Replayed:
    """The content of a log, however long it is, with all that its actions say.

    Raises:
        OSError, ValueError: the log cannot be read.
        LakeError, LakeUnreachable: the store does not answer.
    """
    try:
        return _replayed(place, version, is_long=True)
    except NotSimpleError as error:
        raise ValueError(f"bronze cannot replay it: {error}") from None


def remember_commit(
    place: Place, version: int, actions: Sequence[Mapping[str, Any]], e_tag: str | None
) -> None:
    """Remembers the content of a log after a commit of this process."""
    if client.is_local(place):
        return
    before = remembered.get(place) if version else None
    content = None
    if (before is None and version == 0) or (before is not None and before.version == version - 1):
        last = (log_objects.tag(e_tag),) if e_tag else None
        with suppress(*_UNUSUAL):
            layer = [dict(action) for action in actions]
            content = replace(_reconciled(place, version, [layer], before), last=last)
    remembered.put(place, content)


def _continued(place: Place) -> Replayed | None:
    """The content that was remembered, with the entries since; None if it has to be read anew."""
    known = remembered.get(place)
    if known is None or known.last is None:
        return None
    with suppress(*_UNUSUAL):
        log = LogObjects(place)
        entries, _ = log_objects.listed(log, known.version)
        versions = sorted(version for version in entries if version >= known.version)
        if versions != list(range(known.version, known.version + len(versions))) or not versions:
            return None
        if log_objects.identity(entries.pop(known.version)) != known.last:
            return None
        if not entries:
            return known
        newest_first = [f"{LOG}/{version:020}.json" for version in reversed(versions[1:])]
        layers = [_actions(data) for data in log.contents(newest_first)]
        last = log_objects.identity(entries[versions[-1]])
        return replace(_reconciled(place, versions[-1], layers, known), last=last)
    return None


def _replayed(place: Place, latest: int | None = None, is_long: bool = False) -> Replayed:
    """Replays a log, up to a version if one is given. Raises one of ``_UNUSUAL`` if deltalake has
    to read it: a long one, unless ``is_long`` says that it is to be replayed all the same.
    """
    if store.is_missing(place, LOG):
        raise FileNotFoundError(LOG)
    log = LogObjects(place)
    oldest = log_objects.hinted_checkpoint(log) if latest is None else 0
    checkpoint, entries, last = log_objects.objects_to_read(log, oldest, latest, is_long)
    version = entries[-1] if entries else checkpoint
    if version is None:
        raise TableNotFoundError(f"no entry in {LOG}")
    newest_first = [f"{LOG}/{version:020}.json" for version in reversed(entries)]
    if checkpoint is not None:
        newest_first.append(f"{LOG}/{checkpoint:020}.checkpoint.parquet")
    contents = log.contents(newest_first)
    layers = [
        _actions(data) if name.endswith(".json") else _checkpoint_actions(data)
        for name, data in zip(newest_first, contents, strict=True)
    ]
    return replace(_reconciled(place, version, layers), last=last)


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
        raise NotSimpleError("the checkpoint has several files")
    table = parquet.read([name for name in _FROM_CHECKPOINT if name in names], use_threads=False)
    actions: Actions = []
    for name in table.column_names:
        for value in table[name].drop_null().to_pylist():
            if name == "add" and value["stats"] is None:
                raise NotSimpleError("statistics are in columns of their own")
            actions.append({name: value})
    return actions


def _reconciled(
    place: Place, version: int, layers: Iterable[Actions], before: Replayed | None = None
) -> Replayed:
    """The content of actions, the latest layer of which comes first, on top of an earlier one."""
    adds: list[Mapping[str, Any]] = []
    seen: set[_FileKey] = set()
    transactions: dict[str, int] = {}
    domains: dict[str, str | None] = {}
    metadata = protocol = None
    for actions in layers:
        keys: list[_FileKey] = []
        for action in actions:
            ((kind, value),) = action.items()
            if kind in ("add", "remove"):
                key = _key(value)
                keys.append(key)
                if kind == "add" and key not in seen:
                    adds.append(value)
            elif kind == "txn":
                transactions.setdefault(value["appId"], int(value["version"]))
            elif kind == "domainMetadata":
                text = None if value.get("removed") else value["configuration"]
                domains.setdefault(value["domain"], text)
            elif kind == "metaData":
                metadata = metadata or _metadata(value)
            elif kind == "protocol":
                protocol = protocol or _protocol(value)
        if len(set(keys)) != len(keys):
            raise NotSimpleError("an entry has two actions of a file")
        seen.update(keys)
    if before is not None:
        adds += [add for add in before.adds if _key(add) not in seen]
        transactions = {**before.transactions, **transactions}
        domains = {**before.domains, **domains}
        metadata, protocol = metadata or before.metadata, protocol or before.protocol
    if metadata is None or protocol is None:
        raise NotSimpleError("the log has no table")
    if not _is_plain(protocol) or _EXPIRY in metadata.configuration:
        raise NotSimpleError("the table has other features")
    present = {name: text for name, text in domains.items() if text is not None}
    return Replayed(
        place, version, metadata, protocol, adds, transactions=transactions, domains=present
    )


def _key(action: Mapping[str, Any]) -> _FileKey:
    """What identifies a file of an ``add`` or a ``remove`` action."""
    return action["path"], deletion_vectors.vector_of(action)


def _is_plain(protocol: TableProtocol) -> bool:
    """Whether the files and rows of a table are what its ``add`` actions say; with deletion vectors
    too, as these are parts of the actions.
    """
    return protocol.reader == 1 or (
        protocol.reader == _NAMED_FEATURES and protocol.reader_features <= {NTZ, VECTORS}
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
