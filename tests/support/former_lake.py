"""A lake as earlier versions wrote it, made of one that is there.

Earlier versions named a Bronze table by its own name alone (``bz_t``) in most governance tables;
they had neither the marks of commits and of the audit log among a table's app transactions, nor
the properties that came with them; protocols named no features; the checkpoints of streams had no
series. The audit log stays
as it is: its records are chained by hashes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

SHORT_NAMES = ("anomalies", "models", "profiles", "quality", "rejected_values")
LATER_MARKS = ("bronze/commit", "bronze/audit/")
LATER_COLUMNS = ("series", "number")
LATER_PROPERTIES = ("bronze.audit.logs", "bronze.layout", "bronze.thresholds")


def make_former(lake: Path) -> None:
    """Changes all tables of a lake in place to what earlier versions wrote."""
    for log in lake.glob("*/*/_delta_log"):
        table = log.parent
        sizes = _shorten(table) if table.name in SHORT_NAMES else {}
        streams = _short_streams(table) if table.name == "streams" else {}
        for entry in log.glob("*.json"):
            lines = [json.loads(line) for line in entry.read_text().splitlines()]
            kept = [made for line in lines if (made := _former(line, {**sizes, **streams}))]
            entry.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _former(action: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any] | None:
    if "txn" in action and action["txn"]["appId"].startswith(LATER_MARKS):
        return None
    if action.get("protocol", {}).get("minReaderVersion") == 1:
        action["protocol"] = {"minReaderVersion": 1, "minWriterVersion": 4}
    if "metaData" in action:
        schema = json.loads(action["metaData"]["schemaString"])
        fields = [field for field in schema["fields"] if field["name"] not in LATER_COLUMNS]
        action["metaData"]["schemaString"] = json.dumps({**schema, "fields": fields})
        known = action["metaData"]["configuration"]
        action["metaData"]["configuration"] = {
            name: value for name, value in known.items() if name not in LATER_PROPERTIES
        }
    if "add" in action and action["add"]["path"] in sizes:
        action["add"]["size"] = sizes[action["add"]["path"]]
        stats = json.loads(action["add"].get("stats") or "{}")
        action["add"]["stats"] = json.dumps({"numRecords": stats.get("numRecords")})
    return action


def _shorten(table: Path) -> dict[str, int]:
    """Shortens the names of Bronze tables in a table's files; the new sizes by path."""
    name = pl.col("target_table").str.split(".").list.last()
    return _rewritten(table, name.alias("target_table"))


def _short_streams(table: Path) -> dict[str, int]:
    names = pl.col("tables").map_elements(
        lambda text: json.dumps({k.rpartition(".")[2]: v for k, v in json.loads(text).items()}),
        return_dtype=pl.String,
    )
    return _rewritten(table, names.alias("tables"))


def _rewritten(table: Path, change: pl.Expr) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for file in table.glob("**/*.parquet"):
        if "_delta_log" in file.parts:
            continue
        out = io.BytesIO()
        rows = pl.read_parquet(file).with_columns(change).drop(LATER_COLUMNS, strict=False)
        rows.write_parquet(out)
        file.write_bytes(out.getvalue())
        sizes[str(file.relative_to(table))] = len(out.getvalue())
    return sizes
