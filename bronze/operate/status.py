"""What `bronze status` tells: the view from the lake alone, so it works without the service."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bronze.config.settings import Settings
from bronze.config.tables import TableSettings
from bronze.delta import log, store
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError, LakeUnreachable
from bronze.governance.tables.runs import RunRecord
from bronze.model.locations import TableName
from bronze.operate import beat, controls
from bronze.operate.alerts import store as alert_store
from bronze.operate.current import view_of
from bronze.operate.history import History
from bronze.operate.view import TableView, View
from bronze.tables.naming import table_name

RUNS = 10
"""How many runs of a table are shown."""


@dataclass(frozen=True)
class KnownTable:
    """A table that records, the lake or the config know."""

    source: str
    label: str
    target: str
    settings: TableSettings

    @property
    def key(self) -> str:
        """Its name among the tables of all sources."""
        return f"{self.source}.{self.label}"

    @property
    def names(self) -> tuple[str, ...]:
        """What arguments may call it."""
        short, bronze = (name.rpartition(".")[2] for name in (self.label, self.target))
        return self.key, self.label, short, self.target, bronze


@dataclass(frozen=True)
class Status:
    """The view. If tables were asked for, ``tables`` are these, and ``runs`` their last ones by
    their keys, the newest first.
    """

    view: View
    tables: tuple[TableView, ...] = ()
    runs: Mapping[str, tuple[RunRecord, ...]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 if anything is late or an alert is open, of what was asked for; else 0."""
        if self.tables:
            keys = {table.key for table in self.tables}
            alerts = (alert.condition.subject for alert in self.view.alerts)
            return int(any(t.late for t in self.tables) or any(key in keys for key in alerts))
        return 0 if self.view.is_well else 1

    def document(self) -> dict[str, Any]:
        """The status for JSON: times in ISO 8601, durations in seconds."""
        if not self.tables:
            return plain({**asdict(self.view), "is_well": self.view.is_well})  # type: ignore[no-any-return]
        tables = [
            {**asdict(table), "runs": [asdict(run) for run in self.runs[table.key]]}
            for table in self.tables
        ]
        return plain({"now": self.view.now, "tables": tables})  # type: ignore[no-any-return]


def status_of(settings: Settings, names: Sequence[str], now: datetime) -> Status:
    """What the lake tells about all tables, or about those of these names.

    Raises:
        ConfigError: there is no such table, or there are several.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    root = settings.place("", "")
    if store.is_missing(root):
        raise LakeUnreachable(
            f"There is no lake at {settings.lake.root}.",
            hint="Mount it, or move it back; if it is new, `bronze run` makes it.",
        )
    history = History(settings)
    history.refresh()
    alerts = (alert_store.load(settings) or {}).values()
    live, requests = beat.read(settings), controls.read(settings)
    tables = known_tables(settings, history)
    view = view_of(settings, tables, history, live, requests, alerts, now)
    if not names:
        return Status(view)
    keys = list(dict.fromkeys(_named(tables, name).key for name in names))
    by_key = {table.key: table for table in view.tables}
    runs = {key: history.runs(key)[: -RUNS - 1 : -1] for key in keys}
    return Status(view, tuple(by_key[key] for key in keys), runs)


def known_tables(settings: Settings, history: History) -> tuple[KnownTable, ...]:
    """The tables of the config's sources that records of runs, streams of the lake, or sections of
    the config know.
    """
    found = {table.key: table for table in _recorded(settings, history)}
    targets = {table.target for table in found.values()}
    for target in sorted({t for point in history.streams.values() for t in point.targets}):
        if target not in targets and (table := _in_lake(settings, target)):
            found[table.key] = table
    for name in settings.tables:
        is_known = any(name in table.names for table in found.values())
        if not is_known and (configured := _configured(settings, name)):
            found[configured.key] = configured
    return tuple(found.values())


def _recorded(settings: Settings, history: History) -> Iterator[KnownTable]:
    for known in history.tables.values():
        name = _name_in(settings, known.source, known.label)
        if name:
            own = settings.table(known.source, name.schema, name.name)
            yield KnownTable(known.source, known.label, known.target, own)


def _name_in(settings: Settings, source: str, label: str) -> TableName | None:
    """The name of a table, if the config still takes it from its source."""
    if source not in settings.source:
        return None
    for schema in settings.source[source].schema_:
        name = label.removeprefix(f"{schema}.")
        if name != label and settings.source[source].takes(name):
            return TableName(schema, name)
    return None


def _in_lake(settings: Settings, target: str) -> KnownTable | None:
    """A streamed table, as its Bronze table names it."""
    schema, _, bronze = target.partition(".")
    state = log.read(settings.place(schema, bronze))
    known = TableProperties.read(state.properties if state else {})
    name = _name_in(settings, known.source, known.label)
    if name is None:
        return None
    own = settings.table(known.source, name.schema, name.name)
    return KnownTable(known.source, known.label, target, own)


def _configured(settings: Settings, section: str) -> KnownTable | None:
    """The table of a section of the config that nothing else knows: it has never landed."""
    for source, own in settings.source.items():
        rest = section.removeprefix(f"{source}.")
        schema = next((s for s in own.schema_ if rest.startswith(f"{s}.")), None)
        name = rest.removeprefix(f"{schema}.") if schema else rest
        if own.takes(name):
            table = settings.tables[section]
            bronze = TableName(settings.lake.schema_, table.target or table_name(name))
            label = TableName(schema or own.schema_[0], name).label
            return KnownTable(source, label, bronze.label, table)
    return None


def _named(tables: Sequence[KnownTable], name: str) -> KnownTable:
    matches = [table for table in tables if name in table.names]
    exact = [table for table in matches if name in (table.key, table.label)] or matches
    if not exact:
        known = ", ".join(sorted(table.label for table in tables)[:20]) or "none"
        raise ConfigError(f"There is no table {name} in the lake.", hint=f"There are: {known}.")
    if len(exact) > 1:
        keys = [table.key for table in exact]
        raise ConfigError(
            f"Several tables are named {name}: {', '.join(keys)}.",
            hint=f"Name one of them, such as {keys[0]}.",
        )
    return exact[0]


def plain(value: Any) -> Any:
    """A value with times and durations as JSON has them."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return None if isinstance(value, float) and not math.isfinite(value) else value
