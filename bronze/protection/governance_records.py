"""What governance has recorded of a person's rows, and which of its records have to go.

Records name rows by their keys (rejected values, anomalies, examples of quality), or tell values
of theirs: a model the categories of its sample, by their text; a profile, or what is unusual about
a run, means, which of one row are its values.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log
from bronze.delta.folder import Folder
from bronze.delta.log import State
from bronze.governance.tables import (
    anomalies,
    data_lineage,
    models,
    profiles,
    quality,
    rejected_values,
)
from bronze.protection.lake_table import BATCH, ProtectedTable
from bronze.protection.subject import Subject, normal, spoken, written
from bronze.tables.naming import short_name

BOOKS: Mapping[str, tuple[str, ...]] = {
    rejected_values.NAME: ("batch_id", "column_name", "row_key"),
    quality.NAME: ("batch_id", "examples"),
    anomalies.NAME: ("batch_id", "row_key", "columns"),
    profiles.NAME: ("batch_id", "measures"),
    models.NAME: ("features",),
}
"""The tables of governance that have records of rows, with the columns that tell of them."""
ABOUT = ("target_table", "source_system")
"""The columns that say which table a record is about."""
_TARGET, _SYSTEM = ABOUT
_MEAN = "mean "


@dataclass(frozen=True)
class About:
    """Which records are about a Bronze table. Those of before have its name without the schema,
    and are another schema's where their batch is one of its tables'.
    """

    name: str
    source: str
    others: frozenset[str]

    def among(self, records: pl.DataFrame) -> pl.Series:
        """Which of the records, that have at least the table's columns of these."""
        target = records[_TARGET]
        found = target == short_name(self.name)
        if _SYSTEM in records.columns:
            found &= records[_SYSTEM].fill_null("") == self.source
        if "batch_id" in records.columns and self.others:
            found &= ~records["batch_id"].is_in(list(self.others)).fill_null(False)
        return ((target == self.name) | found).fill_null(False)


def about(settings: Settings, table: ProtectedTable) -> About:
    """Which records are about a table.

    Raises:
        LakeError, LakeUnreachable
    """
    short = short_name(table.name)
    state, others = log.read(settings.place(GOVERNANCE, data_lineage.NAME)), set[str]()
    if state:
        for records in rows(state, (_TARGET, "batch_id")):
            other = records.filter(
                pl.col(_TARGET).str.ends_with(f".{short}"), pl.col(_TARGET) != table.name
            )
            others |= {*other["batch_id"].drop_nulls()}
    return About(table.name, table.source, frozenset(others))


