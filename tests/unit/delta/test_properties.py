"""The properties in which a Bronze table says what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from bronze.delta import properties
from bronze.delta.properties import TableProperties
from bronze.delta.schema import delta_schema
from bronze.errors import LakeError
from bronze.model.columns import DeltaType, ProtectionRule

LONG, TEXT = DeltaType("long"), DeltaType("string")
COLUMNS = (("id", LONG), ("v", DeltaType("array", element=TEXT)))

# A property, its attribute, a text and what it says, and what it says where it is missing.
CASES: list[tuple[str, str, str, Any, Any]] = [
    (properties.SOURCE, "source", "shop", "shop", ""),
    (properties.TABLE, "label", "a.b.t", "a.b.t", ""),
    (properties.SCHEMA, "schema", "a.b", "a.b", ""),
    (properties.OID, "oid", "4711", 4711, None),
    (properties.KEY, "key", '["id", "v"]', ("id", "v"), None),
    (properties.KEYED, "key_text_columns", '["v"]', ("v",), ()),
    (properties.BASE, "base", "2", 2, None),
    (properties.NUMBERS, "numbers", '{"id": 1}', {"id": 1}, {}),
    (properties.FORMER, "former", '{"v": ["w", "x"]}', {"v": ("w", "x")}, {}),
    (properties.LAYOUT, "layout", delta_schema(COLUMNS), COLUMNS, None),
    (
        properties.WIDENED,
        "types_before_widening",
        '[{"v": ["int", 0, 0]}, {"w": ["decimal", 9, 2]}]',
        ({"v": DeltaType("int")}, {"w": DeltaType("decimal", 9, 2)}),
        (),
    ),
    (properties.THRESHOLDS, "thresholds", "[50, 60]", (50, 60), None),
    (properties.DEFINITION, "definition", '{"columns": "1"}', {"columns": "1"}, None),
    (properties.PUBLISHED, "publication_state", "[1]", "[1]", ""),
    (properties.ENFORCED, "is_key_enforced", "false", False, True),
    (properties.RULES, "rules", "abc", "abc", None),
    (properties.WATCHED, "has_anomaly_columns", "true", True, False),
    (
        properties.PROTECT,
        "protection",
        json.dumps(
            {"v": {"protect": {"method": "mask", "keep": 2}, "kind": delta_schema([("v", LONG)])}}
        ),
        {"v": (ProtectionRule("mask", keep=2), LONG)},
        {},
    ),
    (properties.KEY_IDS, "key_ids", '{"": "a1", "v": "a2"}', {"": "a1", "v": "a2"}, {}),
    (properties.CUT, "has_removed_rows", "true", True, False),
    (properties.FORMAT, "format", "2", 2, 1),
    (properties.WRITER, "writer", "0.1.0", "0.1.0", ""),
    (properties.CLUSTERING, "clustering_choice", "{}", "{}", ""),
    (properties.AUDIT_LOGS, "audit_logs", "a,b", ("a", "b"), ()),
]

GARBLED: Mapping[str, list[str]] = {
    "oid": ["", "t", "[1]"],
    "key": ["", "7", '{"id": 1}', "[1]", '"id"'],
    "key_text_columns": ["", "7", '{"id": 1}', "[1]"],
    "base": ["", "many"],
    "numbers": ["", "[]", "x", '{"id": "1"}'],
    "former": ["", "[]", '{"v": "w"}', '{"v": [1]}'],
    "layout": ["", "{}", "[]", '{"fields": [1]}', '{"fields": [{"name": "v", "type": "none"}]}'],
    "types_before_widening": [
        *("", "7", "[7]", '[{"v": 7}]'),
        *('[{"v": ["none", 0, 0]}]', '[{"v": ["array", 0, 0]}]', '[{"v": ["decimal", 0, 0]}]'),
    ],
    "thresholds": ["", "{}", '["a"]'],
    "definition": ["", "[]", '{"columns": 1}'],
    "is_key_enforced": ["", "yes", "1", "[]"],
    "format": ["", "two", "1.5"],
    "key_ids": ["", "[]", '{"": 1}'],
    "protection": [
        "",
        "[]",
        '{"v": 1}',
        '{"v": {"protect": {"x": 1}, "kind": "{}"}}',
        '{"v": {"protect": {"method": "none"}, "kind": "{}"}}',
        '{"v": {"protect": {"method": "mask"}, "kind": "{\\"fields\\": []}"}}',
    ],
}
# Any text may be the name of something.
TEXTS = {
    "source",
    "label",
    "schema",
    "publication_state",
    "rules",
    "has_anomaly_columns",
    "has_removed_rows",
    "audit_logs",
    "writer",
    "clustering_choice",
}


def test_every_property_has_a_case() -> None:
    """A property that is added is tested here, for what it says and for what it may be."""
    names = {
        value
        for name, value in vars(properties).items()
        if name.isupper() and isinstance(value, str)
    }
    assert {name for name, *_ in CASES} == names
    assert {attribute for _, attribute, *_ in CASES} == {*GARBLED, *TEXTS}


@pytest.mark.parametrize(("name", "attribute", "text", "value", "absent"), CASES)
def test_an_attribute_says_what_the_property_does(
    name: str, attribute: str, text: str, value: Any, absent: Any
) -> None:
    """Each attribute has a type of its own, and a value for tables without the property."""
    assert getattr(TableProperties.read({name: text}), attribute) == value
    assert getattr(TableProperties.read({}), attribute) == absent


@pytest.mark.parametrize(
    ("name", "attribute"), [(name, a) for name, a, *_ in CASES if a in GARBLED]
)
def test_a_garbled_property_is_named(name: str, attribute: str) -> None:
    """What another writer put there cannot be read; the other attributes still can."""
    for text in GARBLED[attribute]:
        table = TableProperties.read({**{n: t for n, _, t, *_ in CASES}, name: text})
        with pytest.raises(LakeError) as raised:
            getattr(table, attribute)
        assert f"The property {name} of the Bronze table cannot be read" in raised.value.message
        assert raised.value.hint
        for _, other, _, value, _ in CASES:
            assert other == attribute or getattr(table, other) == value


def test_names_with_dots() -> None:
    """The schema tells where the name begins; old tables have no schema beside their label."""
    table = TableProperties.read({properties.TABLE: "a.b.t.u", properties.SCHEMA: "a.b"})
    assert (*table.source_table, table.is_bronze) == ("a.b", "t.u", True)
    table = TableProperties.read({properties.TABLE: "public.t.u"})
    assert table.source_table == ("public", "t.u")
    table = TableProperties.read({})
    assert (*table.source_table, table.is_bronze) == ("", "", False)


def test_a_repair_that_was_followed_by_a_comparison() -> None:
    """Properties are overwritten, not removed: an empty text says that nothing is cut."""
    assert not TableProperties.read({properties.CUT: ""}).has_removed_rows
    assert TableProperties.read({properties.AUDIT_LOGS: ""}).audit_logs == ()
