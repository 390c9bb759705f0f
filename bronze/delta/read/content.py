"""The content of a Delta log: the metadata, protocol, files and app transactions of a table.

`opened` has it from deltalake, without deletion vectors; `bronze.delta.read.replay` reads usual
logs in less time, and those with deletion vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import polars as pl
from deltalake import DeltaTable

from bronze.delta.schema import kinds
from bronze.delta.statistics import SAFE
from bronze.delta.storage import client
from bronze.model.files import StoredFile
from bronze.model.locations import Place


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

    @property
    def domains(self) -> Mapping[str, str]:
        """The configuration of each metadata domain."""

    def transaction(self, name: str) -> int | None:
        """The version of an app transaction, None if there is none."""

    def files(self) -> tuple[StoredFile, ...]:
        """All data files, those of the latest commit first."""

    def paths(self) -> Sequence[str]:
        """The paths of all data files and deletion vectors, as the log has them."""

    def add_of(self, file: StoredFile) -> Mapping[str, Any]:
        """The ``add`` action of one of the files.

        Raises:
            LookupError: it is not known; it is for tables with deletion vectors.
        """


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

    @property
    def domains(self) -> Mapping[str, str]:
        """None: deltalake does not have them, so that it does not read tables with domains."""
        return {}

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

    def add_of(self, file: StoredFile) -> Mapping[str, Any]:
        """Deltalake does not have it."""
        raise LookupError(file.path)


def opened(place: Place, version: int | None = None) -> Opened:
    """The content of a log as deltalake reads it.

    Raises:
        deltalake.exceptions.TableNotFoundError: there is no table.
        deltalake.exceptions.DeltaError, OSError, ValueError: the log cannot be read.
    """
    return Opened(client.delta_table(place, version))


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


def widest(bound: Any) -> Any:
    """An upper bound that other writers may have cut to milliseconds."""
    if not isinstance(bound, datetime) or bound.microsecond % 1000:
        return bound
    return bound.replace(microsecond=bound.microsecond + 999)
