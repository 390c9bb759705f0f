"""A person: the selected rows, and which governance records are about them.

A record is about a row if it has the row's key, or if it has a value that is this row's alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import polars as pl

from bronze.delta import files
from bronze.protection.lake_table import BATCH, ProtectedTable
from bronze.protection.subject.governance_records import (
    RecordedFacts,
    RecordScope,
    categories_in,
    means_in,
    row_keys,
)
from bronze.protection.subject.recorded_values import comparable, comparables, record_text
from bronze.protection.subject.row_match import Match, Subject


class PersonValues:
    """The distinct values of a person's rows in the files of all versions, for the columns that
    governance records may have.
    """

    def __init__(self, table: ProtectedTable, facts: RecordedFacts) -> None:
        """Begins without values."""
        self._facts = facts
        self._names = {column: table.names(column) for column in facts.columns}
        self._keys: dict[tuple[str, ...], dict[tuple[str, ...], set[tuple[Any, ...]]]] = {}
        self._numbers: dict[str, set[float]] = {}
        self._missing: set[tuple[str, str]] = set()
        self.categories: dict[str, set[str]] = {}

    @property
    def columns(self) -> list[str]:
        """The columns of the table that have to be read."""
        names = (name for names in self._names.values() for name in names)
        return list(dict.fromkeys((*names, BATCH)))

    def names(self, column: str) -> tuple[str, ...]:
        """The columns that may have the values which a record has under a column's name."""
        return self._names[column]

    def add(self, rows: pl.DataFrame) -> None:
        """Adds the values of some of the person's rows."""
        present = {
            column: [name for name in names if name in rows.columns]
            for column, names in self._names.items()
        }
        keys = {key: tuple(name for name in key if present[name]) for key in self._facts.keys}
        for row in rows.iter_rows(named=True):
            values = {
                column: next((row[name] for name in names if row[name] is not None), None)
                for column, names in present.items()
            }
            for key, columns in keys.items():
                if columns:
                    known = self._keys.setdefault(key, {}).setdefault(columns, set())
                    known.add(tuple(comparable(values[name]) for name in columns))
            self._add_values(values, row.get(BATCH) or "")

    def _add_values(self, values: Mapping[str, Any], batch: str) -> None:
        """Adds the values of a row that are not of a key."""
        for name in self._facts.means:
            if (number := _number(values[name])) is not None:
                self._numbers.setdefault(name, set()).add(number)
        self._missing |= {(batch, name) for name in self._facts.nameless if values[name] is None}
        for name, texts in self._facts.categories.items():
            if values[name] is not None and (text := record_text(values[name])) in texts:
                self.categories.setdefault(name, set()).add(text)

    def has_key(self, key: Mapping[str, Any]) -> bool:
        """Whether one of the rows has the values of a key."""
        for columns, known in self._keys.get(tuple(sorted(key)), {}).items():
            if any(key[name] is not None for name in columns):
                spellings = product(*(comparables(key[name]) for name in columns))
                if not known.isdisjoint(spellings):
                    return True
        return False

    def has_number(self, column: str, value: Any) -> bool:
        """Whether one of the rows has a number in a column."""
        return value in self._numbers.get(column, ())

    def is_missing(self, batch: str, column: str) -> bool:
        """Whether one of the rows of a batch has no value in a column."""
        return (batch, column) in self._missing


def _number(value: Any) -> float | None:
    """A value as a mean would have it, None where it is not a number."""
    try:
        return None if value is None or isinstance(value, list) else float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Person:
    """A person's rows, and what identifies the governance records about them.

    ``scope`` says which records are about the table, ``values`` what the rows have had;
    ``unique_categories`` are the categories, by column, that no other row has, ``targets`` the
    Bronze names of the source's columns.
    """

    subject: Subject
    scope: RecordScope
    values: PersonValues
    unique_categories: Mapping[str, Collection[str]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)

    def match(self, records: pl.DataFrame) -> Match:
        """Which records of a governance table are about the rows for certain, and which may be."""
        in_scope = self.scope.matches(records)
        nothing = pl.repeat(False, records.height, dtype=pl.Boolean, eager=True)
        if not in_scope.any():
            return nothing, nothing
        positions = in_scope.arg_true()
        verdicts = [self._verdict(row) for row in records.filter(in_scope).iter_rows(named=True)]
        certain = pl.Series([sure for sure, _ in verdicts], dtype=pl.Boolean)
        possible = pl.Series([maybe for _, maybe in verdicts], dtype=pl.Boolean)
        return (
            nothing.clone().scatter(positions, certain),
            nothing.clone().scatter(positions, possible),
        )

    def _verdict(self, record: Mapping[str, Any]) -> tuple[bool, bool]:
        if self._has_a_value(record):
            return True, True
        is_recent = self.subject.is_recent(record)
        verdicts = [self._key_match(key, is_recent) for key in row_keys(record)]
        return any(sure for sure, _ in verdicts), any(maybe for _, maybe in verdicts)

    def _has_a_value(self, record: Mapping[str, Any]) -> bool:
        """Whether a record that names no row has a value of one of them."""
        for column, text in categories_in(record):
            if text in self.unique_categories.get(column, ()):
                return True
        if any(self.values.has_number(column, value) for column, value in means_in(record)):
            return True
        if "column_name" not in record or {} not in row_keys(record):
            return False
        column = self.targets.get(record["column_name"], record["column_name"])
        return self.values.is_missing(record["batch_id"], column)

    def _key_match(self, key: Mapping[str, Any], is_recent: bool) -> tuple[bool, bool]:
        """Whether a key names one of the rows for certain, and whether it may."""
        certain, possible = self.subject.key_match(key, is_recent)
        if not certain and self.values.has_key(key):
            # A token of today may have been the clear value of another row.
            columns = {name for column in key for name in self.values.names(column)}
            certain = is_recent or self.subject.ambiguous.isdisjoint(columns)
            possible = True
        return certain, possible


def unique_categories(
    table: ProtectedTable, values: PersonValues, subject: Subject
) -> dict[str, set[str]]:
    """The categories that the person's rows have had, and that no other row of a table has now.

    Raises:
        LakeError, LakeUnreachable
    """
    unique = {name: set(texts) for name, texts in values.categories.items()}
    layout = dict(table.state.columns)
    columns = {name: [n for n in values.names(name) if n in layout] for name in unique}
    if not any(columns.values()):
        return unique
    category_columns = (name for names in columns.values() for name in names)
    wanted = list(dict.fromkeys((*category_columns, *subject.columns)))
    for file in table.state.files:
        parquet = files.open_parquet(table.state.place, file)
        for _, part in files.parts(
            parquet, table.state.columns, wanted, None, dict(file.partition)
        ):
            rows = pl.DataFrame(part)
            others = rows.filter(~subject.matches(rows))
            for category, names in columns.items():
                for name in names:
                    unique[category] -= {*others[name].cast(pl.String).drop_nulls().unique()}
    return {name: texts for name, texts in unique.items() if texts}
