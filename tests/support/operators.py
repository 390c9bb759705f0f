"""Makes what operators see from a few values: a config, tables, records of runs, a clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.operate.history import History

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    """A moment, in minutes after noon."""
    return NOON + timedelta(minutes=minutes)


@dataclass(frozen=True)
class Table:
    """A table of the source shop."""

    name: str
    settings: TableSettings
    source: str = "shop"

    @property
    def label(self) -> str:
        """Its name with the schema."""
        return f"public.{self.name}"

    @property
    def target(self) -> str:
        """Its Bronze table."""
        return f"bronze.bz_{self.name}"

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.source}.{self.label}"

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call it."""
        return self.key, self.label, self.name, self.target


def table(name: str = "orders", **settings: Any) -> Table:
    """A table that is due each hour and may be ten minutes late, unless the settings differ."""
    own = {"pattern": "micro_batch", "schedule": "hourly", "sla": "10m", **settings}
    return Table(name, TableSettings.model_validate(own))


def config(**sections: Any) -> Settings:
    """A config with the source shop."""
    document = {
        "source": {"name": "shop", "dsn": "host=nowhere dbname=shop"},
        "lake": {"root": "/nowhere"},
        **sections,
    }
    return Settings.from_dict(document)


def run(of: Table, began: float, ended: float | None = None, **values: Any) -> RunRecord:
    """A record of a run, with times in minutes after noon; without an end it has begun."""
    known: dict[str, Any] = {
        "run_id": f"{of.name} {began}",
        "command": "run",
        "began": at(began),
        "status": "began" if ended is None else "landed",
        "source_system": of.source,
        "source_table": of.label,
        "target_table": of.target,
        "pattern": of.settings.pattern,
        "host": "worker-1",
    }
    if ended is not None:
        known |= {"ended": at(ended), "as_of": at(began), "seconds": 60.0 * (ended - began)}
    known |= values
    if known["status"] in ("failed", "stopped", "began"):
        known["as_of"] = None
    if isinstance(known.get("scheduled"), int | float):
        known["scheduled"] = at(known["scheduled"])
    return RunRecord(**known)


def rows_of(records: Iterable[RunRecord]) -> pl.DataFrame:
    """The rows of records, written when they ended or began."""
    ordered = sorted(records, key=lambda record: record.ended or record.began)
    times = [record.ended or record.began for record in ordered]
    column = pl.Series("recorded_timestamp", times, dtype=pl.Datetime("us", "UTC"))
    return runs.frame(ordered).with_columns(column)


def history_of(
    settings: Settings, records: Sequence[RunRecord] = (), streams: Mapping[str, Any] | None = None
) -> History:
    """The history that knows these records and checkpoints."""
    history = History(settings)
    history.add(rows_of(records))
    history._points = dict(streams or {})
    return history
