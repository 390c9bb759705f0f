"""The tables of the lake by their names, those that cannot be opened included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError, ConfigError
from bronze.model.locations import TableName


@dataclass(frozen=True)
class LakeTable:
    """A table of the lake: ``schema`` and ``name``, and the ``label`` of its table in ``source`` as
    far as it is known. ``error`` is why it has no ``state``, if it should have one.
    """

    schema: str
    name: str
    source: str = ""
    label: str = ""
    state: State | None = field(default=None, repr=False)
    error: BronzeError | None = None

    @property
    def target(self) -> str:
        """Its full name."""
        return TableName(self.schema, self.name).label

    @property
    def is_bronze(self) -> bool:
        """Whether bronze made it from a table of a source."""
        return self.state is not None and TableProperties.read(self.state.properties).is_bronze

    @property
    def own_names(self) -> tuple[str, str]:
        """Its own name, without and with the schema."""
        return self.name, self.target

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of the source's table with its schema, without and with the source."""
        return (self.label, f"{self.source}.{self.label}") if self.label else ()

    @property
    def short_label(self) -> str:
        """The name of the source's table without its schema."""
        if self.state is None:
            return ""
        return TableProperties.read(self.state.properties).source_table.name

    @property
    def names(self) -> tuple[str, ...]:
        """What arguments may call it by: its own names, and those of the source's table."""
        return tuple(filter(None, (*self.own_names, *self.labels, self.short_label)))


T = TypeVar("T", bound=LakeTable)


def tables_of(settings: Settings, schema: str) -> Iterator[LakeTable]:
    """All tables in the folders of a schema, whoever made them.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be listed.
    """
    names = store.folders(settings.place(schema, ""))
    readings = log.reads([settings.place(schema, name) for name in names])
    for name, reading in zip(names, readings, strict=True):
        yield _table(TableName(schema, name), reading)


def table_of(settings: Settings, name: TableName) -> LakeTable:
    """The table of a full name, whether it is there or not."""
    return _table(name, partial(log.read, settings.place(*name)))


def _table(name: TableName, reading: Callable[[], State | None]) -> LakeTable:
    try:
        state = reading()
    except BronzeError as error:
        return LakeTable(*name, error=error)
    known = TableProperties.read(state.properties if state else {})
    return LakeTable(*name, known.source, known.label, state)


def find(settings: Settings, there: Iterable[T], names: Sequence[str]) -> list[T]:
    """The tables with these names (their own, or those of the source tables); all if none is given.

    Raises:
        ConfigError: there is no such table.
    """
    tables = list(there)
    unknown = [name for name in names if not any(name in table.names for table in tables)]
    if unknown:
        raise ConfigError(
            f"There is no Bronze table {unknown[0]} in {settings.lake.root}.",
            hint=f"There are {', '.join(sorted(table.name for table in tables)) or 'none'}.",
        )
    return [table for table in tables if not names or set(table.names) & set(names)]


def find_one(settings: Settings, there: Iterable[T], name: str) -> T:
    """The table of this name. Its own name comes first, then that of the source's table with the
    schema, then without.

    Raises:
        ConfigError: there is no such table, or there are several.
    """
    tables = find(settings, there, [name])
    by_name = [table for table in tables if name in table.own_names]
    by_label = [table for table in tables if name in table.labels]
    matches = by_name or by_label or tables
    if len(matches) > 1:
        names = [table.name for table in matches]
        raise ConfigError(
            f"Several Bronze tables hold a table {name}: {', '.join(names)}.",
            hint=f"Name one of them, such as {names[0]}.",
        )
    return matches[0]
