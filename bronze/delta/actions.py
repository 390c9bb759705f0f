"""The actions that an entry of the Delta log consists of, as dictionaries.

The format is that of https://github.com/delta-io/delta/blob/master/PROTOCOL.md; ``now`` is in
milliseconds since 1970.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from bronze.delta.log import ENGINE, Action, State
from bronze.delta.read import clustering, deletion_vectors
from bronze.delta.read.content import TableProtocol
from bronze.delta.read.deletion_vectors import described
from bronze.delta.schema import column_comments, delta_schema, protocol
from bronze.model.columns import DeltaType
from bronze.model.files import DeletionVector, StoredFile, WrittenFile

# The characters of a path that are not percent-encoded, beside letters and digits.
_PLAIN = "/=-_.~"


def commit_info(
    operation: str,
    parameters: Mapping[str, str],
    is_blind_append: bool,
    extra: Mapping[str, str],
    now: int,
) -> Action:
    """The action that describes the commit; ``extra`` are fields beside those of Delta."""
    return {
        "commitInfo": {
            "timestamp": now,
            "operation": operation,
            "operationParameters": dict(parameters),
            "isBlindAppend": is_blind_append,
            "engineInfo": ENGINE,
            # No two entries are equal, so that a writer recognises its own.
            "txnId": str(uuid4()),
            **extra,
        }
    }


def transactions(values: Sequence[tuple[str, int]], now: int) -> list[Action]:
    """The app transactions that set these values."""
    return [
        {"txn": {"appId": name, "version": value, "lastUpdated": now}} for name, value in values
    ]


def table_actions(
    state: State | None,
    columns: tuple[tuple[str, DeltaType], ...],
    partition: str | None,
    properties: Mapping[str, str],
    now: int,
) -> Iterator[Action]:
    """The protocol and metadata of a table, as far as they change; ``properties`` are added to
    those of ``state``.
    """
    if state is None:
        needed = protocol(columns, properties)
        yield {"protocol": needed}
        yield {
            "metaData": {
                "id": str(uuid4()),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": delta_schema(columns),
                "partitionColumns": [partition] if partition else [],
                "configuration": dict(properties),
                "createdTime": now,
            }
        }
        return
    configuration = {**state.properties, **properties}
    if columns == state.columns and configuration == state.properties:
        return
    needed = protocol(columns, configuration)
    if {*needed.get("readerFeatures", ())} - state.content.protocol.reader_features:
        yield {"protocol": _joined(state.content.protocol, needed)}
    metadata = state.content.metadata
    yield {
        "metaData": {
            "id": metadata.id,
            "name": metadata.name,
            "description": metadata.description,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": delta_schema(columns, column_comments(metadata.schema)),
            "partitionColumns": list(metadata.partition_columns),
            "configuration": configuration,
            "createdTime": metadata.created_time,
        }
    }


def clustering_actions(state: State, columns: Sequence[str]) -> Iterator[Action]:
    """The protocol, as far as it changes, and the domain of liquid clustering by these columns."""
    needed = protocol(state.columns, state.properties)
    needed["writerFeatures"] = [*needed["writerFeatures"], *clustering.FEATURES]
    if not {*needed["writerFeatures"]} <= state.content.protocol.writer_features:
        yield {"protocol": _joined(state.content.protocol, needed)}
    domain = {"domain": clustering.DOMAIN, "configuration": clustering.configuration(columns)}
    yield {"domainMetadata": {**domain, "removed": False}}


def _joined(protocol: TableProtocol, needed: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol with the features that a table has and those that it needs."""
    readers, writers = needed.get("readerFeatures", ()), needed["writerFeatures"]
    readers = [*readers, *sorted(protocol.reader_features - {*readers})]
    return {
        "minReaderVersion": max(protocol.reader, needed["minReaderVersion"]),
        "minWriterVersion": needed["minWriterVersion"],
        **({"readerFeatures": readers} if readers else {}),
        "writerFeatures": [*writers, *sorted(protocol.writer_features - {*writers})],
    }


def add(file: WrittenFile, is_data: bool, now: int, provider: str = "") -> Action:
    """The action that adds a data file; ``is_data`` is false if rows only moved, ``provider`` the
    implementation of liquid clustering that has clustered it.
    """
    return {
        "add": {
            "path": quote(file.path, safe=_PLAIN),
            "partitionValues": dict(file.partition),
            "size": file.size,
            "modificationTime": now,
            "dataChange": is_data,
            "stats": file.stats,
            **({"clusteringProvider": provider} if provider else {}),
        }
    }


def add_again(known: Mapping[str, Any], vector: DeletionVector, now: int) -> Action:
    """The action that adds a data file of the table again, with another deletion vector; ``known``
    is its ``add`` action.
    """
    stats = {**json.loads(known["stats"]), "tightBounds": False}
    return _repeated(
        known,
        modificationTime=now,
        dataChange=True,
        stats=json.dumps(stats, ensure_ascii=False),
        deletionVector=described(vector),
    )


def add_described(known: Mapping[str, Any], stats: str, provider: str) -> Action:
    """The action that adds a data file of the table again, with other statistics and another
    ``provider``; ``known`` is its ``add`` action.
    """
    named = {"clusteringProvider": provider} if provider else {}
    return _repeated(known, dataChange=False, stats=stats, **named)


def _repeated(known: Mapping[str, Any], **fields: Any) -> Action:
    """An ``add`` action with other fields. Maps that come from a checkpoint are lists of pairs."""
    values = {name: value for name, value in known.items() if value is not None}
    maps = {n: dict(values[n]) for n in ("partitionValues", "tags") if n in values}
    vector = deletion_vectors.vector_of(known)
    marked = {"deletionVector": described(vector)} if vector else {}
    return {"add": {**values, **maps, **marked, **fields}}


def remove(file: StoredFile, is_data: bool, now: int) -> Action:
    """The action that removes a data file; ``is_data`` is false if rows only moved."""
    return {
        "remove": {
            "path": file.path,
            "deletionTimestamp": now,
            "dataChange": is_data,
            "extendedFileMetadata": True,
            "partitionValues": dict(file.partition),
            "size": file.size,
            **({"deletionVector": described(file.vector)} if file.vector else {}),
        }
    }


def feed(file: WrittenFile) -> Action:
    """The action that adds a file of the change data feed."""
    return {
        "cdc": {
            "path": quote(file.path, safe=_PLAIN),
            "partitionValues": dict(file.partition),
            "size": file.size,
            "dataChange": False,
        }
    }
