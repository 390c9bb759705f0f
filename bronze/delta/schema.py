"""The Delta schema and properties of a Bronze table.

All columns are nullable: a NOT NULL column beside a timestamp without time zone makes tables that
Databricks is reported to reject, and PostgreSQL's NOT NULL is checked as quality instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, get_args

from bronze.errors import LakeError
from bronze.model.columns import DeltaType, DeltaTypeName

PROPERTIES: Mapping[str, str] = {
    "delta.enableChangeDataFeed": "true",
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.autoOptimize.optimizeWrite": "true",
    "delta.autoOptimize.autoCompact": "true",
}

# Delta's names of types that bronze names differently.
_NAMES = {"int": "integer"}
_KINDS = {_NAMES.get(name, name): name for name in get_args(DeltaTypeName)}
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")

NTZ = "timestampNtz"
VECTORS = "deletionVectors"
VECTORS_ENABLED = "delta.enableDeletionVectors"
"""The property by which writers may delete rows by deletion vectors."""
DOMAINS = "domainMetadata"
WRITER_FEATURES = ("appendOnly", "invariants", "changeDataFeed")
"""The features of all tables that bronze makes."""
COMMENT = "comment"
"""The key of a column's metadata with its comment, which bronze keeps and never writes."""


def delta_schema(
    columns: Iterable[tuple[str, DeltaType]], comments: Mapping[str, str] | None = None
) -> str:
    """The schema of a table with these columns, in this order, as Delta's JSON."""
    texts = comments or {}
    fields = [
        {
            "name": name,
            "type": _type(kind),
            "nullable": True,
            "metadata": {COMMENT: texts[name]} if name in texts else {},
        }
        for name, kind in columns
    ]
    return json.dumps({"type": "struct", "fields": fields}, ensure_ascii=False)


def _type(kind: DeltaType) -> Any:
    if kind.element is not None:
        return {"type": "array", "elementType": _type(kind.element), "containsNull": True}
    if kind.name == "decimal":
        return f"decimal({kind.precision},{kind.scale})"
    return _NAMES.get(kind.name, kind.name)


def column_comments(schema: str) -> dict[str, str]:
    """The comments of columns that another writer has set, in a Delta schema in JSON."""
    fields = json.loads(schema)["fields"]
    return {
        field["name"]: field["metadata"][COMMENT]
        for field in fields
        if COMMENT in (field.get("metadata") or {})
    }


@lru_cache(256)
def kinds(schema: str) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a Delta schema in JSON.

    Raises:
        LakeError: one of them is of a type that bronze never writes.
    """
    try:
        return tuple((f["name"], _kind(f["name"], f["type"])) for f in json.loads(schema)["fields"])
    except RecursionError:
        raise LakeError(
            "The type of a column is nested too deeply; bronze does not write such types.",
            hint="Another writer added it: drop it, or give the table another target.",
        ) from None


def _kind(name: str, found: Any) -> DeltaType:
    if isinstance(found, dict) and found.get("type") == "array":
        return DeltaType("array", element=_kind(name, found["elementType"]))
    if isinstance(found, str) and (decimal := _DECIMAL.fullmatch(found)):
        return DeltaType("decimal", int(decimal[1]), int(decimal[2]))
    if not isinstance(found, str) or found not in _KINDS:
        raise LakeError(
            f"Column {name!r} is of type {found}, which bronze does not write.",
            hint="Another writer added it: drop it, or give the table another target.",
        )
    return DeltaType(_KINDS[found])


def protocol(
    columns: Iterable[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> dict[str, Any]:
    """The protocol of a table with these columns and properties: what its readers and writers have
    to support.

    Features are named: a protocol of numbers implies others, check constraints among them, and
    writers that lack those refuse the table. Timestamps without time zone and deletion vectors are
    features of readers.
    """
    readers = [NTZ] if any(_has_ntz(kind) for _, kind in columns) else []
    readers += [VECTORS] if properties.get(VECTORS_ENABLED) == "true" else []
    return {
        "minReaderVersion": 3 if readers else 1,
        "minWriterVersion": 7,
        **({"readerFeatures": readers} if readers else {}),
        "writerFeatures": [*WRITER_FEATURES, *readers],
    }


def _has_ntz(kind: DeltaType) -> bool:
    return kind.name == "timestamp_ntz" or (kind.element is not None and _has_ntz(kind.element))


def properties(stats: Iterable[str]) -> dict[str, str]:
    """The table properties, with file statistics for the columns ``stats`` alone."""
    names = ",".join(f"`{name.replace('`', '``')}`" for name in stats)
    return {**PROPERTIES, "delta.dataSkippingStatsColumns": names or "`row_hash`"}
