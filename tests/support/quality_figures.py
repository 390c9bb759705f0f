"""Records of ``governance.quality``, as runs and streams write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bronze.config.settings import GOVERNANCE, Settings
from bronze.governance import writer
from bronze.governance.tables import quality
from bronze.governance.tables.quality import Figure, TableFigures
from bronze.model.stamp import RowStamp

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def figures(target: str, minutes: int, rows: int, score: float, *rules: Figure) -> TableFigures:
    """The figures of a Bronze table that were recorded some minutes after noon."""
    label = target.partition(".")[2]
    moment = NOON + timedelta(minutes=minutes)
    stamp = RowStamp(f"{minutes:032}", moment, "shop", "streaming")
    own = Figure("score", "check", checked=rows, failed=0, measured=score)
    low = Figure("quarantined", "check", checked=rows, failed=0)
    return TableFigures(label, target, stamp, "stream", moment, True, (own, low, *rules))


def record(settings: Settings, *tables: TableFigures) -> None:
    """Appends them to the lake, as if they were recorded at their moments."""
    rows = quality.frame(tables)
    rows = rows.with_columns(evaluated_timestamp=rows["as_of_timestamp"])
    writer.append_rows(settings.place(GOVERNANCE, quality.NAME), quality.COLUMNS, rows, "")
