"""What governance has recorded of a person's rows, and which of its records have to go.

Records name rows by their keys (rejected values, anomalies, examples of quality), or tell values
of theirs: a model the categories of its sample, by their text; a profile, or what is unusual about
a run, means, which of one row are its values.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log
from bronze.delta.log import State
from bronze.governance.tables import (
    anomalies,
    data_lineage,
    models,
    profiles,
    quality,
    rejected_values,
)
from bronze.protection.subject import Held, Subject, said, written
from bronze.tables.naming import short_name

BOOKS: Mapping[str, tuple[str, ...]] = {
    rejected_values.NAME: ("batch_id", "column_name", "row_key"),
    quality.NAME: ("batch_id", "examples"),
    anomalies.NAME: ("batch_id", "row_key", "columns"),
    profiles.NAME: ("batch_id", "measures"),
    models.NAME: ("features",),
}
"""The tables of governance that have records of rows, with the columns that tell of them."""
_TARGET, _SYSTEM = "target_table", "source_system"
_ABOUT = (_TARGET, _SYSTEM)
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


def about(settings: Settings, table: Held) -> About:
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
            yield state, [column for column in (*_ABOUT, *told) if column in there]


@dataclass(frozen=True)
class Person:
    """A person's rows, in every version in which a file has them, and what is told of them.

    ``seen`` are the rows by their columns; ``alone`` the categories, by column, that no other row
    has; ``targets`` the Bronze names of the source's columns.
    """

    subject: Subject
    seen: Sequence[Mapping[str, Any]] = ()
    alone: Mapping[str, Collection[str]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)

    def among(self, records: pl.DataFrame) -> pl.Series:
        """Which records of one of `BOOKS` tell of the rows."""
        found = [self._told(row) for row in records.iter_rows(named=True)]
        return pl.Series(found, dtype=pl.Boolean)

    def _told(self, record: Mapping[str, Any]) -> bool:
        if "features" in record:
            return any(
                value in self.alone.get(feature["column"], ())
                for feature in _read(record["features"])
                for value, _ in feature.get("shares", ())
            )
        if "measures" in record:
            measures = _read(record["measures"])
            return any(
                self._has(name.removeprefix(_MEAN), value)
                for one in measures
                for name, value in one.items()
                if name.startswith(_MEAN)
            )
        if "examples" in record:
            return any(map(self._named, _read(record["examples"])))
        keys = _read(record.get("row_key"))
        if any(map(self._named, keys)):
            return True
        if "column_name" in record:
            return {} in keys and self._unnamed(record)
        return any(
            self._has(one["column"], one[what])
            for one in _read(record.get("columns"))
            if one.get("measure") == _MEAN.strip() and one.get("column")
            for what in ("value", "usual")
        )

    def _named(self, key: Mapping[str, Any]) -> bool:
        """Whether a key names one of the rows."""
        if self.subject.named(key):
            return True
        return any(
            (named := [name for name in key if name in row])
            and any(key[name] is not None for name in named)
            and all(said(key[name], [row[name]]) for name in named)
            for row in self.seen
        )

    def _unnamed(self, record: Mapping[str, Any]) -> bool:
        """Whether a record that names no row may be of one of them: of its batch, where it has
        no value.
        """
        column = self.targets.get(record["column_name"], record["column_name"])
        return any(
            row.get("batch_id") == record["batch_id"] and row.get(column) is None
            for row in self.seen
        )

    def _has(self, column: str, value: Any) -> bool:
        """Whether one of the rows has a number in a column."""
        numbers = (row.get(column) for row in self.seen)
        return any(
            float(number) == value
            for number in numbers
            if number is not None and not isinstance(number, str | bytes | list)
            if _is_number(number)
        )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _read(text: str | None) -> list[Any]:
    """A list of JSON objects, or one as such a list; empty where it is none."""
    try:
        known = json.loads(text or "[]")
    except ValueError:
        return []
    found = known if isinstance(known, list) else [known]
    return [one for one in found if isinstance(one, dict)]


def categories(settings: Settings, which: About) -> dict[str, set[str]]:
    """The categories that models of a table tell, by column.

    Raises:
        LakeError, LakeUnreachable
    """
    state, found = log.read(settings.place(GOVERNANCE, models.NAME)), dict[str, set[str]]()
    for records in rows(state, (*_ABOUT, "features")) if state else ():
        for text in records.filter(which.among(records))["features"]:
            for feature in _read(text):
                told = {str(value) for value, _ in feature.get("shares", ())}
                if told:
                    found.setdefault(feature["column"], set()).update(told)
    return found


def alone(
    table: Held, told: Mapping[str, set[str]], seen: Iterable[Mapping[str, Any]], mine: Subject
) -> dict[str, set[str]]:
    """The categories that the person's rows have had, and no other row of a table has now."""
    found: dict[str, set[str]] = {}
    for row in seen:
        for name, values in told.items():
            text = row.get(name)
            if text is not None and (value := written(text)) in values:
                found.setdefault(name, set()).add(value)
    columns = [name for name in found if name in dict(table.state.columns)]
    if not columns:
        return found
    for file in table.state.files:
        parquet = files.opened(table.state.place, file)
        wanted = list(dict.fromkeys((*columns, *mine.columns)))
        for _, part in files.parts(
            parquet, table.state.columns, wanted, None, dict(file.partition)
        ):
            frame = pl.DataFrame(part)
            others = frame.filter(~mine.among(frame))
            for name in columns:
                found[name] -= {*others[name].cast(pl.String).drop_nulls().unique()}
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
