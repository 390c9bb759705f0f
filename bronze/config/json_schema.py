"""The JSON schema of bronze.toml (draft 2020-12), by which editors complete and check it.

It is made from the sections' classes, and has the descriptions and examples of ``keys.toml``. It
refuses nothing that bronze accepts: a key may be a variable's, and so may its value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bronze.config.fields import to_bytes, to_decimal, to_list, to_seconds
from bronze.config.sections.protection import ColumnProtection
from bronze.config.sections.serve import to_none
from bronze.config.sections.tables import from_bool
from bronze.config.settings import Settings
from bronze.version import VERSION

DURATION, SIZE, VARIABLE = "Duration", "Size", "Variable"
"""The names of the schemas of texts that stand for other values."""

_VARIABLE = r"\$\{"
_TEXTS: Mapping[str, JsonSchemaValue] = {
    DURATION: {
        "description": 'A duration, such as "30s", "5m", "2h" or "30d". A number is seconds.',
        "type": "string",
        "pattern": rf"^\s*\d+\s*[smhdSMHD]?\s*$|{_VARIABLE}",
        "examples": ["30s", "5m", "2h", "30d"],
    },
    SIZE: {
        "description": 'A size, such as "500MB" or "2GB"; "2GiB" is 2 * 2^30 bytes.',
        "type": "string",
        "pattern": rf"^\s*\d+(\.\d+)?\s*[KMGTkmgt]?[iI]?[bB]?\s*$|{_VARIABLE}",
        "examples": ["500MB", "2GB", "2GiB"],
    },
    VARIABLE: {
        "description": "The value of an environment variable.",
        "type": "string",
        "pattern": _VARIABLE,
        "examples": ["${NAME}"],
    },
}
_PLACEHOLDER = "text of"
# What a variable such as BRONZE_SOURCE__DSN may say, so that the file need not.
_FROM_ENVIRONMENT = ("Settings", "SourceSettings", "LakeSettings")
# Sections of which there may be one, or several by their names.
_ONE_OR_SEVERAL = ("source", "catalog")


@dataclass(frozen=True)
class KeyText:
    """What a key means, and an ``example`` of its value, as TOML has it."""

    text: str
    example: Any


@dataclass(frozen=True)
class SectionText:
    """What a section is about, ``at`` which place of the config it is, and the commands that read
    it (none: all of them do).
    """

    at: str
    about: str
    used_by: tuple[str, ...]
    keys: Mapping[str, KeyText]


@cache
def texts() -> Mapping[str, SectionText]:
    """What sections and keys mean, by the names of their classes, in the order of the docs."""
    content = (resources.files("bronze.config") / "keys.toml").read_text(encoding="utf-8")
    return {
        name: SectionText(
            section["at"],
            section["about"],
            tuple(section.get("used_by", ())),
            {key: KeyText(*text) for key, text in section["keys"].items()},
        )
        for name, section in tomllib.loads(content).items()
    }


def json_schema() -> dict[str, Any]:
    """The schema, with the sections' classes in ``$defs``."""
    made = Settings.model_json_schema(schema_generator=_Generator, by_alias=True)
    made_of_classes = {**made.pop("$defs"), "Settings": made}
    # Keys that are only for Python have classes of their own.
    sections = {name: made_of_classes[name] for name in texts() if name in made_of_classes}
    for name, section in sections.items():
        _describe(section, texts()[name])
        if name in _FROM_ENVIRONMENT:
            section.pop("required", None)
    for name, section in sections.items():
        for schema_of_key in properties_of(section).values():
            if name == "Settings":
                # The defaults of a section are those of its keys.
                schema_of_key.pop("default", None)
            _write_default(schema_of_key, sections)
    hidden = [name for name, field in Settings.model_fields.items() if field.exclude]
    top = sections.pop("Settings")
    properties = {key: value for key, value in top["properties"].items() if key not in hidden}
    for key in _ONE_OR_SEVERAL:
        several = {name: properties[key].pop(name) for name in ("type", "additionalProperties")}
        properties[key]["anyOf"] = [several["additionalProperties"], several]
    schema: dict[str, Any] = _finished(
        {
            "$schema": GenerateJsonSchema.schema_dialect,
            "$comment": f"of bronze {VERSION}",
            "title": "bronze.toml",
            **{key: value for key, value in top.items() if key != "title"},
            "properties": properties,
            "$defs": {**dict(sorted(sections.items())), **_TEXTS},
        }
    )
    return schema


def _describe(section: dict[str, Any], text: SectionText) -> None:
    section.pop("title", None)
    section["description"] = f"{text.at}: {text.about}"
    for part in section.get("anyOf", ()):
        if "properties" in part:
            part["additionalProperties"] = section.pop("additionalProperties")
    for key, schema in properties_of(section).items():
        schema.pop("title", None)
        if key in text.keys:
            schema["description"] = text.keys[key].text
            schema["examples"] = [text.keys[key].example]


