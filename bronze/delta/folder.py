"""All Parquet files in the folder of a table, of all versions, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa

from bronze.delta import files, store
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.errors import FileDamaged
from bronze.model.columns import DeltaType, DeltaTypeName
from bronze.model.files import WrittenFile

_PLAIN: tuple[DeltaTypeName, ...] = ("short", "int", "long", "float", "double", "boolean", "date")
_PLAIN += ("timestamp", "timestamp_ntz")
_KINDS: Mapping[Any, DeltaType] = {files.arrow_type(kind): kind for kind in map(DeltaType, _PLAIN)}


class Folder:
    """All data files and files of the change data feed in the folder of a table.

    Attributes:
        state: the table as it is.
        paths: the paths of all files.
        unreadable: files that turned out not to be Parquet and that no version names: their
            writing was interrupted, or has not ended.
    """

    def __init__(self, state: State) -> None:
        """Lists the files.

        Raises:
            LakeError, LakeUnreachable
        """
        self.state = state
        self.paths = [path for path in store.listing(state.place) if vacuum.is_data(path)]
        self.unreadable: set[str] = set()
        self._current = {unquote(file.path): dict(file.partition) for file in state.files}

    @property
    def missing_files(self) -> list[str]:
        """The files of the current version that are missing."""
        return sorted({*self._current} - {unquote(path) for path in self.paths})

    def is_current(self, path: str) -> bool:
        """Whether a file is one of the current version."""
        return unquote(path) in self._current

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pl.DataFrame]]:
        """The rows of all files, a part at a time, each with its file's path; see `parts`.

        Raises:
            FileDamaged: a file that a version names cannot be read.
            LakeError, LakeUnreachable
        """
        for path in self.paths:
            for part in self.parts(path, columns):
                yield path, part

    def parts(self, path: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows of a file, a part at a time, with those of ``columns`` that the file has, in the
        types of the file, and with its partition.

        Raises:
            FileDamaged: it cannot be read, and a version names it.
            LakeError, LakeUnreachable
        """
        try:
            parquet = files.open_parquet(self.state.place, WrittenFile(path, 0, 0, ""))
            own = {field.name: field.type for field in parquet.schema_arrow}
            partition = self._current.get(unquote(path)) or _of_folders(path)
            known = dict(self.state.columns)
            layout = [
                (name, _kind(own[name]) if name in own else known.get(name, DeltaType("string")))
                for name in dict.fromkeys((*own, *partition))
                if columns is None or name in columns
            ]
            if not layout:
                yield pl.DataFrame(height=parquet.metadata.num_rows)
                return
            for _, part in files.parts(parquet, layout, None, None, partition):
                yield pl.DataFrame(part)
        except FileDamaged:
            if path not in self._strays:
                raise
            self.unreadable.add(path)

    @cached_property
    def _strays(self) -> frozenset[str]:
        lying = list(vacuum.objects_of(self.state.place))
        there = {found.path for found in lying}
        gone = {path for path in self.paths if path not in there and not self.is_current(path)}
        return frozenset({found.path for found in vacuum.unnamed_files(self.state, lying)} | gone)


def _kind(found: Any) -> DeltaType:
    """The type of a column in a file."""
    if pa.types.is_decimal128(found):
        return DeltaType("decimal", found.precision, found.scale)
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return DeltaType("array", element=_kind(found.value_type))
    if pa.types.is_binary(found) or pa.types.is_large_binary(found):
        return DeltaType("binary")
    return _KINDS.get(found, DeltaType("string"))


def _of_folders(path: str) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder)
    return {name: None if value.startswith("__HIVE") else value for name, _, value in pairs}
