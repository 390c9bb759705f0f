"""Whose data it is: the rows of a Bronze table that are meant by values of some columns.

All that is known of the table is in the lake: how it is protected, and by which keys. A protected
column is matched by what its methods and keys have made, or would have made, of the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from bronze import drift, keys
from bronze.books.keys import Record
from bronze.enrich import plaintext, protect
from bronze.errors import ConfigError
from bronze.model import STABLE, DataKey, Kind, Protect, Protected, Protection
from bronze.settings import Settings
from bronze.source.read import dtype
from bronze.table import log, store
from bronze.table.log import State


@dataclass(frozen=True)
class Held:
    """A Bronze table as it lies in the lake; ``label`` is the source's table that it holds."""

    name: str
    label: str
    source: str
    state: State
    protection: Protection

    @property
    def key(self) -> tuple[str, ...]:
        """The names of its key's columns."""
        return tuple(json.loads(self.state.properties.get(drift.KEY, "[]")))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column's values before they are protected."""
        return dict(self.state.columns) | {c.column: c.kind for c in self.protection.columns}

    def again(self) -> Held:
        """The table as it is now."""
        state = log.read(self.state.place)
        return replace(self, state=state or self.state)


def held(settings: Settings, table: str) -> Held:
    """The Bronze table of a name, its own or the source table's.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable
    """
    schema, found = settings.lake.schema_, []
    for name in store.folders(settings.place(schema, "")):
        state = log.read(settings.place(schema, name))
        label = state.properties.get(drift.TABLE, "") if state else ""
        if state is None or not label:
            continue
        if table in (name, f"{schema}.{name}", label, label.rpartition(".")[2]):
            return _held(settings, f"{schema}.{name}", label, state)
        found.append(name)
    raise ConfigError(
        f"There is no Bronze table {table} in {settings.lake.root}.",
        hint=f"There are {', '.join(found) or 'none'}.",
    )


def _held(settings: Settings, name: str, label: str, state: State) -> Held:
    records = keys.held(settings)[1]
    columns = []
    for column, (how, kind) in drift.protected(state.properties).items():
        if how:
            mine = _keys(records, name, column, how)
            columns.append(Protected(column, column, kind, how, mine))
    protection = Protection(tuple(columns), None, settings.masters)
    return Held(name, label, state.properties.get(drift.SOURCE, ""), state, protection)


def _keys(records: Sequence[Record], table: str, column: str, how: Protect) -> tuple[DataKey, ...]:
    """All keys that values of a column may have been protected with, the latest first."""
    mine = {(table, column), ("", how.join)} if how.join else {(table, column)}
    found = [r.key for r in reversed(records) if (r.key.table, r.key.column) in mine]
    return tuple(sorted(found, key=lambda key: key.purpose != how.method))


@dataclass(frozen=True)
class Subject:
    """Rows by the values of some columns, of each what may be stored for it."""

    stored: Mapping[str, pl.Series]

    @property
    def condition(self) -> pl.Expr:
        """The condition that is true for the rows."""
        return pl.all_horizontal(
            *(pl.col(name).is_in(values.implode()) for name, values in self.stored.items())
        ).fill_null(False)

    @property
    def columns(self) -> list[str]:
        """The columns that the condition looks at."""
        return list(self.stored)

    @property
    def texts(self) -> dict[str, set[str]]:
        """The same as texts."""
        return {name: {str(v) for v in values} for name, values in self.stored.items()}


def subject(table: Held, given: Mapping[str, str]) -> Subject:
    """The rows whose columns have some values, given as text.

    Raises:
        ConfigError: there is no such column, its values cannot be matched, or the text is none.
    """
    kinds, protected = table.kinds, {c.column: c for c in table.protection.columns}
    stored: dict[str, pl.Series] = {}
    for name, text in given.items():
        if name not in kinds:
            raise ConfigError(
                f"The Bronze table {table.name} has no column {name}.",
                hint=f"It has {', '.join(kinds)}.",
            )
        value = _value(text, name, kinds[name])
        column = protected.get(name)
        if column is None:
            stored[name] = value
        elif column.protect.stable:
            stored[name] = _possible(value, column, table.protection)
        else:
            raise ConfigError(
                f"Rows of {table.name} cannot be told by column {name}: {column.protect.method}"
                " leaves nothing to compare.",
                hint=f"Name them by the key: {', '.join(table.key) or 'the table has none'}.",
            )
    return Subject(stored)


def _value(text: str, name: str, kind: Kind) -> pl.Series:
    try:
        return plaintext.values(pl.Series(name, [text]), dtype(kind))
    except (pl.exceptions.PolarsError, ValueError):
        raise ConfigError(f"What is given for column {name} is no value of type {kind}.") from None


def _possible(value: pl.Series, column: Protected, protection: Protection) -> pl.Series:
    """What is, or was, stored for a value; in clear too, as it was before it was protected."""
    found: list[Any] = plaintext.texts(value).to_list()
    for key in column.keys:
        if key.purpose not in STABLE:
            continue
        for shaped in (False, True) if key.purpose == "tokenize" else (False,):
            how = Protect(key.purpose, format=shaped)  # type: ignore[arg-type]
            one = replace(column, protect=how, keys=(key,))
            found += protect.covered(value, one, protection.masters).to_list()
    return pl.Series(value.name, found, dtype=pl.String).unique(maintain_order=True)


def parsed(given: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a mapping.

    Raises:
        ConfigError: one of them has no equals sign.
    """
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ConfigError(
            f"{wrong[0]!r} names no value.", hint='Rows are named so: --key "customer_id=42"'
        )
    return {name.strip(): value for name, _, value in pairs}
