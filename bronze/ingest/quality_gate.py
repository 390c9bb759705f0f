"""The quality gate: measures the rows that a run read, and decides whether they are committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bronze.config.settings import GOVERNANCE, Settings
from bronze.errors import QualityRefused
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables.quality import TableFigures
from bronze.ingest.plan import Plan
from bronze.ingest.table_run import TableRun
from bronze.quality import checks


def check_quality(settings: Settings, table: TableRun, plan: Plan) -> None:
    """Measures the quality of the rows that were read, and applies the gate of the config to it.

    Raises:
        QualityRefused: they do not meet the limits of the config.
    """
    gate = settings.quality_of(table.target.settings)
    age = time.time() - table.stamp.loaded_at.timestamp()
    quality = plan.enrichment.quality
    table.figures = checks.figures(quality, table.findings.quality, gate, age)
    _drop_fingerprints(table)
    failures = checks.reasons_to_refuse(table.figures) if gate.on_failure == "stop" else ""
    if failures:
        raise QualityRefused(
            f"Table {table.target.label} does not meet its quality rules: {failures}.",
            hint="No row landed, and its Bronze table is unchanged. `bronze quality` shows all"
            ' figures; on_failure = "land" lets such rows land.',
            table=table.target.label,
        )


def _drop_fingerprints(table: TableRun) -> None:
    """Frees the fingerprints that quality figures are counted by: those of all tables of a run
    would not fit into its memory.
    """
    for i, part in enumerate(table.results):
        quality = replace(part.findings.quality, prints=())
        table.results[i] = replace(part, findings=replace(part.findings, quality=quality))


def record_quality(settings: Settings, tables: Sequence[TableRun]) -> None:
    """Records the quality of tables that were committed or refused in ``governance.quality``."""
    records = [
        TableFigures(
            source_table=table.target.label,
            target_table=table.target.full_name,
            stamp=table.stamp,
            mode=table.plan.mode,
            as_of=table.stamp.loaded_at,
            landed=table.error is None,
            figures=table.figures,
        )
        for table in tables
        if table.figures
        and table.plan
        and (table.error is None or isinstance(table.error, QualityRefused))
    ]
    checks.record_figures(settings.place(GOVERNANCE, quality_table.NAME), records)


def result_fields(table: TableRun) -> dict[str, Any]:
    """What the result of a table says of the quality of the rows that were read."""
    quality = table.findings.quality
    score = round(quality.total / quality.rows, 2) if quality.rows else None
    return {"score": score, "quarantined": quality.quarantined}