def properties_of(section: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    """The schemas of a section's keys."""
    # A section that may be a word is one of several things.
    parts = (section, *section.get("anyOf", ()))
    found: Mapping[str, dict[str, Any]] = next(
        part["properties"] for part in parts if "properties" in part
    )
    return found


def _write_default(key: dict[str, Any], sections: Mapping[str, Any]) -> None:
    """Has a key the default as one would write it; none where it is that nothing is set."""
    value = _written(key.pop("default", None), key, sections)
    if value not in (None, "", [], {}):
        key["default"] = value


def _written(value: Any, key: Mapping[str, Any], sections: Mapping[str, Any]) -> Any:
    parts = key.get("anyOf", [key])
    if isinstance(value, dict):
        name = next((part["$ref"] for part in parts if "$ref" in part), "").rpartition("/")[2]
        keys = properties_of(sections[name]) if name in sections else {}
        written = {
            part: _written(inner, keys.get(part, {}), sections) for part, inner in value.items()
        }
        return {
            part: inner
            for part, inner in written.items()
            if inner not in (None, keys.get(part, {}).get("default"), "", [], {})
        }
    texts_of = {part.get(_PLACEHOLDER) for part in parts}
    if DURATION in texts_of and isinstance(value, int):
        return _with_unit(value, _SECONDS)
    return _with_unit(value, _BYTES) if SIZE in texts_of and isinstance(value, int) else value


_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_BYTES = {"GB": 10**9, "MB": 10**6, "MiB": 2**20, "KB": 10**3}


def _with_unit(value: int, units: Mapping[str, int]) -> int | str:
    """A number with the largest unit of which it is a multiple; 0 without one."""
    for unit, size in units.items():
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return value


def _finished(value: Any) -> Any:
    if isinstance(value, dict):
        if _PLACEHOLDER in value:
            return {"$ref": f"#/$defs/{value[_PLACEHOLDER]}"}
        made = {key: _finished(part) for key, part in value.items()}
        if "anyOf" in made and "maxLength" in made:
            # pydantic takes the limit of a list that may be one text for one of the text.
            most = made.pop("maxLength")
            arrays = [part for part in made["anyOf"] if part.get("type") == "array"]
            arrays[0]["maxItems"] = most
        return made
    return [_finished(part) for part in value] if isinstance(value, list) else value


def _or_text(schema: JsonSchemaValue, name: str) -> JsonSchemaValue:
    # pydantic looks up every reference that it sees, and knows its own only.
    return {"anyOf": [schema, {_PLACEHOLDER: name}]}


class _Generator(GenerateJsonSchema):
    """What a file may have, where pydantic sees only what the validators make of it."""

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        function: Any = schema["function"]["function"]
        inner: Any = schema["schema"]
        name = _NUMBERS.get(function)
        if name and inner["type"] == "int":
            return _or_text(super().int_schema(inner), name)
        made = self.generate_inner(inner)
        if function is to_decimal:
            return {"type": "string", "pattern": r"^[dD][eE][cC]\w+\(.+\)$|" + _VARIABLE}
        if function is to_list:
            return {"anyOf": [{"type": "string"}, made]}
        if function is from_bool:
            return {"anyOf": [{"type": "boolean"}, made]}
        if function == ColumnProtection._from_method_name:
            methods = {"enum": _methods(), "type": "string"}
            return {"anyOf": [methods, {_PLACEHOLDER: VARIABLE}, made]}
        if function is to_none:
            return made
        raise TypeError(f"The JSON schema does not know what {function} accepts.")

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        # TOML has no null.
        return self.generate_inner(schema["schema"])

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_text(super().int_schema(schema), VARIABLE)

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_text(super().float_schema(schema), VARIABLE)

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_text(super().bool_schema(schema), VARIABLE)

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        made = super().literal_schema(schema)
        return _or_text(made, VARIABLE) if "enum" in made else made

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        made = super().str_schema(schema)
        if "pattern" in made:
            made["pattern"] = f"{made['pattern']}|{_VARIABLE}"
        return made


_NUMBERS: Mapping[Callable[..., Any], str] = {to_seconds: DURATION, to_bytes: SIZE}


def _methods() -> list[str]:
    annotation: Any = ColumnProtection.model_fields["method"].annotation
    return list(annotation.__args__)


def keys_of(section: type[BaseModel]) -> list[str]:
    """The keys that a section may have, as a file has them."""
    return [
        field.alias or name for name, field in section.model_fields.items() if not field.exclude
    ]
