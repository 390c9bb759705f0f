"""Whether the source has a row still: asked of the very table that a Bronze table was loaded from.

Nothing but "no such row", answered by that table, is an answer. A table that is not there, that
was made anew, or whose rows row-level security hides is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import psycopg

from bronze.config.settings import Settings
from bronze.delta import properties
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError, TableRefused
from bronze.model.columns import KEY_TEXT
from bronze.postgres.catalog.operators import comparison_operators
from bronze.postgres.catalog.relations import Relation, relations
from bronze.postgres.catalog.types import TypeOptions
from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection, explain
from bronze.postgres.copy import literals
from bronze.postgres.copy.literals import NoValue, Read, Typed
from bronze.postgres.statement import quoted
from bronze.tables import evolution

_WITHOUT = "or, if the rows are gone there for good: --without-source"


@dataclass(frozen=True)
class Original:
    """The table of the source that a Bronze table was loaded from, on an open connection.

    ``columns`` are those of the source by the names of the Bronze table's columns; by the same
    names, ``refused`` are texts that have turned out to be no values of a column's type.
    """

    connection: Connection
    relation: Relation
    columns: Mapping[str, Typed]
    choices: TypeOptions
    refused: dict[str, set[str]] = field(default_factory=dict, repr=False)

    def read(self, name: str, text: str) -> Read | None:
        """A text as a value of a Bronze table's column; None where the source has no such column.

        Raises:
            ConfigError: it is no value of the column's type.
        """
        column = self.columns.get(name)
        if column is None:
            return None
        try:
            return literals.read(self.connection, column, text, self.choices)
        except NoValue:
            raise ConfigError(
                f"What is given for column {name} is no value of type {column.limited}."
            ) from None

    def equal(self, name: str, text: str, others: Collection[str]) -> list[str]:
        """Which of the texts of a Bronze table's column are equal to one by the column's type."""
        refused = self.refused.setdefault(name, set())
        return literals.equal(self.connection, self.columns[name], text, others, refused)

    def texts(self, name: str, values: pl.Series) -> pl.Series:
        """What the Bronze table has of a column, as texts that PostgreSQL reads."""
        if not isinstance(values.dtype, pl.List):
            return values.cast(pl.String)
        element = self.columns[name].attribute.type.element
        delimiter = element.delimiter if element else ","
        made = [
            None if one is None else literals.written(one, delimiter) for one in values.to_list()
        ]
        return pl.Series(values.name, made, dtype=pl.String)

    def rows(self, given: Mapping[str, str]) -> int:
        """How many rows the table has with some values, by the names of the Bronze table.

        Raises:
            TableRefused: none of the columns is in the source.
        """
        there = {self.columns[name]: text for name, text in given.items() if name in self.columns}
        label = self.relation.label
        if not there:
            raise TableRefused(
                f"Table {label} of the source has none of the columns {', '.join(given)}: it cannot"
                " be asked for such a row.",
                hint=f"Name the rows by columns that it has; {_WITHOUT}",
                table=label,
            )
        where = " AND ".join(column.condition() for column in there)
        table = quoted(self.relation.schema, self.relation.name).replace("%", "%%")
        query = f"SELECT count(*) FROM {table} WHERE {where}"  # noqa: S608
        texts = [text for column, text in there.items() for _ in range(column.parameters)]
        row: Any = self.connection.execute(query.encode(), texts).fetchone()
        return int(row[0])


@contextmanager
def source_table(settings: Settings, target: str, state: State) -> Iterator[Original]:
    """The table of the source that a Bronze table was loaded from.

    Args:
        settings: the config.
        target: the Bronze table's name.
        state: it, as it is.

    Raises:
        ConfigError: the config has no such source.
        TableRefused: the table is not there, or is another one.
        SourceError, SourceUnreachable: it cannot be asked.
    """
    name = state.properties.get(properties.SOURCE, "")
    if name not in settings.source:
        raise ConfigError(
            f"The config has no source {name}, from which {target} is.",
            hint="If the rows are gone there for good: --without-source",
        )
    origin = settings.origin(name)
    label = state.properties.get(properties.TABLE, "")
    with connect.connect(origin) as connection:
        try:
            # Rows that security hides are not gone: a policy makes an error of the question.
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
                    hint=f"GRANT SELECT on it, and BYPASSRLS, to a role that asks; {_WITHOUT}",
                    table=label,
                    sqlstate=error.sqlstate,
                ) from None
            raise explain(error, origin, label) from None


def _relation(connection: Connection, target: str, state: State) -> Relation:
    """The very table: by its name, or by its oid where it was renamed."""
    schema, name = evolution.table_of(state.properties)
    label, oid = (
        state.properties.get(properties.TABLE, ""),
        state.properties.get(properties.OID, ""),
    )
    named = [r for r in relations(connection, [schema]) if r.name == name]
    if named and oid in ("", str(named[0].oid)):
        return named[0]
    if named:
        raise TableRefused(
            f"Table {label} of the source is not the one that {target} was loaded from: it was made"
            " anew, or the config names another database.",
            hint=f"`bronze run` compares the two; then forget; {_WITHOUT}",
            table=label,
        )
    renamed: list[Any] = connection.execute(_RENAMED, [oid or "0"]).fetchall()
    for (other,) in renamed:
        for relation in relations(connection, [other]):
            numbers = {attribute.number for attribute in relation.attributes}
            if str(relation.oid) == oid and numbers >= set(_numbered(state).values()):
                return relation
    raise TableRefused(
        f"There is no table {label} in the source, so that it cannot be asked whether it has such a"
        " row.",
        hint=f"Correct [source], or put the table back; {_WITHOUT}",
        table=label,
    )


_RENAMED = """
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %s::oid AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema'
"""


def _numbered(state: State) -> Mapping[str, int]:
    """The attnums in the source by the names of Bronze columns, as of the last run."""
    return TableProperties.read(state.properties).numbers


def _columns(connection: Connection, relation: Relation, state: State) -> dict[str, Typed]:
    """The source's columns by Bronze names."""
    operators = dict(comparison_operators(connection, relation.schema, relation.name))
    known = literals.typed(connection, relation.oid, relation.attributes, operators)
    targets = {number: target for target, number in _numbered(state).items()}
    ours = {name for name, _ in state.columns} - {KEY_TEXT}
    found = {}
    for attribute in relation.attributes:
        target = targets.get(attribute.number, attribute.name if not targets else "")
        if target in ours and attribute.name in known:
            found[target] = known[attribute.name]
    return found
