"""The Delta schema and properties of a Bronze table.

All columns are nullable: a NOT NULL column beside a timestamp without time zone makes tables that
Databricks is reported to reject, and PostgreSQL's NOT NULL is checked as quality instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from deltalake import Schema

from bronze.model import Kind

PROPERTIES: Mapping[str, str] = {
    "delta.enableChangeDataFeed": "true",
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.autoOptimize.optimizeWrite": "true",
    "delta.autoOptimize.autoCompact": "true",
}

# Delta's names where they are not ours.
_NAMES = {"int": "integer"}


def delta_schema(columns: Iterable[tuple[str, Kind]]) -> Schema:
    """The schema of a table with these columns, in this order."""
    fields = [
        {"name": name, "type": _type(kind), "nullable": True, "metadata": {}}
        for name, kind in columns
    ]
    return Schema.from_json(json.dumps({"type": "struct", "fields": fields}))


def _type(kind: Kind) -> Any:
    if kind.element is not None:
        return {"type": "array", "elementType": _type(kind.element), "containsNull": True}
    if kind.name == "decimal":
        return f"decimal({kind.precision},{kind.scale})"
    return _NAMES.get(kind.name, kind.name)


def properties(stats: Iterable[str]) -> dict[str, str]:
    """The table properties, with file statistics for the columns ``stats`` alone."""
    names = ",".join(f"`{name.replace('`', '``')}`" for name in stats)
    return {**PROPERTIES, "delta.dataSkippingStatsColumns": names or "`row_hash`"}
