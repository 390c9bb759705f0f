"""Columns of Unity Catalog and of the Delta log: what Databricks derives, and what it can read.

``type_text`` is Spark's catalog string, ``type_json`` the JSON of Spark's StructField, as tables
have them that Databricks made from a Delta log. Deltalake reads the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

_NAMES = {
    "long": ("bigint", "LONG"), "integer": ("int", "INT"), "short": ("smallint", "SHORT"),
    "byte": ("tinyint", "BYTE"), "string": ("string", "STRING"), "double": ("double", "DOUBLE"),
    "float": ("float", "FLOAT"), "boolean": ("boolean", "BOOLEAN"),
    "binary": ("binary", "BINARY"), "date": ("date", "DATE"),
    "timestamp": ("timestamp", "TIMESTAMP"), "timestamp_ntz": ("timestamp_ntz", "TIMESTAMP_NTZ"),
}  # fmt: skip
TYPE_NAMES = {
    *(name for _, name in _NAMES.values()), "DECIMAL", "ARRAY", "MAP", "STRUCT", "CHAR", "NULL",
    "INTERVAL", "VARIANT", "USER_DEFINED_TYPE", "TABLE_TYPE", "GEOGRAPHY", "GEOMETRY",
}  # fmt: skip
_COMPARED = (
    "type_text", "type_name", "position", "type_precision", "type_scale", "partition_index",
)  # fmt: skip
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


def type_text(delta: Any) -> str:
    """Spark's catalog string of a type of the Delta log."""
    if isinstance(delta, str):
        match = _DECIMAL.fullmatch(delta)
        return f"decimal({match[1]},{match[2]})" if match else _NAMES[delta][0]
    if delta["type"] == "array":
        return f"array<{type_text(delta['elementType'])}>"
    if delta["type"] == "map":
        return f"map<{type_text(delta['keyType'])},{type_text(delta['valueType'])}>"
    fields = ",".join(f"{f['name']}:{type_text(f['type'])}" for f in delta["fields"])
    return f"struct<{fields}>"


def type_name(delta: Any) -> str:
    """The enumeration's name of a type of the Delta log."""
    if not isinstance(delta, str):
        return str(delta["type"]).upper()
    return "DECIMAL" if _DECIMAL.fullmatch(delta) else _NAMES[delta][1]


def columns_of(fields: list[dict[str, Any]], partitions: list[str]) -> list[dict[str, Any]]:
    """The columns that Databricks derives from the fields of a Delta log."""
    columns = []
    for position, item in enumerate(fields):
        match = _DECIMAL.fullmatch(item["type"]) if isinstance(item["type"], str) else None
        column = {
            "name": item["name"],
            "type_text": type_text(item["type"]),
            "type_name": type_name(item["type"]),
            "type_json": json.dumps(
                {"name": item["name"], "type": item["type"], "nullable": item["nullable"],
                 "metadata": {}}, separators=(",", ":"), ensure_ascii=False,
            ),
            "type_precision": int(match[1]) if match else 0,
            "type_scale": int(match[2]) if match else 0,
            "position": position,
            "nullable": item["nullable"],
        }  # fmt: skip
        if item["name"] in partitions:
            column["partition_index"] = partitions.index(item["name"])
        columns.append(column)
    return columns


def delta_columns(url: str, options: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The columns of the Delta table at an address, None if there is no table."""
    try:
        table = DeltaTable(url, storage_options=dict(options) or None)
    except (DeltaError, OSError):
        return None
    fields = json.loads(table.schema().to_json())["fields"]
    return columns_of(fields, table.metadata().partition_columns)


def problems(known: list[dict[str, Any]], actual: list[dict[str, Any]]) -> list[str]:
    """Why Databricks could not read a table with these columns, against those of its Delta log.

    The API takes any columns ("does not validate the correctness of the column spec. If the spec
    is not Spark compatible, the tables may not be readable").
    """
    reasons = []
    if [c["name"] for c in known] != [c["name"] for c in actual]:
        reasons.append(f"columns {[c['name'] for c in known]} are not those of the log")
    for one, other in zip(known, actual, strict=False):
        reasons += [
            f"{other['name']}: {name} {one.get(name)!r}, not {other.get(name)!r}"
            for name in _COMPARED
            if (one.get(name) or 0) != (other.get(name) or 0)
        ]
        try:
            spark = json.loads(one["type_json"])
        except (KeyError, ValueError, TypeError):
            reasons.append(f"{other['name']}: type_json is not JSON")
            continue
        expected = json.loads(other["type_json"])
        if not isinstance(spark, dict) or any(
            spark.get(key) != expected[key] for key in ("name", "type", "nullable")
        ):
            reasons.append(f"{other['name']}: type_json {spark}, not {expected}")
    return reasons
