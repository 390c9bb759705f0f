"""Reports of made-up lakes: some weeks of ten tables up to a night with faults, or of as many as
wanted. ``python -m tests.support.reports report.html`` writes the first, to be looked at.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast
from zoneinfo import ZoneInfo

import polars as pl

from bronze.delta import properties
from bronze.delta.log import State
from bronze.delta.read.content import LogContent, TableMetadata
from bronze.governance.frames import schema_of
from bronze.governance.tables import data_lineage, quality, runs
from bronze.governance.tables.anomaly import anomalies, profiles
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.operate.report import page
from bronze.operate.report.material import Material
from bronze.operate.report.records import Records
from bronze.operate.view import TableView, View
from bronze.tables.lake import LakeTable
from tests.support import views

DAYS = 30
_MB = 2**20
_SCHEMA = schema_of(
    [
        *runs.COLUMNS,
        *data_lineage.COLUMNS,
        *quality.COLUMNS,
        *profiles.COLUMNS,
        *anomalies.COLUMNS,
        ("at", data_lineage.COLUMNS[6][1]),
    ]
)
_NAMES = {
    "runs": ("run_id", "target_table", "status", "ended_timestamp", "seconds"),
    "landings": ("target_table", "at", "batch_id", "inserted", "updated", "deleted"),
    "changes": ("at", "target_table", "source_table", "version_after", "schema_changes"),
    "figures": (
        *("batch_id", "evaluated_timestamp", "target_table", "rule", "kind", "column_name"),
        *("severity", "checked", "failed", "measured", "allowed", "passed"),
    ),
    "profiles": ("batch_id", "profiled_timestamp", "target_table", "scored", "anomalies"),
    "anomalies": ("anomaly_timestamp", "target_table", "level", "columns"),
}
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class _Content:
    """What the log of a made-up table says."""

    metadata: TableMetadata
    stored: tuple[StoredFile, ...]
    domains: dict[str, str] = field(default_factory=dict)

    def files(self) -> tuple[StoredFile, ...]:
        return self.stored


def material(view: View, days: int = DAYS, more: dict[str, Rows] | None = None) -> Material:
    """A report about the tables of a view, and records that are ``more``."""
    rows: dict[str, Rows] = {name: [] for name in _NAMES}
    for number, table in enumerate(view.tables):
        _add(rows, table, number, view.now, days)
    for name, added in (more or {}).items():
        rows[name] += added
    stored = {t.target: _stored(t, number) for number, t in enumerate(view.tables)}
    clustered = {
        t.target: ("region", "day") if n % 3 == 0 else () for n, t in enumerate(view.tables)
    }
    begin = view.now - timedelta(days=days)
    return Material(
        "s3://lake/inventory", ZoneInfo("Europe/Berlin"), days, view, records(begin, rows), stored,
        clustered, is_selection=False,
    )  # fmt: skip


def records(begin: datetime, rows: dict[str, Rows]) -> Records:
    """Records of rows with the columns that a report reads."""
    frames = {
        name: pl.DataFrame(
            rows.get(name, []), schema={column: _SCHEMA[column] for column in names}, orient="row"
        )
        for name, names in _NAMES.items()
    }
    return Records(begin=begin, **cast(dict[str, Any], frames))


def _add(rows: dict[str, Rows], table: TableView, number: int, now: datetime, days: int) -> None:
    random = Random(table.table)  # noqa: S311
    target = table.target
    for back in range(days, -1, -1):
        at = now - timedelta(days=back, minutes=25)
        # On Sundays there is little to do.
        busy = (0.2 if at.weekday() == 6 else 1.0) * (1 + back % 3)
        is_failed = number == 3 and back in (2, 9, 10)
        batch = f"{back:04}"
        if table.pattern != "streaming":
            seconds = random.uniform(2, 9) * busy * (number + 1)
            status = "failed" if is_failed else "landed"
            rows["runs"].append((batch, target, status, at, seconds))
        if is_failed:
            continue
        counts = [int(random.uniform(20, 900) * busy * share) for share in (8, 3, 1)]
        rows["landings"].append((target, at, batch, *counts))
        broken = int(random.uniform(0, 8) * (back < 12)) if number % 4 == 1 else 0
        for rule, count, allowed in (
            ("not_null email", broken, 0.0),
            ("range price", broken // 3, 0.01),
        ):
            rows["figures"].append(
                (batch, at, target, rule, "not_null", "email", "high", 1000, count, count / 1000,
                 allowed, count / 1000 <= allowed)
            )  # fmt: skip
        score = 100 - broken / 40
        rows["figures"].append(
            (batch, at, target, "score", "check", "", "", 1000, broken, score, None, None)
        )
        if number % 5 == 0:
            rows["profiles"].append((batch, at, target, 1000, int(random.uniform(0, 6))))
            reason = json.dumps([{"column": "total_amount", "contribution": 0.8}])
            rows["anomalies"].append((at, target, "row", reason))
    if number == 2:
        measure = {"column": "note", "measure": "null_share", "value": 0.42, "usual": 0.03}
        rows["anomalies"].append((now - timedelta(days=4), target, "run", json.dumps([measure])))
        changes = json.dumps(["column loyalty_tier was added"])
        rows["changes"].append((now - timedelta(days=11), target, table.table, 19, changes))


def _stored(table: TableView, number: int) -> LakeTable:
    random = Random(number)  # noqa: S311
    sizes = [int(random.uniform(0.1, 150) * _MB) for _ in range(2 + number % 7)]
    bounds = [(at * 1000, at * 1000 + 999) for at in range(len(sizes))]
    stored = tuple(
        StoredFile(f"part-{at}.parquet", size, 1000, (("region", low),), (("region", high),))
        for at, (size, (low, high)) in enumerate(zip(sizes, bounds, strict=True))
    )
    texts = {properties.TABLE: table.table, properties.SOURCE: table.source}
    metadata = TableMetadata(str(number), None, None, '{"fields": []}', (), texts, None)
    content = cast(LogContent, _Content(metadata, stored))
    schema, _, name = table.target.partition(".")
    state = State(Place(f"s3://lake/{name}"), 40 + number, content)
    return LakeTable(schema, name, table.source, table.table, state)


if __name__ == "__main__":
    shown = views.night(datetime.now(UTC).replace(microsecond=0))
    page.write(Path(sys.argv[1]), page.html(material(shown)))
