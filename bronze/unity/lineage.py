"""Lineage from PostgreSQL's tables to those of the catalog, column by column.

PostgreSQL's table is an external metadata object of the metastore, and a relationship leads from it
to the table of the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bronze.unity.api.rest import LINEAGE, Api, segment
from bronze.unity.entries import Entry
from bronze.unity.source_facts import SourceTable

_FORBIDDEN = re.compile(r"[./\s\x00-\x1f\x7f]")
_LONGEST_NAME = 255


def object_name(original: SourceTable) -> str:
    """The name of the external metadata object of a table. Dots and spaces are not possible."""
    parts = (original.source, original.schema, original.name)
    return "__".join(_FORBIDDEN.sub("_", part) for part in parts)[:_LONGEST_NAME]


def write(api: Api, entry: Entry) -> tuple[str, ...]:
    """Writes the lineage of a table as far as it differs, and returns what was written.

    Raises:
        Refusal, CatalogUnreachable: as `Api.call`.
    """
    original = entry.original
    if original is None:
        return ()
    name = object_name(original)
    changes = _write_object(api, name, original)
    pairs = {
        (source, column.name)
        for column in entry.columns
        if (source := original.columns.get(column.name))
    }
    present = _relationship(api, name, entry.full_name)
    if present == pairs:
        return changes
    body = {
        "source": {"external_metadata": {"name": name}},
        "target": {"table": {"name": entry.full_name}},
        "columns": [{"source": source, "target": target} for source, target in sorted(pairs)],
    }
    if present is None:
        api.call("POST", f"{LINEAGE}/external-lineage", body)
    else:
        api.call("PATCH", f"{LINEAGE}/external-lineage", body, {"update_mask": "columns"})
    return (*changes, f"lineage from {original.schema}.{original.name}")


def _write_object(api: Api, name: str, original: SourceTable) -> tuple[str, ...]:
    path = f"{LINEAGE}/external-metadata"
    wanted: dict[str, Any] = {
        "name": name,
        "system_type": "POSTGRESQL",
        "entity_type": "table",
        "columns": list(dict.fromkeys(original.columns.values())),
        "description": f"{original.schema}.{original.name} of {original.database}",
    }
    present: Mapping[str, Any] | None = api.find(f"{path}/{segment(name)}")
    if present is None:
        api.call("POST", path, wanted)
        return (f"external metadata {name}",)
    differing = [key for key in ("columns", "description") if present.get(key) != wanted[key]]
    if not differing:
        return ()
    mask = {"update_mask": ",".join(differing)}
    api.call("PATCH", f"{path}/{segment(name)}", wanted, mask)
    return (f"external metadata {name}",)


def _relationship(api: Api, name: str, target: str) -> set[tuple[str, str]] | None:
    """The pairs of columns of the relationship with a table, None if there is none."""
    query = {"object_info.external_metadata.name": name, "lineage_direction": "DOWNSTREAM"}
    for item in api.pages(f"{LINEAGE}/external-lineage", "external_lineage_relationships", **query):
        info = item.get("external_lineage_info") or {}
        table = (info.get("target") or {}).get("table") or {}
        if str(table.get("name", "")).lower() == target.lower():
            return {(pair["source"], pair["target"]) for pair in info.get("columns") or ()}
    return None
