"""Which tables the service keeps: those that the config selects from each source's catalog."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.model.locations import TableName
from bronze.postgres.connection import connect, translation
from bronze.tables import selection
from bronze.tables.naming import table_name

_MOST_NAMED = 20


@dataclass(frozen=True)
class ServedTable:
    """A table of a source: its name there, that of its Bronze table, and its settings."""

    source: str
    name: TableName
    bronze: TableName
    settings: TableSettings

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.name.label

    @property
    def target(self) -> str:
        """The Bronze table's ``schema.name``."""
        return self.bronze.label

    @property
    def key(self) -> str:
        """Its name among the tables of all sources."""
        return f"{self.source}.{self.label}"

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call it."""
        return self.key, self.label, self.name.name, self.target, self.bronze.name

    @property
    def is_streamed(self) -> bool:
        """Whether a stream keeps it."""
        return self.settings.pattern == "streaming"


def only(settings: Settings, source: str) -> Settings:
    """The config with one source, so that work on its tables connects to no other."""
    return settings.for_work(source)


def listed(settings: Settings, source: str) -> tuple[ServedTable, ...]:
    """The tables of a source, from its catalog.

    Raises:
        ConfigError: a schema of the config does not exist.
        SourceError: it cannot be read.
    """
    origin = replace(settings.origin(source), application_name="bronze serve")
    with translation.source_errors(origin), connect.connect(origin) as connection:
        schemas = settings.source[source].schema_
        relations = selection.relations_of(connection, source, schemas, detailed=False)
    return tuple(
        ServedTable(
            source,
            TableName(target.relation.schema, target.relation.name),
            TableName(target.schema, target.name),
            target.settings,
        )
        for target in selection.all_targets(settings, [(source, r) for r in relations])
    )


def table_of(settings: Settings, source: str, name: TableName) -> ServedTable:
    """A table of a source as the config has it now."""
    own = settings.table(source, name.schema, name.name)
    bronze = TableName(settings.lake.schema_, own.target or table_name(name.name))
    return ServedTable(source, name, bronze, own)


def recorded_table(settings: Settings, source: str, label: str) -> ServedTable | None:
    """The table of a record, if the config still takes it from its source."""
    if source not in settings.source:
        return None
    for schema in settings.source[source].schema_:
        name = label.removeprefix(f"{schema}.")
        if name != label and settings.source[source].takes(name):
            return table_of(settings, source, TableName(schema, name))
    return None


def recorded(settings: Settings, names: Iterable[tuple[str, str]]) -> tuple[ServedTable, ...]:
    """The tables of records, by source and label; for sources whose catalog cannot be read."""
    found = (recorded_table(settings, source, label) for source, label in dict.fromkeys(names))
    return tuple(table for table in found if table)


def named(tables: Sequence[ServedTable], name: str) -> ServedTable:
    """The table that a request is about.

    Raises:
        ConfigError: there is no such table, or there are several.
    """
    matches = [table for table in tables if name in table.names]
    exact = [table for table in matches if name in (table.key, table.label)] or matches
    if not matches:
        known = [known for table in tables for known in table.names]
        close = difflib.get_close_matches(name, known, 1)
        suggestion = f" (did you mean {close[0]}?)" if close else ""
        labels = sorted({table.label for table in tables})
        more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
        there_are = (
            f"There are: {', '.join(labels[:_MOST_NAMED])}{more}" if labels else "None is known"
        )
        raise ConfigError(
            f"There is no table {name} in the config's sources{suggestion}.",
            hint=f"{there_are}; names are case-sensitive.",
        )
    if len(exact) > 1:
        raise ConfigError(
            f"Several tables are named {name}: {', '.join(table.key for table in exact)}.",
            hint=f"Name one of them, such as {exact[0].key}.",
        )
    return exact[0]
