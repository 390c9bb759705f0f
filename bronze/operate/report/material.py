"""What a report is made from: the view of now, records of some days, and the layout of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.operate.facts import first_sentence
from bronze.operate.report import records
from bronze.operate.report.records import Records
from bronze.operate.status import status_of
from bronze.operate.view import TableView, View
from bronze.tables import lake
from bronze.tables.lake import LakeTable


@dataclass(frozen=True)
class Material:
    """Everything that is on the page.

    ``view`` has only the tables that the report is about, and their alerts; ``stored`` are those of
    them that the lake has, by their full names. ``is_selection`` says that the lake may have more.
    """

    root: str
    zone: ZoneInfo
    days: int
    view: View
    records: Records
    stored: Mapping[str, LakeTable]
    clustered: Mapping[str, tuple[str, ...]]
    is_selection: bool
    notes: tuple[str, ...] = ()

    @property
    def now(self) -> datetime:
        """When it was made."""
        return self.view.now

    @property
    def begin(self) -> datetime:
        """From when on records are in it."""
        return self.records.begin

    def name(self, target: str) -> str:
        """How the page calls a table: as its source does."""
        return self.names.get(target, target)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The names of tables in their source, by their Bronze tables."""
        return {table.target: table.table for table in self.view.tables}


def gather(settings: Settings, names: Sequence[str], days: int, now: datetime) -> Material:
    """Reads all of it from the lake.

    Raises:
        ConfigError: there is no table of such a name, or there are several.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    status = status_of(settings, names, now)
    zone = settings.serve.timezone
    view = _selected(status.view, status.tables, zone) if names else status.view
    targets = [table.target for table in view.tables]
    found = records.read(settings, targets if names else None, now - timedelta(days=days))
    stored, notes = _stored(settings, targets if names else None)
    return Material(
        root=settings.lake.root,
        zone=ZoneInfo(zone),
        days=days,
        view=view,
        records=found,
        stored=stored,
        clustered={table.target: _wish(settings, table) for table in stored.values()},
        is_selection=bool(names),
        notes=(*found.notes, *notes),
    )


def _selected(view: View, tables: Sequence[TableView], zone: str) -> View:
    """The view of some tables, with the sentence about them."""
    keys = {table.key for table in tables}
    alerts = tuple(alert for alert in view.alerts if alert.condition.subject in keys)
    return first_sentence.with_sentence(replace(view, tables=tuple(tables), alerts=alerts), zone)


def _stored(
    settings: Settings, targets: Sequence[str] | None
) -> tuple[Mapping[str, LakeTable], tuple[str, ...]]:
    """The Bronze tables of the lake, and which cannot be read."""
    try:
        there = list(lake.tables_of(settings, settings.lake.schema_))
    except BronzeError as error:
        return {}, (error.message,)
    wanted = [t for t in there if targets is None or t.target in targets]
    notes = tuple(
        f"{table.target} cannot be read: {table.error.message}" for table in wanted if table.error
    )
    return {table.target: table for table in wanted if table.is_bronze}, notes


def _wish(settings: Settings, table: LakeTable) -> tuple[str, ...]:
    """The columns that the config wants a table to be clustered by."""
    schema = table.label[: -len(table.short_label) - 1]
    own = settings.table(table.source, schema, table.short_label)
    return own.cluster_columns
