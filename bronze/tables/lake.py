"""The tables that lie in the lake, by their names: what cannot be opened is one all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bronze.config.settings import Settings
from bronze.delta import log, properties, store
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError
from bronze.tables import evolution


@dataclass(frozen=True)
class LakeTable:
    """A table by its ``schema`` and ``name``, made of the table ``label`` of ``source``, as far as
    that is known. ``error`` is why there is no ``state``, where there should be one.
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
        return f"{self.schema}.{self.name}"

    @property
    def is_bronze(self) -> bool:
        """Whether it says that bronze made it of a table of the source."""
        return self.state is not None and properties.TABLE in self.state.properties

    @property
    def own_names(self) -> tuple[str, str]:
        """Its own name, without and with the schema."""
        return self.name, self.target

    @property
    def short_label(self) -> str:
        """The name of the source's table without its schema."""
        if self.state is not None:
            return evolution.table_of(self.state.properties)[1]
        return self.label.partition(".")[2]

    @property
    def names(self) -> tuple[str, ...]:
        """What arguments may call it by: its own names, and those of the source's table."""
        return tuple(filter(None, (*self.own_names, self.label, self.short_label)))


T = TypeVar("T", bound=LakeTable)


def opened(settings: Settings, schema: str) -> Iterator[LakeTable]:
    """What lies in the folders of a schema, whatever it is.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be listed.
    """
    for name in store.folders(settings.place(schema, "")):
        try:
            state = log.read(settings.place(schema, name))
        except BronzeError as error:
            yield LakeTable(schema, name, error=error)
            continue
        known = state.properties if state else {}
        source, label = known.get(properties.SOURCE, ""), known.get(properties.TABLE, "")
        yield LakeTable(schema, name, source, label, state)


def find(settings: Settings, there: Iterable[T], names: Sequence[str]) -> list[T]:
    """Those of these names (theirs, or those of the source's tables); all if none.

    Raises:
        ConfigError: there is no such table.
    """
    found = list(there)
    unknown = [name for name in names if not any(name in one.names for one in found)]
    if unknown:
        raise ConfigError(
            f"There is no Bronze table {unknown[0]} in {settings.lake.root}.",
            hint=f"There are {', '.join(sorted(one.name for one in found)) or 'none'}.",
        )
    return [one for one in found if not names or set(one.names) & set(names)]


def find_one(settings: Settings, there: Iterable[T], name: str) -> T:
    """The table of this name. Its own name comes first, then that of the source's table with the
    schema, then without.

    Raises:
        ConfigError: there is no such table, or there are several.
    """
    tables = find(settings, there, [name])
    by_name = [table for table in tables if name in table.own_names]
    by_label = [table for table in tables if name == table.label]
    matches = by_name or by_label or tables
    if len(matches) > 1:
        names = [table.name for table in matches]
        raise ConfigError(
            f"Several Bronze tables hold a table {name}: {', '.join(names)}.",
            hint=f"Name one of them, such as {names[0]}.",
        )
    return matches[0]
