"""What `bronze status` tells: the view from the lake alone, so it works without the service."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bronze.backup import purges
from bronze.backup.copy import roots_of
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError, LakeUnreachable
from bronze.governance.tables.runs import RunRecord
from bronze.model.locations import TableName
from bronze.operate import beat, controls
from bronze.operate.alerts import store as alert_store
from bronze.operate.current import view_of
from bronze.operate.history import History
from bronze.operate.tables import catalog
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.view import Live, TableView, View
from bronze.printable import count

RUNS = 10
"""How many runs of a table are shown."""


@dataclass(frozen=True)
class Status:
    """The view. If tables were asked for, ``tables`` are these, and ``runs`` their last ones by
    their keys, the newest first. ``copy`` says what the copy of the lake lacks, "" if nothing.
    """

    view: View
    tables: tuple[TableView, ...] = ()
    runs: Mapping[str, tuple[RunRecord, ...]] = field(default_factory=dict)
    copy: str = ""

    @property
    def exit_code(self) -> int:
        """1 if anything is late or an alert is open, of what was asked for; else 0."""
        if self.tables:
            keys = {table.key for table in self.tables}
            alerts = (alert.condition.subject for alert in self.view.open_alerts)
            return int(any(t.late for t in self.tables) or any(key in keys for key in alerts))
        return 0 if self.view.is_well else 1

    def document(self) -> dict[str, Any]:
        """The status for JSON: times in ISO 8601, durations in seconds."""
        if not self.tables:
            copy = {"copy": self.copy} if self.copy else {}
            return plain({**asdict(self.view), "is_well": self.view.is_well, **copy})  # type: ignore[no-any-return]
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
    tables = known_tables(settings, history, live)
    view = view_of(settings, tables, history, live, requests, alerts, now)
    if not names:
        return Status(view, copy=_lacks_of_copy(settings))
    keys = list(dict.fromkeys(catalog.named(tables, name).key for name in names))
    by_key = {table.key: table for table in view.tables}
    runs = {key: history.runs(key)[: -RUNS - 1 : -1] for key in keys}
    return Status(view, tuple(by_key[key] for key in keys), runs)


def _lacks_of_copy(settings: Settings) -> str:
    """What the copy of the lake lacks, as a sentence; "" without a copy."""
    if not settings.backup.root:
        return ""
    try:
        lake, copy = roots_of(settings)
        open_erasures = purges.outstanding(lake, copy)
    except BronzeError as error:
        return f"The copy cannot be read: {error.message}"
    if not open_erasures:
        return ""
    tables = ", ".join(sorted({entry.table.label for entry in open_erasures}))
    return (
        f"{count(len(open_erasures), 'erasure')} of {tables} not yet done in the copy: `bronze"
        " backup` does it, or says why not."
    )


def known_tables(
    settings: Settings, history: History, live: Live | None
) -> tuple[ServedTable, ...]:
    """The tables of the config's sources that records of runs, streams of the lake, or sections of
    the config know; without those that were dropped from the source before the service was heard.
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
    return tuple(table for table in found.values() if not _is_dropped(table, history, live))


def _is_dropped(table: ServedTable, history: History, live: Live | None) -> bool:
    known = history.tables.get(table.key)
    if live is None or not live.tables or table.key in live.tables:
        return False
    # One that was made since is not known to the service.
    return known is not None and (known.last is None or known.last.began < live.at)


def _recorded(settings: Settings, history: History) -> Iterator[ServedTable]:
    for known in history.tables.values():
        if table := catalog.recorded_table(settings, known.source, known.label):
            yield table


def _in_lake(settings: Settings, target: str) -> ServedTable | None:
    """A streamed table, as its Bronze table names it."""
    schema, _, bronze = target.partition(".")
    state = log.read(settings.place(schema, bronze))
    known = TableProperties.read(state.properties if state else {})
    return catalog.recorded_table(settings, known.source, known.label)


def _configured(settings: Settings, section: str) -> ServedTable | None:
    """The table of a section of the config that nothing else knows: it has never landed."""
    for source, own in settings.source.items():
        rest = section.removeprefix(f"{source}.")
        schema = next((s for s in own.schema_ if rest.startswith(f"{s}.")), None)
        name = rest.removeprefix(f"{schema}.") if schema else rest
        if own.takes(name):
            return catalog.table_of(settings, source, TableName(schema or own.schema_[0], name))
    return None


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
