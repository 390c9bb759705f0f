"""Columns of a Delta log as Unity Catalog's API has them: Databricks checks none of it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from bronze.delta.schema import delta_schema
from bronze.errors import CatalogError
from bronze.model.columns import DeltaType, DeltaTypeName
from bronze.unity.column_types import CatalogColumn, column_infos, columns_of

# The kind of the type contract, type_name, type_text, and the type within type_json.
GOLDEN: list[tuple[DeltaType, str, str, str]] = [
    (DeltaType("short"), "SHORT", "smallint", '"short"'),
    (DeltaType("int"), "INT", "int", '"integer"'),
    (DeltaType("long"), "LONG", "bigint", '"long"'),
    (DeltaType("float"), "FLOAT", "float", '"float"'),
    (DeltaType("double"), "DOUBLE", "double", '"double"'),
    (DeltaType("boolean"), "BOOLEAN", "boolean", '"boolean"'),
    (DeltaType("decimal", 38, 10), "DECIMAL", "decimal(38,10)", '"decimal(38,10)"'),
    (DeltaType("decimal", 5, 0), "DECIMAL", "decimal(5,0)", '"decimal(5,0)"'),
    (DeltaType("string"), "STRING", "string", '"string"'),
    (DeltaType("binary"), "BINARY", "binary", '"binary"'),
    (DeltaType("date"), "DATE", "date", '"date"'),
    (DeltaType("timestamp"), "TIMESTAMP", "timestamp", '"timestamp"'),
    (DeltaType("timestamp_ntz"), "TIMESTAMP_NTZ", "timestamp_ntz", '"timestamp_ntz"'),
    (
        DeltaType("array", element=DeltaType("int")),
        "ARRAY",
        "array<int>",
        '{"type":"array","elementType":"integer","containsNull":true}',
    ),
    (
        DeltaType("array", element=DeltaType("decimal", 7, 2)),
        "ARRAY",
        "array<decimal(7,2)>",
        '{"type":"array","elementType":"decimal(7,2)","containsNull":true}',
    ),
    (
        DeltaType("array", element=DeltaType("array", element=DeltaType("timestamp_ntz"))),
        "ARRAY",
        "array<array<timestamp_ntz>>",
        '{"type":"array","elementType":{"type":"array","elementType":"timestamp_ntz",'
        '"containsNull":true},"containsNull":true}',
    ),
]


@pytest.mark.parametrize(("kind", "type_name", "text", "in_json"), GOLDEN)
def test_each_kind_of_the_type_contract(
    kind: DeltaType, type_name: str, text: str, in_json: str
) -> None:
    """The texts are those that Spark writes, the JSON is that of a StructField."""
    (info,) = column_infos(delta_schema([("ä b", kind)]), (), {})
    assert info == {
        "name": "ä b",
        "type_name": type_name,
        "type_text": text,
        "type_json": f'{{"name":"ä b","type":{in_json},"nullable":true,"metadata":{{}}}}',
        "type_precision": kind.precision,
        "type_scale": kind.scale,
        "position": 0,
        "nullable": True,
    }
    assert columns_of(delta_schema([("ä b", kind)])) == (CatalogColumn("ä b", type_name, text),)


def test_no_kind_of_the_type_contract_is_missing_here() -> None:
    """A kind that is new needs its texts."""
    assert {kind.name for kind, *_ in GOLDEN} == set(get_args(DeltaTypeName))


def field(name: str, kind: Any) -> dict[str, Any]:
    """A column of a Delta schema."""
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def test_types_of_other_writers() -> None:
    """Structs and maps, nested, with names that need quoting; comments and partitions."""
    person = {"type": "struct", "fields": [field("a", "byte"), field("b`c d", "variant")]}
    pairs = {"type": "map", "keyType": "string", "valueType": person, "valueContainsNull": True}
    schema = json.dumps({"type": "struct", "fields": [field("day", "date"), field("m", pairs)]})
    day, nested = column_infos(schema, ["day"], {"m": 'It\'s "new"'})
    assert (day["partition_index"], "partition_index" in nested, nested["position"]) == (
        0,
        False,
        1,
    )
    assert nested["type_text"] == "map<string,struct<a:tinyint,`b``c d`:variant>>"
    assert (nested["type_name"], nested["comment"]) == ("MAP", 'It\'s "new"')
    whole = json.loads(nested["type_json"])
    assert whole == {**field("m", pairs), "metadata": {"comment": 'It\'s "new"'}}


def test_a_type_that_unity_catalog_does_not_have() -> None:
    """It is refused before anything is sent."""
    schema = json.dumps({"fields": [field("v", "void")]})
    with pytest.raises(CatalogError, match="Column 'v' is of type void"):
        column_infos(schema, (), {})
