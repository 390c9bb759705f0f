"""A Bronze table in the lake, and how its columns are protected now and were before.

All of it is read from the lake: the properties of the table say which table of the source it holds
and how its columns are protected, ``governance.keys`` has the keys, and the log has the properties
that the table had before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import commit, files, log, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError
from bronze.governance.tables.keys import KeyRecord
from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.protection import DataKey, ProtectedColumn, TableProtection
from bronze.protection import keys
from bronze.tables import evolution, lake

BATCH = "batch_id"
"""The column with the batch that wrote a row, or a governance record."""


@dataclass(frozen=True)
class ProtectedTable:
    """A Bronze table, by its full name; ``label`` is the table of ``source`` that it holds."""

    name: str
    label: str
    source: str
    state: State
    protection: TableProtection

    @property
    def key(self) -> tuple[str, ...]:
        """The names of its key's columns."""
        return TableProperties.read(self.state.properties).key or ()

    @property
    def kinds(self) -> dict[str, DeltaType]:
        """The type of each column's values before they are protected."""
        return dict(self.state.columns) | {c.column: c.kind for c in self.protection.columns}

    @property
    def original(self) -> tuple[str, str]:
        """The schema and the name of the source's table."""
        return TableProperties.read(self.state.properties).source_table

    def protection_of(self, name: str) -> ProtectedColumn | None:
        """How a column is protected, None if it is in clear."""
        return next((c for c in self.protection.columns if c.column == name), None)

    def names(self, column: str) -> tuple[str, ...]:
        """The columns that may have the values which a record has under a column's name, the latest
        first.
        """
        known = self.state.properties
        successors = [name for name in self.kinds if column in evolution.reused_names(known, name)]
        if successors and column not in evolution.key_columns_in_source(known):
            return (*evolution.former_names(known, successors[0]), column)
        return evolution.former_names(known, column)

    def reload(self) -> ProtectedTable:
        """The table as it is now."""
        return replace(self, state=log.read(self.state.place) or self.state)


def protected_table(settings: Settings, name: str) -> ProtectedTable:
    """The Bronze table of a name: its own, or that of the source's table.

    Raises:
        ConfigError: there is no such table, or there are several.
        LakeError: it cannot be read; or another one cannot, which may hold a table of this name.
        LakeUnreachable: the lake cannot be read.
    """
    tables = list(lake.tables_of(settings, settings.lake.schema_))
    if not any(name in table.own_names for table in tables):
        for table in tables:
            if table.error:
                raise table.error
    table = lake.find_one(settings, (one for one in tables if one.is_bronze or one.error), name)
    if table.error or table.state is None:
        raise table.error or ConfigError(f"There is no Bronze table {name}.")
    return ProtectedTable(
        table.target,
        table.label,
        table.source,
        table.state,
        _protection_of(settings, table.target, table.state),
    )


def _protection_of(settings: Settings, table: str, state: State) -> TableProtection:
    records = keys.stored_keys(settings)[1]
    columns = tuple(
        ProtectedColumn(column, column, kind, rule, _keys_of(records, table, column, rule))
        for column, (rule, kind) in evolution.protected_columns(state.properties).items()
        if rule
    )
    return TableProtection(columns, None, settings.masters)


def _keys_of(
    records: Sequence[KeyRecord], table: str, column: str, rule: ProtectionRule
) -> tuple[DataKey, ...]:
    """All keys that may have protected values of a column: those of its method first, the latest
    first.
    """
    uses = {(table, column), ("", rule.join)} if rule.join else {(table, column)}
    latest_first = (record.key for record in reversed(records))
    matches = [key for key in latest_first if (key.table, key.column) in uses]
    return tuple(sorted(matches, key=lambda key: key.purpose != rule.method))


def history(state: State) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The earlier properties of a table that the log still has, earliest first, each with the
    batch that set them ("" where the commit names none).

    Raises:
        LakeError, LakeUnreachable
    """
    names = map(log.ENTRY.fullmatch, store.listing(state.place, "_delta_log"))
    versions = sorted(int(name[1]) for name in names if name)
    for _, actions in log.entries(state.place, versions):
        infos = (action["commitInfo"] for action in actions or () if "commitInfo" in action)
        info: Mapping[str, Any] = next(infos, {})
        for action in actions or ():
            if "metaData" in action:
                batch = commit.facts_of(info).get(BATCH, "")
                yield str(batch), action["metaData"].get("configuration", {})


def protected_since(table: ProtectedTable) -> str:
    """The first batch that wrote all its rows with the present protection of the columns; "" where
    it is not known.

    Raises:
        LakeError, LakeUnreachable
    """
    current = _protection_in(table.state.properties)
    since = ""
    for batch, known in history(table.state):
        since = (since or batch) if _protection_in(known) == current else ""
    return since or min(batches(table.state), default="")


def _protection_in(known: Mapping[str, str]) -> tuple[Any, ...]:
    """How properties of a table say that its columns are protected, and with which keys."""
    return evolution.protected_columns(known), dict(TableProperties.read(known).key_ids)


def batches(state: State) -> set[str]:
    """The batches of the current rows of a table.

    Raises:
        LakeError, LakeUnreachable
    """
    found: set[str] = set()
    for file in state.files:
        for _, part in files.parts(files.open_parquet(state.place, file), state.columns, [BATCH]):
            found |= {*pl.DataFrame(part)[BATCH].drop_nulls().unique()}
    return found
