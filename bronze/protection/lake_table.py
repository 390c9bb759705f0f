"""A Bronze table as it lies in the lake, and how it was protected at any time.

All that is known of it is in the lake: the source's table that it holds, the keys that its values
may have been protected with, and, in the log, what its properties were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import commit, files, log, properties, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError
from bronze.governance.tables.keys import KeyRecord
from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.protection import DataKey, ProtectedColumn, TableProtection
from bronze.protection import keys
from bronze.tables import evolution

BATCH = "batch_id"
"""The column with the batch that wrote a row, or a record."""


@dataclass(frozen=True)
class ProtectedTable:
    """A Bronze table as it lies in the lake; ``label`` is the source's table that it holds."""

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
        """The kind of each column's values before they are protected."""
        return dict(self.state.columns) | {c.column: c.kind for c in self.protection.columns}

    @property
    def original(self) -> tuple[str, str]:
        """The schema and the name of the source's table."""
        return evolution.table_of(self.state.properties)

    def protected(self, name: str) -> ProtectedColumn | None:
        """How a column is protected, None where it is in clear."""
        return next((c for c in self.protection.columns if c.column == name), None)

    def names(self, column: str) -> tuple[str, ...]:
        """The columns that may have the values of which a record under a column's name tells, the
        latest first.
        """
        known = self.state.properties
        heads = [name for name in self.kinds if column in evolution.reused_names(known, name)]
        if heads and column not in evolution.key_columns_in_source(known):
            return (*evolution.former_names(known, heads[0]), column)
        return evolution.former_names(known, column)

    def again(self) -> ProtectedTable:
        """The table as it is now."""
        state = log.read(self.state.place)
        return replace(self, state=state or self.state)


def protected_table(settings: Settings, table: str) -> ProtectedTable:
    """The Bronze table of a name, its own or the source table's.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable
    """
    schema, found = settings.lake.schema_, list[tuple[str, str, State]]()
    for name in store.folders(settings.place(schema, "")):
        state = log.read(settings.place(schema, name))
        if state and (label := state.properties.get(properties.TABLE)):
            found.append((name, label, state))
    own = [one for one in found if table in (one[0], f"{schema}.{one[0]}")]
    full = [one for one in found if table == one[1]]
    short = [one for one in found if table == evolution.table_of(one[2].properties)[1]]
    meant = own or full or short
    if not meant:
        raise ConfigError(
            f"There is no Bronze table {table} in {settings.lake.root}.",
            hint=f"There are {', '.join(name for name, _, _ in found) or 'none'}.",
        )
    if len(meant) > 1:
        names = [name for name, _, _ in meant]
        raise ConfigError(
            f"Several Bronze tables hold a table {table}: {', '.join(names)}.",
            hint=f"Name one of them, such as {names[0]}.",
        )
    ((name, label, state),) = meant
    return _protected_table(settings, f"{schema}.{name}", label, state)


def _protected_table(settings: Settings, name: str, label: str, state: State) -> ProtectedTable:
    records = keys.stored_keys(settings)[1]
    columns = []
    for column, (how, kind) in evolution.protected_columns(state.properties).items():
        if how:
            mine = _keys(records, name, column, how)
            columns.append(ProtectedColumn(column, column, kind, how, mine))
    protection = TableProtection(tuple(columns), None, settings.masters)
    return ProtectedTable(
        name, label, state.properties.get(properties.SOURCE, ""), state, protection
    )


def _keys(
    records: Sequence[KeyRecord], table: str, column: str, how: ProtectionRule
) -> tuple[DataKey, ...]:
    """All keys that values of a column may have been protected with, the latest first."""
    mine = {(table, column), ("", how.join)} if how.join else {(table, column)}
    found = [r.key for r in reversed(records) if (r.key.table, r.key.column) in mine]
    return tuple(sorted(found, key=lambda key: key.purpose != how.method))


def history(state: State) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The properties that a table has had, as far as the log still has them, in their order, each
    with the batch that began with them ("" where a commit names none).

    Raises:
        LakeError, LakeUnreachable
    """
    for path in sorted(store.listing(state.place, "_delta_log")):
        if not path.endswith(".json"):
            continue
        with store.reader(state.place, path) as file:
            actions = [json.loads(line) for line in file.read().splitlines() if line.strip()]
        facts = next(
            (a["commitInfo"].get(commit.FACTS) for a in actions if "commitInfo" in a), None
        )
        batch = json.loads(facts or "{}").get(BATCH, "")
        for action in actions:
            if "metaData" in action:
                yield batch, action["metaData"].get("configuration", {})


def protected_since(table: ProtectedTable) -> str:
    """The first batch whose rows were all written as a table's columns are protected now; "" where
    that is not known.
    """

    def how(known: Mapping[str, str]) -> tuple[Any, Any]:
        return evolution.protected_columns(known), json.loads(known.get(keys.IDS, "{}"))

    since = ""
    for batch, known in history(table.state):
        same = how(known) == how(table.state.properties)
        since = (since or batch) if same else ""
    return since or min(batches(table.state), default="")


def batches(state: State) -> set[str]:
    """The batches of the current rows of a table.

    Raises:
        LakeError, LakeUnreachable
    """
    found: set[str] = set()
    for file in state.files:
        for _, part in files.parts(files.opened(state.place, file), state.columns, [BATCH]):
            found |= {*pl.DataFrame(part)[BATCH].drop_nulls().unique()}
    return found
