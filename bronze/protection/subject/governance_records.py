"""The governance records about a Bronze table, and what they say of its rows.

Records name rows by their keys (rejected values, anomalies, examples of quality rules), or hold
values of rows: an anomaly model has the categories of its sample as text; a profile, and an unusual
measure of a batch, has means, which are a person's values if they are the means of one row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log
from bronze.delta.folder import Folder
from bronze.delta.log import State
from bronze.governance.tables import data_lineage, quality, rejected_values
from bronze.governance.tables.anomaly import anomalies, models, profiles
from bronze.protection.lake_table import ProtectedTable
from bronze.tables.naming import short_name

_CONTENTS: Mapping[str, tuple[str, ...]] = {
    rejected_values.NAME: ("batch_id", "column_name", "row_key"),
    quality.NAME: ("batch_id", "examples"),
    anomalies.NAME: ("batch_id", "row_key", "columns"),
    profiles.NAME: ("batch_id", "measures"),
    models.NAME: ("features",),
}
# The governance tables with records of rows, and the columns that say something about a row.
TARGETS = ("target_table", "source_system")
"""The columns that say which table a record is about."""
_TARGET, _SYSTEM = TARGETS
_MEAN = "mean "


@dataclass(frozen=True)
class RecordScope:
    """Which records are about the Bronze table ``target`` of ``source``.

    Records of earlier releases have its name without the schema. Where their batch is one of
    ``other_batches``, they are about the table of that name in another schema.
    """

    target: str
    source: str
    other_batches: frozenset[str]

    def matches(self, records: pl.DataFrame) -> pl.Series:
        """Which of some records, which have at least the columns `TARGETS` of their table."""
        target = records[_TARGET]
        by_short_name = target == short_name(self.target)
        if _SYSTEM in records.columns:
            by_short_name &= records[_SYSTEM].fill_null("") == self.source
        if "batch_id" in records.columns and self.other_batches:
            is_other = records["batch_id"].is_in(list(self.other_batches))
            by_short_name &= ~is_other.fill_null(False)
        return ((target == self.target) | by_short_name).fill_null(False)


def record_scope(settings: Settings, table: ProtectedTable) -> RecordScope:
    """Which records are about a table.

    Raises:
        LakeError, LakeUnreachable
    """
    name = short_name(table.name)
    state = log.read(settings.place(GOVERNANCE, data_lineage.NAME))
    batches = set[str]()
    for records in _current_records(state, (_TARGET, "batch_id")) if state else ():
        others = records.filter(
            pl.col(_TARGET).str.ends_with(f".{name}"), pl.col(_TARGET) != table.name
        )
        batches |= {*others["batch_id"].drop_nulls()}
    return RecordScope(table.name, table.source, frozenset(batches))


def _current_records(state: State, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The current records of a governance table, with some of their columns."""
    for file in state.files:
        for _, part in files.parts(files.open_parquet(state.place, file), state.columns, columns):
            yield pl.DataFrame(part)


def governance_tables(settings: Settings) -> Iterator[tuple[State, list[str]]]:
    """The governance tables with records of rows that are in the lake, each with the columns that
    have to be read.

    Raises:
        LakeError, LakeUnreachable
    """
    for name, contents in _CONTENTS.items():
        state = log.read(settings.place(GOVERNANCE, name))
        if state is not None:
            columns = dict(state.columns)
            yield state, [column for column in (*TARGETS, *contents) if column in columns]


@dataclass(frozen=True)
class RecordedFacts:
    """What the records about a table say of its rows.

    ``keys`` are the sets of columns by which they name rows, ``means`` the columns with a mean,
    ``nameless`` the columns with a value that is not attributed to a row, and
    ``categories`` the values, as text, that they have of each column.
    """

    keys: frozenset[tuple[str, ...]] = frozenset()
    means: frozenset[str] = frozenset()
    nameless: frozenset[str] = frozenset()
    categories: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def columns(self) -> frozenset[str]:
        """All columns about which they say something."""
        key_columns = (name for names in self.keys for name in names)
        return frozenset((*key_columns, *self.means, *self.nameless, *self.categories))


def recorded_facts(
    settings: Settings, scope: RecordScope, targets: Mapping[str, str]
) -> RecordedFacts:
    """What the current records about a table say.

    Args:
        settings: the config.
        scope: which records are about the table.
        targets: the Bronze names of the source's columns.

    Raises:
        LakeError, LakeUnreachable
    """
    keys, means, nameless = set[tuple[str, ...]](), set[str](), set[str]()
    categories: dict[str, set[str]] = {}
    for state, columns in governance_tables(settings):
        for _, records in Folder(state).rows(columns):
            for record in records.filter(scope.matches(records)).iter_rows(named=True):
                found = row_keys(record)
                keys |= {tuple(sorted(key)) for key in found if key}
                means |= {column for column, _ in means_in(record)}
                if {} in found and "column_name" in record:
                    nameless.add(targets.get(record["column_name"], record["column_name"]))
                for column, text in categories_in(record):
                    categories.setdefault(column, set()).add(text)
    texts = {name: frozenset(texts) for name, texts in categories.items()}
    return RecordedFacts(frozenset(keys), frozenset(means), frozenset(nameless), texts)


def row_keys(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys by which a record names rows; an empty one where it does not say which row."""
    return _objects(record.get("examples")) + _objects(record.get("row_key"))


def means_in(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The means that a record has, with their columns."""
    for measures in _objects(record.get("measures")):
        for name, value in measures.items():
            if name.startswith(_MEAN):
                yield name.removeprefix(_MEAN), value
    for unusual in _objects(record.get("columns")):
        if unusual.get("measure") == _MEAN.strip() and unusual.get("column"):
            yield from ((unusual["column"], unusual[name]) for name in ("value", "usual"))


def categories_in(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The categories that a record has, with their columns."""
    for feature in _objects(record.get("features")):
        for value, _ in feature.get("shares", ()):
            yield feature["column"], str(value)


def _objects(text: str | None) -> list[Any]:
    """The objects of a JSON array, or one JSON object as such a list; none of any other text."""
    try:
        parsed = json.loads(text or "[]")
    except ValueError:
        return []
    values = parsed if isinstance(parsed, list) else [parsed]
    return [value for value in values if isinstance(value, dict)]


def recorded_keys(settings: Settings, scope: RecordScope, column: str) -> Iterator[pl.Series]:
    """The texts that records about a table have of a column in the keys of rows.

    Raises:
        LakeError, LakeUnreachable
    """
    for state, columns in governance_tables(settings):
        for records in _current_records(state, columns):
            in_scope = records.filter(scope.matches(records))
            for name in ("row_key", "examples"):
                if name in in_scope.columns:
                    texts = {
                        key[column]
                        for text in in_scope[name]
                        for key in _objects(text)
                        if isinstance(key.get(column), str)
                    }
                    yield pl.Series(sorted(texts), dtype=pl.String)
