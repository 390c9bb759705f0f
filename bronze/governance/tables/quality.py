"""``governance.quality``: the figures of each run, by rule and for the table as a whole.

There is a record for each rule, and one for each check of the table: ``null_share`` (also by
column), ``duplicates``, ``schema_compliance``, ``freshness``, ``score`` (rows below 100, and the
average) and ``quarantined``. Rows appear by their keys only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from bronze.governance.frames import frame_of
from bronze.model.columns import DeltaType
from bronze.model.stamp import RowStamp

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("batch_id", DeltaType("string")),
    ("data_lineage", DeltaType("string")),
    ("evaluated_timestamp", DeltaType("timestamp")),
    ("as_of_timestamp", DeltaType("timestamp")),
    ("source_system", DeltaType("string")),
    ("source_table", DeltaType("string")),
    ("target_table", DeltaType("string")),
    ("mode", DeltaType("string")),
    ("landed", DeltaType("boolean")),
    ("rule", DeltaType("string")),
    ("kind", DeltaType("string")),
    ("column_name", DeltaType("string")),
    ("severity", DeltaType("string")),
    ("origin", DeltaType("string")),
    ("evaluation", DeltaType("string")),
    ("checked", DeltaType("long")),
    ("failed", DeltaType("long")),
    ("share", DeltaType("double")),
    ("measured", DeltaType("double")),
    ("allowed", DeltaType("double")),
    ("passed", DeltaType("boolean")),
    ("examples", DeltaType("string")),
)
MEANINGS = {
    "batch_id": "The run or batch that wrote it, a UUIDv7.",
    "data_lineage": "The record of the run in governance.data_lineage.",
    "evaluated_timestamp": "When the figures were made.",
    "as_of_timestamp": "The moment of the source that was loaded.",
    "source_system": "The name of the source in the config.",
    "source_table": "The table in PostgreSQL, schema.table.",
    "target_table": "The Bronze table, schema.name.",
    "mode": "How the table was loaded: load, compare, changes or stream.",
    "landed": "Whether the rows were committed; false if the quality gate stopped them.",
    "rule": "The name of the rule or check.",
    "kind": (
        "The kind of the rule: not_null, unique, range, …; or the check: null_share, duplicates, …"
    ),
    "column_name": 'The column, "" for several or the whole table.',
    "severity": 'low, medium, high or critical; "" for checks.',
    "origin": "config, python or derived (from PostgreSQL's constraints); check for checks.",
    "evaluation": (
        "rows (each row), proven (PostgreSQL enforces it), counted (by PostgreSQL), "
        "estimated, or none."
    ),
    "checked": "Rows (or cells) that were checked; NULL if unknown.",
    "failed": "Those of them that fail; NULL if unknown.",
    "share": "failed / checked.",
    "measured": "The figure that is compared with allowed: a share, seconds, or an average.",
    "allowed": "The limit of it; NULL if there is none.",
    "passed": "Whether it is met; NULL if there is no limit.",
    "examples": "Keys of some rows that fail, as a JSON list; never protected ones.",
}
"""What each column has."""

NAME = "quality"


@dataclass(frozen=True)
class Figure:
    """The figures of one rule or check.

    ``share`` is that of the rows (or cells) that fail; ``measured`` is compared with ``allowed``:
    that share, the share that complies, seconds, or an average. Unknown figures are None;
    ``passed`` is None if there is no limit. ``examples`` are keys as JSON objects.
    """

    rule: str
    kind: str
    column: str = ""
    severity: str = ""
    origin: str = "check"
    evaluation: str = "rows"
    checked: int | None = None
    failed: int | None = None
    measured: float | None = None
    allowed: float | None = None
    passed: bool | None = None
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """The share of the rows or cells that fail."""
        if self.checked is None or self.failed is None:
            return None
        return self.failed / self.checked if self.checked else 0.0


@dataclass(frozen=True)
class TableFigures:
    """The figures of one table and run; ``as_of`` is the moment of the source that it loaded."""

    source_table: str
    target_table: str
    stamp: RowStamp
    mode: str
    as_of: datetime
    landed: bool
    figures: tuple[Figure, ...]


def frame(tables: Iterable[TableFigures]) -> pl.DataFrame:
    """The records of some tables as a frame with `COLUMNS`."""
    now = datetime.now(UTC)
    rows = [
        (
            table.stamp.batch_id,
            table.stamp.lineage,
            now,
            table.as_of,
            table.stamp.source_system,
            table.source_table,
            table.target_table,
            table.mode,
            table.landed,
            figure.rule,
            figure.kind,
            figure.column,
            figure.severity,
            figure.origin,
            figure.evaluation,
            figure.checked,
            figure.failed,
            figure.share,
            figure.measured,
            figure.allowed,
            figure.passed,
            f"[{', '.join(figure.examples)}]",
        )
        for table in tables
        for figure in table.figures
    ]
    return frame_of(COLUMNS, rows)
