"""The columns of a Delta table as Unity Catalog's REST API has them.

The API checks none of it, and a wrong type makes a table that cannot be read: the texts are those
that Spark writes. ``type_json`` is the column as JSON of a Spark ``StructField`` (unitycatalog,
pull request 1524), ``type_text`` is Spark's catalog string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.errors import CatalogError

_DECIMAL = re.compile(r"decimal\((\d+),\s*(-?\d+)\)")
# Delta's name of a type, and its name and text at Unity Catalog.
_NAMES = {
    "byte": ("BYTE", "tinyint"),
    "short": ("SHORT", "smallint"),
    "integer": ("INT", "int"),
    "long": ("LONG", "bigint"),
    "float": ("FLOAT", "float"),
    "double": ("DOUBLE", "double"),
    "boolean": ("BOOLEAN", "boolean"),
    "string": ("STRING", "string"),
    "binary": ("BINARY", "binary"),
    "date": ("DATE", "date"),
    "timestamp": ("TIMESTAMP", "timestamp"),
    "timestamp_ntz": ("TIMESTAMP_NTZ", "timestamp_ntz"),
    "variant": ("VARIANT", "variant"),
}
_NESTED = {"array": "ARRAY", "struct": "STRUCT", "map": "MAP"}
_PLAIN_FIELD = re.compile(r"\w+")


@dataclass(frozen=True)
class CatalogColumn:
    """A column: its ``name``, its type as ``type_name`` and ``type_text``, and its ``comment``."""

    name: str
    type_name: str
    type_text: str
    comment: str = ""


def columns_of(schema: str) -> tuple[CatalogColumn, ...]:
    """The columns of a Delta schema in JSON.

    Raises:
        CatalogError: one of them has a type that Unity Catalog does not have.
    """
    return tuple(
        CatalogColumn(
            field["name"],
            _type_name(field),
            _type_text(field["name"], field["type"]),
            field["metadata"].get("comment", ""),
        )
        for field in json.loads(schema)["fields"]
    )


def column_infos(
    schema: str, partition_columns: Sequence[str], comments: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The columns of a Delta schema in JSON, as the API takes them to create a table.

    Args:
        schema: Delta's JSON.
        partition_columns: the partition columns, in order.
        comments: the comments of columns.

    Raises:
        CatalogError: one of them has a type that Unity Catalog does not have.
    """
    return [
        _column_info(position, field, partition_columns, comments.get(field["name"], ""))
        for position, field in enumerate(json.loads(schema)["fields"])
    ]


def _column_info(
    position: int, field: Mapping[str, Any], partition_columns: Sequence[str], comment: str
) -> dict[str, Any]:
    name, kind = field["name"], field["type"]
    metadata = dict(field["metadata"])
    if comment:
        metadata["comment"] = comment
    whole = {"name": name, "type": kind, "nullable": field["nullable"], "metadata": metadata}
    precision, scale = _precision(kind)
    info = {
        "name": name,
        "type_name": _type_name(field),
        "type_text": _type_text(name, kind),
        "type_json": json.dumps(whole, ensure_ascii=False, separators=(",", ":")),
        "type_precision": precision,
        "type_scale": scale,
        "position": position,
        "nullable": field["nullable"],
    }
    if name in partition_columns:
        info["partition_index"] = partition_columns.index(name)
    if comment:
        info["comment"] = comment
    return info


def _type_name(field: Mapping[str, Any]) -> str:
    kind = field["type"]
    if isinstance(kind, dict):
        return _NESTED.get(kind["type"]) or _unknown(field["name"], kind["type"])
    if _DECIMAL.fullmatch(kind):
        return "DECIMAL"
    return _NAMES[kind][0] if kind in _NAMES else _unknown(field["name"], kind)


def _type_text(name: str, kind: Any) -> str:
    """A type as Spark's catalog string."""
    if isinstance(kind, str):
        if decimal := _DECIMAL.fullmatch(kind):
            return f"decimal({decimal[1]},{decimal[2]})"
        return _NAMES[kind][1] if kind in _NAMES else _unknown(name, kind)
    if kind["type"] == "array":
        return f"array<{_type_text(name, kind['elementType'])}>"
    if kind["type"] == "map":
        return f"map<{_type_text(name, kind['keyType'])},{_type_text(name, kind['valueType'])}>"
    if kind["type"] == "struct":
        fields = (
            f"{_field_name(part['name'])}:{_type_text(name, part['type'])}"
            for part in kind["fields"]
        )
        return f"struct<{','.join(fields)}>"
    return _unknown(name, kind["type"])


def _field_name(name: str) -> str:
    return name if _PLAIN_FIELD.fullmatch(name) else f"`{name.replace('`', '``')}`"


def _precision(kind: Any) -> tuple[int, int]:
    decimal = _DECIMAL.fullmatch(kind) if isinstance(kind, str) else None
    return (int(decimal[1]), int(decimal[2])) if decimal else (0, 0)


def _unknown(name: str, kind: str) -> str:
    raise CatalogError(
        f"Column {name!r} is of type {kind}, which Unity Catalog does not have.",
        hint="Another writer added it: drop it, or leave the table out.",
    )
