"""The tables that lie in the lake, by their names: what cannot be opened is one all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError, ConfigError


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
        return self.state is not None and TableProperties.read(self.state.properties).is_bronze

    @property
    def names(self) -> tuple[str, ...]:
        """What arguments may call it by: its own name, and those of the source's table."""
        table = self.label.partition(".")[2]
        if self.state is not None:
            table = TableProperties.read(self.state.properties).name
        return tuple(filter(None, (self.name, self.label, table)))


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
        known = TableProperties.read(state.properties if state else {})
        yield LakeTable(schema, name, known.source, known.label, state)


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
