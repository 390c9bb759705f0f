"""How the columns of tables have changed."""

from __future__ import annotations

import json

from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import Section, more
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import grid
from bronze.operate.web.markup.tags import tag
from bronze.printable import count

_MOST = 50


def section(material: Material) -> Section:
    """The section."""
    changes = material.records.changes.sort("at", descending=True)
    if changes.is_empty():
        none = tag("p", "No column has changed since the tables were made.")
        return Section("schema", "Schema history", none)
    rows = [
        [
            words.time(row["at"], material.zone, material.now),
            material.name(row["target_table"]),
            "–" if row["version_after"] is None else f"version {row['version_after']}",
            tag("ul", [tag("li", change) for change in _texts(row["schema_changes"])]),
        ]
        for row in changes.head(_MOST).iter_rows(named=True)
    ]
    return Section(
        "schema",
        "Schema history",
        tag("p", f"Columns have changed {_times(changes.height)}.", class_="lead"),
        grid("Changes of columns", ("When", "Table", "Version", "Change"), rows, broad="Change"),
        more(changes.height, _MOST, "change", "which are older"),
    )


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number) or count(number, "time")


def _texts(text: str) -> list[str]:
    """The changes of a record, which another writer may have changed."""
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return [str(change) for change in value] if isinstance(value, list) else []