def rows(state: State, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The current records of a table of governance, some of their columns."""
    for file in state.files:
        for _, part in files.parts(files.opened(state.place, file), state.columns, columns):
            yield pl.DataFrame(part)


def books(settings: Settings) -> Iterator[tuple[State, list[str]]]:
    """The tables of governance that are there, with the columns that are looked at.

    Raises:
        LakeError, LakeUnreachable
    """
    for name, told in BOOKS.items():
        state = log.read(settings.place(GOVERNANCE, name))
        if state is not None:
            there = dict(state.columns)
            yield state, [column for column in (*ABOUT, *told) if column in there]


@dataclass(frozen=True)
class Told:
    """What the records about a table tell of rows: ``keys`` are the sets of columns by which they
    name them, ``means`` the columns whose mean they have, ``nameless`` those of which they have a
    value of some row, and ``categories`` are texts by column.
    """

    keys: frozenset[tuple[str, ...]] = frozenset()
    means: frozenset[str] = frozenset()
    nameless: frozenset[str] = frozenset()
    categories: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def columns(self) -> frozenset[str]:
        """All columns that they tell of."""
        named = (name for names in self.keys for name in names)
        return frozenset((*named, *self.means, *self.nameless, *self.categories))


def records_of(settings: Settings, which: About, targets: Mapping[str, str]) -> Told:
    """What the current records about a table tell.

    Args:
        settings: the config.
        which: the table.
        targets: the Bronze names of the source's columns.

    Raises:
        LakeError, LakeUnreachable
    """
    keys, means, nameless = set[tuple[str, ...]](), set[str](), set[str]()
    shares: dict[str, set[str]] = {}
    for state, columns in books(settings):
        for _, records in Folder(state).rows(columns):
            for record in records.filter(which.among(records)).iter_rows(named=True):
                found = _keys(record)
                keys |= {tuple(sorted(key)) for key in found if key}
                means |= {column for column, _ in _means(record)}
                if {} in found and "column_name" in record:
                    nameless.add(targets.get(record["column_name"], record["column_name"]))
                for column, text in _shares(record):
                    shares.setdefault(column, set()).add(text)
    categories = {name: frozenset(texts) for name, texts in shares.items()}
    return Told(frozenset(keys), frozenset(means), frozenset(nameless), categories)


def _keys(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys by which a record names rows; an empty one where it names none of them."""
    return _read(record.get("examples")) + _read(record.get("row_key"))


def _means(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The columns of whose means a record tells, with the means."""
    for one in _read(record.get("measures")):
        for name, value in one.items():
            if name.startswith(_MEAN):
                yield name.removeprefix(_MEAN), value
    for one in _read(record.get("columns")):
        if one.get("measure") == _MEAN.strip() and one.get("column"):
            yield from ((one["column"], one[what]) for what in ("value", "usual"))


def _shares(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The columns of whose categories a record tells, with the categories."""
    for feature in _read(record.get("features")):
        for value, _ in feature.get("shares", ()):
            yield feature["column"], str(value)


class Seen:
    """What a person's rows have had, in every version in which a file has them, as far as records
    can tell it: each value once.
    """

    def __init__(self, table: ProtectedTable, told: Told) -> None:
        """Nothing yet."""
        self._told = told
        self._names = {column: table.names(column) for column in told.columns}
        self._keys: dict[tuple[str, ...], dict[tuple[str, ...], set[tuple[Any, ...]]]] = {}
        self._numbers: dict[str, set[float]] = {}
        self._missing: set[tuple[str, str]] = set()
        self.categories: dict[str, set[str]] = {}

    @property
    def columns(self) -> list[str]:
        """The columns of the table that are looked at."""
        names = (name for names in self._names.values() for name in names)
        return list(dict.fromkeys((*names, BATCH)))

    def names(self, column: str) -> tuple[str, ...]:
        """The columns that may have the values of which records tell under a column's name."""
        return self._names[column]

    def add(self, rows: pl.DataFrame) -> None:
        """Adds some of the person's rows."""
        there = {
            column: [name for name in names if name in rows.columns]
            for column, names in self._names.items()
        }
        shapes = {
            key: present
            for key in self._told.keys
            if (present := tuple(n for n in key if there[n]))
        }
        for row in rows.iter_rows(named=True):
            value = {
                column: next((row[n] for n in names if row[n] is not None), None)
                for column, names in there.items()
            }
            for key, present in shapes.items():
                known = self._keys.setdefault(key, {}).setdefault(present, set())
                known.add(tuple(normal(value[name]) for name in present))
            for name in self._told.means:
                if (number := _number(value[name])) is not None:
                    self._numbers.setdefault(name, set()).add(number)
            batch = row.get(BATCH) or ""
            self._missing |= {(batch, name) for name in self._told.nameless if value[name] is None}
            for name, texts in self._told.categories.items():
                if value[name] is not None and (text := written(value[name])) in texts:
                    self.categories.setdefault(name, set()).add(text)

    def has_key(self, key: Mapping[str, Any]) -> bool:
        """Whether one of the rows has the values of a key."""
        for present, known in self._keys.get(tuple(sorted(key)), {}).items():
            if any(key[name] is not None for name in present):
                spellings = product(*(spoken(key[name]) for name in present))
                if not known.isdisjoint(spellings):
                    return True
        return False

    def has_number(self, column: str, value: Any) -> bool:
        """Whether one of the rows has a number in a column."""
        return value in self._numbers.get(column, ())

    def is_missing(self, batch: str, column: str) -> bool:
        """Whether one of the rows of a batch has no value in a column."""
        return (batch, column) in self._missing


@dataclass(frozen=True)
class Person:
    """A person's rows, and what is told of them.

    ``alone`` are the categories, by column, that no other row has; ``targets`` the Bronze names of
    the source's columns.
    """

    subject: Subject
    seen: Seen
    alone: Mapping[str, Collection[str]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)

    def among(self, records: pl.DataFrame) -> pl.Series:
        """Which records of one of `BOOKS` tell of the rows."""
        return self.verdict(records)[0]

    def verdict(self, records: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """Which records of one of `BOOKS` tell of the rows for sure, and which may do so."""
        found = [self._verdict(row) for row in records.iter_rows(named=True)]
        sure, possible = ([one[i] for one in found] for i in (0, 1))
        return pl.Series(sure, dtype=pl.Boolean), pl.Series(possible, dtype=pl.Boolean)

    def _verdict(self, record: Mapping[str, Any]) -> tuple[bool, bool]:
        if self._is_learned(record):
            return True, True
        settled = self.subject.is_settled(record)
        named = [self._named(key, settled) for key in _keys(record)]
        return any(sure for sure, _ in named), any(maybe for _, maybe in named)

    def _is_learned(self, record: Mapping[str, Any]) -> bool:
        """Whether a record that names no row tells of one of them."""
        if any(text in self.alone.get(column, ()) for column, text in _shares(record)):
            return True
        if any(self.seen.has_number(column, value) for column, value in _means(record)):
            return True
        if "column_name" not in record or {} not in _keys(record):
            return False
        column = self.targets.get(record["column_name"], record["column_name"])
        return self.seen.is_missing(record["batch_id"], column)

    def _named(self, key: Mapping[str, Any], settled: bool) -> tuple[bool, bool]:
        """Whether a key names one of the rows for sure, and whether it may."""
        sure, maybe = self.subject.named(key, settled)
        if not sure and self.seen.has_key(key):
            # A token of today may have been somebody's clear value.
            looked_at = {name for column in key for name in self.seen.names(column)}
            sure = settled or self.subject.ambiguous.isdisjoint(looked_at)
            maybe = True
        return sure, maybe


def _number(value: Any) -> float | None:
    """A value as a mean would have it, None where it is no number."""
    try:
        return None if value is None or isinstance(value, list) else float(value)
    except (TypeError, ValueError):
        return None


def _read(text: str | None) -> list[Any]:
    """A list of JSON objects, or one as such a list; empty where it is none."""
    try:
        known = json.loads(text or "[]")
    except ValueError:
        return []
    found = known if isinstance(known, list) else [known]
    return [one for one in found if isinstance(one, dict)]


def alone(table: ProtectedTable, seen: Seen, mine: Subject) -> dict[str, set[str]]:
    """The categories that the person's rows have had, and no other row of a table has now.

    Raises:
        LakeError, LakeUnreachable
    """
    found = {name: set(texts) for name, texts in seen.categories.items()}
    there = dict(table.state.columns)
    columns = {name: [n for n in seen.names(name) if n in there] for name in found}
    wanted = list(dict.fromkeys((*(n for names in columns.values() for n in names), *mine.columns)))
    for file in table.state.files if any(columns.values()) else ():
        parquet = files.opened(table.state.place, file)
        for _, part in files.parts(
            parquet, table.state.columns, wanted, None, dict(file.partition)
        ):
            frame = pl.DataFrame(part)
            others = frame.filter(~mine.among(frame))
            for name, names in columns.items():
                for one in names:
                    found[name] -= {*others[one].cast(pl.String).drop_nulls().unique()}
    return {name: values for name, values in found.items() if values}


def texts(settings: Settings, which: About, names: Collection[str]) -> Iterator[pl.Series]:
    """What records about a table tell as values of some columns of keys.

    Raises:
        LakeError, LakeUnreachable
    """
    for state, columns in books(settings):
        for records in rows(state, columns):
            mine = records.filter(which.among(records))
            for column in ("row_key", "examples"):
                if column in mine.columns:
                    told = {
                        one[name]
                        for text in mine[column]
                        for one in _read(text)
                        for name in names
                        if isinstance(one.get(name), str)
                    }
                    yield pl.Series(sorted(told), dtype=pl.String)
