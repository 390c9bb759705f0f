"""Asks the source's table that a Bronze table was loaded from whether it still has a row.

Only that table's answer counts. If the table is missing, was made again, or has rows that row-level
security hides, that is an error, and no answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import psycopg

from bronze.config.settings import Settings
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError, TableRefused
from bronze.model.columns import KEY_TEXT
from bronze.postgres.catalog.operators import comparison_operators
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.catalog.types import TypeOptions
from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection
from bronze.postgres.connection.translation import explain
from bronze.postgres.copy import literals
from bronze.postgres.copy.literals import NoValue, Read, Typed
from bronze.postgres.statement import quoted

_IF_GONE = "if the rows are gone from the source for good, use --without-source"
_OR_IF_GONE = f"or, {_IF_GONE}"


@dataclass(frozen=True)
class Original:
    """The table of the source that a Bronze table was loaded from, on an open connection.

    ``columns`` are those of the source by the names of the Bronze table's columns; by the same
    names, ``refused`` are texts that have turned out not to be values of a column's type.
    """

    connection: Connection
    relation: Relation
    columns: Mapping[str, Typed]
    choices: TypeOptions
    refused: dict[str, set[str]] = field(default_factory=dict, repr=False)

    def read(self, name: str, text: str) -> Read | None:
        """A text as a value of a Bronze table's column; None where the source has no such column.

        Raises:
            ConfigError: it is not a value of the column's type.
        """
        column = self.columns.get(name)
        if column is None:
            return None
        try:
            return literals.read(self.connection, column, text, self.choices)
        except NoValue:
            raise ConfigError(
                f"The value given for column {name} is not of type {column.limited}."
            ) from None

    def equal(self, name: str, text: str, others: Collection[str]) -> list[str]:
        """Which of the texts of a Bronze table's column are equal to one by the column's type."""
        refused = self.refused.setdefault(name, set())
        return literals.equal(self.connection, self.columns[name], text, others, refused)

    def texts(self, name: str, values: pl.Series) -> pl.Series:
        """Values of a Bronze table's column, as texts that PostgreSQL reads."""
        if not isinstance(values.dtype, pl.List):
            return values.cast(pl.String)
        element = self.columns[name].attribute.type.element
        delimiter = element.delimiter if element else ","
        texts = [
            None if value is None else literals.written(value, delimiter)
            for value in values.to_list()
        ]
        return pl.Series(values.name, texts, dtype=pl.String)

    def rows(self, key: Mapping[str, str]) -> int:
        """How many rows the table has with some values, which are by the names of the Bronze table.

        Raises:
            TableRefused: none of the columns is in the source.
        """
        values = {self.columns[name]: text for name, text in key.items() if name in self.columns}
        label = self.relation.label
        if not values:
            raise TableRefused(
                f"Table {label} of the source has none of the columns {', '.join(key)}: it cannot"
                " be asked for such a row.",
                hint=f"Select the rows by columns that it has; {_OR_IF_GONE}",
                table=label,
            )
        where = " AND ".join(column.condition() for column in values)
        table = quoted(self.relation.schema, self.relation.name).replace("%", "%%")
        query = f"SELECT count(*) FROM {table} WHERE {where}"  # noqa: S608
        texts = [text for column, text in values.items() for _ in range(column.parameters)]
        row: Any = self.connection.execute(query.encode(), texts).fetchone()
        return int(row[0])


@contextmanager
def source_table(settings: Settings, target: str, state: State) -> Iterator[Original]:
    """The table of the source that a Bronze table was loaded from.

    Args:
        settings: the config.
        target: the name of the Bronze table.
        state: the Bronze table as it is now.

    Raises:
        ConfigError: the config has no such source.
        TableRefused: the table is missing, or is another one, or not all of it can be read.
        LakeError: a property of the Bronze table cannot be read.
        SourceError, SourceUnreachable: the source cannot be asked.
    """
    name = TableProperties.read(state.properties).source
    if name not in settings.source:
        raise ConfigError(
            f"The config has no source {name}, from which {target} was loaded.",
            hint=f"{_IF_GONE[0].upper()}{_IF_GONE[1:]}.",
        )
    origin = settings.origin(name)
    label = TableProperties.read(state.properties).label
    with connect.connect(origin) as connection:
        try:
            # With this setting PostgreSQL raises an error rather than hide rows by a policy.
            connection.execute("SET row_security = off")
            relation = _relation(connection, target, state)
            own = settings.table(name, relation.schema, relation.name)
            choices = TypeOptions(own.decimals, own.arrays, own.timestamps, relation.encoding)
            yield Original(connection, relation, _columns(connection, relation, state), choices)
        except psycopg.Error as error:
            if error.sqlstate == "42501":
                raise TableRefused(
                    f"Table {label} of the source cannot be asked: the role may not read it, or"
                    " row-level security hides rows of it.",
                    hint=f"GRANT SELECT on it, and BYPASSRLS, to the role; {_OR_IF_GONE}",
                    table=label,
                    sqlstate=error.sqlstate,
                ) from None
            raise explain(error, origin, label) from None


def _relation(connection: Connection, target: str, state: State) -> Relation:
    """The table itself: by its name, or by its oid if it was renamed."""
    known = TableProperties.read(state.properties)
    label, oid = known.label, known.oid
    named = [r for r in relations(connection, [known.schema]) if r.name == known.source_table.name]
    if named and oid in (None, named[0].oid):
        return named[0]
    if named:
        raise TableRefused(
            f"Table {label} of the source is not the one that {target} was loaded from: it was"
            " dropped and created again, or the config names another database.",
            hint=f"`bronze run` compares the two; then forget; {_OR_IF_GONE}",
            table=label,
        )
    schemas: list[Any] = connection.execute(_RENAMED, [oid or 0]).fetchall()
    for (other,) in schemas:
        for relation in relations(connection, [other]):
            numbers = {attribute.number for attribute in relation.attributes}
            if relation.oid == oid and numbers >= set(_attnums(state).values()):
                return relation
    raise TableRefused(
        f"Table {label} does not exist in the source, so it cannot be searched for such a row.",
        hint=f"Correct [source], or restore the table; {_OR_IF_GONE}",
        table=label,
    )


_RENAMED = """
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %s::oid AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema'
"""


def _attnums(state: State) -> Mapping[str, int]:
    """The attnums in the source by the names of Bronze columns, as of the last run."""
    return TableProperties.read(state.properties).numbers


def _columns(connection: Connection, relation: Relation, state: State) -> dict[str, Typed]:
    """The source's columns by Bronze names."""
    operators = dict(comparison_operators(connection, relation.schema, relation.name))
    known = literals.typed(connection, relation.oid, relation.attributes, operators)
    targets = {number: target for target, number in _attnums(state).items()}
    names = {name for name, _ in state.columns} - {KEY_TEXT}
    columns = {}
    for attribute in relation.attributes:
        target = targets.get(attribute.number, attribute.name if not targets else "")
        if target in names and attribute.name in known:
            columns[target] = known[attribute.name]
    return columns
